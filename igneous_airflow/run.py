"""A run: one stage launched once, from plan to proof; called by the command line and by Airflow.

Its record and its ledger live in one folder (its *state*), in a bucket or on disk. So every process
that knows the folder's URL can go on with it: plan, prepare, enqueue, watch, resume, finish.
"""

import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from igneous_airflow.errors import (
    AuditFailed,
    IgneousError,
    InvalidMessage,
    InvalidParameter,
    PlanRefused,
    RunFailed,
    RunNotFound,
)
from igneous_airflow.hold import Hold
from igneous_airflow.ledger import DoneTasks, Failure, Ledger
from igneous_airflow.progress import Progress, State, Summary, group_errors
from igneous_airflow.queue.protocol import Counts, Queue, open_queue
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.stages import stage_class
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.json_files import read_json, write_json
from igneous_airflow.storage.overlap import overlap_width
from igneous_airflow.task import LAUNCH_ID, Task, TaskEncoder

_RECORD, _PLAN, _SUMMARY = "run.json", "plan.json", "summary.json"
_ERRORS_NAMED = 5
_ERRORS_READ = 200  # to put those together that differ by numbers only
_TASKS_NAMED = 10
#: Beyond so many receipts a summary leaves out what they add up to, since reading each takes its
#: time, and in a bucket a request. The proof needs only their names.
_READ_ON_DISK, _READ_IN_BUCKET = 1_000_000, 20_000
_MANY_TASKS = 100_000  # beyond this many, a task works on several cells
_LARGEST_BATCH = 100  # that is chosen by itself, so that a lost task is no great loss


