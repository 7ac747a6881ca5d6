"""What people see of the runs in one folder: how far they are, what went wrong, who works.

Everything is read from the runs' own folders. What cannot change any more is remembered, and what
can is looked at every few seconds at most, however many people ask.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from statistics import mean
from threading import RLock
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.errors import IgneousError, RunNotFound
from igneous_airflow.fields import LAYER
from igneous_airflow.forecast import Forecast
from igneous_airflow.ledger import DoneTasks, Failure, WorkerNote
from igneous_airflow.progress import ErrorGroup, Summary, group_errors
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stage import fields_of_kind
from igneous_airflow.stages import stage_class
from igneous_airflow.storage.files import open_own_folder
from igneous_airflow.storage.overlap import Overlap, overlap_width

RunState = Literal[
    "planned", "refused", "waiting", "working", "interrupted", "failed", "cancelled", "done"
]

_FRESH = 2.0  # seconds for which an answer is given again
_RECORDS_FRESH = {"on disk": 5.0, "in a bucket": 60.0}  # the same, for the records of all runs
_WORKER_SECONDS = 45.0  # after which a worker that says nothing counts as gone
_ERRORS_READ = 500
_RECEIPTS_READ = 40  # for the mean number of voxels of a task
_PACE_SECONDS = 60.0  # over which the pace is measured
_SETTLED: dict[LaunchState, RunState] = {
    LaunchState.REFUSED: "refused",
    LaunchState.CANCELLED: "cancelled",
    LaunchState.DONE: "done",
}
_REMEMBERED = 20_000  # failures and receipts, which do not change

Key = TypeVar("Key")
Value = TypeVar("Value")


class RunRow(BaseModel):
    """A run in a list."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    stage: str
    layer: str = Field(description="the layer that it works on, or that it makes")
    by: str
    created: float = Field(description="seconds since the epoch")
    triggered_by: dict[str, str]
    state: RunState
    planned: int
    done: int
    given_up: int = Field(description="tasks that are not done and will not be tried again")
    seconds: float | None = Field(description="that it took; None while it is not finished")
    was_launched: bool = Field(description="whether it was ever allowed to work")


class RunDetail(RunRow):
    """All that is known of a run."""

    parameters: dict[str, Any]
    plan: Forecast | None = Field(description="as it was when the run was launched")
    why_it_waits: str = Field(description="why the run may not begin; empty when it may")
    refusals: tuple[str, ...]
    failed_attempts: int
    tasks_per_second: float | None
    voxels_per_second: float | None
    seconds_left: float | None
    errors: tuple[ErrorGroup, ...]
    errors_read: int = Field(description="failed attempts that the groups are made of")
    workers: tuple[WorkerNote, ...]
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which runs to list; empty means any."""

    layer: str = ""
    stage: str = ""
    state: str = ""


class _Fresh(Generic[Key, Value]):
    """Answers that are given again for a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answers: dict[Key, tuple[float, Value]] = {}
        self._lock = RLock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        with self._lock:
            at, answer = self._answers.get(key, (0.0, None))
            if answer is None or time.monotonic() - at > self._seconds:
                answer = make()
                self._answers[key] = (time.monotonic(), answer)
            return answer


