"""Runs on SQS: judged by receipts, whatever the queue says."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from igneous_airflow.progress import State
from igneous_airflow.proof import Account
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.testing.queues import take
from igneous_airflow.worker.loop import Worker, WorkerOptions


class Idle(Stage):
    """Does nothing, many times."""

    name: ClassVar[str] = "idle"
    count: int

    def plan(self) -> Plan:
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        pass

    def cells(self) -> Sequence[int]:
        return range(self.count)

    def run(self, cell: int) -> Work:
        return Work()

    def finish(self, by: str, account: Account | None = None) -> Audit:
        return Audit(outputs={})


@pytest.fixture
def launch(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], SqsQueue]], Run]:
    """Launches a run of 20 tasks whose queue objects a function makes."""
    monkeypatch.setattr("igneous_airflow.stages.registered_stages", lambda: {"idle": Idle})

    def launch(make: Callable[[], SqsQueue]) -> Run:
        monkeypatch.setattr("igneous_airflow.run.open_queue", lambda _url: make())
        run, _ = Run.launch(Idle(count=20), url=f"file://{tmp_path}/run", queue=url, by="test")
        run.enqueue()
        return run

    return launch


def work(url: str, runs: Path) -> Counter[str]:
    """Work until the queue is drained and count the outcomes."""
    outcomes: Counter[str] = Counter()

    def report(event: Any) -> None:
        if hasattr(event, "outcome"):
            outcomes[event.outcome] += 1

    queue = open_queue(url)
    options = WorkerOptions(idle_seconds=0, until_done=True)
    Worker(queue, f"file://{runs}", options, report).work()
    queue.close()
    return outcomes


def test_messages_that_sqs_loses_are_found_missing_and_sent_again(
    url: str, make_queue: Callable[..., SqsQueue], launch: Callable[..., Run], tmp_path: Path
) -> None:
    lost: list[dict[str, Any]] = []

    def lose(params: dict[str, Any], **_: Any) -> None:
        if len(lost) < 2:
            lost.append(params["Entries"].pop())

    def claim(parsed: dict[str, Any], **_: Any) -> None:
        parsed.setdefault("Successful", []).append({"Id": "9"})

    run = launch(
        lambda: make_queue(
            ("before-parameter-build.sqs.SendMessageBatch", lose),
            ("after-call.sqs.SendMessageBatch", claim),
        )
    )
    assert work(url, tmp_path) == {"done": 18}
    assert run.progress().state is State.STALLED
    assert run.resume() == 2
    assert work(url, tmp_path) == {"done": 2}
    assert run.progress().state is State.DONE
    open_queue(url).delete()


def test_counters_that_lie_for_a_while_end_no_run_and_cost_only_repeats(
    url: str, make_queue: Callable[..., SqsQueue], launch: Callable[..., Run], tmp_path: Path
) -> None:
    lies = True

    def lie(parsed: dict[str, Any], **_: Any) -> None:
        for name in parsed.get("Attributes", {}) if lies else ():
            if name.startswith("Approximate"):
                parsed["Attributes"][name] = "0"

    run = launch(lambda: make_queue(("after-call.sqs.GetQueueAttributes", lie)))
    progress = run.progress()
    assert progress.state is State.STALLED, "not done: receipts are missing"
    assert run.resume() == 20, "sent a second time, beside those that were not counted"
    lies = False
    assert run.progress().state is State.WAITING
    assert work(url, tmp_path) == {"done": 20, "repeated": 20}
    assert run.progress().state is State.DONE
    open_queue(url).delete()


def test_tasks_that_were_given_back_often_are_not_given_up(
    url: str, make_queue: Callable[..., SqsQueue], launch: Callable[..., Run], tmp_path: Path
) -> None:
    """SQS counts every receipt, also that of a worker whose machine was taken away."""
    run = launch(make_queue)
    queue = open_queue(url)
    for _ in range(30):
        worker = Worker(queue, run.runs_folder, WorkerOptions(max_attempts=2), lambda _: None)
        worker.stop()
        worker._take(take(queue))
    queue.close()
    assert work(url, tmp_path) == {"done": 20}
    assert run.progress().state is State.DONE
    open_queue(url).delete()


def test_a_worker_refuses_a_queue_that_nobody_made_if_it_shall_end_when_all_is_done(
    url: str,
) -> None:
    command = [sys.executable, "-m", "igneous_airflow", "worker", url, "--until-done"]
    command += ["--runs", "s3://bucket/runs"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert f"there is no queue {url}: nobody has made it" in answer.stderr
