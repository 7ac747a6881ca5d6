import os
import time
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.cli import runs
from igneous_airflow.cli.addresses import embedded_queue, folder_url
from igneous_airflow.errors import CorruptChunk, StorageUnavailable, TransientError
from igneous_airflow.progress import Progress
from igneous_airflow.queue.protocol import Lease
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.worker.assignments import Assignment, Assignments
from igneous_airflow.worker.loop import WorkerOptions, fail


@pytest.fixture
def run(layer: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of 4 tasks, in the queue."""
    monkeypatch.setattr(runs, "_SAMPLE_SECONDS", 0)
    url = f"file://{state}/run-1"
    stage = Downsample(layer=str(layer), num_mips=1)
    run, _ = Run.launch(stage, url=url, queue=f"sqlite://{state}/q.db", by="somebody")
    run.prepare()
    run.enqueue()
    return run


def receive(run: Run, *tasks: int) -> None:
    for task in tasks:
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=0, worker="here:1"))


def assigned(run: Run, lease: Lease | None) -> Assignment:
    assert lease is not None
    return Assignments(run.runs_folder).of(lease.body)


def test_status_of_a_run_that_is_worked_on(cli, run: Run, state: Path):
    receive(run, 0)
    queue = run.open_queue()
    queue.done(queue.lease(60))
    queue.lease(60)
    run.ledger.note_worker("here:1", 1)
    answer = cli("status", "run-1")
    assert answer.code == 0
    assert [line.split(maxsplit=1) for line in answer.out.splitlines()] == [
        ["run", "run-1 (downsample)"],
        ["state", "working"],
        ["planned", "4"],
        ["done", "1"],
        ["failed", "0 given up, 0 failed attempts"],
        ["waiting", "2, and 1 held by workers"],
        ["workers", "1 seen in the last 45 seconds"],
        ["progress", "25.0 % done: 1 of 4 tasks"],
        [
            "next",
            "wait; or, if the workers were killed just now, go on: igneous-airflow resume "
            f"{state}/run-1",
        ],
    ]


def test_status_of_a_run_that_nobody_has_begun(cli, run: Run, state: Path):
    answer = cli("status", "run-1")
    assert "state    waiting" in answer.out
    assert "waiting  4, and 0 held by workers" in answer.out
    assert (
        f"start one: igneous-airflow worker {run.queue} --runs {state} --until-done" in answer.out
    )


def test_addresses_in_commands_are_words_of_the_shell(cli, run: Run, state: Path):
    queue = "sqs://tasks?region=us-east-1&endpoint=http://127.0.0.1:1"
    moved = run.model_copy(update={"queue": queue})
    step = runs._next_step(moved, Progress(planned=4, done=0, waiting=4, exact=False), "waiting")
    assert f"igneous-airflow worker '{queue}' --runs {state} --until-done" in step
    words = runs._waiting(Progress(planned=4, done=0, waiting=4, exact=False))
    assert "lag behind by up to a minute" in words


def test_status_of_a_run_that_was_cancelled(cli, run: Run, state: Path):
    receive(run, 0)
    run.cancel("operator@example.org", "wrong layer")
    answer = cli("status", "run-1")
    assert "state    cancelled by operator@example.org at 20" in answer.out
    assert (
        f"next     it stays as it is; to go on: igneous-airflow resume {state}/run-1" in answer.out
    )


def test_status_of_a_run_whose_workers_were_stopped(cli, run: Run, state: Path):
    queue = run.open_queue()
    receive(run, 0)
    queue.done(queue.lease(60))
    queue.release(queue.lease(60))
    answer = cli("status", "run-1")
    assert "state    interrupted" in answer.out
    assert "waiting  3, and 0 held by workers" in answer.out
    assert f"go on: igneous-airflow resume {state}/run-1" in answer.out


def test_status_of_a_run_whose_workers_were_killed(cli, run: Run):
    run.open_queue().lease(0.01)
    time.sleep(0.02)
    answer = cli("status", "run-1")
    assert "state    interrupted" in answer.out
    assert "1 were held by workers that fell silent" in answer.out
    assert "workers  0 seen" in answer.out


def test_status_of_a_run_all_of_whose_tasks_wait_for_another_attempt(cli, run: Run):
    queue = run.open_queue()
    while (lease := queue.lease(60)) is not None:
        fail(queue, lease, assigned(run, lease), StorageUnavailable("later"), WorkerOptions())
    answer = cli("status", "run-1")
    assert "state    waiting" in answer.out
    assert "waiting  4, and 0 held by workers; 4 failed before and wait for" in answer.out
    assert "next     wait for the next attempts" in answer.out


def test_status_of_workers_that_are_between_two_tasks(
    cli, run: Run, monkeypatch: pytest.MonkeyPatch
):
    receive(run, 0)
    monkeypatch.setattr(runs.time, "sleep", lambda _: receive(run, 1))
    assert "state    working" in cli("status", "run-1").out


def test_status_counts_nothing_of_others_in_a_shared_queue_as_failed(cli, run: Run):
    shared = run.model_copy(update={"own_queue": False})
    shared._recorded(Run.load(run.url))
    shared.enqueue()
    queue = run.open_queue()
    queue.send(["nonsense of somebody else"])
    while (lease := queue.lease(60)) is not None:
        if "nonsense" in lease.body:
            queue.bury(lease, "nonsense")
    answer = cli("status", "run-1")
    assert "failed   0 given up" in answer.out
    assert "those of other runs in this queue included" in answer.out


def test_status_shows_rate_and_time_left(cli, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs.time, "sleep", lambda _: receive(run, 0, 1))
    assert "tasks a second, about " in cli("status", "run-1").out


def test_status_of_a_run_whose_messages_were_lost(cli, run: Run):
    run.open_queue().purge()
    answer = cli("status", "run-1")
    assert "state    stalled" in answer.out
    assert "send them again: igneous-airflow resume" in answer.out


def test_status_of_a_run_with_tasks_given_up_names_their_errors(cli, run: Run):
    queue = run.open_queue()
    while (lease := queue.lease(60)) is not None:
        task = assigned(run, lease)
        error = CorruptChunk(f"chunk {task.index} is broken\nin two lines")
        fail(queue, lease, task, error, WorkerOptions())
    answer = cli("status", "run-1")
    assert answer.code == 0
    assert "state    failed" in answer.out
    assert "failed   4 given up, 4 failed attempts" in answer.out
    assert "task 3, attempt 1: CorruptChunk: chunk 3 is broken" in answer.out
    assert "fix the cause, then try again what was given up: igneous-airflow resume" in answer.out


def test_status_of_done_and_finished_runs(cli, run: Run):
    assert cli("worker", run.queue, "--until-done").code == 0
    answer = cli("status", "run-1")
    assert "state    done" in answer.out
    assert "prove it and record it: igneous-airflow finish" in answer.out
    assert cli("finish", "run-1").code == 0
    answer = cli("status", "run-1")
    assert "next" not in answer.out
    assert "state    finished" in answer.out
    assert "progress 100.0 % done: 4 of 4 tasks" in answer.out


@pytest.mark.parametrize("way", ["name", "path", "relative", "url", "slash"])
def test_a_run_is_found_by_name_path_and_url(
    cli, run: Run, state: Path, way: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(state)
    text = {
        "name": "run-1",
        "path": str(state / "run-1"),
        "relative": "./run-1",
        "url": run.url,
        "slash": f"{run.url}/",
    }[way]
    assert "planned  4" in cli("status", text).out


@pytest.mark.parametrize("command", ["status", "resume", "finish"])
@pytest.mark.parametrize("name", ["no-such-run", "../../etc", "a" * 300, "a\nb", "%s", "~nobody"])
def test_a_run_that_is_not_there_exits_1(cli, state: Path, command: str, name: str):
    answer = cli(command, name)
    assert answer.code == 1
    assert answer.err.startswith("Error: ")


def test_an_empty_name_of_a_run_is_refused(cli, state: Path):
    assert cli("status", "").code == 1


def test_a_record_that_is_broken_exits_1(cli, state: Path):
    (state / "run-2").mkdir(parents=True)
    (state / "run-2" / "run.json").write_text("{")
    answer = cli("status", "run-2")
    assert answer.code == 1
    assert "is damaged" in answer.err


def test_resuming_sends_again_what_was_lost_and_finishes(cli, run: Run, state: Path, layer: Path):
    run.open_queue().purge()
    answer = cli("resume", "run-1", "--processes", "1")
    assert answer.code == 0, answer.err
    assert "all 4 tasks are done and 4 chunks were found" in answer.out
    assert not (state / "q.db").exists()
    written = {p: p.stat().st_mtime_ns for p in layer.rglob("*")}
    again = cli("resume", "run-1")
    assert again.code == 0
    assert "all 4 tasks are done and 4 chunks were found" in again.out
    assert {p: p.stat().st_mtime_ns for p in layer.rglob("*")} == written


def test_output_that_is_missing_at_the_end_exits_1(cli, run: Run, layer: Path):
    assert cli("worker", run.queue, "--until-done").code == 0
    next((layer / "16_16_40").iterdir()).unlink()
    answer = cli("finish", "run-1")
    assert answer.code == 1
    assert "1 file missing" in answer.err
    assert "16_16_40/" in answer.err


def test_output_that_is_missing_is_made_again_by_resuming(cli, run: Run, layer: Path):
    assert cli("worker", run.queue, "--until-done").code == 0
    chunk = next((layer / "16_16_40").iterdir())
    content = chunk.read_bytes()
    chunk.unlink()
    assert "1 of 4" in cli("finish", "run-1").err
    answer = cli("resume", "run-1", "--processes", "1")
    assert answer.code == 0, answer.err
    assert chunk.read_bytes() == content


def test_missing_tasks_can_be_sent_only(cli, run: Run):
    run.open_queue().purge()
    receive(run, 2)
    answer = cli("resume", "run-1", "--send-only")
    assert (answer.code, answer.out) == (0, f"sent 3 tasks to {run.queue}\n")
    assert (run.progress().waiting, run.progress().done) == (3, 1)
    assert cli("resume", "run-1", "--send-only").out.startswith("sent 0 tasks")


def test_messages_lost_on_the_way_are_sent_again_by_themselves(
    cli, run: Run, monkeypatch: pytest.MonkeyPatch
):
    work, rounds = runs._work, []

    def losing(run: Run, processes: int, killed_by: Any, *, sync: bool) -> int:
        rounds.append(processes)
        if len(rounds) < 3:
            run.open_queue().purge()
        return work(run, processes, killed_by, sync=sync)

    monkeypatch.setattr(runs, "_work", losing)
    answer = cli("resume", "run-1", "--processes", "1")
    assert (answer.code, len(rounds)) == (0, 3), answer.err


def test_messages_that_are_lost_again_and_again_end_in_an_error(
    cli, run: Run, monkeypatch: pytest.MonkeyPatch
):
    def losing(run: Run, processes: int, killed_by: Any, *, sync: bool) -> int:
        run.open_queue().purge()
        return 0

    monkeypatch.setattr(runs, "_work", losing)
    answer = cli("resume", "run-1")
    assert answer.code == 1
    assert "their messages are gone from the queue" in answer.err


def test_the_queue_of_a_run_is_beside_its_record_or_at_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert embedded_queue("file:///data/runs/r-1") == "sqlite:///data/runs/r-1/queue.db"
    assert embedded_queue("gs://bucket/runs/r-1") == (
        "sqlite:///home/somebody/.igneous_airflow/queues/r-1.db"
    )


def test_a_folder_is_a_path_or_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert folder_url("gs://bucket/x/") == "gs://bucket/x"
    assert folder_url("/data/x") == "file:///data/x"
    assert folder_url("data/x") == f"file://{os.getcwd()}/data/x"  # noqa: PTH109
    assert folder_url("~/x") == "file:///home/somebody/x"


def test_redrive_sends_the_dead_letters_of_a_run_and_nothing_else(cli, run: Run):
    queue = run.open_queue()
    for _ in range(2):
        lease = queue.lease(60)
        fail(queue, lease, assigned(run, lease), CorruptChunk("broken"), WorkerOptions())
    queue.send(["not a task"])
    held = queue.lease(60)
    assert held is not None
    answer = cli("redrive", "run-1")
    assert answer.code == 0
    assert answer.out.startswith(f"2 tasks are back in {run.queue}.\n")
    assert run.progress().waiting + run.progress().leased == 5
    assert run.progress().dead == 0
    assert run.ledger.failed_attempts() == 0
    assert cli("redrive", "run-1").out == "No task of run-1 is among the dead letters.\n"


def test_redrive_without_dead_letters_forgets_no_failure(cli, run: Run):
    queue = run.open_queue()
    lease = queue.lease(60)
    fail(queue, lease, assigned(run, lease), TransientError("later"), WorkerOptions())
    assert "No task" in cli("redrive", "run-1").out
    assert run.ledger.failed_attempts() == 1


def test_redrive_of_a_finished_run_makes_no_queue(cli, run: Run):
    assert cli("worker", run.queue, "--until-done").code == 0
    assert cli("finish", "run-1").code == 0
    run.open_queue().delete()
    assert "No task" in cli("redrive", "run-1").out
    assert not Path(run.queue.removeprefix("sqlite://")).exists()