@dataclass
class _Pace:
    """How fast tasks were done in the last while, as seen from here."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def look(self, done: int, created: float) -> float | None:
        """Tasks per second, or None when nothing was seen to be done."""
        now = time.time()
        self.seen = [(at, count) for at, count in self.seen if at > now - _PACE_SECONDS]
        self.seen.append((now, done))
        at, before = self.seen[0]
        if now - at < _PACE_SECONDS / 4:  # too short a while: since the run began
            at, before = created, 0
        return (done - before) / (now - at) if done > before and now > at else None


class Overview:
    """The runs that are recorded below a URL; may be asked by several threads."""

    def __init__(self, runs: str) -> None:
        self._url = runs.rstrip("/")
        self._folder = open_own_folder(self._url)
        self._width = overlap_width(self._url)
        seconds = _RECORDS_FRESH["on disk" if self._width == 1 else "in a bucket"]
        self._all: _Fresh[str, list[Run]] = _Fresh(seconds)
        self._rows: _Fresh[str, RunRow] = _Fresh(_FRESH)
        self._details: _Fresh[str, RunDetail] = _Fresh(_FRESH)
        self._summaries: dict[tuple[str, str], Summary] = {}
        self._kept: OrderedDict[tuple[str, str, str, int, int], Any] = OrderedDict()
        self._paces: dict[tuple[str, str], _Pace] = {}

    def stages(self, may_read: Callable[[Run], bool]) -> list[str]:
        """The stages of which there are runs that may be read."""
        return sorted({run.stage for run in self._runs() if may_read(run)})

    def rows(
        self, filters: Filters, offset: int, limit: int, may_read: Callable[[Run], bool]
    ) -> tuple[list[RunRow], int]:
        """Some of the runs that pass the filters, newest first, and how many there are in all.

        How far a run is, is only looked up for those that are returned, unless the state is asked
        for.
        """
        chosen = [
            run
            for run in self._runs()
            if filters.stage in ("", run.stage)
            and filters.layer.lower() in layer_of(run).lower()
            and may_read(run)
        ]
        if not filters.state:
            return [self._row(run) for run in chosen[offset : offset + limit]], len(chosen)
        rows = [row for row in map(self._row, chosen) if row.state == filters.state]
        return rows[offset : offset + limit], len(rows)

    def finished(self, stage: str) -> Iterator[Run]:
        """The runs of a stage that were proved done, the newest first."""
        done = LaunchState.DONE
        return (run for run in self._runs() if run.stage == stage and run.state is done)

    def run(self, name: str) -> Run:
        """The record of a run; raises RunNotFound for a name that is none."""
        found = next((run for run in self._runs() if run.id == name), None)
        if found is None and name in self._folder.folders(""):  # launched a moment ago
            found = Run.load(f"{self._url}/{name}")
        if found is None:
            raise RunNotFound(f"no run of the name {name!r} is recorded")
        return found

    def launched(self, name: str) -> Run | None:
        """The record of a run whose work was ever allowed to begin; None for any other run.

        Raises RunNotFound.
        """
        run = self.run(name)
        if not run.was_launched:  # it may have been a moment ago
            run = Run.load(run.url)
        return run if run.was_launched else None

    def detail(self, name: str) -> RunDetail:
        """All about a run; raises RunNotFound."""
        run = self.run(name)
        return self._details.get(name, lambda: self._detail(run))

    def failure(self, name: str, task: int, attempt: int) -> Failure:
        """How an attempt at a task failed; raises RunNotFound when it did not."""
        failure = self._failure(self.run(name), task, attempt)
        if failure is None:
            raise RunNotFound(f"attempt {attempt} at task {task} of {name} has not failed")
        return failure

    def image_beneath(
        self, run: Run, may_read: Callable[[Run], bool]
    ) -> tuple[str, str, str] | None:
        """The image that belongs under a run's segmentation: run, field and address.

        That is one beside it, in the same folder and the same place, on which a run was launched
        that may be read. None where there is none, or the run has an image of its own.
        """
        own = [box for url in layers_of(run).values() if (box := _place(url))]
        if not own or any(box.is_image for box in own):
            return None
        seen = set(layers_of(run).values())
        folder = layer_of(run).rpartition("/")[0]
        for other in self._runs():
            for name, url in _layers_if_known(other).items():
                if url in seen or url.rpartition("/")[0] != folder:
                    continue
                if not (other.was_launched and may_read(other)):
                    continue
                seen.add(url)
                box = _place(url)
                if box and box.is_image and box.meets(own[-1]):
                    return other.id, name, url
        return None

    def _runs(self) -> list[Run]:
        return self._all.get("", self._read_records)

    def _read_records(self) -> list[Run]:
        def load(name: str) -> Run | None:
            with suppress(IgneousError):  # no run, or one that is being made
                return Run.load(f"{self._url}/{name}")
            return None

        with Overlap(self._width) as overlap:
            found = [run for _, run in overlap.map(load, self._folder.folders("")) if run]
        return sorted(found, key=lambda run: run.created, reverse=True)

    def _row(self, run: Run) -> RunRow:
        return self._rows.get(run.id, lambda: self._look(run))

    def _look(self, run: Run) -> RunRow:
        run = Run.load(run.url)  # its state may have changed
        summary = self._summary(run)
        is_done = run.state is LaunchState.DONE
        done = DoneTasks(0) if is_done else run.done()
        count = run.planned if is_done else done.count
        return RunRow(
            name=run.id,
            url=run.url,
            stage=run.stage,
            layer=layer_of(run),
            by=run.by,
            created=run.created,
            triggered_by=run.triggered_by,
            state=self._state_of(run, done),
            planned=run.planned,
            done=count,
            given_up=0 if is_done else run.ledger.given_up(done),
            seconds=summary.seconds if summary else None,
            was_launched=run.was_launched,
        )

    def _state_of(self, run: Run, done: DoneTasks) -> RunState:
        """What the record and the ledger alone can tell."""
        if run.state in _SETTLED:
            return _SETTLED[run.state]
        if run.ledger.workers(_WORKER_SECONDS) or done.count >= run.planned:
            return "working"
        if run.ledger.given_up(done):
            return "failed"
        if done.count or run.ledger.failed():
            return "interrupted"
        return "planned" if run.why_it_waits else "waiting"

    def _detail(self, run: Run) -> RunDetail:
        row, ledger, now = self._row(run), run.ledger, Run.load(run.url)
        failed = ledger.failed()
        failures = [self._failure(run, *entry) for entry in failed[-_ERRORS_READ:]]
        finished = row.state == "done"
        pace = self._paces.setdefault((run.id, run.launch_id), _Pace())
        rate = pace.look(row.done, run.created)
        if row.seconds:
            rate = row.planned / row.seconds
        voxels = self._voxels_of_a_task(run, row.done) if rate else None
        left = row.planned - row.done
        return RunDetail(
            **row.model_dump(),
            parameters=run.resolved,
            plan=self._plan(run),
            why_it_waits=now.why_it_waits,
            refusals=now.refusals,
            failed_attempts=len(failed),
            tasks_per_second=rate,
            voxels_per_second=rate * voxels if rate and voxels else None,
            seconds_left=left / rate if rate and row.state == "working" else None,
            errors=tuple(group_errors([failure for failure in failures if failure])),
            errors_read=len(failures),
            workers=() if finished else tuple(ledger.workers(_WORKER_SECONDS)),
            summary=self._summary(now),
        )

    def _summary(self, run: Run) -> Summary | None:
        key = (run.id, run.launch_id)
        is_done = run.state is LaunchState.DONE
        if is_done and key not in self._summaries and (summary := run.summary()) is not None:
            self._summaries[key] = summary
        return self._summaries.get(key)

    def _plan(self, run: Run) -> Forecast | None:
        return self._keep(run, "plan", 0, 0, lambda: Forecast.of(run))

    def _failure(self, run: Run, task: int, attempt: int) -> Failure | None:
        return self._keep(run, "failure", task, attempt, lambda: run.ledger.failure(task, attempt))

    def _voxels_of_a_task(self, run: Run, done: int) -> float | None:
        """Mean voxels of a task, from some that are done; tasks at the edges are smaller."""
        step = max(run.planned // _RECEIPTS_READ, 1)
        tasks = range(0, run.planned, step) if done > run.planned // 2 else range(_RECEIPTS_READ)
        receipts = [self._receipt(run, task) for task in tasks]
        voxels = [receipt.work.voxels for receipt in receipts if receipt]
        return mean(voxels) if voxels else None

    def _receipt(self, run: Run, task: int) -> Any:
        return self._keep(run, "receipt", task, 0, lambda: run.ledger.receipt(task))

    def _keep(
        self, run: Run, kind: str, task: int, attempt: int, read: Callable[[], Value | None]
    ) -> Value | None:
        """What never changes once it is there, read once."""
        key = (run.id, run.launch_id, kind, task, attempt)
        if key not in self._kept:
            value = read()
            if value is None:
                return None
            self._kept[key] = value
            while len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
        kept: Value = self._kept[key]
        return kept


def layers_of(run: Run) -> dict[str, str]:
    """The layers that a run names, by the field's name; the one that it makes comes last."""
    named = _layer_fields(run.stage)
    found = {name: url for name, url in run.resolved.items() if name in named and url}
    return dict(sorted(found.items(), key=lambda layer: layer[0] == "dest"))


