import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from igneous_airflow.errors import (
    AccessDenied,
    CorruptChunk,
    LeaseLost,
    PermanentError,
    StorageUnavailable,
    TransientError,
)
from igneous_airflow.ledger import Ledger
from igneous_airflow.progress import State
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import Counts, Lease
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.task import Task
from igneous_airflow.worker.loop import GiveBack, Settled, Worker, WorkerOptions

OPTIONS = WorkerOptions(lease_seconds=60, retry_delay=2, idle_seconds=0.01, until_done=True)

Launch = Callable[..., Run]


class Crash(BaseException):
    """The process ends here and now."""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def raising(error: BaseException) -> Callable[[], None]:
    def order() -> None:
        raise error

    return order


def work(queue: MemoryQueue, options: WorkerOptions = OPTIONS) -> list[Settled]:
    events: list[Lease | Settled] = []
    Worker(queue, queue.runs, options, events.append).work()
    return [event for event in events if isinstance(event, Settled)]


def settle_next(queue: MemoryQueue, options: WorkerOptions = OPTIONS) -> Settled:
    lease = queue.lease(60)
    assert lease is not None
    return Worker(queue, queue.runs, options, lambda _: None).settle(lease)


def receipts(run: Run) -> list[Receipt]:
    return [receipt for _, found in run.ledger.read_receipts() for receipt in found or ()]


# What a worker does


def test_a_worker_does_every_task_and_says_so(launch, obedient, tmp_path: Path):
    queue = MemoryQueue()
    run = launch(queue)
    settled = work(queue)
    assert sorted(obedient.ran) == [0, 1, 2]
    assert [(s.outcome, s.run, s.stage, s.task, s.cell, s.voxels) for s in settled] == [
        ("done", "run", "obedient", index, str(index), 10) for index in range(3)
    ]
    assert queue.counts().drained
    assert run.done().count == 3
    assert [(r.task, r.attempt, r.work.voxels) for r in receipts(run)] == [
        (0, 1, 10),
        (1, 1, 10),
        (2, 1, 10),
    ]


def test_a_task_of_several_cells_does_all_of_them_and_adds_up_its_work(launch, obedient):
    queue = MemoryQueue()
    launch(queue, count=5, batch=3)
    first, second = work(queue)
    assert obedient.ran == [0, 1, 2, 3, 4]
    assert (first.cell, first.voxels) == ("0", 30)
    assert (second.cell, second.voxels) == ("3", 20)


def test_the_receipt_is_written_before_the_message_is_acknowledged(launch):
    class Watched(MemoryQueue):
        def done(self, lease: Lease) -> None:
            assert run.ledger.has_receipt(Task.decode(lease.body).task)
            acknowledged.append(lease)
            super().done(lease)

    acknowledged: list[Lease] = []
    queue = Watched()
    run = launch(queue)
    work(queue)
    assert len(acknowledged) == 3


def test_a_crash_between_receipt_and_acknowledgement_costs_a_look_and_no_work(launch, obedient):
    class Crashing(MemoryQueue):
        crash = True

        def done(self, lease: Lease) -> None:
            if self.crash:
                raise Crash
            super().done(lease)

    clock = Clock()
    queue = Crashing(clock)
    run = launch(queue, count=1)
    with pytest.raises(Crash):
        settle_next(queue)
    (before,) = receipts(run)
    queue.crash = False
    clock.now += 61  # the lease runs out
    assert settle_next(queue).outcome == "repeated"
    assert obedient.ran == [0]
    assert receipts(run) == [before]
    assert queue.counts().drained


