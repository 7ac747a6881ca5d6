import json
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from igneous_airflow.audit_log import read_entries
from igneous_airflow.errors import (
    AuditFailed,
    InvalidParameter,
    PlanRefused,
    RunFailed,
    RunNotFound,
)
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Failure
from igneous_airflow.progress import Pace, Progress, State, human_seconds
from igneous_airflow.proof import Account
from igneous_airflow.queue.protocol import Queue, open_queue
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.run_record import RECORD, LaunchState, StateChange, new_run_name
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.task import Task, TaskEncoder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.assignments import Assignments
from igneous_airflow.worker.loop import Worker, WorkerOptions

LaunchRun = Callable[..., Run]


class Many(Stage):
    """So many cells that do nothing."""

    name: ClassVar[str] = "many"
    count: int = 10
    flavour: str = "plain"

    def plan(self) -> Plan:
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        """Write nothing."""

    def cells(self) -> Sequence[int]:
        return range(self.count)

    def run(self, cell: int) -> Work:
        return Work(voxels=cell)

    def finish(self, by: str, account: Account | None = None) -> Audit:
        return Audit(outputs={"nothing": 0})


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> type[Many]:
    monkeypatch.setattr("igneous_airflow.stages.registered_stages", lambda: {"many": Many})
    return Many


@pytest.fixture
def layer(tmp_path: Path) -> str:
    """A layer of 4 tasks that make one mip."""
    return write_layer(tmp_path / "layer", random_voxels(Vec3(64, 16, 8)))


@pytest.fixture
def launch(tmp_path: Path) -> LaunchRun:
    def launch(
        stage: Stage, *, queue: str = "", own_queue: bool = True, batch: int | None = None
    ) -> Run:
        run, _ = Run.launch(
            stage,
            url=f"file://{tmp_path}/state/run",
            queue=queue or f"sqlite://{tmp_path}/state/run/queue.db",
            by="somebody@example.org",
            own_queue=own_queue,
            batch=batch,
        )
        return run

    return launch


def work(run: Run) -> None:
    """Do what is in the queue, in this process."""
    queue = run.open_queue()
    Worker(
        queue, run.runs_folder, WorkerOptions(idle_seconds=0, until_done=True), lambda _: None
    ).work()
    queue.close()


def take(run: Run) -> tuple[Queue, Any]:
    queue = run.open_queue()
    lease = queue.lease(60)
    assert lease is not None
    return queue, lease


def fail_next(run: Run, error: str, attempt: int = 1) -> None:
    """Give up the next task, as a worker does."""
    queue, lease = take(run)
    task = Task.decode(lease.body).task
    run.ledger.write_failure(
        Failure(task=task, attempt=attempt, error=error, final=True, worker="here:1", at="now")
    )
    queue.bury(lease, error)


def receive(run: Run, *tasks: int) -> None:
    for task in tasks:
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=0, worker="here:1"))


def bodies(run: Run) -> list[str]:
    """Take all that waits in the queue."""
    queue, found = run.open_queue(), []
    while (lease := queue.lease(60)) is not None:
        found.append(lease.body)
    return found


def queued(run: Run) -> list[int]:
    return [Task.decode(body).task for body in bodies(run)]


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


# Launching


def test_a_launched_run_is_recorded_with_every_parameter(many, launch: LaunchRun):
    run = launch(many())
    again = Run.load(run.url)
    assert again == run
    assert (again.id, again.stage, again.planned) == ("run", "many", 10)
    assert again.resolved == {"count": 10, "flavour": "plain"}
    assert again.make_stage() == many()
    assert again.progress().state is State.STALLED


def test_launching_takes_up_an_unfinished_run(many, launch: LaunchRun):
    run = launch(many(count=3))
    receive(run, 0)
    again = launch(many(count=3), queue="memory://another")
    assert again == run
    assert again.done().count == 1


def test_an_unfinished_run_is_not_launched_with_other_parameters(many, launch: LaunchRun):
    run = launch(many(count=3))
    with pytest.raises(InvalidParameter, match="other values for count, flavour"):
        launch(many(count=4, flavour="bitter"))
    assert Run.load(run.url) == run


def test_an_unfinished_run_is_not_launched_with_another_stage(many, launch: LaunchRun, layer: str):
    launch(many())
    with pytest.raises(InvalidParameter, match="layer, mip, num_mips"):
        launch(Downsample(layer=layer))