@cache
def _layer_fields(stage: str) -> frozenset[str]:
    return frozenset(fields_of_kind(stage_class(stage), LAYER))


def layer_of(run: Run) -> str:
    """The layer that a run works on, or that it makes."""
    return next(reversed(_layers_if_known(run).values()), "")


def _layers_if_known(run: Run) -> dict[str, str]:
    with suppress(IgneousError):  # of a stage that is no more
        return layers_of(run)
    return {}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer lies, in nanometres."""

    is_image: bool
    low: tuple[float, ...]
    high: tuple[float, ...]

    def meets(self, other: "_Place") -> bool:
        """Whether some of the space belongs to both."""
        ends = zip(self.low, self.high, other.low, other.high, strict=True)
        return all(max(a, c) < min(b, d) for a, b, c, d in ends)


def _place(url: str) -> _Place | None:
    """Where a layer with voxels lies; None where there is none."""
    from igneous_airflow.storage.layer import Layer

    with suppress(IgneousError, IndexError):  # no layer, or one without mips
        info = Layer.open(url).info
        scale = info.scales[0]
        low, high = (
            tuple(n * nm for n, nm in zip(corner, scale.resolution, strict=True))
            for corner in (scale.bounds.min, scale.bounds.max)
        )
        return _Place(info.layer_type == "image", low, high)
    return None
