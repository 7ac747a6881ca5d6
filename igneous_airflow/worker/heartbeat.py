"""Keeps a lease alive while a task runs; used by the worker's loop."""

from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Self

from igneous_airflow.errors import LeaseLost, TransientError
from igneous_airflow.queue.protocol import Lease, Queue

_BEATS_PER_LEASE = 3


class Heartbeat:
    """Extends a lease three times as often as needed, until the block is left."""

    def __init__(self, queue: Queue, lease: Lease, seconds: float) -> None:
        self._queue = queue
        self._lease = lease
        self._seconds = seconds
        self._stop = Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)

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
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS_PER_LEASE):
            try:
                with suppress(TransientError):  # the next beat may get through
                    self._queue.extend(self._lease, self._seconds)
            except LeaseLost:
                return  # the task is somebody else's too: both write the same
