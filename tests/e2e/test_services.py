"""DAG runs over REST on the services of docker-compose.yml, which run as processes."""

import itertools
import json
import os
import runpy
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

HERE = Path(__file__).parent
SERVICES = runpy.run_path(str(HERE / "services.py"))
KUBERNETES = runpy.run_path(str(HERE.parent / "operators" / "kubernetes" / "conftest.py"))
DAG = "igneous_downsample"


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
