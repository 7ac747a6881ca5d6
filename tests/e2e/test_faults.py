"""Runs whose layer, records and queue are on servers that fail one request in fourteen.

Other faults: `IGNEOUS_AIRFLOW_SEED=1000 make e2e`; those of one run again, by its id.
"""

import runpy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pytest
import tenacity
from attempts import BASE, Step
from cloudfiles import interfaces
from kill_cases import Case, downsample_labels, transfer
from sqs_faults import BROKEN, FOR_EVER, PROXY, Fault, refusal
from twins import left, placed

from igneous_airflow.errors import RunFailed, TransientError
from igneous_airflow.queue import sqs_queues
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stages import stage_class
from igneous_airflow.storage.files import SUFFIXES, open_folder
from igneous_airflow.testing.stages import complete
from igneous_airflow.worker.loop import Worker, WorkerOptions

SERVICES = runpy.run_path(str(Path(__file__).with_name("services.py")))
SHARE = 0.07  # of the requests
KINDS: dict[str, dict[str, Any]] = {
    "slow": {"delay": 0.5},
    "cut request": {"cut": "request"},
    "cut answer": {"cut": "answer"},
    "reset": {"cut": "reset"},
}
S3_KINDS = KINDS | {"500": {"status": 500}, "503": {"status": 503, "code": "SlowDown"}}
SQS_KINDS = KINDS | {"500": BROKEN, "503": refusal("ServiceUnavailable", 503)}
OPTIONS = WorkerOptions(
    lease_seconds=5, idle_seconds=0.2, retry_delay=0.1, max_attempts=20, until_done=True
)
MOST_ROUNDS = 10

pytestmark = [
    pytest.mark.services,
    # connections that the servers' clients leave open when they are cut
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class Sometimes(Fault):
    """A fault that strikes a share of the requests, as the dice of a seed say."""

    dice: Random = field(default_factory=Random)
    share: float = 0.0
    struck: int = 0

    def takes(self, method: str, words: str) -> bool:
        strikes = super().takes(method, words) and self.dice.random() < self.share
        self.struck += strikes
        return strikes


def faults(kinds: dict[str, dict[str, Any]], seed: int) -> list[Sometimes]:
    """One fault of each kind, which together strike their share of the requests."""
    dice, share = Random(seed), SHARE / len(kinds)
    return [Sometimes(times=FOR_EVER, dice=dice, share=share, **kind) for kind in kinds.values()]


@pytest.fixture(scope="module")
def stack() -> Iterator[Any]:
    """Bucket and queue behind proxies, with the credentials for them."""
    stack = SERVICES["Stack"]()
    with (
        PROXY["running"](stack.url("s3")) as s3,
        PROXY["running"](stack.url("sqs")) as sqs,
        SERVICES["running"](stack, storage_only=True),
        pytest.MonkeyPatch.context() as patch,
    ):
        stack.proxies = {"s3": s3, "sqs": sqs}
        for name, value in stack.environment("worker").items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        boto3.setup_default_session()  # another stack of this process had other credentials
        boto3.client("s3").create_bucket(Bucket="faults")
        be_quick(patch)
        yield stack


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Leave out the pauses that only Amazon's own servers need."""
    for name in ("_CREATED_SECONDS", "_PURGED_SECONDS", "_LIST_WAIT"):
        patch.setattr(sqs_queues, name, 0)
    for method in vars(interfaces.S3Interface).values():
        if policy := getattr(method, "retry", None):
            patch.setattr(policy, "wait", tenacity.wait_none())


@pytest.fixture
def begin(stack: Any) -> Iterator[Callable[[int], list[Sometimes]]]:
    """Lets the faults of a seed begin."""

    def begin(seed: int) -> list[Sometimes]:
        stack.proxies["s3"].faults += faults(S3_KINDS, seed)
        stack.proxies["sqs"].faults += faults(SQS_KINDS, -seed)
        for proxy in stack.proxies.values():
            proxy.requests.clear()
        return [fault for proxy in stack.proxies.values() for fault in proxy.faults]

    yield begin
    for proxy in stack.proxies.values():
        proxy.faults.clear()


def upload(root: Path, url: str) -> None:
    """Put every file of the layers below a folder into a bucket."""
    here, there = open_folder(f"file://{root}"), open_folder(url)
    for name in plain_names(root):
        stored = here.read(name)
        assert stored is not None
        there.write(name, stored)


def plain_names(root: Path) -> set[str]:
    """The names of files below a folder, without their compressions' suffixes."""
    names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    endings = tuple(SUFFIXES.values())
    return {name.rpartition(".")[0] if name.endswith(endings) else name for name in names}


def download(url: str, names: set[str], root: Path) -> None:
    """Get files of a bucket as they would be on a disk, and see that there are no others."""
    bucket, _, place = url.removeprefix("s3://").partition("/")
    pages = (
        boto3.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=f"{place}/")
    )
    keys = {entry["Key"] for page in pages for entry in page.get("Contents", ())}
    assert {key.removeprefix(f"{place}/") for key in keys} == names
    here, there = open_folder(f"file://{root}"), open_folder(url)
    for name in names:
        stored = there.read(name)
        assert stored is not None
        here.write(name, stored)


def work_through(url: str, queue: str, step: Step) -> Run:
    """Launch a run and bring it to its proof; do again what the faults have ended."""
    stage = stage_class(step[0]).model_validate(step[1])
    for _ in range(MOST_ROUNDS):
        with suppress(TransientError, RunFailed):
            run, _ = Run.launch(stage, url=url, queue=queue, by="tester")
            run.prepare()
            run.resume()
            Worker(run.open_queue(), run.runs_folder, OPTIONS, lambda _: None).work()
            run.finish()
            return run
    raise AssertionError(f"not done in {MOST_ROUNDS} rounds")


@pytest.mark.parametrize("seed", range(BASE, BASE + 3), ids="seed{}".format)
@pytest.mark.parametrize("case", [downsample_labels, transfer], ids=lambda case: case.__name__)
def test_a_run_on_servers_that_fail_now_and_then_leaves_what_one_on_a_disk_leaves(
    case: Case, seed: int, stack: Any, begin: Callable[[int], list[Sometimes]], tmp_path: Path
) -> None:
    twin, back = tmp_path / "twin", tmp_path / "back"
    twin.mkdir()
    (step,) = case(twin)
    name = f"{case.__name__}-{seed}"
    url = f"s3://faults/{name}"
    upload(twin, url)
    complete(stage_class(step[0]).model_validate(step[1]))

    struck = begin(seed)
    queue = f"sqs://igneous-{name}?region=us-east-1&endpoint={stack.url('sqs')}"
    run = work_through(f"s3://faults/runs/{name}", queue, placed([step], twin, url)[0])
    assert all(proxy.faults for proxy in stack.proxies.values())
    requests = [len(proxy.requests) for proxy in stack.proxies.values()]
    count = sum(fault.struck for fault in struck)
    for proxy in stack.proxies.values():
        proxy.faults.clear()
    print(f"seed {seed}: {count} faults in {requests} requests to S3 and SQS")
    assert count > 0
    assert Run.load(run.url).state is LaunchState.DONE
    assert run.done().count == run.planned
    download(url, plain_names(twin), back)
    assert left(back, url) == left(twin, twin)
