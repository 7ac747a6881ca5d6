"""Receipts: the durable evidence of which tasks of a run are done; used by runs and workers.

A receipt's *name* is its task's number, so that one listing of a folder is the whole account; its
content says what the task did. A failed attempt leaves its error the same way, under its own name.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from igneous_airflow.stage import Work
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile, open_folder

_DONE, _FAILED = "done", "failed"


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


class Ledger:
    """The receipts and failures of one run, in the run's folder."""

    def __init__(self, url: str) -> None:
        self._folder = open_folder(url)

    def write_receipt(self, receipt: Receipt) -> None:
        """Record that a task is done; recording it twice leaves one receipt."""
        self._write(f"{_DONE}/{receipt.task:010d}", receipt)

    def write_failure(self, failure: Failure) -> None:
        """Record a failed attempt."""
        self._write(f"{_FAILED}/{failure.task:010d}-{failure.attempt:04d}", failure)

    def _write(self, name: str, entry: BaseModel) -> None:
        self._folder.write(name, StoredFile(entry.model_dump_json().encode()))

    def has_receipt(self, task: int) -> bool:
        """Whether a task is done."""
        return self._folder.exists(f"{_DONE}/{task:010d}")

    def done(self, planned: int) -> "DoneTasks":
        """List which of the planned tasks are done."""
        done = DoneTasks(planned)
        for name in self._folder.names(_DONE):
            with suppress(ValueError):  # a file of somebody else's
                done.add(int(name))
        return done

    def receipts(self) -> Iterator[Receipt]:
        """Read every receipt; one read each, so not for many thousands in a bucket."""
        for name in self._folder.names(_DONE):
            stored = self._folder.read(f"{_DONE}/{name}")
            if stored is not None:
                yield Receipt.model_validate_json(bytes(decompress_bytes(stored)))

    def failed_attempts(self) -> int:
        """How many attempts have failed, those that later succeeded included."""
        return sum(1 for _ in self._folder.names(_FAILED))

    def failures(self, limit: int = 1000) -> list[Failure]:
        """Read the recorded failures, by task and attempt; the first `limit` of them."""
        found = []
        for name in islice(sorted(self._folder.names(_FAILED)), limit):
            stored = self._folder.read(f"{_FAILED}/{name}")
            if stored is not None:
                found.append(Failure.model_validate_json(bytes(decompress_bytes(stored))))
        return found

    def forget_failures(self) -> None:
        """Remove the failures, before their tasks are tried anew."""
        self._folder.delete_folder(_FAILED)

    def forget_everything(self) -> None:
        """Remove receipts and failures, before the run starts from the beginning."""
        self._folder.delete_folder(_DONE)
        self._folder.delete_folder(_FAILED)


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