class Run(BaseModel):
    """The record of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    url: str = Field(description="folder of the record and the ledger")
    launch_id: str = Field(
        pattern=LAUNCH_ID, description="new at each launch: what older workers leave does not count"
    )
    stage: str
    parameters: dict[str, Any] = Field(description="as resolved when the run was launched")
    asked: dict[str, Any] = Field(description="as asked for, for example with mip -1")
    queue: str
    own_queue: bool = Field(description="whether the queue holds nothing but this run's tasks")
    cells: int
    batch: int = Field(default=1, ge=1, description="cells per task")
    memory: int = Field(default=0, description="bytes of memory for the voxels of one task")
    scratch: int = Field(default=0, description="bytes in the temporary folder of each machine")
    by: str
    origin: dict[str, str] = Field(default={}, description="what launched it, in its own words")
    created: float = Field(description="seconds since the epoch")

    _open_queue: Callable[[str], Queue] | None = PrivateAttr(default=None)

    def opening_queues(self, how: Callable[[str], Queue]) -> Self:
        """The same run, which opens its queue in another way: with credentials, for example."""
        run = self.model_copy()
        run._open_queue = how  # noqa: SLF001
        return run

    @property
    def planned(self) -> int:
        """Number of tasks."""
        return -(-self.cells // self.batch)

    @property
    def ledger(self) -> Ledger:
        """The run's receipts and failures."""
        return Ledger(self.url, self.launch_id)

    @property
    def hold(self) -> Hold:
        """Whether this launch may begin."""
        return Hold(self.url, self.launch_id)

    @property
    def was_launched(self) -> bool:
        """Whether the run was ever allowed to work: not only planned, nor waiting for approval."""
        return not self.hold.why

    def make_stage(self) -> Stage:
        """The stage with its parameters; raises InvalidParameter when they are none of its own."""
        try:
            return stage_class(self.stage).model_validate(self.parameters)
        except ValidationError as error:
            raise InvalidParameter(f"{self.url}/{_RECORD}: {error}") from error

    def open_queue(self) -> Queue:
        """The run's queue."""
        return (self._open_queue or open_queue)(self.queue)

    @classmethod
    def launch(  # noqa: PLR0913 - what a run is, all of it by name
        cls,
        stage: Stage,
        *,
        url: str,
        queue: str,
        by: str,
        own_queue: bool = True,
        origin: dict[str, str] | None = None,
        batch: int | None = None,
        plan_only: bool = False,
        once_planned: Callable[[Stage, Plan], None] = lambda _stage, _plan: None,
    ) -> tuple[Self, Plan]:
        """Plan a stage and record the run; or take up the unfinished run recorded at `url`.

        `batch` cells make a task; by default one, or more where there would be very many tasks.
        A run that has finished starts from the beginning. With `plan_only` the run is held, and
        nothing need be confirmed. `once_planned` is called with the stage as it will run and its
        plan, before anything is recorded; what it raises ends the launch. Raises PlanRefused with
        every reason when the stage cannot start, and InvalidParameter when an unfinished run of
        other parameters is recorded there.
        The layer is left as it is, though without `plan_only` an empty file is written into its
        folder and deleted, to see that the run may.
        """
        earlier = cls._find(url)
        if earlier is not None and not earlier.is_finished:
            earlier._require_same(stage)  # noqa: SLF001
            stage = earlier.make_stage()
            plan = _startable(stage.plan(), plan_only=plan_only)
            once_planned(stage, plan)
            return earlier, earlier._announced(plan)  # noqa: SLF001
        asked = stage.parameters()
        try:
            stage = stage.resolved()
        except IgneousError as error:
            raise PlanRefused(stage.name, [str(error)]) from error
        plan = _startable(stage.plan(), plan_only=plan_only)
        once_planned(stage, plan)
        cells = len(stage.cells())
        run = cls(
            id=url.rstrip("/").rpartition("/")[2],
            url=url.rstrip("/"),
            launch_id=uuid.uuid4().hex[:8],
            stage=stage.name,
            parameters=stage.parameters(),
            asked=asked,
            queue=queue,
            own_queue=own_queue,
            cells=cells,
            batch=batch or _batch(cells),
            memory=plan.memory,
            scratch=plan.scratch,
            by=by,
            origin=origin or {},
            created=time.time(),
        )
        if plan_only:
            run.hold.place("nothing but its plan was asked for")
        run._write(_RECORD, run)
        if earlier is not None:
            run.ledger.forget_everything()
            open_folder(run.url).delete(_SUMMARY)  # last: until then this can be done again
        return run, run._announced(plan)

    def _announced(self, plan: Plan) -> Plan:
        """The plan with what it did not know: how cells become messages, and what these cost."""
        notes = list(plan.notes)
        if self.batch > 1:
            notes.append(f"each task works on {self.batch:,} cells, to send fewer messages")
        if self.planned:
            size = len(self._encoder().encode(self.planned - 1))
            notes.append(self.open_queue().cost(self.planned, size))
        return plan.model_copy(
            update={"tasks": self.planned, "notes": tuple(note for note in notes if note)}
        )

    def _encoder(self) -> TaskEncoder:
        return TaskEncoder(self.url, self.launch_id, self.make_stage(), self.batch, self.cells)

    @classmethod
    def load(cls, url: str) -> Self:
        """Read a run's record; raises RunNotFound."""
        run = cls._find(url)
        if run is None:
            raise RunNotFound(f"no run is recorded at {url}: {url}/{_RECORD} is missing")
        return run

    @classmethod
    def _find(cls, url: str) -> Self | None:
        return read_json(open_folder(url.rstrip("/")), _RECORD, cls)

    def _require_same(self, stage: Stage) -> None:
        asked = stage.parameters()
        differing = [
            name
            for name, value in asked.items()
            if stage.name != self.stage or value != self.asked.get(name)
        ]
        if differing:
            raise InvalidParameter(
                f"the unfinished run {self.url} has other values for {', '.join(differing)}: start "
                "a new run, or this one with the values it had"
            )

    @property
    def is_finished(self) -> bool:
        """Whether the run was proved complete."""
        return open_folder(self.url).exists(_SUMMARY)

    def require_finished(self) -> None:
        """Raise RunFailed unless the run was proved complete."""
        if not self.is_finished:
            raise RunFailed(
                f"the {self.stage} run {self.url} was not proved done, and what comes after relies "
                "on it: clear its failed tasks and let it finish, or start again without that step"
            )

    def write_plan(self, plan: Plan) -> None:
        """Note the plan, for people who look at the run."""
        self._write(_PLAN, plan)

    def stored_plan(self) -> bytes | None:
        """The plan that was noted, in JSON; None when there is none."""
        stored = open_folder(self.url).read(_PLAN)
        return None if stored is None else bytes(decompress_bytes(stored))

    def prepare(self) -> None:
        """Write what the tasks rely on; may run again. Raises RunFailed for a run that is held."""
        self.hold.require_released()
        self.make_stage().prepare()

    def enqueue(self) -> int:
        """Send every task without a receipt and return how many.

        They take the place of whatever a queue of the run's own still holds. Raises RunFailed for
        a run that is held.
        """
        self.hold.require_released()
        missing = self.ledger.done(self.planned).missing()
        encoder = self._encoder()
        queue = self.open_queue()
        try:
            if self.own_queue:
                queue.purge()
            self.ledger.forget_failures()
            return queue.send(encoder.encode_all(missing))
        finally:
            queue.close()

    def resume(self) -> int:
        """Send what is missing when nobody could be working on it; return how many tasks.

        Does nothing while the queue holds a message for every missing task; when all of them were
        given up, its messages are those of others.
        """
        progress = self.progress()
        if progress.state is State.FAILED or progress.waiting + progress.leased < progress.left:
            return self.enqueue()
        return 0

    def redrive(self) -> int:
        """Send the run's tasks that were given up once more and return how many.

        Those that still wait or are worked on are left alone.
        """
        if self.is_finished:
            return 0
        queue = self.open_queue()
        try:
            if not queue.dead_letters(1):
                return 0
            self.ledger.forget_failures()
            return queue.redrive(self._is_own)
        finally:
            queue.close()

    def _is_own(self, body: str) -> bool:
        try:
            task = Task.decode(body)
        except InvalidMessage:
            return False
        return (task.run, task.launch_id) == (self.url, self.launch_id)

    def progress(self, counts: Counts | None = None) -> Progress:
        """Count receipts and messages; `counts` are the queue's, if they were just asked for."""
        if self.is_finished:  # the queue may be gone
            return Progress(
                planned=self.planned,
                done=self.planned,
                failed_attempts=self.ledger.failed_attempts(),
                shared=not self.own_queue,
            )
        # the queue first: a task that is settled in between counts as done, not as lost
        counts = counts or self._count()
        done = self.done()
        dead = given_up = self.ledger.given_up(done)
        if self.own_queue:  # it may have buried what no worker lived to record
            dead = max(dead, min(counts.dead, self.planned - done.count))
        return Progress(
            planned=self.planned,
            done=done.count,
            waiting=counts.waiting,
            delayed=counts.delayed,
            leased=counts.leased,
            expired=counts.expired,
            dead=dead,
            failed_attempts=self.ledger.failed_attempts(),
            shared=not self.own_queue,
            exact=counts.exact or done.count + given_up >= self.planned,
        )

    def _count(self) -> Counts:
        queue = self.open_queue()
        try:
            return queue.counts()
        finally:
            queue.close()

    def done(self) -> DoneTasks:
        """List which tasks have receipts."""
        return self.ledger.done(self.planned)

    def is_decided(self) -> bool:
        """Whether each task is done or was given up, by the ledger alone: it waits for nobody."""
        done = self.done()
        return done.count + self.ledger.given_up(done) >= self.planned

    def require_done(self, progress: Progress) -> None:
        """Raise RunFailed, with the tasks and their errors, unless every task has its receipt."""
        if progress.state is State.DONE:
            return
        lines = [
            f"{progress.left:,} of {progress.planned:,} tasks of run {self.id} are not done; "
            f"{progress.why_unfinished}."
        ]
        groups = list(group_errors(self.final_failures(_ERRORS_READ)))
        lines += [f"  {group.describe()}" for group in groups[:_ERRORS_NAMED]]
        if len(groups) > _ERRORS_NAMED:
            lines.append(f"  and {len(groups) - _ERRORS_NAMED:,} other errors")
        lines.append(f"Mend the cause and resume: {self._way_out}")
        raise RunFailed("\n".join(lines))

    @property
    def _way_out(self) -> str:
        return (
            f"run `igneous-airflow resume {self.url.removeprefix('file://')}`, or, in Airflow, "
            "clear the task `enqueue` with those after it. Tasks that are done are not repeated."
        )

    def final_failures(self, limit: int = 1000) -> list[Failure]:
        """The last failure of each task that has no receipt, of the first `limit` such tasks."""
        return self.ledger.last_failures(self.done(), limit)

    def finish(self) -> Summary:
        """Prove that the run is complete, record provenance and summary; may run again.

        Raises RunFailed when receipts are missing, AuditFailed when output is. Tasks whose output
        is missing lose their receipts, so that resuming the run does them again.
        """
        self.require_done(self.progress())
        try:
            audit = self.make_stage().finish(self.by, self.ledger.account(self.batch))
        except AuditFailed as error:
            raise self._taken_back(error) from None
        readable = _READ_ON_DISK if overlap_width(self.url) == 1 else _READ_IN_BUCKET
        earlier = self.summary()
        summary = Summary(
            run=self.id,
            stage=self.stage,
            tasks=self.planned,
            seconds=earlier.seconds if earlier else round(time.time() - self.created, 2),
            audit=audit,
            work=self.ledger.work() if self.planned <= readable else None,
            failed_attempts=self.ledger.failed_attempts(),
        )
        self._write(_SUMMARY, summary)
        return summary

    def _taken_back(self, error: AuditFailed) -> AuditFailed:
        """Take back the receipts of the tasks whose output is missing, and say which they are."""
        tasks = sorted({cell // self.batch for cell in error.cells})
        if not tasks:
            return error
        self.ledger.withdraw(tasks)
        open_folder(self.url).delete(_SUMMARY)  # last: until then this can be done again
        named = ", ".join(map(str, tasks[:_TASKS_NAMED]))
        others = ", ..." if len(tasks) > _TASKS_NAMED else ""
        return AuditFailed(
            f"{error}\nThe tasks that should have written them count as not done any more, "
            f"{len(tasks):,} of {self.planned:,}: {named}{others}\nResume: {self._way_out}",
            error.cells,
        )

    def summary(self) -> Summary | None:
        """What the finished run did; None while it has not finished."""
        return read_json(open_folder(self.url), _SUMMARY, Summary)

    def _write(self, name: str, entry: BaseModel) -> None:
        write_json(open_folder(self.url), name, entry)


def _startable(plan: Plan, *, plan_only: bool) -> Plan:
    """Return a plan that may start, with permission to write; raises PlanRefused."""
    if plan_only:
        return plan.require_possible()
    plan = plan.require_accepted()
    if plan.writes_to:
        try:
            open_folder(plan.writes_to).try_writing()
        except IgneousError as error:
            raise PlanRefused(plan.stage, [str(error)]) from error
    return plan


def _batch(cells: int) -> int:
    """How many cells make a task when nobody says."""
    return min(max(1, -(-cells // _MANY_TASKS)), _LARGEST_BATCH)


def run_folder_name(*parts: str) -> str:
    """A folder's name for a run known by other words: readable, and different for other words."""
    words = "/".join(parts)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", words).strip("_.")[:100]
    return f"{readable}-{sha256(words.encode()).hexdigest()[:8]}"


def new_run_name(stage: str) -> str:
    """A folder's name for a run that nobody has named: the stage and the time."""
    return run_folder_name(stage, datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f"))
