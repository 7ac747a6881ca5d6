"""A run: one stage launched once, from plan to proof; called by the command line and by Airflow.

Its record and its ledger live in one folder, in a bucket or on disk. So every process that knows
the folder's URL can go on with it: plan, prepare, enqueue, watch, resume, finish.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from igneous_airflow.audit_log import Action, AuditEntry, audit_folder, write_entry
from igneous_airflow.errors import (
    AuditFailed,
    CorruptChunk,
    IgneousError,
    InvalidMessage,
    InvalidParameter,
    PlanRefused,
    RunFailed,
    RunNotFound,
)
from igneous_airflow.ledger import DoneTasks, Failure, Ledger
from igneous_airflow.progress import Progress, State, Summary, group_errors
from igneous_airflow.queue.protocol import Counts, Queue, open_queue
from igneous_airflow.run_record import (
    RECORD,
    LaunchState,
    RunRecord,
    StateChange,
    change_record,
    create_record,
    read_record,
)
from igneous_airflow.runs_folder import mark_of
from igneous_airflow.stage import Launch, Plan, Stage
from igneous_airflow.stages import stage_class
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.files import open_folder, open_own_folder
from igneous_airflow.storage.info import INFO
from igneous_airflow.storage.json_files import RECORD_BYTES, read_json, write_json
from igneous_airflow.storage.methods import PERMISSIONS, method_digest, same_method
from igneous_airflow.storage.partials import remove_abandoned
from igneous_airflow.task import Task, TaskEncoder
from igneous_airflow.validation import wrong_fields

_ACTIONS: dict[LaunchState, Action] = {
    LaunchState.APPROVED: "approved",
    LaunchState.LAUNCHED: "launched",
    LaunchState.CANCELLED: "cancelled",
}
_PLAN, _SUMMARY = "plan.json", "summary.json"
_ERRORS_NAMED = 5
_ERRORS_READ = 200  # to put those together that differ by numbers only
_TASKS_NAMED = 10
_MANY_TASKS = 100_000  # beyond this many, a task works on several blocks
_LARGEST_BATCH = 100  # that is chosen by itself, so that a lost task is no great loss


class Run(RunRecord):
    """A run as it was recorded when this was loaded, and what can be done with it."""

    url: str = Field(exclude=True, description="folder of the record and the ledger")

    _open_queue: Callable[[str], Queue] | None = PrivateAttr(default=None)

    def opening_queues(self, how: Callable[[str], Queue]) -> Self:
        """The same run, which opens its queue in another way: with credentials, for example."""
        run = self.model_copy()
        run._open_queue = how  # noqa: SLF001
        return run

    @property
    def runs_folder(self) -> str:
        """The address of the folder that the run's own folder is in."""
        return self.url.rpartition("/")[0]

    @property
    def ledger(self) -> Ledger:
        """The run's receipts and failures."""
        return Ledger(self.url, self.launch_id)

    def make_stage(self) -> Stage:
        """The stage with its parameters, whose plan was accepted before they were recorded.

        Raises InvalidParameter when they are not the stage's own.
        """
        try:
            stage = stage_class(self.stage).model_validate(self.resolved)
            return stage.accepted(Launch(self.id, self.launch_id, self.was_launched))
        except ValidationError as error:
            problems = "; ".join(wrong_fields(error))
            raise InvalidParameter(f"{self.url}/{RECORD}: {problems}") from None

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
        triggered_by: dict[str, str] | None = None,
        batch: int | None = None,
        plan_only: bool = False,
        trusted: Sequence[Mapping[str, Any]] = (),
        once_planned: Callable[[Stage, Plan], None] = lambda _stage, _plan: None,
    ) -> tuple[Self, Plan]:
        """Plan a stage and record the run; or take up the unfinished run recorded at `url`.

        `batch` blocks make a task; by default one, or more where there would be very many tasks.
        A run that has finished starts from the beginning. One with `plan_only` is never launched,
        and nothing need be confirmed. What runs of the `trusted` methods made may be replaced.
        `once_planned` is called with the stage as it will run and its plan, before anything is
        recorded; what it raises ends the launch. Raises PlanRefused with every reason when the
        stage cannot start, and InvalidParameter when an unfinished run of other parameters is
        recorded there.
        The layer is left as it is, though without `plan_only` an empty file is written into its
        folder and deleted, to see that the run may.
        """
        stage.require_allowed()
        earlier = cls._find(url)
        if earlier is not None and earlier._goes_on(plan_only=plan_only):  # noqa: SLF001
            plan = earlier._plan_again(stage, plan_only, trusted)  # noqa: SLF001
            return earlier._taken_up(plan, by, once_planned, plan_only=plan_only)  # noqa: SLF001
        requested = stage.parameters()
        try:
            stage = (earlier._meaning(stage) if earlier else stage).resolved()  # noqa: SLF001
        except IgneousError as error:
            raise PlanRefused(stage.name, [str(error)]) from error
        plan = _startable(stage.plan(), plan_only=plan_only, trusted=trusted)
        once_planned(stage, plan)
        blocks = plan.tasks
        run = cls._new(
            stage,
            url,
            by,
            requested=requested,
            queue=queue,
            own_queue=own_queue,
            blocks=blocks,
            batch=batch or _batch(blocks),
            memory=plan.memory,
            scratch=plan.scratch,
            triggered_by=triggered_by or {},
            plan_only=plan_only,
            replaces=tuple(sorted(map(method_digest, plan.made_by))),
        )
        return run._recorded(earlier), run._announced(plan)  # noqa: SLF001

    @classmethod
    def refuse(
        cls,
        stage: Stage,
        reasons: tuple[str, ...],
        *,
        url: str,
        by: str,
        triggered_by: dict[str, str],
    ) -> None:
        """Record that a plan was refused, with its reasons, for people who look for the run.

        A run that was launched, or waits for approval, is left as it is.
        """
        earlier = cls._find(url)
        if earlier is None or earlier.state is LaunchState.REFUSED:
            refused = cls._new(
                stage,
                url,
                by,
                requested=stage.parameters(),
                queue="",
                own_queue=False,
                blocks=0,
                triggered_by=triggered_by,
                refusals=reasons,
            )
            refused._recorded(earlier)  # noqa: SLF001

    @classmethod
    def _new(cls, stage: Stage, url: str, by: str, **others: Any) -> Self:
        """A run that is not recorded yet."""
        url = url.rstrip("/")
        state = LaunchState.REFUSED if others.get("refusals") else LaunchState.PLANNED
        try:
            return cls(
                id=url.rpartition("/")[2],
                url=url,
                launch_id=uuid.uuid4().hex[:8],
                stage=stage.name,
                resolved=stage.parameters(),
                by=by,
                created=time.time(),
                changes=(StateChange.now(state, by),),
                **others,
            )
        except ValidationError as error:
            raise InvalidParameter(
                f"{url}: name the run's folder with letters, digits, dots, dashes and underscores, "
                "at most 200"
            ) from error

    def _recorded(self, earlier: "Run | None") -> Self:
        """The run once it is recorded; what an earlier launch has left counts no more."""
        folder, record = open_own_folder(self.url), self._as_record()
        if earlier is None:
            return self._with(create_record(folder, record, None))
        self.ledger.forget_everything()
        run = self._with(create_record(folder, record, earlier._as_record()))  # noqa: SLF001
        folder.delete(_SUMMARY)
        return run

    def _as_record(self) -> RunRecord:
        return RunRecord(**{name: getattr(self, name) for name in RunRecord.model_fields})

    def _with(self, record: RunRecord) -> Self:
        """This run with a newer record."""
        return self.model_copy(update=dict(record))

    def _goes_on(self, *, plan_only: bool) -> bool:
        """Whether a launch takes this run up; otherwise it starts afresh."""
        if self.state in (LaunchState.REFUSED, LaunchState.DONE):
            return False
        if self.state is LaunchState.CANCELLED:
            return self.was_launched
        return plan_only or not self.plan_only

    def _meaning(self, stage: Stage) -> Stage:
        """The stage, started once more: it means the mips that it meant when it was finished.

        The mips may have other numbers by now: `mip` 1 of a finished delete is another one.
        """
        if self.state is not LaunchState.DONE or self._differing(stage):
            return stage
        permissions = {n: v for n, v in stage.parameters().items() if n in PERMISSIONS}
        return type(stage).model_validate({**self.resolved, **permissions})

    def _plan_again(
        self, stage: Stage, plan_only: bool, trusted: Sequence[Mapping[str, Any]]
    ) -> Plan:
        """The plan of this run, which a launch of the stage takes up; raises PlanRefused."""
        self.require_same(stage)
        plan = self.make_stage().plan()
        if self.was_launched:  # it was confirmed then
            if newer := self._replaced_by(plan, trusted):
                raise PlanRefused(self.stage, [newer])
            plan = plan.require_accepted(resumed=True)
        return _startable(plan, plan_only=plan_only, trusted=trusted)

    def _taken_up(
        self, plan: Plan, by: str, once_planned: Callable[[Stage, Plan], None], *, plan_only: bool
    ) -> tuple[Self, Plan]:
        """Go on with this run, which was planned before."""
        once_planned(self.make_stage(), plan)
        announced = self._announced(plan)
        if self.state is LaunchState.CANCELLED and not plan_only:
            return self._changed(lambda record: record.continued(by)), announced
        return self, announced

    def _announced(self, plan: Plan) -> Plan:
        """The plan with what it did not know: how blocks become messages, and what these cost."""
        notes = list(plan.notes)
        if self.batch > 1:
            notes.append(f"each task works on {self.batch:,} blocks, to send fewer messages")
        if self.planned:
            size = len(self._encoder().encode(self.planned - 1))
            notes.append(self.open_queue().cost(self.planned, size))
        return plan.model_copy(
            update={"tasks": self.planned, "notes": tuple(note for note in notes if note)}
        )

    def _encoder(self) -> TaskEncoder:
        return TaskEncoder(mark_of(self.runs_folder), self.id, self.launch_id)

    @classmethod
    def load(cls, url: str) -> Self:
        """Read a run's record; raises RunNotFound, and InvalidParameter for a damaged one."""
        run = cls._find(url)
        if run is None:
            raise RunNotFound(f"no run is recorded at {url}: {url}/{RECORD} is missing")
        return run

    @classmethod
    def _find(cls, url: str) -> Self | None:
        url = url.rstrip("/")
        record = read_record(open_own_folder(url))
        return None if record is None else cls(url=url, **dict(record))

    def require_same(self, stage: Stage) -> None:
        """Raise InvalidParameter when the run was launched with other parameters than a stage's."""
        if differing := self._differing(stage):
            raise InvalidParameter(
                f"the recorded run {self.url} has other values for {', '.join(differing)}: start "
                "a new run, or this one with the values it had"
            )

    def _differing(self, stage: Stage) -> list[str]:
        """The parameters of a stage that this run was requested with other values for."""
        return [
            name
            for name, value in stage.identity().items()
            if stage.name != self.stage or value != self.requested.get(name)
        ]

    def _changed(self, change: Callable[[RunRecord], RunRecord]) -> Self:
        """This run once its state was changed.

        The audit log says who did it, before it is done: a process that dies leaves no gap there.
        """

        def told(record: RunRecord) -> RunRecord:
            changed = change(record)
            self._tell(changed.changes[len(record.changes) :])
            return changed

        return self._with(change_record(open_own_folder(self.url), self.launch_id, told))

    def _tell(self, changes: Sequence[StateChange]) -> None:
        """Write changes of the state into the audit log."""
        for step in changes:
            if action := self._audited(step.state):
                entry = AuditEntry(
                    at=step.at,
                    action=action,
                    by=step.by,
                    what=self._output(),
                    run=self.id,
                    launch=self.launch_id,
                    stage=self.stage,
                    why=step.why,
                    triggered_by=self.triggered_by,
                )
                write_entry(self.runs_folder, entry)

    def _output(self) -> str:
        with suppress(InvalidParameter):  # of a stage that is not installed here
            return self.make_stage().output
        return ""

    def _audited(self, state: LaunchState) -> Action | None:
        """What a change to a state is called in the audit log; None when it is not written."""
        if state is LaunchState.DONE:
            return "deleted" if self.stage == "delete" else None
        return _ACTIONS.get(state)

    def refreshed(self) -> Self:
        """This run as it is recorded now; raises RunFailed when it was launched again meanwhile."""
        return self._changed(lambda record: record)

    @property
    def is_finished(self) -> bool:
        """Whether the run was proved complete, as its record says now."""
        record = read_record(open_own_folder(self.url))
        return record is not None and record.is_finished and record.launch_id == self.launch_id

    def require_finished(self) -> None:
        """Raise RunFailed unless the run was proved complete."""
        if not self.is_finished:
            raise RunFailed(
                f"the {self.stage} run {self.url} was not proved done, and what comes after relies "
                "on it: clear its failed tasks and let it finish, or start again without that step"
            )

    def require_approval(self, why: str) -> Self:
        """Let the run wait until a person approves it, unless one has."""

        def change(record: RunRecord) -> RunRecord:
            waits = record.state is LaunchState.PLANNED
            return record.model_copy(update={"approval": why}) if waits else record

        return self._changed(change)

    def approve(self, by: str) -> Self:
        """Let the run begin; `by` is the person who allows it.

        Raises RunFailed when another run has written where it will write since it was planned.
        """
        self._require_latest()
        return self._changed(lambda record: record.moved_to(LaunchState.APPROVED, by))

    def cancel(self, by: str, why: str = "") -> Self:
        """Let no worker begin another task of the run, and empty a queue of its own.

        Raises RunFailed for a run that is done or was refused.
        """
        run = self._changed(lambda record: record.moved_to(LaunchState.CANCELLED, by, why))
        if run.own_queue:
            queue = run.open_queue()
            try:
                queue.purge()
            finally:
                queue.close()
        return run

    def write_plan(self, plan: Plan) -> None:
        """Note the plan, for people who look at the run."""
        self._write(_PLAN, plan)

    def stored_plan(self) -> bytes | None:
        """The plan that was noted, in JSON; None when there is none."""
        stored = open_own_folder(self.url).read(_PLAN)
        return None if stored is None else bytes(decompress_bytes(stored, RECORD_BYTES))

    def prepare(self) -> None:
        """Write what the tasks rely on; may run again.

        Raises RunFailed unless the run may begin.
        """
        self._begun()
        stage = self.make_stage()
        stage.prepare()
        sync(stage.output, [INFO])

    def _begun(self) -> Self:
        """The run once workers may do its tasks; one that is done stays so."""
        finished = LaunchState.DONE
        return self._changed(lambda r: r if r.state is finished else r.begun(self.by))

    def enqueue(self) -> int:
        """Send every task without a receipt and return how many.

        They take the place of whatever a queue of the run's own still holds. Raises RunFailed
        unless the run may begin.
        """
        self._begun()
        missing = self.ledger.done(self.planned).missing()
        encoder = self._encoder()
        queue = self.open_queue()
        try:
            if self.own_queue:
                queue.purge()
            self.ledger.forget_failures()
            sent = queue.send(encoder.encode_all(missing))
        finally:
            queue.close()
        if self.is_of_format_1:  # from now on its queue has messages that workers take
            self._changed(RunRecord.sealed)
        return sent

    def go_on(self, by: str) -> Self:
        """Let workers do the run's tasks again, also where it was cancelled after its launch.

        Raises RunFailed when another run has written where it writes since it was planned.
        """
        self._require_latest()
        finished = LaunchState.DONE
        return self._changed(lambda r: r if r.state is finished else r.continued(by))

    def _require_latest(self) -> None:
        if newer := self._replaced_by(self.make_stage().plan()):
            raise RunFailed(newer)

    def _replaced_by(self, plan: Plan, trusted: Sequence[Mapping[str, Any]] = ()) -> str:
        """Say which run has written since this one was planned where it writes; empty for none.

        The plan is of now. What a run of the `trusted` methods made may be replaced.
        """
        if self.replaces is None:
            return ""
        newer = [
            str(method.get("task", "another program"))
            for method in plan.made_by
            if method and method_digest(method) not in self.replaces
            if not any(same_method(method, known) for known in trusted)
        ]
        if not newer:
            return ""
        return (
            f"since the run {self.id} was planned, {', '.join(sorted(set(newer)))} has written "
            "where it writes: to replace that, start a new run and confirm it"
        )

    def resume(self) -> int:
        """Send what is missing when no worker could be at it; return how many tasks.

        Does nothing while the queue holds a message for every missing task; when all of them were
        given up, its messages are those of others. Messages of a run of format 1 may be in a form
        that workers refuse.
        """
        progress = self.progress()
        is_short = progress.waiting + progress.leased < progress.left
        if progress.state is State.FAILED or is_short or self.is_of_format_1:
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
        return (task.run, task.launch) == (self.id, self.launch_id)

    def progress(self, counts: Counts | None = None) -> Progress:
        """Count receipts and messages; `counts` are the queue's, if they were just asked for."""
        if self.is_finished:  # the queue may be gone
            return Progress(
                planned=self.planned,
                done=self.planned,
                failed_attempts=self.ledger.failed_attempts(),
                shared=not self.own_queue,
            )
        return self._look(counts)

    def _look(self, counts: Counts | None = None) -> Progress:
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
            counts = queue.counts()
            if counts.dead and counts.exact:  # messages of others may have been put there
                letters = queue.dead_letters(self.planned)
                counts = replace(counts, dead=sum(self._is_own(letter.body) for letter in letters))
            return counts
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
        lines.append(f"Fix the cause, then resume: {self._way_out}")
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
        is missing lose their receipts, so that resuming the run does them again. Where
        another run has written over the output since, either is raised, and the receipts stay.
        """
        if self.is_finished:
            self._require_latest()
        self._begun()
        self.require_done(self._look())
        account = self.ledger.account(self.planned, self.blocks, self.batch)
        stage = self.make_stage()
        try:
            audit = stage.finish(self.by, account)
            work = account.read_all()
        except AuditFailed as error:
            if newer := self._replaced_by(stage.plan()):
                raise AuditFailed(f"{error}\nThat is no fault: {newer}", error.cells) from None
            raise self._taken_back(error) from None
        earlier = self._stored_summary()
        summary = Summary(
            run=self.id,
            stage=self.stage,
            tasks=self.planned,
            seconds=earlier.seconds if earlier else round(time.time() - self.created, 2),
            audit=audit,
            work=work,
            failed_attempts=self.ledger.failed_attempts(),
        )
        self._write(_SUMMARY, summary)
        self._remove_leftovers(audit_folder(self.runs_folder))
        self._changed(lambda record: record.moved_to(LaunchState.DONE, self.by))
        return summary

    def _remove_leftovers(self, *others: str) -> None:
        """Remove what killed processes left half written, where nobody lists files anyhow."""
        remove_abandoned(self.url, depth=1)
        for url in (self._output(), self.runs_folder, *others):
            remove_abandoned(url)

    def _taken_back(self, error: AuditFailed) -> AuditFailed:
        """Take back the receipts of the tasks whose output is missing, and say which they are."""
        tasks = sorted({cell // self.batch for cell in error.cells})
        if not tasks:
            return error
        self.ledger.withdraw(tasks)
        # last: until then this can be done again
        self._changed(lambda record: record.moved_to(LaunchState.LAUNCHED, self.by))
        named = ", ".join(map(str, tasks[:_TASKS_NAMED]))
        others = ", ..." if len(tasks) > _TASKS_NAMED else ""
        return AuditFailed(
            f"{error}\nThe tasks that should have written them count as not done any more, "
            f"{len(tasks):,} of {self.planned:,}: {named}{others}\nResume: {self._way_out}",
            error.cells,
        )

    def summary(self) -> Summary | None:
        """What the finished run did; None while it has not finished."""
        return self._stored_summary() if self.is_finished else None

    def _stored_summary(self) -> Summary | None:
        with suppress(InvalidParameter, CorruptChunk):  # damaged: `finish` writes it again
            return read_json(open_own_folder(self.url), _SUMMARY, Summary)
        return None

    def _write(self, name: str, entry: BaseModel) -> None:
        write_json(open_own_folder(self.url), name, entry)


def _startable(plan: Plan, *, plan_only: bool, trusted: Sequence[Mapping[str, Any]]) -> Plan:
    """Return a plan that may start, with permission to write; raises PlanRefused."""
    if plan_only:
        return plan.require_possible()
    plan = plan.require_accepted(trusted=trusted)
    if plan.writes_to:
        try:
            open_folder(plan.writes_to).try_writing()
        except IgneousError as error:
            raise PlanRefused(plan.stage, [str(error)]) from error
    return plan


def _batch(cells: int) -> int:
    """How many cells make a task when nobody says."""
    return min(max(1, -(-cells // _MANY_TASKS)), _LARGEST_BATCH)
