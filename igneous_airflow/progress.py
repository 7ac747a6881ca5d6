"""How far a run is and what it did, in numbers and in words; used by runs and whoever watches."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.ledger import Failure
from igneous_airflow.stage import Audit, Work, human_bytes


class State(StrEnum):
    """What can be said of a run by its receipts and its queue."""

    WAITING = "waiting"  # tasks wait: nobody has begun, or all that are left wait for a retry
    WORKING = "working"  # workers hold tasks, as far as leases tell
    INTERRUPTED = "interrupted"  # tasks wait, and nobody holds one although work had begun
    DONE = "done"  # every planned task has its receipt
    FAILED = "failed"  # tasks were given up, and nothing else is left to wait for
    STALLED = "stalled"  # receipts are missing, yet the queue is empty: messages were lost


_NUMBERS = re.compile(r"-?\d+")
_UNDECIDED = (State.WAITING, State.WORKING, State.INTERRUPTED)


class Progress(BaseModel):
    """How far a run is; `state` judges by receipts, never by an empty queue alone.

    In a queue that several runs share, nobody can tell whose the messages are: `waiting` and
    `leased` are those of all. `dead` are always this run's own.
    """

    model_config = ConfigDict(frozen=True)

    planned: int
    done: int
    waiting: int = Field(default=0, description="messages that nobody holds")
    delayed: int = Field(default=0, description="those of `waiting` whose time has not come")
    leased: int = Field(default=0, description="messages that workers hold")
    expired: int = Field(default=0, description="those of `waiting` whose worker fell silent")
    dead: int = Field(default=0, description="tasks that were given up")
    failed_attempts: int = 0
    shared: bool = Field(default=False, description="whether other runs use the queue too")
    exact: bool = Field(
        default=True,
        description="whether the queue counts exactly and at once, or the ledger needs no queue",
    )

    @property
    def state(self) -> State:
        """The judgement."""
        if self.left <= 0:
            return State.DONE
        if self.shared and self.dead >= self.left:
            return State.FAILED  # whatever others have in the queue
        if self.leased:
            return State.WORKING
        if self.waiting:
            begun = self.done or self.failed_attempts or self.expired
            return State.INTERRUPTED if begun and self.waiting > self.delayed else State.WAITING
        return State.FAILED if self.dead else State.STALLED

    @property
    def left(self) -> int:
        """How many tasks have no receipt."""
        return self.planned - self.done

    @property
    def why_unfinished(self) -> str:
        """Why the tasks that are left are not done, once nobody works on them, in words."""
        if self.state is State.STALLED:
            return "their messages are gone from the queue"
        if self.state is State.WAITING and not (self.done or self.failed_attempts):
            return "no worker has come yet"
        if self.state is not State.FAILED:
            return "no worker works on them any more"
        if self.dead >= self.left:
            return "they were given up"
        gone = "the messages of the others are gone from the queue"
        return f"{self.dead:,} were given up, and {gone}"

    @property
    def undecided(self) -> bool:
        """Whether tasks are still in the queue, so that the run may be done one day."""
        return self.state in _UNDECIDED

    @property
    def percent(self) -> float:
        """Done, of planned, rounded down to a tenth so that 100 means all."""
        return int(1000 * self.done / self.planned) / 10 if self.planned else 100.0


class Pace:
    """The speed of a run between looks at it, in words for people who wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def describe(self, progress: Progress) -> str:
        """Percent, tasks, rate and time left, measured since the first call."""
        now = self._clock()
        if self._first is None:
            self._first = (now, progress.done)
        since, at_first = self._first
        text = f"{progress.percent:.1f} % done: {progress.done:,} of {progress.planned:,} tasks"
        if progress.dead:
            text += f", {progress.dead:,} given up"
        gained = progress.done - at_first
        if gained > 0 and now > since and progress.undecided:
            rate = gained / (now - since)
            left = (progress.planned - progress.done) / rate
            speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
            text += f", {speed} tasks a second, about {human_seconds(left)} left"
        return text


def human_seconds(seconds: float) -> str:
    """Write a duration for people: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Summary(BaseModel):
    """What a finished run did and made."""

    model_config = ConfigDict(frozen=True)

    run: str
    stage: str
    tasks: int
    seconds: float = Field(description="from launch to finish")
    audit: Audit
    work: Work | None = Field(description="sums over the receipts; absent for very large runs")
    failed_attempts: int

    def describe(self) -> str:
        """The summary in words."""
        files = sum(self.audit.outputs.values())
        kind = self.audit.files
        lines = [f"{self.stage}: all {self.tasks:,} tasks are done and {files:,} {kind} were found"]
        lines += [f"  {name}: {count:,} {kind}" for name, count in self.audit.outputs.items()]
        if self.audit.absent:
            lines.append(f"  left out, all background: {self.audit.absent:,} chunks")
        if self.audit.moved:
            lines.append(f"  moved to the trash: {self.audit.moved}")
        if self.work is not None and self.work.voxels:
            rate = self.work.voxels / max(self.seconds, 1e-9) / 1e6
            lines.append(
                f"  {self.work.voxels:,} voxels in {self.seconds:.1f} s ({rate:.1f} million a "
                f"second), {human_bytes(self.work.bytes_written)} stored"
            )
        if self.work is not None:
            lines += [f"  {count:,} {what}" for what, count in self.work.counts.items()]
        if self.failed_attempts:
            lines.append(f"  {self.failed_attempts:,} attempts failed and were repeated")
        return "\n".join(lines)


class ErrorGroup(BaseModel):
    """Failed attempts with the same error but for its numbers."""

    model_config = ConfigDict(frozen=True)

    message: str = Field(description="of the latest")
    count: int
    first_task: int
    task: int = Field(description="of the latest")
    attempt: int
    last_seen: str

    def describe(self) -> str:
        """The error, and where it was met."""
        text = f"task {self.task}, attempt {self.attempt}: {self.message}"
        if self.count > 1:
            text += f" ({self.count:,} such errors, the first in task {self.first_task})"
        return text


def group_errors(failures: Iterable[Failure]) -> Iterator[ErrorGroup]:
    """Put failed attempts together whose errors differ by numbers only; the most frequent first."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(_NUMBERS.sub("#", failure.error), []).append(failure)
    for group in sorted(groups.values(), key=len, reverse=True):
        latest = max(group, key=lambda failure: failure.at)
        yield ErrorGroup(
            message=latest.error,
            count=len(group),
            first_task=min(failure.task for failure in group),
            task=latest.task,
            attempt=latest.attempt,
            last_seen=latest.at,
        )