def test_a_crash_between_the_last_write_and_the_receipt_leaves_the_same_bytes(
    launch, obedient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    queue = MemoryQueue(clock)
    run = launch(queue, count=1)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write_receipt", lambda *_: raising(Crash())())
        with pytest.raises(Crash):
            settle_next(queue)
    written = (tmp_path / "out" / "0").read_bytes()
    assert receipts(run) == []
    clock.now += 61
    settled = settle_next(queue)
    assert settled.outcome == "done"
    assert obedient.ran == [0, 0]
    assert (tmp_path / "out" / "0").read_bytes() == written
    assert [r.task for r in receipts(run)] == [0]


def test_a_task_of_a_run_begun_anew_with_other_parameters_uses_these(launch, tmp_path: Path):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    worker = Worker(queue, queue.runs, OPTIONS, lambda _: None)
    worker.settle(queue.lease(60))
    run.finish()
    (tmp_path / "elsewhere").mkdir()
    launch(queue, count=1, folder="elsewhere")
    worker.settle(queue.lease(60))
    assert (tmp_path / "elsewhere" / "0").exists()


# Failures


def test_a_transient_error_is_retried_with_growing_delay_and_then_given_up(launch, obedient):
    clock = Clock()
    queue = MemoryQueue(clock)
    run = launch(queue, count=1)
    obedient.orders[0] = [raising(TransientError(f"attempt {n}")) for n in range(1, 9)]
    options = WorkerOptions(retry_delay=2, max_retry_delay=5, max_attempts=4)
    for delay in (2, 4, 5):
        assert settle_next(queue, options).outcome == "retry"
        clock.now += delay - 0.01
        assert queue.lease(60) is None
        clock.now += 0.02
    settled = settle_next(queue, options)
    assert (settled.outcome, settled.attempt) == ("failed", 4)
    assert settled.error == "TransientError: attempt 4"
    assert queue.counts().dead == 1
    assert queue.counts().drained
    assert [(f.attempt, f.final) for f in run.ledger.failures()] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    (letter,) = queue.dead_letters()
    assert letter.reason == "TransientError: attempt 4"


def test_only_attempts_that_failed_count_however_often_the_task_was_given_back(launch, obedient):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    options = WorkerOptions(retry_delay=0, max_attempts=2)

    def stop_twice() -> None:
        worker.stop()
        worker.stop()

    for _ in range(20):
        worker = Worker(queue, queue.runs, options, lambda _: None)
        obedient.orders[0] = [stop_twice]
        lease = queue.lease(60)
        assert worker.settle(lease).outcome == "given back"
    obedient.orders[0] = [raising(TransientError("once")), raising(TransientError("twice"))]
    assert settle_next(queue, options).outcome == "retry"
    for _ in range(20):
        worker = Worker(queue, queue.runs, options, lambda _: None)
        worker.stop()
        worker._take(queue.lease(60))  # leased while the request to stop came
    settled = settle_next(queue, options)
    assert (settled.outcome, settled.attempt) == ("failed", 2)
    assert [(f.attempt, f.final) for f in run.ledger.failures()] == [(1, False), (2, True)]
    assert run.progress().state is State.FAILED


def test_a_task_that_ends_every_machine_without_a_word_is_given_up(launch, obedient):
    clock = Clock()
    queue = MemoryQueue(clock)
    run = launch(queue, count=1)
    options = WorkerOptions(retry_delay=0, max_attempts=2)
    obedient.orders[0] = [raising(TransientError("no luck"))]
    settle_next(queue, options)
    for _ in range(4):
        assert queue.lease(60) is not None
        clock.now += 61
    settled = settle_next(queue, options)
    assert (settled.outcome, settled.attempt) == ("failed", 2)
    assert "4 workers that took this task ended without a word" in settled.error
    assert obedient.ran == [0]
    assert run.final_failures()[0].final


def test_without_a_ledger_that_answers_leases_are_counted(
    launch, obedient, monkeypatch: pytest.MonkeyPatch
):
    queue = MemoryQueue()
    launch(queue, count=1)
    obedient.orders[0] = [raising(TransientError(f"attempt {n}")) for n in range(1, 9)]
    silent = raising(StorageUnavailable("no answer"))
    for name in ("write_failure", "failed_attempts_at"):
        monkeypatch.setattr(Ledger, name, lambda *_: silent())
    options = WorkerOptions(retry_delay=0, max_attempts=3, until_done=True)
    assert [s.outcome for s in work(queue, options)] == ["retry", "retry", "failed"]


def test_failures_that_cannot_be_recorded_do_not_go_on_for_ever(
    launch, obedient, monkeypatch: pytest.MonkeyPatch
):
    queue = MemoryQueue()
    launch(queue, count=1)
    obedient.orders[0] = [raising(TransientError(f"attempt {n}")) for n in range(1, 99)]
    full = raising(StorageUnavailable("disk full"))
    monkeypatch.setattr(Ledger, "write_failure", lambda *_: full())
    options = WorkerOptions(retry_delay=0, max_attempts=3, until_done=True)
    outcomes = [s.outcome for s in work(queue, options)]
    assert outcomes == ["retry"] * 6 + ["failed"]


def test_an_error_of_no_known_kind_is_retried(launch, obedient):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    obedient.orders[0] = [raising(ZeroDivisionError("division by zero"))]
    outcomes = [s.outcome for s in work(queue, WorkerOptions(retry_delay=0, until_done=True))]
    assert outcomes == ["retry", "done"]
    (failure,) = run.ledger.failures()
    assert failure.error == "ZeroDivisionError: division by zero"
    assert "Traceback" in failure.traceback
    assert not failure.final
    assert [receipt.attempt for receipt in receipts(run)] == [2]


def test_a_permanent_error_is_given_up_at_once(launch, obedient):
    queue = MemoryQueue()
    run = launch(queue)
    obedient.orders[1] = [raising(CorruptChunk("chunk 0-8_0-8_0-8 is broken"))]
    settled = work(queue)
    assert [s.outcome for s in settled] == ["done", "failed", "done"]
    (failure,) = run.final_failures()
    assert (failure.task, failure.attempt, failure.final) == (1, 1, True)
    assert failure.error == "CorruptChunk: chunk 0-8_0-8_0-8 is broken"
    assert obedient.ran == [0, 1, 2]


@pytest.mark.parametrize(
    "body",
    ["", "not JSON", "[]", "{}", '{"version": 2}', '{"stage": "obedient"', "\x00\udcff\n\u2028"],
)
def test_a_message_that_is_no_task_is_buried(launch, body: str):
    queue = MemoryQueue()
    launch(queue, count=1)
    queue.send([body])
    settled = work(queue)
    assert [s.outcome for s in settled] == ["done", "refused"]
    assert "not a task" in settled[1].error
    assert len(settled[1].line().splitlines()) == 1
    (letter,) = queue.dead_letters()
    assert letter.body == body


@pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"stage": "delete"},
        {"parameters": {"folder": "x"}},
        {"run": "nonsense://x"},
        {"run": "../run"},
        {"run": "another"},
        {"launch": "00000000"},
        {"task": 1},
        {"version": 3},
    ],
)
def test_a_message_without_a_launched_run_is_buried_and_the_worker_goes_on(launch, change):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    lease = queue.lease(60)
    queue.send([json.dumps(json.loads(lease.body) | change)])
    queue.release(lease)
    settled = work(queue)
    assert sorted((s.outcome, s.task) for s in settled) == [("done", 0), ("refused", -1)], settled
    assert queue.counts().dead == 1
    assert run.done().count == 1
    assert run.ledger.failed_attempts() == 0


