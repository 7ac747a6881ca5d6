"""What a queue is: one protocol, one backend per file; used by `run.py` and the workers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import InvalidParameter

#: The module of each URL scheme; each has an `open_queue(url)`. Backends are imported when used.
_BACKENDS = {"memory": "memory", "sqlite": "sqlite", "sqs": "sqs", "https": "sqs", "http": "sqs"}
_CLOUD = frozenset({"sqs"})

#: Seconds, 12 hours: for more no message is leased or put off at once, and on SQS not at all.
LONGEST_LEASE = 43_200
#: A lease or delay of N seconds that ends later than N seconds and these from now is void: it was
#: taken by a clock that was ahead, or the clock has been set back since.
CLOCK_SLACK = 1.0

#: Makes the client of a cloud's queue service for a parsed address, with whatever credentials.
MakeClient = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one message until `expires`; `attempt` counts leases of it from 1."""

    message_id: str
    token: str
    body: str
    attempt: int
    expires: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages wait (now or after a delay), are leased, and are dead letters.

    Of those that wait, `delayed` have to wait for their time, and `expired` were leased by somebody
    who let the lease run out; a queue that cannot tell says 0.
    """

    waiting: int
    leased: int
    dead: int
    exact: bool = True
    delayed: int = 0
    expired: int = 0

    @property
    def drained(self) -> bool:
        """Whether no message is left to work on; dead letters do not count."""
        return self.waiting == 0 and self.leased == 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that nobody will be given again, and why."""

    body: str
    attempt: int
    reason: str


class Queue(Protocol):
    """Messages that are each given to one worker at a time, at least once.

    All times are seconds since the epoch, all durations seconds. A lease that is not settled in
    time is given to somebody else; settling it afterwards raises `LeaseLost`. Leases and delays are
    measured by a clock that nobody sets, and last for LONGEST_LEASE at most; a worker extends them.

    Only `send` makes a queue that is missing, even when there is nothing to send. To all else it
    looks empty.
    """

    def exists(self) -> bool:
        """Whether somebody has made the queue."""

    def send(self, bodies: Iterable[str]) -> int:
        """Add messages and return how many; all of them are stored, or an error is raised."""

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        """Take the oldest waiting message; None when there is none within `wait`."""

    def extend(self, lease: Lease, seconds: float) -> None:
        """Let a lease end `seconds` from now; raises LeaseLost."""

    def done(self, lease: Lease) -> None:
        """Remove a message for good; raises LeaseLost."""

    def release(self, lease: Lease, *, after: float = 0) -> None:
        """Give a message back, to be leased again `after` seconds from now; raises LeaseLost."""

    def bury(self, lease: Lease, reason: str) -> None:
        """Move a message to the dead letters; raises LeaseLost."""

    def counts(self) -> Counts:
        """Count the messages."""

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The first dead letters, oldest first."""

    def redrive(self, wanted: Callable[[str], bool]) -> int:
        """Send the dead letters whose bodies are wanted once more; returns how many."""

    def purge(self) -> None:
        """Forget every message, leased and dead ones too."""

    def delete(self) -> None:
        """Remove the queue and all that it holds; it may be gone already."""

    def close(self) -> None:
        """Let go of connections; the messages stay."""

    def cost(self, messages: int, size: int) -> str:
        """What so many messages of `size` bytes will cost, in words; empty when nothing."""


def open_queue(url: str, make_client: MakeClient | None = None) -> Queue:
    """Open a queue by its URL: `sqlite:///path/to/file.db`, `memory://name`, `sqs://name`.

    For SQS it may end in `?region=NAME&endpoint=URL`, and in `create=false` for an existing queue
    that is not ours to make, purge or delete; a full URL names such a queue too, as
    `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`. Credentials are never part of the URL: they are
    those of the environment, or of `make_client` where the service is a cloud's.

    Raises InvalidParameter for another scheme, and for an address that holds credentials.
    """
    refuse_credentials(url)
    scheme = url.partition("://")[0]
    if scheme not in _BACKENDS:
        known = ", ".join(f"{name}://" for name in sorted(_BACKENDS))
        raise InvalidParameter(f"{url!r} is not the address of a queue: it must start with {known}")
    backend = import_module(f"igneous_airflow.queue.{_BACKENDS[scheme]}")
    opener: Callable[..., Queue] = backend.open_queue
    if make_client is not None and _BACKENDS[scheme] in _CLOUD:
        return opener(url, make_client)
    return opener(url)
