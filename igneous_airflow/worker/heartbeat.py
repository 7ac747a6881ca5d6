"""Keeps the lease of a running task alive; used by the worker's loop."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

from igneous_airflow.errors import IgneousError, LeaseLost
from igneous_airflow.queue.protocol import LONGEST_LEASE, Lease, Queue

_TICKS_PER_LEASE = 12
_RENEWED_AFTER = 1 / 4  # of the lease: with the tick, a lease is a third over at the most


class Heartbeat:
    """Extends the lease of whatever task a worker runs.

    One thread serves task after task, since starting one costs more than a short task does. It
    looks at the lease twelve times in the lease's life, and ends when it finds no task.
    """

    def __init__(self, queue: Queue, seconds: float) -> None:
        self._queue = queue
        self._seconds = min(seconds, LONGEST_LEASE)
        self._lock = Lock()  # held while a lease is extended, so that none is after its task
        self._lease: Lease | None = None
        self._renewed = 0.0
        self._runs = False

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[None]:
        """Keep a lease alive until the block is left."""
        with self._lock:
            self._lease, self._renewed = lease, time.monotonic()
            starts, self._runs = not self._runs, True
        if starts:
            Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._lease = None

    def _beat(self) -> None:
        while True:
            time.sleep(self._seconds / _TICKS_PER_LEASE)
            with self._lock:
                if self._lease is None:
                    self._runs = False
                    return
                if time.monotonic() - self._renewed >= self._seconds * _RENEWED_AFTER:
                    self._extend(self._lease)

    def _extend(self, lease: Lease) -> None:
        with suppress(IgneousError):  # the next beat may get through
            try:
                self._queue.extend(lease, self._seconds)
                self._renewed = time.monotonic()
            except LeaseLost:
                self._renewed = math.inf  # the task is somebody else's too: both write the same
