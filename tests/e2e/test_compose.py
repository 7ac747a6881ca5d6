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


def test_only_airflow_can_be_reached_and_from_this_machine_alone(
    described: dict[str, Any],
) -> None:
    ports = {name: service.get("ports", ()) for name, service in described["services"].items()}
    ((port,),) = filter(None, ports.values())
    assert port in ports["airflow"]
    assert port.startswith("127.0.0.1:")
    for service in described["services"].values():
        assert not {"network_mode", "expose", "external_links"} & service.keys()


def members(described: dict[str, Any]) -> dict[str, set[str]]:
    """The services of each network; without saying so, a service would be in the open one."""
    networks: dict[str, set[str]] = {name: set() for name in described["networks"]}
    for name, service in described["services"].items():
        for network in service["networks"]:
            networks[network].add(name)
    return networks


def test_queue_bucket_and_database_are_in_networks_without_a_way_out(
    described: dict[str, Any],
) -> None:
    networks = described["networks"]
    closed = {name for name, options in networks.items() if (options or {}).get("internal")}
    assert not any((options or {}).get("external") for options in networks.values())
    for name in ("sqs", "s3", "postgres"):
        assert set(described["services"][name]["networks"]) <= closed, name
    assert set(networks) - closed == {"outside"}
    assert members(described)["outside"] == {"airflow"}


def test_only_services_that_need_them_reach_queue_bucket_and_database(
    described: dict[str, Any],
) -> None:
    networks = members(described)
    assert networks["queue"] == {"sqs", "scheduler", "triggerer", "worker"}
    assert networks["bucket"] == {"s3", "setup", "airflow", "scheduler", "triggerer", "worker"}
    others = {"setup", "airflow", "scheduler", "triggerer", "dag-processor"}
    assert networks["database"] == {"postgres", *others}


def test_the_bucket_asks_for_credentials_that_are_made_for_it(described: dict[str, Any]) -> None:
    services = described["services"]
    bucket = services["s3"]["environment"]
    secret = bucket["ROOT_SECRET_KEY"]
    assert len(secret) >= 32
    assert not any("ANON" in name or "PUBLIC" in name for name in bucket)
    for name in ("worker", "scheduler", "airflow"):
        assert services[name]["environment"]["AWS_SECRET_ACCESS_KEY"] == secret


def test_runs_may_use_the_bucket_alone_wherever_they_work(described: dict[str, Any]) -> None:
    services = described["services"]
    for name in ("airflow", "scheduler", "triggerer", "dag-processor"):
        assert services[name]["environment"]["AIRFLOW__IGNEOUS__ALLOWED"] == "s3://igneous"
    assert services["worker"]["environment"]["IGNEOUS_AIRFLOW_ALLOWED"] == "s3://igneous"
    assert "IGNEOUS_AIRFLOW_ALLOWED" not in services["scheduler"]["environment"]


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
