"""One worker: leases tasks, runs them, writes receipts, settles; used by the pool of processes.

The receipt is written before the message is acknowledged: a crash between the two costs a repeat,
never a hole.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from igneous_airflow.errors import (
    InvalidMessage,
    LeaseLost,
    PermanentError,
    TransientError,
    WorkerDied,
    WrongRunsFolder,
)
from igneous_airflow.ledger import Failure
from igneous_airflow.queue.protocol import Lease, Queue
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Work
from igneous_airflow.storage.durable import sync
from igneous_airflow.worker.assignments import Assignment, Assignments
from igneous_airflow.worker.heartbeat import Heartbeat

_RUN_SECONDS = 30.0  # between looks at the run to wait for
_LOOKS = 5  # at a queue whose counters lag, before it is believed to be drained
_LONGEST_IDLE = 20.0  # seconds of one look at such a queue; messages end it at once

_MOST_DOUBLINGS = 20  # of the delay after a failure

#: A message is refused that is not a task of a run that may be worked on.
Outcome = Literal["done", "repeated", "retry", "failed", "refused", "given back"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker behaves; durations in seconds."""

    lease_seconds: float = 120.0
    max_attempts: int = 5  # that fail; a task that is given back when a worker stops has not failed
    retry_delay: float = 2.0  # after the first failure; doubled after each further one
    max_retry_delay: float = 300.0
    idle_seconds: float = 0.5  # how long to wait for a message before looking up
    grace_seconds: float = 20.0  # from the request to stop until the task is given back
    until_done: bool = False  # stop when no task is left to wait for
    run: str | None = None  # with `until_done`: also stop once this run has no outstanding tasks
    sync: bool = True  # on local disks, let what a task wrote reach the disk before its receipt

    @property
    def max_silent(self) -> int:
        """How many leases of a task may end without a word, before it is taken for a killer.

        Twice the attempts, since SQS counts a message as taken that was only fetched ahead.
        """
        return 2 * self.max_attempts

    def delay(self, attempt: int) -> float:
        """How long to wait after a failed attempt, counted from 1."""
        return float(min(self.retry_delay * 2 ** (attempt - 1), self.max_retry_delay))


@dataclass(frozen=True, slots=True)
class Settled:
    """How one task ended, as one structured line of the log."""

    outcome: Outcome
    run: str = ""
    stage: str = ""
    task: int = -1
    cell: str = ""
    attempt: int = 0
    seconds: float = 0.0
    voxels: int = 0
    error: str = ""

    def line(self) -> str:
        """`key=value` pairs; values with spaces or unprintable characters are quoted."""
        shown = {name: value for name, value in asdict(self).items() if value not in ("", -1)}
        return " ".join(f"{name}={_quoted(value)}" for name, value in shown.items())


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    plain = text and text.isprintable() and not any(c in " \"'=" for c in text)
    return text if plain else repr(text)


class GiveBack(BaseException):
    """Interrupts a running task, which goes back to the queue; not an error of the task."""


