"""Notes in the folders of runs that say which workers are alive; written by the pool of workers.

They prove nothing: people look at them. So they are written seldom, by a thread of its own, and a
storage that does not answer keeps nobody from working.
"""

import socket
from contextlib import suppress
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from igneous_airflow.worker.assignments import Assignment, Assignments

_PERIOD = 15.0  # seconds between notes


class Presence:
    """Notes for the worker processes of one machine, as long as the block is not left."""

    def __init__(self, runs: str) -> None:
        self._assignments = Assignments(runs)
        self._held: dict[int, str | None] = {}  # by process: the message of the task in hand
        self._runs: dict[int, Assignment] = {}  # by process: the last task it had
        self._lock = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._go_on, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_PERIOD)
        with self._lock:
            processes = list(self._held)
        for process in processes:
            self.gone(process)

    def takes(self, process: int, message: str) -> None:
        """Say that a process works on a task."""
        with self._lock:
            self._held[process] = message

    def rests(self, process: int) -> None:
        """Say that a process has no task in hand."""
        with self._lock:
            if process in self._held:
                self._held[process] = None

    def gone(self, process: int) -> None:
        """Say that a process has ended."""
        with self._lock:
            self._held.pop(process, None)
            task = self._runs.pop(process, None)
        if task is not None:
            with suppress(Exception):  # a note that stays grows old
                task.ledger.forget_worker(_name(process))

    def _go_on(self) -> None:
        while not self._stop.wait(1.0 if not self._runs else _PERIOD):
            with self._lock:
                held = dict(self._held)
            for process, message in held.items():
                with suppress(Exception):  # the next note may get through
                    self._note(process, message)

    def _note(self, process: int, message: str | None) -> None:
        if message is not None:
            self._runs[process] = self._assignments.of(message)
        task = self._runs.get(process)
        if task is not None:
            in_hand = None if message is None else task.index
            task.ledger.note_worker(_name(process), in_hand)


def _name(process: int) -> str:
    return f"{socket.gethostname()}:{process}"
