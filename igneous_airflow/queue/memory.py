"""The queue of one process: `memory://name`; for tests, notebooks and runs without workers."""

import heapq
import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from igneous_airflow.errors import InvalidParameter, LeaseLost
from igneous_airflow.queue.protocol import CLOCK_SLACK, LONGEST_LEASE, Counts, DeadLetter, Lease

_SCHEME = "memory://"


@dataclass(slots=True)
class _Message:
    """A message, leased while it has a token and is not due.

    `seconds` is for how long it was leased or put off when `due` was set.
    """

    body: str
    due: float
    seconds: float = 0.0
    attempt: int = 0
    token: str = ""

    def waits(self, now: float) -> bool:
        """Whether it is due, or what it was leased or put off for is void."""
        return self.due <= now or self.due > now + self.seconds + CLOCK_SLACK


class MemoryQueue:
    """A queue that lives and dies with its process; may be used from several threads.

    `clock` gives the seconds since the epoch, by default counted on from now by the monotonic
    clock; the `wait` of `lease` is real time all the same.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        zero = time.time() - time.monotonic()
        self._clock = clock or (lambda: zero + time.monotonic())
        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        self._messages: dict[int, _Message] = {}
        # Every (due, id) that ever was; one that differs from the message's `due` is out of date.
        self._schedule: list[tuple[float, int]] = []
        self._dead: list[DeadLetter] = []

    def exists(self) -> bool:
        """Return True: whoever has the object has the queue."""
        return True

    def send(self, bodies: Iterable[str]) -> int:
        """Add messages and return how many; they can be leased while others are still made."""
        due = self._clock()
        sent = 0
        for body in bodies:
            with self._changed:
                number = next(self._ids)
                self._messages[number] = _Message(body, due)
                self._set_due(number, due, 0)
            sent += 1
        return sent

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        """Take the oldest waiting message; None when there is none within `wait`."""
        deadline = time.monotonic() + wait
        with self._changed:
            while (lease := self._take(seconds)) is None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(min(remaining, self._next_due()))
        return lease

    def extend(self, lease: Lease, seconds: float) -> None:
        """Let a lease end `seconds` from now; raises LeaseLost."""
        with self._changed:
            self._leased(lease)
            self._set_due(int(lease.message_id), self._clock(), seconds)

    def done(self, lease: Lease) -> None:
        """Remove a message for good; raises LeaseLost."""
        with self._changed:
            self._leased(lease)
            del self._messages[int(lease.message_id)]

    def release(self, lease: Lease, *, after: float = 0) -> None:
        """Give a message back, to be leased again `after` seconds from now; raises LeaseLost."""
        with self._changed:
            self._leased(lease).token = ""
            self._set_due(int(lease.message_id), self._clock(), after)

    def bury(self, lease: Lease, reason: str) -> None:
        """Move a message to the dead letters; raises LeaseLost."""
        with self._changed:
            message = self._leased(lease)
            del self._messages[int(lease.message_id)]
            self._dead.append(DeadLetter(message.body, message.attempt, reason))

    def counts(self) -> Counts:
        """Count the messages; a lease that has expired or is void counts as waiting."""
        with self._changed:
            now = self._clock()
            kinds = Counter((bool(m.token), m.waits(now)) for m in self._messages.values())
            return Counts(
                waiting=len(self._messages) - kinds[True, False],
                leased=kinds[True, False],
                dead=len(self._dead),
                delayed=kinds[False, False],
                expired=kinds[True, True],
            )

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the first dead letters, in the order in which they were buried."""
        with self._changed:
            return self._dead[:limit]

    def redrive(self, wanted: Callable[[str], bool]) -> int:
        """Send the dead letters whose bodies are wanted once more; returns how many."""
        with self._changed:
            sent = self.send(letter.body for letter in self._dead if wanted(letter.body))
            self._dead = [letter for letter in self._dead if not wanted(letter.body)]
            return sent

    def purge(self) -> None:
        """Forget every message, leased and dead ones too."""
        with self._changed:
            self._messages.clear()
            self._schedule.clear()
            self._dead.clear()

    def delete(self) -> None:
        """Forget every message; the name stays, so that all who hold the queue share the next."""
        self.purge()

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def cost(self, messages: int, size: int) -> str:  # noqa: ARG002
        """Return nothing: these messages cost nothing."""
        return ""

    def _set_due(self, number: int, now: float, seconds: float) -> None:
        message = self._messages[number]
        message.seconds = min(seconds, LONGEST_LEASE)
        message.due = now + message.seconds
        heapq.heappush(self._schedule, (message.due, number))
        self._changed.notify()

    def _take(self, seconds: float) -> Lease | None:
        now = self._clock()
        if self._next_due() > 0:
            self._free_void(now)
        if self._next_due() > 0:
            return None
        _, number = heapq.heappop(self._schedule)
        message = self._messages[number]
        message.attempt += 1
        message.token = uuid.uuid4().hex
        self._set_due(number, now, seconds)
        return Lease(str(number), message.token, message.body, message.attempt, message.due)

    def _free_void(self, now: float) -> None:
        """Let messages wait whose leases and delays are void; none is due."""
        for number, message in self._messages.items():
            if message.waits(now):
                self._set_due(number, now, 0)

    def _next_due(self) -> float:
        """In how many seconds the next message is due; TIMEOUT_MAX when there is none."""
        while self._schedule:
            due, number = self._schedule[0]
            message = self._messages.get(number)
            if message is not None and message.due == due:
                return min(max(due - self._clock(), 0), threading.TIMEOUT_MAX)
            heapq.heappop(self._schedule)
        return threading.TIMEOUT_MAX

    def _leased(self, lease: Lease) -> _Message:
        number = int(lease.message_id)
        message = self._messages.get(number)
        if message is None or message.token != lease.token:
            raise LeaseLost(f"the lease of message {number}, attempt {lease.attempt}, has ended")
        return message


_QUEUES: dict[str, MemoryQueue] = {}
_QUEUES_LOCK = threading.Lock()


def open_queue(url: str) -> MemoryQueue:
    """Return the queue `memory://name`, the same one for every caller in this process.

    Raises InvalidParameter for an address without a name.
    """
    name = url.removeprefix(_SCHEME)
    if not name or name == url:
        raise InvalidParameter(f"{url!r} names no queue: write memory://name")
    with _QUEUES_LOCK:
        return _QUEUES.setdefault(name, MemoryQueue())
