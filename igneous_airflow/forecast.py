"""What a planned run will take, judged by earlier runs of its stage, and what it will cost.

Used by Airflow's plan task before a run starts, and by whoever shows runs afterwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.progress import human_seconds
from igneous_airflow.run import Run
from igneous_airflow.stage import Plan
from igneous_airflow.storage.overlap import Overlap, overlap_width

_RECEIPTS = 40  # of each earlier run: enough for a mean, few enough for a bucket


class Prices(BaseModel):
    """What things cost, in one currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = "USD"
    worker_hour: float = Field(default=0, ge=0, description="an hour of one worker process")
    task: float = Field(default=0, ge=0, description="one task, its requests for example")
    gigabyte_read: float = Field(default=0, ge=0, description="10^9 uncompressed bytes read")
    gigabyte_written: float = Field(default=0, ge=0, description="10^9 uncompressed bytes written")

    @classmethod
    def parse(cls, text: str, where: str) -> Self | None:
        """Read a price table in JSON; None when it is empty. Raises InvalidParameter."""
        if not text.strip():
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'the table'}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            raise InvalidParameter(
                f'{where} = {text!r}: {wrong}. Write for example {{"worker_hour": 0.05}}, with '
                f"any of {', '.join(cls.model_fields)}"
            ) from None

    def cost(self, plan: Plan, worker_seconds: float | None) -> float | None:
        """The cost of a plan; None when it depends on a time that nobody knows."""
        if self.worker_hour and worker_seconds is None:
            return None
        return (
            self.worker_hour * (worker_seconds or 0) / 3600
            + self.task * plan.tasks
            + self.gigabyte_read * plan.bytes_read / 1e9
            + self.gigabyte_written * plan.bytes_written / 1e9
        )


@dataclass(frozen=True, slots=True)
class Rate:
    """How long tasks of a stage took, by some receipts of earlier runs."""

    runs: int
    seconds: float
    voxels: int
    cells: int

    @classmethod
    def measure(cls, runs: Iterable[Run]) -> Self:
        """Add up what some tasks of each run took, spread over it."""
        measured = voxels = cells = 0
        seconds = 0.0
        for run in runs:
            tasks = range(0, run.planned, max(run.planned // _RECEIPTS, 1))
            with Overlap(overlap_width(run.url)) as overlap:
                read = [receipt for _, receipt in overlap.map(run.ledger.receipt, tasks)]
            receipts = [receipt for receipt in read if receipt is not None]
            measured += bool(receipts)
            seconds += sum(receipt.seconds for receipt in receipts)
            voxels += sum(receipt.work.voxels for receipt in receipts)
            cells += len(receipts) * run.batch
        return cls(measured, seconds, voxels, cells)

    def worker_seconds(self, plan: Plan, cells: int) -> float | None:
        """How long one worker would work on a plan; None when nothing was measured."""
        if plan.voxels and self.voxels:
            return plan.voxels * self.seconds / self.voxels
        return cells * self.seconds / self.cells if self.cells else None


class Forecast(Plan):
    """A plan with what it will take."""

    runs: int = Field(default=0, description="earlier runs of the stage that this is judged by")
    workers: int = Field(default=0, description="worker processes; 0 when they are elsewhere")
    worker_seconds: float | None = Field(
        default=None, description="expected, of all workers together; None when nobody knows"
    )
    seconds: float | None = Field(default=None, description="expected, until all tasks are done")
    cost: float | None = Field(default=None, description="expected; None when nobody knows")
    currency: str = Field(default="", description="empty when there is no price table")

    @classmethod
    def make(cls, plan: Plan, run: Run, rate: Rate, workers: int, prices: Prices | None) -> Self:
        """Foresee what a run takes that was launched by this plan."""
        worker_seconds = rate.worker_seconds(plan, run.blocks)
        busy = min(workers, run.planned)
        return cls(
            **plan.model_dump(),
            runs=rate.runs,
            workers=workers,
            worker_seconds=worker_seconds,
            seconds=worker_seconds / busy if worker_seconds is not None and busy else None,
            cost=prices.cost(plan, worker_seconds) if prices else None,
            currency=prices.currency if prices else "",
        )

    @classmethod
    def of(cls, run: Run) -> Self | None:
        """What was foreseen for a run; None when that was not noted."""
        plan = run.stored_plan()
        return None if plan is None else cls.model_validate_json(plan)

    @property
    def expected_time(self) -> str:
        """The time in words."""
        if self.worker_seconds is None:
            return "not known: no earlier run of this stage is recorded"
        as_before = f"as {self.runs} earlier run{'s' if self.runs != 1 else ''} did"
        if self.seconds is None:
            return f"about {human_seconds(self.worker_seconds)} of one worker, {as_before}"
        workers = f"{self.workers:,} worker{'s' if self.workers != 1 else ''}"
        return f"about {human_seconds(self.seconds)} with {workers}, {as_before}"

    @property
    def expected_cost(self) -> str:
        """The cost in words; empty without a price table."""
        if not self.currency:
            return ""
        if self.cost is None:
            return "not known before one run of this stage is done"
        amount = f"{self.cost:,.2f}" if self.cost >= 0.01 else f"{self.cost:.2g}"
        return f"about {amount} {self.currency}"

    def describe(self) -> str:
        """The plan in words, for logs and for whoever approves it."""
        lines = [super().describe(), f"  takes  {self.expected_time}"]
        lines += [f"  costs  {self.expected_cost}"] if self.expected_cost else []
        return "\n".join(lines)
