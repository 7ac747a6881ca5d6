"""Several worker processes on one machine, watched by their parent; used by the command line.

A child tells its parent what it holds. So when a child dies, by a signal or for want of memory, the
task it held is known, is recorded as failed, and goes back to the queue at once.
"""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from types import FrameType

from igneous_airflow.errors import (
    IgneousError,
    InvalidParameter,
    WorkerDied,
    WrongRunsFolder,
)
from igneous_airflow.queue.protocol import Lease, open_queue
from igneous_airflow.storage.allowed import Allowed, limit_process, process_limits
from igneous_airflow.worker.assignments import Assignments
from igneous_airflow.worker.loop import Settled, Worker, WorkerOptions, fail
from igneous_airflow.worker.memory import keep_freed_memory, spare_what_lasts
from igneous_airflow.worker.presence import Presence

_TICK = 0.5  # seconds
_EARLY_DEATHS = 3  # of children that never got a task: something is wrong with all of them
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What a child has to say.
_Event = Lease | Settled | WrongRunsFolder
_ENDS = (signal.SIGTERM, signal.SIGALRM)  # what ends a child that was asked to stop


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection
    held: Lease | None = None
    ever_leased: bool = False
    told: int = 0  # how often to stop


class WorkerPool:
    """Runs worker processes until they end by themselves or a signal stops them.

    They work for runs that are recorded below the folder `runs`. `on_settled` is told of each task.
    The first SIGTERM or SIGINT lets running tasks finish; the second gives them back at once.
    """

    def __init__(
        self,
        queue_url: str,
        runs: str,
        processes: int,
        options: WorkerOptions,
        on_settled: Callable[[Settled], None],
    ) -> None:
        self._queue_url = queue_url
        self._runs = runs
        self._processes = processes
        self._options = options
        self._on_settled = on_settled
        self._context = multiprocessing.get_context("spawn")
        self._children: list[_Child] = []
        self._stops = 0  # how often this pool was asked to stop
        self._stop_with_parent: int | None = None
        self._alive_file: Path | None = None
        self._early_deaths = 0
        self._wrong_folder: WrongRunsFolder | None = None
        self._presence = Presence(runs)
        self.failed = 0
        self.refused = 0  # messages that are not tasks of a run that may be worked on
        #: How many worker processes each signal has killed, ours to stop them left out.
        self.killed_by: Counter[str] = Counter()

    def stop_with(self, parent: int) -> None:
        """Stop as for SIGTERM when the process of this id is no longer this process's parent."""
        self._stop_with_parent = parent

    def show_life(self, file: Path) -> None:
        """Touch a file all the time, for probes; raises InvalidParameter when it cannot be."""
        try:
            file.touch()
        except OSError as error:
            raise InvalidParameter(f"cannot touch {file}: {error.strerror}") from error
        self._alive_file = file

    @property
    def stopped(self) -> bool:
        """Whether a signal, or the end of the parent, has asked for the end."""
        return self._stops > 0

    def run(self) -> int:
        """Work; return 0 when all went well in the end, 1 when tasks or workers were given up.

        `killed_by` then counts the processes that signals have killed. Raises WrongRunsFolder when
        the queue is of another runs folder.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
        try:
            with self._presence:
                for _ in range(self._processes):
                    self._start()
                while self._children:
                    self._wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for child in self._children:  # only when something unforeseen was raised above
                child.process.kill()
        if self._wrong_folder is not None:
            raise self._wrong_folder
        return int(self.failed > 0 or self._early_deaths >= _EARLY_DEATHS)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_child_main,
            args=(self._queue_url, self._runs, self._options, theirs, process_limits()),
            name="igneous-worker",
        )
        # A terminal sends SIGINT to all. The parent decides; a child keeps this mask for ever. The
        # tracker is started before, since its start, once a process, would undo the mask.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._children.append(_Child(process, ours))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stops += 1
        self._tell()

    def _tell(self) -> None:
        """Pass on every request to stop, to children that were just starting too."""
        for child in self._children:
            while child.told < self._stops:
                child.told += 1
                child.process.terminate()

    def _wait(self) -> None:
        if self._alive_file is not None:
            self._alive_file.touch()
        if self._stop_with_parent not in (None, os.getppid()) and not self._stops:
            self._stops = 1
        self._tell()
        waited: list[Connection | int] = [child.process.sentinel for child in self._children]
        waited += [child.connection for child in self._children if not child.connection.closed]
        ready = wait(waited, timeout=_TICK)
        for child in list(self._children):
            self._read(child)
            if child.process.sentinel in ready:  # it is ending, which takes a moment
                child.process.join(_TICK)
            if not child.process.is_alive():
                self._read(child)
                self._children.remove(child)
                self._bury(child)

    def _read(self, child: _Child) -> None:
        while (event := _next_event(child.connection)) is not None:
            process = child.process.pid or 0
            if isinstance(event, Settled):
                child.held = None
                self._presence.rests(process)
                self._settled(event)
            elif isinstance(event, WrongRunsFolder):  # so all others have
                child.held, self._wrong_folder = None, event
                self._stops = max(self._stops, 1)
            else:
                child.held, child.ever_leased = event, True
                self._presence.takes(process, event.body)
                self._early_deaths = 0

    def _settled(self, event: Settled) -> None:
        self.failed += event.outcome == "failed"
        self.refused += event.outcome == "refused"
        self._on_settled(event)

    def _bury(self, child: _Child) -> None:
        """Account for a child that has ended, and replace it when it died."""
        code = child.process.exitcode or 0
        self._presence.gone(child.process.pid or 0)
        child.process.join()
        child.connection.close()
        if code == 0 or (child.told and code == -signal.SIGTERM and not child.ever_leased):
            return  # the latter was asked to stop before it could listen
        if code < 0 and not (child.told and -code in _ENDS):
            self.killed_by[signal.Signals(-code).name] += 1
        death = _death(child.process.pid, code)
        if child.held is not None:
            self._settled(self._give_up(child.held, death))
        else:
            self._early_deaths += not child.ever_leased
            self._on_settled(Settled("failed", error=death))
        if not self._stops and self._early_deaths < _EARLY_DEATHS:
            self._start()

    def _give_up(self, lease: Lease, death: str) -> Settled:
        """Record the death of a worker as a failed attempt of the task that it held."""
        queue = open_queue(self._queue_url)
        try:
            task = Assignments(self._runs).of(lease.body)
            return fail(queue, lease, task, WorkerDied(death), self._options)
        except IgneousError as error:  # the lease runs out by itself
            return Settled("retry", attempt=lease.attempt, error=f"{death} ({error})")
        finally:
            queue.close()


def killed_text(killed_by: Mapping[str, int]) -> str:
    """Say how many worker processes were killed, and by which signals."""
    count = sum(killed_by.values())
    who = "1 worker process was" if count == 1 else f"{count:,} worker processes were"
    if len(killed_by) == 1:
        return f"{who} killed by {next(iter(killed_by))}"
    return f"{who} killed: {', '.join(f'{n:,} by {name}' for name, n in killed_by.items())}"


def _next_event(connection: Connection) -> _Event | None:
    """What a child has to say; None when it says nothing now, or never again."""
    try:
        if not connection.closed and connection.poll():
            event: _Event = connection.recv()
            return event
    except (EOFError, OSError):  # OSError: it died in the middle of a word
        connection.close()
    return None


def _death(pid: int | None, code: int) -> str:
    if code > 0:
        return f"worker process {pid} ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = "; perhaps the machine ran out of memory" if name == "SIGKILL" else ""
    return f"worker process {pid} was killed by {name}{hint}"


def _child_main(
    queue_url: str,
    runs: str,
    options: WorkerOptions,
    connection: Connection,
    limits: tuple[Allowed, ...],
) -> None:
    """What each worker process runs, limited as its parent is."""
    for limit in limits:
        limit_process(limit.setting, limit)
    is_warm = False

    def report(event: _Event) -> None:
        nonlocal is_warm
        with suppress(OSError):  # the parent is gone: SIGTERM is on its way
            connection.send(event)
        if not is_warm and isinstance(event, Settled):  # the first task has imported its libraries
            spare_what_lasts()
            is_warm = True

    keep_freed_memory()
    queue = open_queue(queue_url)
    worker = Worker(queue, runs, options, report)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(options.grace_seconds, 0.001))
        worker.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGALRM, on_signal)  # the grace is over: as if asked a second time
    Thread(target=_stop_when_orphaned, daemon=True).start()
    try:
        worker.work()
    except WrongRunsFolder as error:
        report(error)
    except IgneousError as error:
        sys.exit(f"Error: {error}")
    finally:
        queue.close()


def _stop_when_orphaned() -> None:
    """Ask this process to stop when its parent has died, since nobody watches it any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
