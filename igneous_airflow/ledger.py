"""Receipts: the durable evidence of which tasks of a run are done; used by runs and workers.

A receipt's *name* is its task's number, so that one listing of a folder is the whole account; its
content says what the task did. So do the names of the other entries: failed attempts with their
errors, tasks that were given up, tasks that were given back unfinished, and fingerprints of the
files that a task rightly left out. Every name ends in the id of the launch that it belongs to:
what a worker of an earlier launch leaves does not count.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import count, groupby, islice
from operator import itemgetter
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.stage import Absent, Work
from igneous_airflow.storage.codecs import compress_bytes
from igneous_airflow.storage.files import open_own_folder
from igneous_airflow.storage.json_files import read_json, write_json
from igneous_airflow.storage.overlap import Overlap, overlap_width

_DONE, _LEFT_OUT = "done", "left_out"
_FAILED, _GIVEN_UP, _GIVEN_BACK = "failed", "given_up", "given_back"
_WORKERS = "workers"
_LARGE = 1_000  # bytes of an entry that are worth to be compressed


class Receipt(BaseModel):
    """What one task did."""

    model_config = ConfigDict(frozen=True)

    task: int
    attempt: int
    seconds: float
    worker: str = Field(description="host and process that did it")
    work: Work = Work()


class Failure(BaseModel):
    """How one attempt at a task failed."""

    model_config = ConfigDict(frozen=True)

    task: int
    attempt: int
    error: str = Field(description="kind and message of the error")
    traceback: str = ""
    final: bool = Field(description="whether the task was given up")
    worker: str
    at: str = Field(description="time in UTC, ISO 8601")


class WorkerNote(BaseModel):
    """What a worker process was last seen doing."""

    model_config = ConfigDict(frozen=True)

    worker: str = Field(description="host and process")
    task: int | None = Field(description="the task in hand")
    at: float = Field(description="seconds since the epoch")


class Ledger:
    """The receipts and failures of one launch of a run, in the run's folder."""

    def __init__(self, url: str, launch_id: str) -> None:
        self._folder = open_own_folder(url)
        self._launch_id = launch_id
        self._width = overlap_width(url)

    def write_receipt(self, receipt: Receipt) -> None:
        """Record that a task is done; recording it twice leaves one receipt."""
        if receipt.work.left_out:
            self._write(_LEFT_OUT, receipt.task, _fingerprint(receipt.work.left_out))
        self._write(_DONE, receipt.task, entry=receipt)

    def has_receipt(self, task: int) -> bool:
        """Whether a task is done."""
        return self._folder.exists(self._name(_DONE, task))

    def receipt(self, task: int) -> Receipt | None:
        """Read what a task did; None when it has no receipt."""
        return read_json(self._folder, self._name(_DONE, task), Receipt)

    def done(self, planned: int) -> "DoneTasks":
        """List which of the planned tasks are done."""
        done = DoneTasks(planned)
        for task, _ in self._entries(_DONE):
            done.add(task)
        return done

    def receipts(self) -> Iterator[Receipt]:
        """Read every receipt; one read each, so not for many thousands in a bucket."""
        with Overlap(self._width) as overlap:
            tasks = (task for task, _ in self._entries(_DONE))
            for _, receipt in overlap.map(self.receipt, tasks):
                if receipt is not None:
                    yield receipt

    def work(self) -> Work:
        """Add up what all receipts say, without the names of what was left out."""
        total = Work()
        for receipt in self.receipts():
            total += receipt.work.model_copy(update={"left_out": ()})
        return total

    def withdraw(self, tasks: Iterable[int]) -> None:
        """Remove the receipts of tasks that must be done again."""
        withdrawn = set(tasks)
        stale = [self._name(_DONE, task) for task in withdrawn]
        left_out = list(self._entries(_LEFT_OUT))
        stale += [self._name(_LEFT_OUT, task, end) for task, end in left_out if task in withdrawn]
        with Overlap(self._width) as overlap:
            for name in stale:
                overlap.submit(partial(self._folder.delete, name))

    def write_failure(self, failure: Failure) -> None:
        """Record a failed attempt, under its number."""
        self._write(_FAILED, failure.task, f"{failure.attempt:04d}", failure)
        if failure.final:
            self._write(_GIVEN_UP, failure.task)

    def failure(self, task: int, attempt: int) -> Failure | None:
        """Read how an attempt failed; None when it did not."""
        return read_json(self._folder, self._name(_FAILED, task, f"{attempt:04d}"), Failure)

    def failed(self) -> list[tuple[int, int]]:
        """Task and number of each attempt that has failed."""
        entries = self._entries(_FAILED)
        return sorted((task, int(number)) for task, number in entries if number.isdecimal())

    def failed_attempts(self) -> int:
        """How many attempts have failed, those that later succeeded included."""
        return sum(1 for _ in self._entries(_FAILED))

    def failed_attempts_at(self, task: int) -> int:
        """How many attempts at a task have failed; a look at each."""
        return self._numbered(_FAILED, task)

    def given_up(self, done: "DoneTasks") -> int:
        """How many tasks were given up and not done after all."""
        return len({task for task, _ in self._entries(_GIVEN_UP) if task not in done})

    def failures(self, limit: int = 1000) -> list[Failure]:
        """Read the recorded failures, by task and attempt; the first `limit` of them."""
        return self._read_failures(islice(self.failed(), limit))

    def last_failures(self, done: "DoneTasks", limit: int) -> list[Failure]:
        """Read the last failure of each task that is not done, the first `limit` of them."""
        last = {task: attempt for task, attempt in self.failed() if task not in done}
        return self._read_failures(islice(last.items(), limit))

    def _read_failures(self, entries: Iterable[tuple[int, int]]) -> list[Failure]:
        return [failure for entry in entries if (failure := self.failure(*entry))]

    def note_given_back(self, task: int) -> None:
        """Record that a worker gave a task back unfinished, through no fault of the task."""
        self._write(_GIVEN_BACK, task, f"{self.given_back(task) + 1:04d}")

    def given_back(self, task: int) -> int:
        """How often a task was given back; a look at each."""
        return self._numbered(_GIVEN_BACK, task)

    def note_worker(self, worker: str, task: int | None) -> None:
        """Leave a note that a worker is alive, for people who look."""
        note = WorkerNote(worker=worker, task=task, at=time.time())
        write_json(self._folder, _note_name(worker), note)

    def forget_worker(self, worker: str) -> None:
        """Remove the note of a worker that has ended."""
        self._folder.delete(_note_name(worker))

    def workers(self, seconds: float) -> list[WorkerNote]:
        """The workers that were seen in the last seconds."""
        names = (f"{_WORKERS}/{name}" for name in self._folder.names(_WORKERS))
        notes = (read_json(self._folder, name, WorkerNote) for name in names)
        since = time.time() - seconds
        seen = (note for note in notes if note is not None and note.at > since)
        return sorted(seen, key=lambda note: note.worker)

    def forget_failures(self) -> None:
        """Remove what went wrong in any launch, before the tasks are tried anew."""
        for kind in (_FAILED, _GIVEN_UP, _GIVEN_BACK):
            self._folder.delete_folder(kind)

    def forget_everything(self) -> None:
        """Remove what any launch has left; a worker of it may write more, which does not count."""
        self.forget_failures()
        for kind in (_DONE, _LEFT_OUT, _WORKERS):
            self._folder.delete_folder(kind)

    def account(self, batch: int) -> "LedgerAccount":
        """What tasks of `batch` cells have said of the files that they left out."""
        noted: dict[int, str | None] = {}
        for task, fingerprint in self._entries(_LEFT_OUT):
            noted[task] = None if task in noted else fingerprint
        return LedgerAccount(self, noted, batch, self._width)

    def _name(self, kind: str, task: int, ending: str = "") -> str:
        name = f"{kind}/{task:010d}-{self._launch_id}"
        return f"{name}-{ending}" if ending else name

    def _write(
        self, kind: str, task: int, ending: str = "", entry: BaseModel | None = None
    ) -> None:
        content = b"" if entry is None else entry.model_dump_json().encode()
        compression = "gzip" if len(content) > _LARGE else ""
        stored = compress_bytes(content, compression, grey=False)
        self._folder.write(self._name(kind, task, ending), stored)

    def _entries(self, kind: str) -> Iterator[tuple[int, str]]:
        """Tasks that have entries of a kind, each with what follows the launch in its name."""
        for name in self._folder.names(kind):
            task, _, rest = name.partition("-")
            launch_id, _, ending = rest.partition("-")
            if launch_id == self._launch_id and task.isdecimal():  # else somebody else's
                yield int(task), ending

    def _numbered(self, kind: str, task: int) -> int:
        return next(
            number
            for number in count()
            if not self._folder.exists(self._name(kind, task, f"{number + 1:04d}"))
        )


