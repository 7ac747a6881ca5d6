"""Local workers: real processes, started as the operator starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from igneous_airflow.operators.workers import LocalWorkers
from igneous_airflow.progress import State
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
CONTEXT = {"params": {"workers": 1}}


@pytest.fixture
def launch(make_layer: Make, tmp_path: Path) -> Callable[[], Run]:
    """Launch a run of four tasks, with its messages in the queue."""

    def make() -> Run:
        layer = make_layer()
        url = f"file://{tmp_path}/runs/run"
        queue = f"sqlite://{tmp_path}/runs/run/queue.db"
        stage = Downsample(layer=str(layer), num_mips=1)
        run, _ = Run.launch(stage, url=url, queue=queue, by="me")
        run.prepare()
        assert run.enqueue() == 4
        return run

    return make


def workers(run: Run) -> LocalWorkers:
    return LocalWorkers(task_id="workers", run_url=run.url)


def processes_of(run: Run) -> list[int]:
    """Process ids of the worker commands of a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"\0worker\0" in command and run.queue.encode() in command:
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_log_tells_the_progress_and_every_task(
    launch: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launch()
    workers(run).execute(CONTEXT)
    assert run.progress().state is State.DONE
    log = capsys.readouterr().out
    assert "0.0 % done: 0 of 4 tasks" in log
    assert "100.0 % done: 4 of 4 tasks" in log
    assert len(re.findall(r"outcome=done .* cell=\d+-\d+_\d+-\d+_0-64 ", log)) == 4


def test_tasks_that_were_given_up_are_named_and_only_they_are_done_again(
    launch: Make, make_layer: Make
) -> None:
    run = launch()
    layer = Path(run.resolved["layer"].removeprefix("file://"))
    chunk = layer / "4_4_40" / "0-64_64-128_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(AirflowFailException) as caught:
        workers(run).execute(CONTEXT)
    assert "1 of 4 tasks" in str(caught.value)
    assert "task 0, attempt 1: MissingChunk" in str(caught.value)
    assert "0-64_64-128_0-64" in str(caught.value)
    receipts = {path: path.stat().st_mtime_ns for path in _receipts(run)}

    chunk.write_bytes(content)
    workers(run).execute(CONTEXT)
    assert run.progress().state is State.DONE
    assert receipts.items() <= {p: p.stat().st_mtime_ns for p in _receipts(run)}.items()


def _receipts(run: Run) -> list[Path]:
    return list(Path(run.url.removeprefix("file://"), "done").iterdir())


def test_a_run_that_is_done_needs_no_workers(
    launch: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launch()
    workers(run).execute(CONTEXT)
    capsys.readouterr()
    workers(run).execute(CONTEXT)
    assert "ended" not in capsys.readouterr().out


def test_lost_messages_are_sent_again_before_and_after_the_work(launch: Make) -> None:
    run = launch()
    run.open_queue().purge()

    class LosingWorkers(LocalWorkers):
        lost = 0

        def _work(self, *args: Any) -> None:
            if not self.lost:
                self.lost = run.progress().waiting
                run.open_queue().purge()
                return
            super()._work(*args)

    losing = LosingWorkers(task_id="workers", run_url=run.url)
    losing.execute(CONTEXT)
    assert losing.lost == 4
    assert run.progress().state is State.DONE


def test_messages_that_are_lost_again_and_again_fail_the_task_with_a_retry(launch: Make) -> None:
    run = launch()

    class LosingWorkers(LocalWorkers):
        def _work(self, *args: Any) -> None:
            run.open_queue().purge()

    with pytest.raises(AirflowException, match="their messages are gone") as caught:
        LosingWorkers(task_id="workers", run_url=run.url).execute(CONTEXT)
    assert not isinstance(caught.value, AirflowFailException)


def test_workers_that_cannot_start_fail_the_task_with_a_retry(
    launch: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launch()
    monkeypatch.setattr(
        "igneous_airflow.operators.workers._command",
        lambda *_: [sys.executable, "-c", "raise SystemExit('there is no memory')"],
    )
    with pytest.raises(AirflowException, match="no worker has come yet") as caught:
        workers(run).execute(CONTEXT)
    assert not isinstance(caught.value, AirflowFailException)
    assert "there is no memory" in capsys.readouterr().out


def test_marking_the_task_as_failed_stops_the_processes(launch: Make) -> None:
    run = launch()
    lease = run.open_queue().lease(600)  # the workers wait for it when all else is done
    operator = workers(run)
    errors: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(CONTEXT)
        except AirflowException as error:
            errors.append(error)

    thread = Thread(target=execute)
    thread.start()
    wait_until(lambda: run.progress().done == 3)
    started = time.monotonic()
    operator.on_kill()
    assert time.monotonic() - started < 5, "Airflow kills the task itself after 5 seconds"
    assert processes_of(run) == []
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert "1 of 4 tasks" in str(errors[0])
    assert lease is not None


def test_workers_that_were_stopped_are_not_started_again(launch: Make) -> None:
    run = launch()
    rounds = []

    class StoppedWorkers(LocalWorkers):
        def _work(self, *args: Any) -> None:
            rounds.append(args)
            self.on_kill()
            run.open_queue().purge()

    with pytest.raises(AirflowException, match="4 of 4 tasks"):
        StoppedWorkers(task_id="workers", run_url=run.url).execute(CONTEXT)
    assert len(rounds) == 1


def test_a_stop_that_comes_while_the_workers_start_is_heeded(launch: Make) -> None:
    run = launch()
    operator = workers(run)
    operator.on_kill()
    with pytest.raises(AirflowException, match="4 of 4 tasks"):
        operator.execute(CONTEXT)
    assert processes_of(run) == []


def test_after_the_work_there_is_nothing_to_stop(launch: Make) -> None:
    run = launch()
    operator = workers(run)
    operator.execute(CONTEXT)
    operator.on_kill()


def test_the_processes_end_when_the_task_is_killed_and_a_retry_does_the_rest(
    launch: Make,
) -> None:
    run = launch()
    queue = run.open_queue()
    lease = queue.lease(600)
    assert lease is not None
    script = (
        "from igneous_airflow.operators.workers import LocalWorkers\n"
        f"LocalWorkers(task_id='workers', run_url={run.url!r}).execute({CONTEXT!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as task:
        wait_until(lambda: run.progress().done == 3, seconds=60)
        assert processes_of(run)
        os.kill(task.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(run))
    queue.release(lease)
    workers(run).execute(CONTEXT)
    assert run.progress().state is State.DONE