def worker_name() -> str:
    """This process, for people who look for its logs."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """Works on a queue until told to stop, or until it is drained when `until_done` is set.

    A queue that several runs share may never be drained: `options.run` names the one to wait for.
    Work is done only for runs that are recorded as launched below the folder `runs`.

    `report` is told of every lease taken and of every task settled.
    """

    def __init__(
        self,
        queue: Queue,
        runs: str,
        options: WorkerOptions,
        report: Callable[[Lease | Settled], None],
    ) -> None:
        self._queue = queue
        self._runs = runs
        self._assignments = Assignments(runs)
        self._options = options
        self._report = report
        self._heartbeat = Heartbeat(queue, options.lease_seconds)
        self._stopping = False
        self._interruptible = False
        self._next_look = time.monotonic() + _RUN_SECONDS

    def stop(self) -> None:
        """Take no further task; a second call gives the running one back at once."""
        if self._stopping and self._interruptible:
            self._interruptible = False
            raise GiveBack
        self._stopping = True

    def work(self) -> None:
        """Work until stopped or, with `until_done`, drained.

        Counters that are not exact are believed when several looks, one after the other, found
        nothing. Such a queue is also far away and paid by the request: it is asked less often
        while there is nothing to do. Raises WrongRunsFolder for a message of another runs folder,
        which goes back to the queue.
        """
        looks, wait = 0, self._options.idle_seconds
        while not self._stopping and not self._run_is_decided():
            lease = self._queue.lease(self._options.lease_seconds, wait=wait)
            if lease is not None:
                looks, wait = 0, self._options.idle_seconds
                self._take(lease)
                continue
            counts = self._queue.counts()
            ends = self._options.until_done and counts.drained
            looks = looks + 1 if ends else 0
            if looks >= (1 if counts.exact else _LOOKS):
                return
            if not counts.exact:
                wait = self._options.idle_seconds if ends else min(2 * wait, _LONGEST_IDLE)

    def _run_is_decided(self) -> bool:
        """Whether the run to wait for waits for nobody; looked up now and then."""
        if self._options.run is None or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _RUN_SECONDS
        with suppress(TransientError):  # the next look will tell
            return Run.load(f"{self._runs}/{self._options.run}").is_decided()
        return False

    def _take(self, lease: Lease) -> None:
        if self._stopping:  # asked to while waiting for the lease
            self._give_back(lease)
            return
        self._report(lease)
        self._report(self.settle(lease))

    def settle(self, lease: Lease) -> Settled:
        """Run the task of a lease and settle the message, whatever happens.

        Raises WrongRunsFolder once the message is back in the queue. One that came to such workers
        again and again is refused, so that it cannot stop all workers for ever.
        """
        try:
            task = self._assignments.of(lease.body)
        except (InvalidMessage, WrongRunsFolder) as error:
            may_return = lease.attempt <= self._options.max_silent
            if isinstance(error, WrongRunsFolder) and may_return:
                _let_go(partial(self._queue.release, lease))
                raise
            _let_go(partial(self._queue.bury, lease, str(error)))
            return Settled("refused", attempt=lease.attempt, error=str(error))
        except TransientError as error:  # of the runs folder, so that no ledger can be written
            delay = self._options.delay(min(lease.attempt, _MOST_DOUBLINGS))
            _let_go(partial(self._queue.release, lease, after=delay))
            return Settled("retry", attempt=lease.attempt, error=f"{type(error).__name__}: {error}")
        if silent := self._silent_deaths(task, lease):
            death = WorkerDied(f"{silent} workers that took this task ended without a word")
            return fail(self._queue, lease, task, death, self._options, give_up=True)
        try:
            settled = self._do(task, lease)
        except GiveBack:
            self._give_back(lease)
            return _settled("given back", task, lease.attempt)
        except Exception as error:  # noqa: BLE001 - whatever a task raises is the task's failure
            return fail(self._queue, lease, task, error, self._options)
        _let_go(partial(self._queue.done, lease))
        return settled

    def _give_back(self, lease: Lease) -> None:
        """Let another worker have the task at once; that is no failure of the task's."""
        _let_go(partial(self._queue.release, lease))
        with suppress(Exception):  # then this lease counts as one that ended without a word
            task = self._assignments.of(lease.body)
            task.ledger.note_given_back(task.index)

    def _silent_deaths(self, task: Assignment, lease: Lease) -> int:
        """How many leases of a task ended without a word, when these are too many; else 0.

        A task that ends its worker's whole machine, for want of memory as a rule, would otherwise
        go on to the next machine for ever.
        """
        if lease.attempt <= self._options.max_silent:
            return 0
        with suppress(Exception):  # what is wrong with the ledger comes out when the task runs
            ledger = task.ledger
            known = ledger.failed_attempts_at(task.index) + ledger.given_back(task.index)
            silent = lease.attempt - 1 - known
            return silent if silent >= self._options.max_silent else 0
        return 0

    def _do(self, task: Assignment, lease: Lease) -> Settled:
        """Run a task that has no receipt yet, and write its receipt."""
        ledger = task.ledger
        if ledger.has_receipt(task.index):
            return _settled("repeated", task, lease.attempt)
        started = time.monotonic()
        cell, work = self._run(task, lease)
        seconds = round(time.monotonic() - started, 3)
        first = lease.attempt == 1  # nearly always, and then there is nothing to look up
        attempt = 1 if first else ledger.failed_attempts_at(task.index) + 1
        ledger.write_receipt(
            Receipt(
                task=task.index,
                attempt=attempt,
                seconds=seconds,
                worker=worker_name(),
                work=work,
            )
        )
        settled = _settled("done", task, attempt)
        return replace(settled, cell=cell, seconds=seconds, voxels=work.voxels)

    def _run(self, task: Assignment, lease: Lease) -> tuple[str, Work]:
        """Run the blocks of a task; returns the first one's name and what was done.

        What was written has reached the disk when it returns.
        """
        with self._heartbeat.keep(lease):
            self._interruptible = True
            try:
                stage, blocks = task.launched.work
                work = Work()
                for index in task.blocks:
                    work += stage.run(blocks[index])
                if self._options.sync:
                    sync(stage.output, work.files, work.folders)
                return str(blocks[task.blocks.start]), work
            finally:
                self._interruptible = False


def _let_go(settle: Callable[[], None]) -> None:
    """Settle a message, if that is possible.

    It may meanwhile be somebody else's, and the queue may not answer: then the lease runs out, and
    whoever gets the message finds the receipt, or tries again. Neither does harm.
    """
    with suppress(LeaseLost, TransientError):
        settle()


def fail(
    queue: Queue,
    lease: Lease,
    task: Assignment,
    error: BaseException,
    options: WorkerOptions,
    *,
    give_up: bool = False,
) -> Settled:
    """Record a failed attempt; send the task back for later, or to the dead letters.

    The failures on record are counted, not the leases, which end for other reasons too.
    """
    attempt = lease.attempt
    with suppress(Exception):  # the ledger may be what does not answer
        attempt = task.ledger.failed_attempts_at(task.index) + 1
    final = give_up or isinstance(error, PermanentError) or attempt >= options.max_attempts
    text = f"{type(error).__name__}: {error}"
    failure = Failure(
        task=task.index,
        attempt=attempt,
        error=text,
        traceback="".join(traceback.format_exception(error)),
        final=final,
        worker=worker_name(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with suppress(Exception):  # perhaps the task failed for want of the same storage
        task.ledger.write_failure(failure)
    if final:
        _let_go(partial(queue.bury, lease, text))
    else:
        _let_go(partial(queue.release, lease, after=options.delay(attempt)))
    return replace(_settled("failed" if final else "retry", task, attempt), error=text)


def _settled(outcome: Outcome, task: Assignment, attempt: int) -> Settled:
    return Settled(outcome, task.run.id, task.run.stage, task.index, attempt=attempt)