@pytest.mark.parametrize("error", [StorageUnavailable("disk full"), AccessDenied("denied")])
def test_a_receipt_that_cannot_be_written_is_a_failure_of_the_task(
    launch, monkeypatch: pytest.MonkeyPatch, error
):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    monkeypatch.setattr(Ledger, "write_receipt", lambda *_: raising(error)())
    settled = settle_next(queue)
    assert settled.outcome == ("retry" if isinstance(error, TransientError) else "failed")
    assert not run.ledger.has_receipt(0)
    assert run.ledger.failed_attempts() == 1


def test_a_failure_that_cannot_be_recorded_still_settles_the_message(
    launch, obedient, monkeypatch: pytest.MonkeyPatch
):
    queue = MemoryQueue()
    launch(queue, count=1)
    obedient.orders[0] = [raising(CorruptChunk("broken"))]
    full = raising(StorageUnavailable("disk full"))
    monkeypatch.setattr(Ledger, "write_failure", lambda *_: full())
    settled = settle_next(queue)
    assert settled.outcome == "failed"
    assert "broken" in settled.error
    assert queue.counts().dead == 1


@pytest.mark.parametrize("method", ["done", "release", "bury"])
@pytest.mark.parametrize("error", [LeaseLost("gone"), StorageUnavailable("locked")])
def test_a_message_that_cannot_be_settled_is_no_harm(
    launch, obedient, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
):
    clock = Clock()
    queue = MemoryQueue(clock)
    run = launch(queue, count=1)
    if method != "done":
        kind = TransientError if method == "release" else CorruptChunk
        obedient.orders[0] = [raising(kind("no luck"))]
    with monkeypatch.context() as patch:
        patch.setattr(queue, method, lambda *_, **__: raising(error)())
        outcome = settle_next(queue).outcome
    assert outcome == {"done": "done", "release": "retry", "bury": "failed"}[method]
    assert run.ledger.has_receipt(0) == (method == "done")
    clock.now += 61
    assert settle_next(queue).outcome == ("repeated" if method == "done" else "done")


