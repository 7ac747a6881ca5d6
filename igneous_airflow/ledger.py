"""The ledger: the durable evidence of which tasks of a run are done; used by runs and workers.

Beside the receipts (`receipts.py`) it holds failed attempts with their errors, tasks that were
given up, and tasks that were given back unfinished. The name of an entry tells its task, so that
one listing of a folder tells of all tasks, and the launch that it belongs to: what a worker of an
earlier launch leaves does not count.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.errors import AuditFailed, CorruptChunk, InvalidParameter
from igneous_airflow.proof import Written
from igneous_airflow.receipts import (
    Receipt,
    decode_receipts,
    encode_receipts,
    receipts_name,
    tasks_of,
)
from igneous_airflow.stage import Work
from igneous_airflow.storage.codecs import compress_bytes
from igneous_airflow.storage.files import open_own_folder
from igneous_airflow.storage.json_files import read_json, write_json
from igneous_airflow.storage.overlap import Overlap, overlap_width
from igneous_airflow.wording import counted

_DONE, _LEFT_OUT = "done", "left_out"
_FAILED, _GIVEN_UP, _GIVEN_BACK = "failed", "given_up", "given_back"
_WORKERS = "workers"
_LARGE = 1_000  # bytes of an entry that are worth compressing
_NAMED_AT_MOST = 10


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

    def write_receipt(self, *receipts: Receipt) -> None:
        """Record that tasks are done, in one file; recording it twice leaves one receipt."""
        ordered = sorted(receipts, key=lambda receipt: receipt.task)
        name = receipts_name([receipt.task for receipt in ordered], self._launch_id)
        self._folder.write(f"{_DONE}/{name}", encode_receipts(ordered))

    def has_receipt(self, task: int) -> bool:
        """Whether a task has a receipt of its own."""
        return self._folder.exists(self._name(_DONE, task))

    def receipt(self, task: int) -> Receipt | None:
        """Read what a task did; None when it has no receipt of its own that can be read."""
        return next(iter(self._read_receipts(self._name(_DONE, task)) or ()), None)

    def done(self, planned: int) -> "DoneTasks":
        """List which of the planned tasks are done."""
        done = DoneTasks(planned)
        for name in self._folder.names(_DONE):
            for task in tasks_of(name, self._launch_id):
                done.add(task)
        return done

    def account(self, planned: int, blocks: int, batch: int) -> "LedgerAccount":
        """What the receipts of all planned tasks, of `batch` of the `blocks` each, say."""
        return LedgerAccount(self, planned, blocks, batch)

    def read_receipts(self) -> Iterator[tuple[list[int], list[Receipt] | None]]:
        """Read every file of receipts, in the order of the first task: its tasks, and receipts.

        The receipts are None where the file is damaged.
        """
        files = sorted(self._folder.names(_DONE))
        names = [name for name in files if tasks_of(name, self._launch_id)]
        with Overlap(self._width) as overlap:
            paths = (f"{_DONE}/{name}" for name in names)
            for name, (_, receipts) in zip(
                names, overlap.map(self._read_receipts, paths), strict=True
            ):
                tasks = tasks_of(name, self._launch_id)
                whole = receipts is not None and [r.task for r in receipts] == tasks
                yield tasks, receipts if whole else None

    def _read_receipts(self, name: str) -> list[Receipt] | None:
        stored = self._folder.read(name)
        if stored is None:
            return None
        try:
            return list(decode_receipts(stored))
        except InvalidParameter:  # of a newer version
            raise
        except (CorruptChunk, ValueError, TypeError, KeyError, RecursionError):
            return None

    def withdraw(self, tasks: Iterable[int]) -> None:
        """Remove the receipts of tasks that must be done again."""
        withdrawn = set(tasks)
        with Overlap(self._width) as overlap:
            for name in list(self._folder.names(_DONE)):
                of_file = tasks_of(name, self._launch_id)
                if withdrawn.isdisjoint(of_file):
                    continue
                kept = [
                    r
                    for r in self._read_receipts(f"{_DONE}/{name}") or ()
                    if r.task not in withdrawn
                ]
                if kept:
                    self.write_receipt(*kept)
                overlap.submit(partial(self._folder.delete, f"{_DONE}/{name}"))

    def write_failure(self, failure: Failure) -> None:
        """Record a failed attempt, under its number."""
        self._write(_FAILED, failure.task, f"{failure.attempt:04d}", failure)
        if failure.final:
            self._write(_GIVEN_UP, failure.task)

    def failure(self, task: int, attempt: int) -> Failure | None:
        """Read how an attempt failed; None when it did not."""
        try:
            return read_json(self._folder, self._name(_FAILED, task, f"{attempt:04d}"), Failure)
        except (InvalidParameter, CorruptChunk):
            error = "the record of this failure is damaged"
            return Failure(
                task=task, attempt=attempt, error=error, final=False, worker="unknown", at=""
            )

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
        """The workers that were seen in the last seconds.

        Their clocks may be ahead by as much; a note from later on would count for ever.
        """
        names = (f"{_WORKERS}/{name}" for name in self._folder.names(_WORKERS))
        notes = map(self._note, names)
        now = time.time()
        seen = (note for note in notes if note is not None and abs(now - note.at) < seconds)
        return sorted(seen, key=lambda note: note.worker)

    def _note(self, name: str) -> WorkerNote | None:
        with suppress(InvalidParameter, CorruptChunk):  # damaged: the next one will tell
            return read_json(self._folder, name, WorkerNote)
        return None

    def forget_failures(self) -> None:
        """Remove what went wrong in any launch, before the tasks are tried anew."""
        for kind in (_FAILED, _GIVEN_UP, _GIVEN_BACK):
            self._folder.delete_folder(kind)

    def forget_everything(self) -> None:
        """Remove what any launch has left; a worker of it may write more, which does not count."""
        self.forget_failures()
        for kind in (_DONE, _LEFT_OUT, _WORKERS):
            self._folder.delete_folder(kind)

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
    """What the tasks of a run have said of their files, from their receipts, read one by one.

    `work` adds up what they did, as far as they were read.
    """

    def __init__(self, ledger: Ledger, planned: int, blocks: int, batch: int) -> None:
        self._ledger = ledger
        self._planned = planned
        self._blocks = blocks
        self._batch = batch
        self._is_read = False
        self.work = Work()

    def tasks(self) -> Iterator[Written]:
        """Give every task once, in the order of the receipts' files.

        Raises AuditFailed, after the last one, when receipts are damaged or name other tasks.
        """
        seen, damaged, self.work = DoneTasks(self._planned), list[int](), Work()
        for tasks, receipts in self._ledger.read_receipts():
            if receipts is None:
                damaged += tasks
                continue
            for receipt in receipts:
                if receipt.task not in seen and receipt.task < self._planned:
                    seen.add(receipt.task)
                    self.work += receipt.work.in_numbers()
                    yield self._written(receipt)
        self._is_read = True
        if lost := [task for task in damaged if task < self._planned and task not in seen]:
            raise AuditFailed(
                f"{counted(len(lost), 'receipt is', 'receipts are')} damaged: what was written by "
                f"{'task' if len(lost) == 1 else 'tasks'} "
                f"{', '.join(map(str, lost[:_NAMED_AT_MOST]))} cannot be proved.",
                [block for task in lost for block in self._blocks_of(task)],
            )

    def read_all(self) -> Work:
        """What all tasks did; reads the receipts unless a stage has. Raises as `tasks` does."""
        if not self._is_read:
            for _ in self.tasks():
                pass
        return self.work

    def _written(self, receipt: Receipt) -> Written:
        work = receipt.work
        files = work.files if receipt.names_files else None
        return Written(self._blocks_of(receipt.task), files, frozenset(work.left_out))

    def _blocks_of(self, task: int) -> range:
        start = task * self._batch
        return range(start, min(start + self._batch, self._blocks))


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
