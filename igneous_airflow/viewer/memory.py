"""How much memory the viewer takes for files, all of its requests together."""

from threading import Lock

from igneous_airflow.viewer.pool import Busy

_RETRY_SECONDS = 1.0


class MemoryBudget:
    """Bytes that may be held at once; used by several threads."""

    def __init__(self, most: int = 1 << 29) -> None:
        self._most = most
        self._taken = 0
        self._lock = Lock()

    @property
    def taken(self) -> int:
        """Bytes that are held now."""
        return self._taken

    def add(self, size: int) -> None:
        """Take some bytes, or give them back when negative; raises Busy when there are too few."""
        with self._lock:
            if size > 0 and self._taken + size > self._most:
                raise Busy("too many large files are wanted at once", _RETRY_SECONDS)
            self._taken += size


class Reservation:
    """The bytes of one request; nothing, once it is closed."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size = 0
        self._is_open = True
        self._lock = Lock()

    def resize(self, size: int) -> None:
        """Take so many bytes in all; raises Busy when there are too few, or it is closed."""
        with self._lock:
            if not self._is_open:
                raise Busy("the request has been answered already", _RETRY_SECONDS)
            self._budget.add(size - self._size)
            self._size = size

    def close(self) -> None:
        """Give everything back; an abandoned call that goes on can take nothing any more."""
        with self._lock:
            self._is_open = False
            self._budget.add(-self._size)
            self._size = 0
