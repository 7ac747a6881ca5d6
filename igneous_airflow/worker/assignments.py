"""What a message entitles a worker to do: only what a record below its own runs folder says.

Used by the worker's loop, and by the parent of worker processes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from igneous_airflow.errors import (
    InvalidMessage,
    InvalidParameter,
    RunNotFound,
    WrongRunsFolder,
)
from igneous_airflow.ledger import Ledger
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.runs_folder import read_mark
from igneous_airflow.stage import Stage
from igneous_airflow.task import Task

_RECORD_SECONDS = 10.0  # how old a record may be that is believed


@dataclass
class LaunchedRun:
    """A launched run, with what is opened once for all of its tasks."""

    run: Run
    read_at: float

    @cached_property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.run.ledger

    @cached_property
    def work(self) -> tuple[Stage, Sequence[Any]]:
        """The stage, and its blocks."""
        stage = self.run.make_stage()
        stage.require_allowed()
        return stage, stage.cells()


@dataclass(frozen=True, slots=True)
class Assignment:
    """One task of a launched run."""

    launched: LaunchedRun
    index: int

    @property
    def run(self) -> Run:
        """The run that the task is of."""
        return self.launched.run

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.launched.ledger

    @property
    def blocks(self) -> range:
        """The numbers of the task's blocks."""
        start = self.index * self.run.batch
        return range(start, min(start + self.run.batch, self.run.blocks))


@dataclass
class Assignments:
    """Reads messages as tasks of the runs recorded below a folder; nothing is ever written.

    Records are read again when they are ten seconds old, so that runs that are cancelled or done
    meanwhile stop.
    """

    runs: str
    clock: Callable[[], float] = time.monotonic
    _known: dict[tuple[str, str], LaunchedRun] = field(default_factory=dict)

    def of(self, message: str) -> Assignment:
        """The task that a message names.

        Raises InvalidMessage, with the reason, for one that is not a task of a run that workers may
        work on now; WrongRunsFolder for one of another runs folder than this; TransientError when
        the record cannot be read.
        """
        task = Task.decode(message)
        launched = self._launched(task)
        if task.task >= launched.run.planned:
            raise InvalidMessage(
                f"the run {task.run} has {launched.run.planned:,} tasks, so none has number "
                f"{task.task:,}"
            )
        return Assignment(launched, task.task)

    def _launched(self, task: Task) -> LaunchedRun:
        key = (task.run, task.launch)
        known = self._known.get(key)
        if known is not None and self.clock() - known.read_at < _RECORD_SECONDS:
            return known
        self._known.pop(key, None)
        read_at = self.clock()
        run = self._read(task)
        if known is not None and known.run.digest == run.digest:
            known.read_at = read_at  # with what it has opened
            launched = known
        else:
            launched = LaunchedRun(run, read_at)
        self._known = {key: launched}  # a worker has little memory, and seldom several runs
        return launched

    def _read(self, task: Task) -> Run:
        """The run as it is recorded; raises InvalidMessage unless workers may do its tasks.

        Raises WrongRunsFolder where it cannot be recorded.
        """
        try:
            run = Run.load(f"{self.runs}/{task.run}")
        except RunNotFound as error:
            self._require_right_folder(task)
            raise InvalidMessage(
                f"no run {task.run} is recorded in {self.runs}, the runs folder of this worker"
            ) from error
        except InvalidParameter as error:
            raise InvalidMessage(str(error)) from error
        if run.id != task.run:
            raise InvalidMessage(
                f"the folder {run.url} holds the record of another run, {run.id}: was it copied?"
            )
        if run.launch_id != task.launch:
            raise InvalidMessage(
                f"this task is of launch {task.launch} of the run {run.id}, which was launched "
                f"again since, as {run.launch_id}"
            )
        if run.state is not LaunchState.LAUNCHED:
            raise InvalidMessage(f"the run {run.id} is {run.state}: its tasks are not worked on")
        return run

    def _require_right_folder(self, task: Task) -> None:
        """Raise WrongRunsFolder unless a task's run would be recorded in the folder of runs."""
        mark = None
        with suppress(InvalidParameter):  # a damaged one is none
            mark = read_mark(self.runs)
        if mark is not None and task.runs in (None, mark):
            return
        what = "is not a runs folder" if mark is None else "is not the runs folder of this queue"
        raise WrongRunsFolder(
            f"{self.runs} {what}: the run {task.run} is not recorded there. Start the worker with "
            "--runs and the folder that the runs were launched with, and see that it is mounted. "
            "Installations with different runs folders need different queues"
        )
