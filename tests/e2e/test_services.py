"""DAG runs over REST on the services of docker-compose.yml, which run as processes."""

import itertools
import json
import os
import re
import runpy
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from dag_runs import (
    as_ci,
    assert_same_chunks,
    end_of,
    is_deferred,
    keys_of,
    logs,
    stored,
    trigger,
    workers_of,
)
from sqs_faults import (
    BROKEN,
    FOR_EVER,
    PROXY,
    THROTTLED,
    Fault,
    counters,
    half_of_the_entries_fail,
    leases_end_early,
    lose_messages,
)

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import open_folder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

HERE = Path(__file__).parent
SERVICES = runpy.run_path(str(HERE / "services.py"))
KUBERNETES = runpy.run_path(str(HERE.parent / "operators" / "kubernetes" / "conftest.py"))


@pytest.fixture(scope="module")
def unstarted() -> Iterator[Any]:
    """The services, with proxies in front of bucket and queue that may spoil requests."""
    stack = SERVICES["Stack"]()
    with PROXY["running"](stack.url("s3")) as s3, PROXY["running"](stack.url("sqs")) as sqs:
        stack.proxies = {"s3": s3, "sqs": sqs}
        yield stack


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
        boto3.setup_default_session()  # another stack of this process had other credentials
        yield stack


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
    Worker(run.open_queue(), run.runs_folder, WorkerOptions(until_done=True), lambda _: None).work()
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
def test_a_dag_run_leaves_the_same_chunks_whatever_bucket_and_queue_do_to_it(
    stack: Any, layer: str, embedded: Path
) -> None:
    """Every fault passes. Messages are lost meanwhile, and others are delivered twice.

    The triggerer is killed while it watches, and another goes on.
    """
    s3, sqs = stack.proxies["s3"].faults, stack.proxies["sqs"].faults
    stack.stop_workers()
    place, (source, coarser, _) = layer.removeprefix("s3:/"), keys_of(embedded)

    s3 += [
        Fault("PUT", "/run.json", status=500),
        Fault("GET", "/run.json", cut="answer"),
        Fault("GET", f"{place}/info", status=503, code="SlowDown"),
        Fault("PUT", f"{place}/info", cut="request"),
    ]
    sqs += [
        Fault(part="GetQueueUrl", **BROKEN),
        Fault(part="SendMessageBatch", **THROTTLED, times=2),
        Fault(part="SendMessageBatch", **BROKEN),
        Fault(part="SendMessageBatch", cut="answer"),
        half_of_the_entries_fail(times=2),
    ]
    trigger(stack, "faults", layer=layer, num_mips=2, workers=0)
    stack.wait_for("scheduler", lambda: is_deferred(stack, "faults", "drained"))
    assert_all_struck(s3, sqs)

    stack.restart("triggerer")
    empty = counters(held=0)
    sqs += [empty]
    s3 += [Fault("GET", "%2Fdone", cut="answer")]
    lose_messages(stack.url("sqs"), 12)
    sqs += [Fault(part="SendMessageBatch", again=1, times=2)]
    stack.wait_for("triggerer", lambda: "Messages were lost: sent 32" in logs(stack, "faults"))
    assert empty.times < FOR_EVER
    sqs.remove(empty)
    assert_all_struck(s3, sqs)

    held = counters(held=7)
    for fault in (
        {"status": 500},
        {"status": 503, "code": "SlowDown", "times": 3},
        {"delay": 5, "times": 2},
        {"cut": "answer"},
    ):
        s3 += [Fault("GET", f"{place}/{source}/", **fault)]
        s3 += [Fault("PUT", f"{place}/{coarser}/", **fault), Fault("PUT", "/done/", **fault)]
    s3 += [
        Fault("PUT", f"{place}/{coarser}/", cut="request", times=2),
        Fault("PUT", "/done/", cut="request"),
        Fault("HEAD", "/done/", status=503, code="SlowDown"),
        Fault("PUT", f"{place}/provenance", status=503, code="SlowDown"),
        Fault("PUT", "/summary.json", status=500),
    ]
    sqs += [
        Fault(part="ReceiveMessage", **THROTTLED),
        Fault(part="ReceiveMessage", **BROKEN),
        leases_end_early(5, times=1, cut="answer"),
        leases_end_early(1, times=4),
        Fault(part="DeleteMessageBatch", **THROTTLED),
        Fault(part="DeleteMessageBatch", **BROKEN),
        Fault(part="GetQueueAttributes", **THROTTLED, times=2),
        held,
    ]
    said = len(stack.log("worker"))
    stack.start_workers()
    assert end_of(stack, "faults") == "success", logs(stack, "faults")
    assert held.times < FOR_EVER
    sqs.remove(held)
    assert_all_struck(s3, sqs)
    assert_same_chunks(layer, embedded)
    outcomes = re.findall(r"outcome=(\w+) run=\S*_faults_", stack.log("worker")[said:])
    assert outcomes.count("done") >= 32
    assert "repeated" in outcomes, "delivered twice"


@pytest.mark.services
@pytest.mark.timeout(900)
def test_a_dag_run_without_the_right_to_write_fails_soon_and_goes_on_once_it_is_back(
    stack: Any, layer: str, embedded: Path
) -> None:
    """First the whole layer may not be written to, as is found out at once; then a mip of it."""
    denied = {"status": 403, "code": "AccessDenied", "times": FOR_EVER}
    bucket, local = open_folder(layer), open_folder(f"file://{embedded}")
    place, (_, coarser, coarsest) = layer.removeprefix("s3:/"), keys_of(embedded)
    for part in (f"{place}/", f"{place}/{coarsest}/"):
        fault = Fault("PUT", part, **denied)
        stack.proxies["s3"].faults.append(fault)
        began = time.monotonic()
        code, said = as_ci(stack, "denied", layer=layer, num_mips=2, workers=0)
        assert code == 1, said
        assert "grant these credentials s3:PutObject and s3:PutObjectAcl on bucket igneous" in said
        assert time.monotonic() - began < 120
        assert fault.times < FOR_EVER
        stack.proxies["s3"].faults.remove(fault)
        assert stored(bucket, coarsest) == {}
        assert stored(bucket, coarser).items() <= stored(local, coarser).items(), "whole or not"
    code, said = as_ci(stack, "denied", layer=layer, num_mips=2, workers=0)
    assert code == 0, said
    assert_same_chunks(layer, embedded)


def assert_all_struck(*lists: list[Any]) -> None:
    """Every fault has happened as often as it should; forget them."""
    for faults in lists:
        assert [fault for fault in faults if fault.times] == []
        faults.clear()


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
