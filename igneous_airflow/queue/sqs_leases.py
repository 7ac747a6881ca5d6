"""What one process holds of an SQS queue; bookkeeping without any request, used by `sqs.py`.

Messages are fetched ahead only as far as the recent tasks were fast, since the lease of a message
runs while it waits. Acknowledgements wait for others, to be sent together.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from igneous_airflow.errors import LeaseLost
from igneous_airflow.queue.protocol import LONGEST_LEASE, Lease
from igneous_airflow.queue.sqs_sender import BATCH_ENTRIES

_AHEAD_SECONDS = 2.0  # of work are fetched at most
_AHEAD_SHARE = 0.1  # of the lease
_DONE_SECONDS = 1.0  # an acknowledgement waits for others
_FORGETTING = 0.7  # per task: how fast a slow task is forgotten
_REMEMBERED = 1_000  # leases, before those that have ended are forgotten


@dataclass(slots=True)
class _Held:
    """A lease that was handed out; times by the clock."""

    received: float
    expires: float
    started: float


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A lease that was not yet handed out, and until when it may be."""

    lease: Lease
    seconds: float
    received: float
    start_by: float


class LeaseBook:
    """Leases handed out, messages fetched ahead, acknowledgements due; used by several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pace: float | None = None  # seconds a task takes; None until one is done
        self.forget()
        self._watched = False

    def forget(self) -> None:
        """Forget everything, as after a purge: leases that were handed out are lost."""
        with self._lock:
            self._held: dict[str, _Held] = {}
            self._ahead: deque[_Ahead] = deque()
            self._done: list[tuple[float, str]] = []

    def wanted(self, seconds: float) -> int:
        """How many messages to ask for, to work on them well within leases of `seconds`."""
        with self._lock:
            if self._pace is None:
                return 1
            return max(1, min(int(_ahead(seconds) / max(self._pace, 1e-3)), BATCH_ENTRIES))

    def take(self, leases: Sequence[Lease], seconds: float) -> Lease:
        """Keep new leases and hand out the first."""
        now = self._clock()
        with self._lock:
            if len(self._held) > _REMEMBERED:
                self._held = {token: h for token, h in self._held.items() if h.expires > now}
            start_by = now + 2 * _ahead(seconds)
            self._ahead.extend(_Ahead(lease, seconds, now, start_by) for lease in leases[1:])
            return self._hand_out(_Ahead(leases[0], seconds, now, start_by))

    def next(self, seconds: float) -> Lease | None:
        """Hand out a message that was fetched ahead for leases of `seconds`, if not too late."""
        now = self._clock()
        with self._lock:
            for index, ahead in enumerate(self._ahead):
                if ahead.seconds == seconds and now <= ahead.start_by:
                    del self._ahead[index]
                    return self._hand_out(ahead)
        return None

    def unused(self, *, late: bool) -> list[Lease]:
        """Take out what was fetched ahead in vain; only what is too late to be handed out."""
        now = self._clock()
        with self._lock:
            given_back = [a for a in self._ahead if not late or now > a.start_by]
            self._ahead = deque(a for a in self._ahead if a not in given_back)
        return [ahead.lease for ahead in given_back]

    def remaining(self, lease: Lease) -> float:
        """For how many seconds the lease may be extended at most; raises LeaseLost if it has ended.

        Only the service knows about leases that another process took: they give the maximum.
        """
        now = self._clock()
        with self._lock:
            held = self._held.get(lease.token)
            if held is None:
                return LONGEST_LEASE
            if held.expires <= now:
                raise LeaseLost(
                    f"the lease of message {lease.message_id}, attempt {lease.attempt}, has ended"
                )
            return max(held.received + LONGEST_LEASE - now, 0)

    def extended(self, lease: Lease, seconds: float) -> None:
        """Note that a lease of this process ends `seconds` from now."""
        with self._lock:
            if held := self._held.get(lease.token):
                held.expires = self._clock() + seconds

    def ended(self, lease: Lease) -> None:
        """Note that a lease, of whatever process, was settled or lost."""
        now = self._clock()
        with self._lock:
            self._held[lease.token] = _Held(now, now, now)

    def finish(self, lease: Lease) -> bool:
        """Note that the task is done, to be acknowledged soon; raises LeaseLost if it has ended.

        Returns False, and notes nothing, when another process took the lease.
        """
        self.remaining(lease)
        now = self._clock()
        with self._lock:
            held = self._held.get(lease.token)
            if held is None:
                return False
            held.expires = now
            self._pace = max(now - held.started, _FORGETTING * (self._pace or 0))
            self._done.append((now, lease.token))
            return True

    def due(self, *, old: bool = False) -> list[str]:
        """Take out a batch of acknowledgements; with `old` only if they fill it or have waited."""
        now = self._clock()
        with self._lock:
            waited = bool(self._done) and now - self._done[0][0] >= _DONE_SECONDS
            if old and not waited and len(self._done) < BATCH_ENTRIES:
                return []
            batch, self._done = self._done[:BATCH_ENTRIES], self._done[BATCH_ENTRIES:]
        return [token for _, token in batch]

    def needs_watch(self) -> bool:
        """Whether a thread must be started that looks after what waits here."""
        with self._lock:
            starts = bool(self._ahead or self._done) and not self._watched
            self._watched = self._watched or starts
            return starts

    def watch_ends(self) -> bool:
        """Whether nothing waits here any more, so that the thread must end."""
        with self._lock:
            self._watched = bool(self._ahead or self._done)
            return not self._watched

    def _hand_out(self, ahead: _Ahead) -> Lease:
        self._held[ahead.lease.token] = _Held(
            ahead.received, ahead.received + ahead.seconds, self._clock()
        )
        return ahead.lease


def _ahead(seconds: float) -> float:
    """How many seconds of work to fetch for leases of so many seconds."""
    return min(_AHEAD_SECONDS, _AHEAD_SHARE * seconds)