def test_a_finished_run_starts_afresh(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    work(run)
    run.finish()
    again = launch(many(count=2, flavour="sweet"))
    assert not again.is_finished
    assert again.summary() is None
    assert again.done().count == 0
    assert Run.load(run.url).planned == 2
    again.enqueue()
    work(again)
    assert again.finish().tasks == 2


def test_a_start_afresh_that_was_interrupted_can_be_made_again(
    many, launch: LaunchRun, monkeypatch: pytest.MonkeyPatch
):
    run = launch(many(count=3))
    run.enqueue()
    work(run)
    run.finish()
    with monkeypatch.context() as patch:
        patch.setattr("igneous_airflow.ledger.Ledger.forget_everything", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch(many(count=2))
    again = launch(many(count=5))
    assert (again.planned, again.done().count) == (5, 0)


def test_a_worker_that_outlives_a_start_afresh_leaves_nothing_that_counts(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    queue, lease = take(run)  # the old worker, which now sleeps
    work(run)
    receive(run, 0)
    run.finish()
    again = launch(many(count=3))
    old = Task.decode(lease.body)
    run.ledger.write_receipt(Receipt(task=old.task, attempt=1, seconds=0, worker="old:1"))
    run.ledger.write_failure(
        Failure(task=2, attempt=1, error="old", final=True, worker="old:1", at="now")
    )
    assert again.launch_id != run.launch_id == old.launch
    assert (again.done().count, again.progress().dead) == (0, 0)
    assert again.enqueue() == 3
    assert {Task.decode(body).launch for body in bodies(again)} == {again.launch_id}
    queue.close()


def test_a_message_of_an_earlier_launch_does_the_new_one_no_good_and_no_harm(
    many, launch: LaunchRun
):
    run = launch(many(count=2), queue="memory://outlived", own_queue=False)
    run.enqueue()
    receive(run, 0, 1)
    run.finish()
    again = launch(many(count=2), queue="memory://outlived", own_queue=False)
    work(again)  # what the first launch sent
    assert again.done().count == 0
    again.enqueue()
    work(again)
    assert again.finish().tasks == 2


def test_the_coarsest_mip_is_resolved_once_and_stays_the_same(launch: LaunchRun, layer: str):
    asked = Downsample(layer=layer, mip=-1, num_mips=1)
    run = launch(asked)
    run.prepare()
    run.enqueue()
    assert run.resolved["mip"] == 0
    assert launch(asked).launch_id == run.launch_id  # although the coarsest mip is 1 by now
    work(run)
    assert run.finish().audit.outputs == {"16_16_40": 4}
    launch_next(launch, asked)
    assert Run.load(run.url).resolved["mip"] == 0, "the same run makes the same mips"


def launch_next(launch: LaunchRun, stage: Stage) -> Run:
    run = launch(stage)
    run.prepare()
    run.enqueue()
    return run


def test_a_refused_plan_writes_nothing_anywhere(launch: LaunchRun, layer: str, tmp_path: Path):
    before = tree(tmp_path)
    with pytest.raises(PlanRefused, match="reaches out of the volume"):
        launch(Downsample(layer=layer, bounds="0-6400_0-16_0-8"))
    with pytest.raises(PlanRefused, match="there is no layer"):
        launch(Downsample(layer=f"{layer}-not", mip=-1))
    assert tree(tmp_path) == before


def test_a_run_that_is_not_recorded_is_named(tmp_path: Path):
    with pytest.raises(RunNotFound, match=f"{tmp_path}/nowhere/run.json"):
        Run.load(f"file://{tmp_path}/nowhere")


@pytest.mark.parametrize("record", ["", "[]", '{"id": "x"}', "\x00"])
def test_a_record_that_is_broken_is_named(tmp_path: Path, record: str):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(InvalidParameter, match="damaged"):
        Run.load(f"file://{tmp_path}")


def test_a_record_with_parameters_of_another_version_is_named(many, launch: LaunchRun):
    run = launch(many())
    changed = run.model_copy(update={"resolved": {"count": "plenty"}})
    with pytest.raises(InvalidParameter, match=r"run\.json"):
        changed.make_stage()


# Sending


def test_only_tasks_without_receipt_are_sent(many, launch: LaunchRun):
    run = launch(many(count=5))
    receive(run, 0, 3)
    assert run.enqueue() == 3
    assert queued(run) == [1, 2, 4]


def test_an_own_queue_is_emptied_before(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    fail_next(run, "broken")
    assert run.enqueue() == 3
    assert queued(run) == [0, 1, 2]
    assert run.progress().dead == 0
    assert run.ledger.failed_attempts() == 0


def test_what_others_have_in_a_shared_queue_stays(many, launch: LaunchRun, tmp_path: Path):
    shared = f"sqlite://{tmp_path}/shared.db"
    open_queue(shared).send(["somebody else's"])
    run = launch(many(count=2), queue=shared, own_queue=False)
    run.enqueue()
    run.enqueue()
    bodies = []
    queue = open_queue(shared)
    while (lease := queue.lease(60)) is not None:
        bodies.append(lease.body)
    assert bodies[0] == "somebody else's"
    assert [Task.decode(body).task for body in bodies[1:]] == [0, 1, 0, 1]


def test_tasks_of_several_cells_cover_every_cell_once(many, launch: LaunchRun):
    run = launch(many(count=10), batch=4)
    assert run.planned == 3
    run.enqueue()
    assignments = Assignments(run.runs_folder)
    cells = [list(assignments.of(body).blocks) for body in bodies(run)]
    assert cells == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batched_run_is_worked_on_and_finished(launch: LaunchRun, layer: str):
    run = launch(Downsample(layer=layer, num_mips=1), batch=3)
    run.prepare()
    assert run.enqueue() == 2
    work(run)
    summary = run.finish()
    assert (summary.tasks, summary.audit.outputs) == (2, {"16_16_40": 4})
    assert summary.work is not None
    assert summary.work.voxels == 64 * 16 * 8


def test_enqueuing_many_tasks_holds_only_a_few_at_a_time(many, launch: LaunchRun):
    run = launch(many(count=40_000))
    tracemalloc.start()
    try:
        sent = run.enqueue()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = len(take(run)[1].body)
    assert sent == 40_000
    assert peak < sent * size / 4


def test_what_others_have_in_a_shared_queue_is_not_taken_for_a_failure_of_this_run(
    many, launch: LaunchRun, tmp_path: Path
):
    shared = f"sqlite://{tmp_path}/shared.db"
    queue = open_queue(shared)
    queue.send(["nonsense", "somebody else's"])
    for _ in range(2):
        lease = queue.lease(60)
        assert lease is not None
        queue.bury(lease, "broken")
    run = launch(many(count=2), queue=shared, own_queue=False)
    run.enqueue()
    assert run.progress() == Progress(planned=2, done=0, waiting=2, shared=True)
    fail_next(run, "broken")
    fail_next(run, "broken as well")
    queue.send(["of another run"])
    progress = run.progress()
    assert (progress.dead, progress.waiting) == (2, 1)
    assert progress.state is State.FAILED  # whatever others have in the queue


def test_a_task_that_an_own_queue_buried_by_itself_counts_as_given_up(many, launch: LaunchRun):
    run = launch(many(count=2))
    run.enqueue()
    receive(run, 1)
    for _ in range(2):
        queue, lease = take(run)
        queue.bury(lease, "nobody lived to record it")
    assert run.progress().dead == 1
    assert run.progress().state is State.FAILED


# Resuming


def test_resuming_leaves_a_run_alone_that_has_a_message_for_every_missing_task(
    many, launch: LaunchRun
):
    run = launch(many(count=3))
    run.enqueue()
    queue, lease = take(run)
    receive(run, 2)
    assert run.resume() == 0
    queue.extend(lease, 60)  # the lease is still good


def test_resuming_sends_what_was_lost(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    queue, lease = take(run)
    receive(run, 2)
    queue.done(lease)  # without a receipt: lost
    assert run.progress().waiting == 2
    assert run.resume() == 0  # a message more than missing tasks, so it cannot be told
    queue, lease = take(run)
    queue.done(lease)
    assert run.resume() == 2
    assert queued(run) == [0, 1]


def test_resuming_sends_what_was_given_up(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    fail_next(run, "broken")
    assert run.resume() == 3
    assert queued(run) == [0, 1, 2]


def test_resuming_sends_what_was_given_up_whatever_others_have_in_a_shared_queue(
    many, launch: LaunchRun, tmp_path: Path
):
    shared = f"sqlite://{tmp_path}/shared.db"
    run = launch(many(count=1), queue=shared, own_queue=False)
    run.enqueue()
    fail_next(run, "broken")
    open_queue(shared).send(["somebody else's"])
    assert run.resume() == 1
    assert run.progress().state is State.WAITING


def test_resuming_a_finished_run_sends_nothing_and_makes_no_queue(
    many, launch: LaunchRun, tmp_path: Path
):
    run = launch(many(count=2))
    run.enqueue()
    work(run)
    run.finish()
    run.open_queue().delete()
    assert run.resume() == 0
    assert not (tmp_path / "state/run/queue.db").exists()


# Progress


def test_the_state_of_a_run_from_its_receipts_and_its_queue(many, launch: LaunchRun):
    run = launch(many(count=3))
    assert run.progress().state is State.STALLED  # nothing was sent
    run.enqueue()
    assert run.progress().state is State.WAITING  # nobody has taken a task
    fail_next(run, "broken")
    assert run.progress() == Progress(
        planned=3, done=0, waiting=2, leased=0, dead=1, failed_attempts=1
    )
    assert run.progress().state is State.INTERRUPTED  # work had begun, and nobody goes on
    queue, lease = take(run)
    assert run.progress().state is State.WORKING
    receive(run, 1)
    assert run.progress() == Progress(
        planned=3, done=1, waiting=1, leased=1, dead=1, failed_attempts=1
    )
    queue.done(lease)
    receive(run, 2)
    queue, lease = take(run)
    queue.done(lease)
    assert run.progress().state is State.FAILED
    receive(run, 0)
    assert run.progress().state is State.DONE  # whatever the queue says


def test_an_empty_queue_alone_is_not_done(many, launch: LaunchRun):
    run = launch(many(count=3))
    run.enqueue()
    run.open_queue().purge()
    receive(run, 0, 1)
    assert run.progress().state is State.STALLED


def test_receipts_of_tasks_that_were_not_planned_do_not_count(many, launch: LaunchRun):
    run = launch(many(count=3))
    receive(run, 0, 1, 3, 99)
    assert run.progress().done == 2


def test_looking_at_a_finished_run_makes_no_queue_and_remembers_failures(
    many, launch: LaunchRun, tmp_path: Path
):
    run = launch(many(count=2))
    run.enqueue()
    work(run)
    run.ledger.write_failure(
        Failure(task=0, attempt=1, error="once", final=False, worker="here:1", at="now")
    )
    run.finish()
    run.open_queue().delete()
    assert run.progress() == Progress(planned=2, done=2, failed_attempts=1)
    assert not (tmp_path / "state/run/queue.db").exists()


@pytest.mark.parametrize(
    ("done", "planned", "percent"),
    [
        (0, 3, "0.0"),
        (1, 3, "33.3"),
        (2, 3, "66.6"),
        (9_999, 10_000, "99.9"),
        (999_999_999, 1_000_000_000, "99.9"),
        (3, 3, "100.0"),
        (0, 0, "100.0"),
    ],
)
def test_percent_is_rounded_down(done: int, planned: int, percent: str):
    words = Pace().describe(Progress(planned=planned, done=done, waiting=1))
    assert words.startswith(f"{percent} % done: {done:,} of {planned:,} tasks")


def test_rate_and_time_left_are_measured_since_the_first_look():
    now = [100.0]
    pace = Pace(clock=lambda: now[0])

    def look(done: int) -> str:
        return pace.describe(Progress(planned=1000, done=done, waiting=1000 - done))

    assert look(100) == "10.0 % done: 100 of 1,000 tasks"
    assert look(100) == "10.0 % done: 100 of 1,000 tasks"  # no time has passed
    now[0] += 10
    assert look(100) == "10.0 % done: 100 of 1,000 tasks"  # nothing was gained
    assert look(150) == ("15.0 % done: 150 of 1,000 tasks, 5 tasks a second, about 3 min left")
    now[0] += 30
    assert look(112).endswith("0.3 tasks a second, about 49 min left")
    assert look(1000) == "100.0 % done: 1,000 of 1,000 tasks"


def test_a_high_rate_is_written_out():
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    pace.describe(Progress(planned=1_000_000, done=0, waiting=1))
    now[0] += 10
    words = pace.describe(Progress(planned=1_000_000, done=12_345, waiting=1))
    assert "1,234 tasks a second" in words


def test_words_tell_of_tasks_that_were_given_up():
    words = Pace().describe(Progress(planned=10, done=3, dead=2))
    assert words == "30.0 % done: 3 of 10 tasks, 2 given up"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (1e6, "277.8 h")],
)
def test_durations_are_written_for_people(seconds: float, words: str):
    assert human_seconds(seconds) == words


# Proof


def test_what_is_missing_is_named_with_errors_and_the_way_out(many, launch: LaunchRun):
    run = launch(many(count=10_000))
    run.enqueue()
    fail_next(run, "CorruptChunk: chunk 0-8 is broken")
    run.open_queue().purge()
    receive(run, 1)
    with pytest.raises(RunFailed) as failed:
        run.require_done(run.progress())
    words = str(failed.value)
    assert "9,999 of 10,000 tasks of run run are not done" in words
    assert "1 were given up, and the messages of the others are gone from the queue" in words
    assert "task 0, attempt 1: CorruptChunk: chunk 0-8 is broken" in words
    assert f"igneous-airflow resume {run.url.removeprefix('file://')}" in words


@pytest.mark.parametrize(
    ("progress", "reason"),
    [
        (Progress(planned=3, done=1, waiting=2), "no worker works on them any more"),
        (Progress(planned=3, done=0, waiting=3), "no worker has come yet"),
        (Progress(planned=3, done=1, leased=2), "no worker works on them any more"),
        (Progress(planned=3, done=1, dead=2), "they were given up"),
        (Progress(planned=3, done=1), "their messages are gone from the queue"),
    ],
)
def test_why_a_run_is_not_done_is_said(many, launch: LaunchRun, progress: Progress, reason: str):
    with pytest.raises(RunFailed, match=reason):
        launch(many(count=3)).require_done(progress)


def test_a_done_run_is_not_complained_about(many, launch: LaunchRun):
    launch(many(count=3)).require_done(Progress(planned=3, done=3, dead=1))


def test_only_the_last_failures_of_missing_tasks_are_named_together_when_they_are_alike(
    many, launch: LaunchRun
):
    run = launch(many(count=20))
    for task in range(8):
        for attempt in range(1, 12):
            run.ledger.write_failure(
                Failure(
                    task=task,
                    attempt=attempt,
                    error=f"no luck {attempt}",
                    final=attempt == 11,
                    worker="here:1",
                    at="now",
                )
            )
    receive(run, 0)
    assert [(f.task, f.attempt) for f in run.final_failures()] == [(t, 11) for t in range(1, 8)]
    with pytest.raises(RunFailed) as failed:
        run.require_done(Progress(planned=20, done=1, dead=7))
    words = "  task 1, attempt 11: no luck 11 (7 such errors, the first in task 1)"
    assert str(failed.value).splitlines()[1] == words


def test_five_kinds_of_errors_are_named_at_most(many, launch: LaunchRun):
    run = launch(many(count=20))
    for task, kind in enumerate("abcdefg"):
        run.ledger.write_failure(
            Failure(task=task, attempt=1, error=f"no {kind}", final=True, worker="w", at="now")
        )
    with pytest.raises(RunFailed) as failed:
        run.require_done(Progress(planned=20, done=13, dead=7))
    assert str(failed.value).count("attempt 1: no ") == 5
    assert "  and 2 other errors" in str(failed.value)


def test_a_run_that_waits_for_approval_writes_nothing_until_it_is_approved(
    launch: LaunchRun, layer: str, tmp_path: Path
):
    run = launch(Downsample(layer=layer, num_mips=1))
    run = run.require_approval("somebody has to look at it")
    before = tree(tmp_path / "layer")
    for begin in (run.prepare, run.enqueue, run.resume):
        with pytest.raises(RunFailed, match=r"may not begin \(somebody has to look at it\)"):
            begin()
    assert tree(tmp_path / "layer") == before
    assert run.progress().waiting == 0
    assert (run.why_it_waits, run.approved_by) == ("somebody has to look at it", "")
    run = run.approve("somebody")
    assert (run.why_it_waits, run.approved_by) == ("", "somebody")
    run.prepare()
    assert run.enqueue() == 4


def test_a_run_that_starts_again_was_approved_by_no_one(many, launch: LaunchRun):
    run = launch(many()).require_approval("why").approve("somebody")
    run.enqueue()
    work(run)
    run.finish()
    again = launch(many())
    assert (again.approval, again.approved_by) == ("", "")


def test_nothing_need_be_confirmed_for_a_plan(layer: str, tmp_path: Path):
    arguments = {"url": f"file://{tmp_path}/run", "queue": "memory://held", "by": "me"}
    with pytest.raises(PlanRefused):
        Run.launch(Delete(layer=layer), **arguments)
    run, plan = Run.launch(Delete(layer=layer), **arguments, plan_only=True)
    assert plan.unconfirmed
    assert run.why_it_waits == "only its plan was requested"
    again, _ = Run.launch(Delete(layer=layer), **arguments, plan_only=True)
    assert again.launch_id == run.launch_id


def test_dead_letters_of_another_launch_are_neither_counted_nor_sent_again(many, launch: LaunchRun):
    run = launch(many(count=2))
    run.enqueue()
    own, other = bodies(run)[0], TaskEncoder("5e6f7a8b", run.id, "1a2b3c4d").encode(1)
    run.open_queue().purge()
    queue = run.open_queue()
    queue.send([own, other])
    while (lease := queue.lease(60)) is not None:
        queue.bury(lease, "no luck")
    assert run.progress().dead == 1
    assert run.redrive() == 1
    assert bodies(run) == [own]
    assert [letter.body for letter in queue.dead_letters()] == [other]


def test_a_run_of_which_only_the_plan_was_requested_is_never_launched(many, tmp_path: Path):
    url, queue = f"file://{tmp_path}/run", f"sqlite://{tmp_path}/run/queue.db"
    run, _ = Run.launch(many(), url=url, queue=queue, by="me", plan_only=True)
    for begin in (lambda: run.approve("someone"), run.prepare, run.enqueue, run.resume):
        with pytest.raises(RunFailed, match="only its plan was requested"):
            begin()
    assert Run.load(url).state is LaunchState.PLANNED
    approved = StateChange.now(LaunchState.APPROVED, "someone")  # as earlier versions let happen
    record = run._as_record().model_copy(update={"changes": (*run.changes, approved)})
    assert record.why_it_waits == "only its plan was requested"
    with pytest.raises(RunFailed, match="only its plan was requested"):
        record.begun("me")


@pytest.mark.parametrize(
    "change",
    [
        {"digest": ""},
        {"requested": {}},
        {"plan_only": True},
        {"approval": "someone must look at it"},
        {"blocks": 1},
        {"resolved": {"count": 1}},
    ],
)
def test_a_record_that_was_changed_by_hand_is_refused(
    many, launch: LaunchRun, change: dict[str, object]
):
    run = launch(many())
    path = Path(run.url.removeprefix("file://")) / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidParameter, match="was changed by hand"):
        Run.load(run.url)


def test_finishing_too_early_writes_nothing(launch: LaunchRun, layer: str, tmp_path: Path):
    run = launch(Downsample(layer=layer, num_mips=1))
    run.prepare()
    run.enqueue()
    before = tree(tmp_path / "layer")
    with pytest.raises(RunFailed, match="4 of 4 tasks"):
        run.finish()
    assert tree(tmp_path / "layer") == before
    assert run.summary() is None
    assert not run.is_finished


def test_finishing_with_output_missing_records_no_provenance(
    launch: LaunchRun, layer: str, tmp_path: Path
):
    run = launch(Downsample(layer=layer, num_mips=1))
    run.prepare()
    run.enqueue()
    work(run)
    next((tmp_path / "layer/16_16_40").iterdir()).unlink()
    with pytest.raises(AuditFailed, match="1 file missing"):
        run.finish()
    assert not (tmp_path / "layer/provenance").exists()
    assert not run.is_finished


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable[[str], tuple[Stage, Path]]:
    """Make a stage of several tasks by its name, with the folder that it writes to."""

    def make(name: str) -> tuple[Stage, Path]:
        voxels = random_voxels(Vec3(64, 32, 8)) | 1
        voxels[:16, :16] = voxels[48:] = 0
        layer = write_layer(tmp_path / "source", voxels, LayerSpec(voxel_offset=(-8, 3, 1)))
        if name == "downsample":
            return Downsample(layer=layer, num_mips=1, skip_empty="skip"), tmp_path / "source"
        dest = tmp_path / "dest"
        return Transfer(
            src=layer, dest=f"file://{dest}", shape="16,16,8", max_mips=1, skip_empty="delete"
        ), dest

    return make


def complete(run: Run) -> None:
    run.prepare()
    run.enqueue()
    work(run)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["downsample", "transfer"])
def test_tasks_whose_output_was_lost_are_named_and_only_they_are_done_again(
    launch: LaunchRun, make_stage, name: str, batch: int
):
    stage, path = make_stage(name)
    run = launch(stage, batch=batch)
    complete(run)
    whole = tree(path)
    lost = sorted(path.glob("16_16_40/*"))[1:3]
    for chunk in lost:
        chunk.unlink()
    with pytest.raises(AuditFailed) as failed:
        run.finish()
    words = str(failed.value)
    assert "2 files missing" in words
    assert all(f"16_16_40/{chunk.name.removesuffix('.gz')}" in words for chunk in lost)
    assert f"igneous-airflow resume {run.url.removeprefix('file://')}" in words
    assert not (path / "provenance").exists()
    tasks = list(run.done().missing())
    assert tasks == sorted({cell // batch for cell in failed.value.cells})
    assert 1 <= len(tasks) < run.planned
    assert ", ".join(map(str, tasks)) in words
    assert run.resume() == len(tasks)
    work(run)
    assert tree(path) == whole
    assert run.finish().audit.absent > 0


def test_a_run_that_had_finished_can_be_mended_when_output_is_lost_later(
    launch: LaunchRun, make_stage
):
    stage, path = make_stage("downsample")
    run = launch(stage)
    complete(run)
    run.finish()
    run.open_queue().delete()
    whole = tree(path / "16_16_40")
    sorted(path.glob("16_16_40/*"))[0].unlink()
    with pytest.raises(AuditFailed, match="1 file missing"):
        run.finish()
    assert not run.is_finished
    assert run.resume() == 1
    work(run)
    assert run.finish().work is not None
    assert tree(path / "16_16_40") == whole


def test_receipts_may_be_taken_back_in_several_goes(
    launch: LaunchRun, make_stage, monkeypatch: pytest.MonkeyPatch
):
    stage, path = make_stage("downsample")
    run = launch(stage)
    complete(run)
    whole = tree(path)
    for chunk in path.glob("16_16_40/*"):
        chunk.unlink()
    delete, deleted = LocalFolder.delete, []

    def die_at_the_third(folder: LocalFolder, name: str) -> None:
        deleted.append(name)
        if len(deleted) == 3:
            raise KeyboardInterrupt
        delete(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "delete", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run.finish()
    assert 0 < run.planned - run.done().count < run.planned
    while True:
        run.resume()
        work(run)
        try:
            run.finish()
            break
        except AuditFailed:
            continue
    (path / "provenance").unlink()
    assert tree(path) == whole


def test_the_proof_reads_each_receipt_once(
    launch: LaunchRun, make_stage, monkeypatch: pytest.MonkeyPatch
):
    stage, _ = make_stage("downsample")
    run = launch(stage)
    complete(run)
    read: list[str] = []
    whole = LocalFolder.read

    def counted(folder: LocalFolder, name: str, most: int | None = None) -> Any:
        read.append(name)
        return whole(folder, name, most)

    monkeypatch.setattr(LocalFolder, "read", counted)
    summary = run.finish()
    assert summary.work is not None
    assert (summary.audit.absent, summary.audit.outputs) == (3, {"16_16_40": 5})
    receipts = [name for name in read if name.startswith("done/")]
    assert len(receipts) == len(set(receipts)) == run.planned


@pytest.mark.parametrize("left", [0, 1, -1])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["downsample", "transfer"])
def test_files_that_were_emptied_or_cut_are_named_and_done_again(
    launch: LaunchRun, make_stage, name: str, batch: int, left: int
):
    stage, path = make_stage(name)
    run = launch(stage, batch=batch)
    complete(run)
    whole = tree(path)
    cut = sorted(path.glob("16_16_40/*"))[1]
    content = cut.read_bytes()
    cut.write_bytes(content[:left])
    with pytest.raises(AuditFailed, match="1 file missing, empty or cut") as failed:
        run.finish()
    size = len(content[:left])
    chunk = cut.name.removesuffix(".gz")
    assert f"16_16_40/{chunk} ({size:,} bytes, not {len(content):,})" in str(failed.value)
    assert run.resume() == 1
    work(run)
    assert tree(path) == whole
    run.finish()


def test_a_damaged_receipt_is_named_and_its_task_done_again(launch: LaunchRun, make_stage):
    stage, path = make_stage("downsample")
    run = launch(stage)
    complete(run)
    whole = tree(path)
    receipt = sorted(Path(run.url.removeprefix("file://")).glob("done/*"))[2]
    receipt.write_bytes(receipt.read_bytes()[:-5])
    with pytest.raises(AuditFailed, match=r"1 receipt is damaged: .* by task 2"):
        run.finish()
    assert list(run.done().missing()) == [2]
    assert run.resume() == 1
    work(run)
    assert tree(path) == whole
    run.finish()
    assert run.is_finished


def test_finishing_twice_leaves_one_entry_and_a_readable_summary(
    launch: LaunchRun, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = launch(Downsample(layer=layer, num_mips=1))
    complete(run)
    first = run.finish()
    monkeypatch.setattr("time.time", lambda: run.created + 1_000_000)
    summary = run.finish()
    assert summary == first
    assert run.is_finished
    assert run.summary() == summary
    (entry,) = json.loads((tmp_path / "layer/provenance").read_text())["processing"]
    assert entry["by"] == "somebody@example.org"
    assert entry["method"]["task"] == "DownsampleTask"
    words = summary.describe()
    assert words.startswith("downsample: all 4 tasks are done and 4 chunks were found")
    assert "16_16_40: 4 chunks" in words
    assert "8,192 voxels" in words


def test_the_summary_tells_what_was_left_out_and_repeated(launch: LaunchRun, make_stage):
    run = launch(make_stage("downsample")[0])
    complete(run)
    run.ledger.write_failure(
        Failure(task=0, attempt=1, error="once", final=False, worker="here:1", at="now")
    )
    summary = run.finish()
    assert "left out, all background: 3 chunks" in summary.describe()
    assert "1 attempts failed and were repeated" in summary.describe()
    assert summary.work is not None
    assert (summary.work.chunks_skipped, summary.work.left_out) == (3, ())


def test_names_of_runs_are_new_and_fit_for_folders():
    names = {new_run_name("downsample") for _ in range(100)}
    assert len(names) == 100
    assert all(
        name.replace("_", "a").replace(".", "a").replace("-", "a").isalnum() for name in names
    )


@pytest.mark.parametrize(
    ("cells", "asked", "batch", "tasks"),
    [
        (100_000, None, 1, 100_000),
        (100_001, None, 2, 50_001),
        (1_000_000, None, 10, 100_000),
        (50_000_000, None, 100, 500_000),
        (1_000_000, 1, 1, 1_000_000),
        (10, 4, 4, 3),
    ],
)
def test_very_many_cells_are_put_together_to_tasks(
    many: type[Many], tmp_path: Path, cells: int, asked: int | None, batch: int, tasks: int
) -> None:
    run, plan = Run.launch(
        many(count=cells), url=f"file://{tmp_path}/run", queue="memory://q", by="me", batch=asked
    )
    assert (run.batch, run.planned, plan.tasks) == (batch, tasks, tasks)
    assert (f"works on {batch:,} blocks" in plan.describe()) == (batch > 1)


def test_a_batch_of_cells_is_one_task_with_one_receipt(
    many: type[Many], tmp_path: Path, launch: LaunchRun
) -> None:
    run, _ = Run.launch(
        many(count=10), url=f"file://{tmp_path}/run", queue="memory://b", by="me", batch=4
    )
    assert run.enqueue() == 3
    work(run)
    receipts = {
        r.task: r.work.voxels for _, found in run.ledger.read_receipts() for r in found or ()
    }
    assert receipts == {0: 0 + 1 + 2 + 3, 1: 4 + 5 + 6 + 7, 2: 8 + 9}
    assert run.progress().state is State.DONE


def test_a_plan_says_how_many_requests_a_queue_in_the_cloud_will_cost(
    many: type[Many], tmp_path: Path
) -> None:
    for queue, priced in (("sqs://q?region=eu-west-1", True), (f"sqlite://{tmp_path}/q", False)):
        _, plan = Run.launch(many(count=1000), url=f"file://{tmp_path}/r", queue=queue, by="me")
        assert ("note:  costs 300 requests to SQS" in plan.describe()) == priced
        assert ("up to 2,100 when" in plan.describe()) == priced
        shutil.rmtree(tmp_path / "r")


def test_a_launch_is_in_the_audit_log_before_it_is_in_the_record(tmp_path, monkeypatch):
    """Or a process that dies in between would launch a run that the log never tells of."""
    write_layer(tmp_path / "layer", random_voxels(Vec3(32, 16, 8)))
    url, queue = f"file://{tmp_path}/runs/run", "memory://audited"
    run, _ = Run.launch(Downsample(layer=f"{tmp_path}/layer"), url=url, queue=queue, by="tester")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("igneous_airflow.run_record.write_json", die)
    with pytest.raises(KeyboardInterrupt):
        run.prepare()
    assert [entry.action for entry in read_entries(run.runs_folder)] == ["launched"]
    assert not Run.load(url).was_launched
