"""The stack of docker-compose.yml: checked as a file, and rehearsed with processes."""

import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVICES = runpy.run_path(str(HERE / "services.py"))
KUBERNETES = runpy.run_path(str(HERE.parent / "operators" / "kubernetes" / "conftest.py"))
DAG = "igneous_downsample"
RUNNING = {"postgres", "sqs", "s3", "airflow", "scheduler", "dag-processor", "triggerer", "worker"}


# the file


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


# the rehearsal


@pytest.fixture(scope="module")
def unstarted() -> Any:
    return SERVICES["Stack"]()


@pytest.fixture(scope="module")
def cluster(unstarted: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Kubernetes whose node has the right to use queue and bucket, as pods of a cloud have."""
    folder = tmp_path_factory.mktemp("cluster")
    with KUBERNETES["running"](folder, rights(unstarted)) as cluster:
        unstarted.settings = KUBERNETES["settings_for"](cluster, folder)
        yield cluster


def rights(stack: Any) -> dict[str, str]:
    settings = stack.environment("worker").items()
    return {name: value for name, value in settings if name.startswith("AWS_")}


@pytest.fixture(scope="module")
def stack(unstarted: Any, cluster: Any) -> Iterator[Any]:
    with SERVICES["running"](unstarted) as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in rights(stack).items():
            patch.setenv(name, value)
        yield stack


def stored(folder: Folder, prefix: str) -> dict[str, bytes]:
    """The bytes of every chunk of a mip, as stored."""
    found = {}
    for name in folder.names(prefix):
        file = folder.read(f"{prefix}/{name}")
        assert file is not None
        found[name] = bytes(file.content) + file.compression.encode()
    return found


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of 32 tasks, downsampled on this machine with the embedded queue."""
    path = tmp_path_factory.mktemp("embedded")
    voxels = random_voxels(Vec3(128, 128, 32), "uint16")
    write_layer(path / "layer", voxels, LayerSpec("segmentation", chunk_size=Vec3(8, 8, 16)))
    run, _ = Run.launch(
        Downsample(layer=str(path / "layer"), num_mips=2),
        url=f"file://{path}/run",
        queue=f"sqlite://{path}/run/queue.db",
        by="test",
    )
    run.prepare()
    run.enqueue()
    Worker(run.open_queue(), WorkerOptions(until_done=True), lambda _: None).work()
    run.finish()
    return path / "layer"


numbers = itertools.count()


@pytest.fixture
def layer(stack: Any, embedded: Path) -> str:
    """The same layer in the bucket, with mip 0 only."""
    url = f"s3://igneous/layers/{next(numbers)}"
    bucket, local = open_folder(url), open_folder(f"file://{embedded}")
    info = json.loads(bytes(local.read("info").content))
    info["scales"] = info["scales"][:1]
    client = boto3.client("s3")
    key = info["scales"][0]["key"]
    place = url.removeprefix("s3://igneous/")
    client.put_object(Bucket="igneous", Key=f"{place}/info", Body=json.dumps(info).encode())
    for name in local.names(key):
        bucket.write(f"{key}/{name}", local.read(f"{key}/{name}"))
    return url


def trigger(stack: Any, run: str, **conf: Any) -> None:
    stack.wait_for("dag-processor", lambda: stack.has_dag(DAG))
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    stack.call("POST", f"/api/v2/dags/{DAG}/dagRuns", body)


def end_of(stack: Any, run: str) -> str:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        state = stack.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run}")["state"]
        if state in ("success", "failed"):
            return str(state)
        time.sleep(1)
    return "undecided"


def logs(stack: Any, run: str) -> str:
    """The logs of all tasks of a run."""
    text = ""
    tasks = stack.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances")
    for task in tasks["task_instances"]:
        path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/{task['task_id']}"
        for attempt in range(1, task["try_number"] + 1):
            text += f"\n== {task['task_id']} {task['state']}\n"
            path_of_log = f"{path}/logs/{attempt}?map_index={task['map_index']}"
            text += stack.call("GET", path_of_log, accept="x-ndjson")
    return text


