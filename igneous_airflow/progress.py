"""How far a run is and what it did, in numbers and in words; used by runs and whoever watches."""

import time
from collections.abc import Callable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.stage import Audit, Work, human_bytes


class State(StrEnum):
    """What can be said of a run by its receipts and its queue."""

    WORKING = "working"  # tasks wait or are being worked on
    DONE = "done"  # every planned task has its receipt
    FAILED = "failed"  # tasks were given up, and nothing else is left to wait for
    STALLED = "stalled"  # receipts are missing, yet the queue is empty: messages were lost


class Progress(BaseModel):
    """How far a run is; `state` judges by receipts, never by an empty queue alone."""

    model_config = ConfigDict(frozen=True)

    planned: int
    done: int
    waiting: int = 0
    leased: int = 0
    dead: int = 0
    failed_attempts: int = 0

    @property
    def state(self) -> State:
        """The judgement."""
        if self.done >= self.planned:
            return State.DONE
        if self.waiting or self.leased:
            return State.WORKING
        return State.FAILED if self.dead else State.STALLED

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
        if gained > 0 and now > since and progress.state is State.WORKING:
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
        if self.work is not None and self.work.voxels:
            rate = self.work.voxels / max(self.seconds, 1e-9) / 1e6
            lines.append(
                f"  {self.work.voxels:,} voxels in {self.seconds:.1f} s ({rate:.1f} million a "
                f"second), {human_bytes(self.work.bytes_written)} stored"
            )
        if self.failed_attempts:
            lines.append(f"  {self.failed_attempts:,} attempts failed and were repeated")
        return "\n".join(lines)
