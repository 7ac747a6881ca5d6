"""The file docker-compose.yml; what it starts is rehearsed in `test_services.py`."""

import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVICES = runpy.run_path(str(HERE / "services.py"))
RUNNING = {"postgres", "sqs", "s3", "airflow", "scheduler", "dag-processor", "triggerer", "worker"}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    parsed: dict[str, Any] = SERVICES["compose"](SERVICES["new_secrets"]())
    return parsed


def test_every_service_that_goes_on_has_a_health_check(described: dict[str, Any]) -> None:
    services = described["services"]
    assert set(services) == RUNNING | {"setup"}
    for name in RUNNING - {"worker"}:  # whose image has its own
        assert services[name]["healthcheck"]["test"], name


def test_ports_are_open_on_this_machine_only(described: dict[str, Any]) -> None:
    ports = [
        port for service in described["services"].values() for port in service.get("ports", ())
    ]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_data_is_in_named_volumes(described: dict[str, Any]) -> None:
    used = {
        volume.partition(":")[0]
        for service in described["services"].values()
        for volume in service.get("volumes", ())
    }
    assert used == set(described["volumes"]) == {"database", "layers", "logs"}


def test_images_are_pinned(described: dict[str, Any]) -> None:
    for name in ("postgres", "sqs", "s3"):
        assert re.search(r":v?\d", described["services"][name]["image"]), name


def test_there_is_no_default_for_any_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    names = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert {"AIRFLOW_ADMIN_PASSWORD", "POSTGRES_PASSWORD", "S3_SECRET_KEY"} <= names
    for name in names:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert set(uses) == {":?run make env"}, name
    assert set(re.findall(r"\$\{(\w+):\?", text)) == names


def test_settings_of_several_lines_are_what_airflow_reads(described: dict[str, Any]) -> None:
    settings = described["services"]["scheduler"]["environment"]
    connection = json.loads(settings["AIRFLOW_CONN_AWS_DEFAULT"])
    assert connection["extra"]["service_config"]["sqs"]["endpoint_url"] == "http://sqs:9324"
    (bundle,) = json.loads(settings["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert bundle["kwargs"]["path"] == "/opt/igneous/dags"


def compose_command() -> list[str] | None:
    """Docker's compose, or the program of it that install_services.sh has fetched."""
    fetched = SERVICES["PROGRAMS"] / "docker-compose"
    if fetched.exists():
        return [str(fetched)]
    docker = ["docker", "compose"]
    if not shutil.which("docker"):
        return None
    asked = subprocess.run([*docker, "version"], check=False, capture_output=True)
    return docker if asked.returncode == 0 else None


@pytest.mark.services
def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    program = compose_command()
    if program is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("there is no docker compose")
    command = [*program, "--file", str(ROOT / "docker-compose.yml")]
    bare = {
        name: value for name, value in os.environ.items() if name not in SERVICES["new_secrets"]()
    }
    env_file = tmp_path / "env"
    env_file.write_text("")
    refused = subprocess.run(
        [*command, "--env-file", str(env_file), "config", "--quiet"],
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "run make env" in refused.stderr
    env_file.write_text("".join(f"{k}={v}\n" for k, v in SERVICES["new_secrets"]().items()))
    accepted = subprocess.run(
        [*command, "--env-file", str(env_file), "config"],
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert accepted.returncode == 0, accepted.stderr
    services = yaml.safe_load(accepted.stdout)["services"]
    assert services["airflow"]["environment"]["AIRFLOW__IGNEOUS__QUEUE"] == "sqs://igneous"


def test_make_env_writes_secrets_once_and_for_the_owner_only(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path)
    for _ in range(2):
        subprocess.run(["make", "env"], cwd=tmp_path, check=True, capture_output=True)
    env = tmp_path / ".env"
    first = env.read_text()
    assert env.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in first.splitlines() if line and line[0] != "#")
    assert set(values) == set(SERVICES["new_secrets"]())
    assert all(values.values())
    assert len(set(values.values())) == len(values)
    subprocess.run(["make", "env"], cwd=tmp_path, check=True, capture_output=True)
    assert env.read_text() == first