class LedgerAccount:
    """What the tasks of a run have said of the files that they left out.

    `noted` holds a fingerprint of their names for each task that left some out, or None where
    there are several. Only where it differs from that of the files that are absent the receipt is
    read: a file of an earlier run may be there all the same.
    """

    def __init__(
        self, ledger: Ledger, noted: dict[int, str | None], batch: int, width: int
    ) -> None:
        self._ledger = ledger
        self._noted = noted
        self._batch = batch
        self._width = width

    def unexplained(self, absent: Iterable[Absent]) -> Iterator[Absent]:
        """Give what of the absent files was not left out; the cells come in their order."""
        by_task = groupby(absent, key=lambda pair: pair[0] // self._batch)
        with Overlap(self._width) as overlap:
            tasks = ((task, list(cells)) for task, cells in by_task)
            for _, unexplained in overlap.map(self._unexplained_of, tasks):
                yield from unexplained

    def _unexplained_of(self, task_and_cells: tuple[int, list[Absent]]) -> list[Absent]:
        task, cells = task_and_cells
        if task not in self._noted:
            return cells
        if self._noted[task] == _fingerprint(name for _, names in cells for name in names):
            return []
        receipt = self._ledger.receipt(task)
        left_out = set(receipt.work.left_out) if receipt else set[str]()
        missing = [(cell, [n for n in names if n not in left_out]) for cell, names in cells]
        return list(filter(itemgetter(1), missing))


def _fingerprint(names: Iterable[str]) -> str:
    """Eight bytes that stand for a set of names."""
    return blake2b("\n".join(sorted(names)).encode(), digest_size=8).hexdigest()


def _note_name(worker: str) -> str:
    return f"{_WORKERS}/{worker.replace(':', '-')}"


class DoneTasks:
    """A set of task numbers below `planned`, at one byte each."""

    def __init__(self, planned: int) -> None:
        self._flags = bytearray(planned)
        self.count = 0

    def add(self, task: int) -> Self:
        """Mark a task as done; numbers that were not planned are ignored."""
        if 0 <= task < len(self._flags) and not self._flags[task]:
            self._flags[task] = 1
            self.count += 1
        return self

    def __contains__(self, task: int) -> bool:
        return 0 <= task < len(self._flags) and bool(self._flags[task])

    def missing(self) -> Iterator[int]:
        """The tasks that are not done, in order."""
        position = self._flags.find(0)
        while position >= 0:
            yield position
            position = self._flags.find(0, position + 1)