# Leases


def test_a_lease_that_was_lost_to_another_worker_is_no_harm(launch, obedient):
    """A worker that was suspended for long finishes after somebody else did the same task."""
    clock = Clock()
    queue = MemoryQueue(clock)
    run = launch(queue, count=1)

    def overtaken() -> None:
        clock.now += 61
        assert settle_next(queue).outcome == "done"

    obedient.orders[0] = [overtaken]
    assert settle_next(queue).outcome == "done"
    assert obedient.ran == [0, 0]
    assert [r.task for r in receipts(run)] == [0]
    assert queue.counts().drained


def test_a_task_that_takes_longer_than_its_lease_is_given_to_nobody_else(launch, obedient):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    others: list[Lease | None] = []
    obedient.orders[0] = [lambda: others.append(queue.lease(1, wait=1.0))]
    settled = work(queue, WorkerOptions(lease_seconds=0.3, until_done=True))
    assert others == [None]
    assert [s.outcome for s in settled] == ["done"]
    assert run.done().count == 1


def test_until_done_waits_for_delayed_retries_and_for_tasks_of_others(launch, obedient):
    queue = MemoryQueue()
    launch(queue, count=2)
    obedient.orders[0] = [raising(TransientError("later"))]
    other = queue.lease(0.5)  # dies in silence with task 0
    started = time.monotonic()
    settled = work(queue, WorkerOptions(retry_delay=0.3, idle_seconds=0.01, until_done=True))
    assert other is not None
    assert [(s.outcome, s.task) for s in settled] == [("done", 1), ("retry", 0), ("done", 0)]
    assert time.monotonic() - started > 0.7


@pytest.mark.parametrize("given_up", [False, True])
def test_a_worker_for_a_run_ends_with_it_though_others_still_use_the_queue(
    launch, obedient, monkeypatch: pytest.MonkeyPatch, given_up: bool
):
    monkeypatch.setattr("igneous_airflow.worker.loop._RUN_SECONDS", 0.05)
    queue = MemoryQueue()
    run = launch(queue, count=2)
    if given_up:
        obedient.orders[1] = [raising(PermanentError("broken"))]
    leases = [queue.lease(600), queue.lease(600)]
    queue.send(["a task of another run"])
    others = queue.lease(600)  # for as long as this test lasts
    for lease in leases:
        queue.release(lease)
    settled = work(queue, replace(OPTIONS, run=run.id))
    assert [s.outcome for s in settled] == ["done", "failed" if given_up else "done"]
    assert others is not None
    assert queue.counts().leased == 1