def assert_same_chunks(url: str, embedded: Path) -> None:
    bucket, local = open_folder(url), open_folder(f"file://{embedded}")
    keys = [scale["key"] for scale in json.loads(bytes(local.read("info").content))["scales"]]
    assert len(keys) == 3
    for key in keys:
        expected = stored(local, key)
        assert len(expected) >= 4
        assert stored(bucket, key) == expected


def workers_of(run: str) -> set[str]:
    """Who wrote the receipts of a run."""
    runs = open_folder("s3://igneous/runs")
    found = set()
    for page in (
        boto3.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket="igneous", Prefix="runs/")
    ):
        for entry in page.get("Contents", []):
            if f"_{run}_" in entry["Key"] and "/done/" in entry["Key"]:
                file = runs.read(entry["Key"].removeprefix("runs/"))
                found.add(json.loads(bytes(file.content))["worker"].rpartition(":")[2])
    return found


@pytest.mark.services
@pytest.mark.timeout(900)
def test_a_dag_run_with_workers_elsewhere_leaves_verified_chunks_in_the_bucket(
    stack: Any, layer: str, embedded: Path
) -> None:
    """One of the workers is killed in the middle of it."""
    trigger(stack, "elsewhere", layer=layer, num_mips=2, workers=0)
    stack.wait_for("worker", lambda: "outcome=done" in stack.log("worker"))
    victim = max(stack.processes("worker"))  # the last that was started
    os.kill(victim, signal.SIGKILL)
    assert end_of(stack, "elsewhere") == "success", logs(stack, "elsewhere")
    assert f"worker process {victim} was killed by SIGKILL" in stack.log("worker")
    assert_same_chunks(layer, embedded)
    local = {str(process) for process in stack.processes("worker")} | {str(victim)}
    assert workers_of("elsewhere") <= local
    said = logs(stack, "elsewhere")
    assert "costs " in said
    for secret in stack.secrets.values():
        assert len(secret) < 8 or secret not in said


@pytest.mark.services
@pytest.mark.timeout(900)
def test_a_dag_run_may_have_a_queue_of_its_own_which_is_removed(
    stack: Any, layer: str, embedded: Path
) -> None:
    trigger(stack, "own-queue", layer=layer, num_mips=2, workers=1, queue="sqs")
    assert end_of(stack, "own-queue") == "success", logs(stack, "own-queue")
    assert_same_chunks(layer, embedded)
    client = boto3.client("sqs", endpoint_url=stack.url("sqs"))
    names = {url.rpartition("/")[2] for url in client.list_queues()["QueueUrls"]}
    assert names == {"igneous", "igneous-dead"}


@pytest.mark.services
@pytest.mark.timeout(900)
def test_a_dag_run_by_pods_leaves_the_same_chunks_though_one_is_killed(
    stack: Any, cluster: Any, layer: str, embedded: Path
) -> None:
    asked = {"layer": layer, "num_mips": 2, "workers": 2, "run_on": "kubernetes", "queue": "sqs"}
    trigger(stack, "pods", **asked, lease_seconds=15)
    first = KUBERNETES["wait_until"](lambda: cluster.pods("Running"), 240)[0]
    KUBERNETES["wait_until"](lambda: workers_of("pods"))  # somebody has done a task
    cluster.kubelet.kill(first)
    for other in cluster.pods("Running"):
        if other["metadata"]["uid"] != first["metadata"]["uid"]:
            cluster.evict(other)
    assert end_of(stack, "pods") == "success", logs(stack, "pods")
    assert_same_chunks(layer, embedded)
    cluster.wait_until_empty()
    assert len(cluster.pods_started()) >= 3
    assert "outcome=done" in logs(stack, "pods"), "the log of a pod is in that of its task"


@pytest.mark.services
@pytest.mark.timeout(900)
def test_servers_listen_on_this_machine_only(stack: Any) -> None:
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                sockets[f"socket:[{words[9]}]"] = words[1].rpartition(":")[0]
    found = set()
    for process in stack.processes():
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            try:
                found.add(sockets.get(str(descriptor.readlink()), ""))
            except OSError:  # it has ended
                continue
    here = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert found - {""} <= here