class Lagging(MemoryQueue):
    """A queue whose counters are not exact: the next looks see what is in `seen`."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen
        self.waits: list[float] = []

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        self.waits.append(wait)
        return super().lease(seconds, wait=min(wait, 0.01))

    def counts(self) -> Counts:
        return Counts(waiting=0, leased=self.seen.pop(0) if self.seen else 0, dead=0, exact=False)


def test_counters_that_lag_are_believed_after_several_looks_in_a_row(launch):
    queue = Lagging([0, 0, 0, 0, 3])
    launch(queue, count=1)
    assert [s.outcome for s in work(queue)] == ["done"]
    assert len(queue.waits) == 1 + 5 + 5
    assert not queue.seen


def test_a_queue_far_away_is_asked_ever_less_often_while_others_have_the_tasks(launch):
    queue = Lagging([1] * 12)
    launch(queue, count=0)
    work(queue, WorkerOptions(idle_seconds=0.5, until_done=True))
    assert queue.waits[:8] == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert queue.waits[13:] == [0.5] * 4


def test_without_until_done_a_worker_goes_on_until_it_is_stopped(launch):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    worker = Worker(queue, queue.runs, WorkerOptions(idle_seconds=0.01), lambda _: None)
    thread = Thread(target=worker.work)
    thread.start()
    while not queue.counts().drained:
        time.sleep(0.01)
    thread.join(0.2)
    assert thread.is_alive()
    worker.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert run.done().count == 1


# Stopping


def test_the_first_stop_lets_the_task_finish_and_takes_no_other(launch, obedient):
    queue = MemoryQueue()
    launch(queue)
    events: list[Lease | Settled] = []
    worker = Worker(queue, queue.runs, OPTIONS, events.append)
    obedient.orders[0] = [worker.stop]
    worker.work()
    assert [e.outcome for e in events if isinstance(e, Settled)] == ["done"]
    assert queue.counts().waiting == 2


def test_the_second_stop_gives_the_task_back_at_once(launch, obedient):
    queue = MemoryQueue()
    run = launch(queue, count=1)
    events: list[Lease | Settled] = []
    worker = Worker(queue, queue.runs, OPTIONS, events.append)

    def stop_twice() -> None:
        worker.stop()
        worker.stop()

    obedient.orders[0] = [stop_twice]
    worker.work()
    assert [e.outcome for e in events if isinstance(e, Settled)] == ["given back"]
    assert run.done().count == 0
    assert run.ledger.failed_attempts() == 0
    assert queue.lease(60) is not None


def test_stops_outside_of_a_task_raise_nothing(launch):
    worker = Worker(MemoryQueue(), "file:///runs", OPTIONS, lambda _: None)
    for _ in range(3):
        worker.stop()
    worker.work()


def test_a_task_leased_while_the_stop_came_is_given_back_unseen(launch, obedient):
    class Late(MemoryQueue):
        def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
            worker.stop()
            return super().lease(seconds, wait=wait)

    queue = Late()
    launch(queue, count=1)
    events: list[Lease | Settled] = []
    worker = Worker(queue, queue.runs, OPTIONS, events.append)
    worker.work()
    assert (events, obedient.ran) == ([], [])
    assert queue.counts().waiting == 1


def test_giving_back_is_no_error_that_a_stage_could_swallow():
    assert not issubclass(GiveBack, Exception)


# The log's lines


def test_a_settled_task_is_one_line_of_pairs():
    event = Settled("done", "run-1", "downsample", 7, "0-64_0-64_0-64", 1, 1.23456, 262144)
    assert event.line() == (
        "outcome=done run=run-1 stage=downsample task=7 cell=0-64_0-64_0-64 attempt=1 "
        "seconds=1.235 voxels=262144"
    )


@pytest.mark.parametrize(
    "text",
    [
        "line one\nline two",
        "a\r\nb",
        "next\x85line",
        "separator\u2028here",
        "outcome=done task=3",
        'it\'s "quoted"',
        "\x1b[2J cleared",
        "\x1b[31mred",
        "\x00",
        "\udcff",
        "tab\tbed",
    ],
)
def test_hostile_text_stays_in_its_quotes_on_its_line(text: str):
    line = Settled("failed", error=text).line()
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert line.encode()
    assert line == f"outcome=failed attempt=0 seconds=0.000 voxels=0 error={text!r}"


@pytest.mark.parametrize(("attempt", "delay"), [(1, 2), (2, 4), (3, 8), (9, 300), (500, 300)])
def test_delays_double_up_to_a_limit(attempt: int, delay: float):
    assert WorkerOptions().delay(attempt) == delay
