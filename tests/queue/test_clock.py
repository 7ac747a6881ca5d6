"""Leases and delays under clocks that jump, of which a queue is given two: one for each worker."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from igneous_airflow.errors import LeaseLost
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import CLOCK_SLACK, Lease, Queue
from igneous_airflow.queue.sqlite import SqliteQueue
from igneous_airflow.testing.queues import drain

START = 1_700_000_000.0
LONGEST = 120.0  # seconds of a lease or delay in these tests
DAY = 86_400.0

seconds = st.sampled_from([1.0, 5.0, 30.0, LONGEST])
jumps = st.sampled_from([-400 * DAY, -DAY, -3600, -70, -3, -0.5, 0.5, 3, 70, 3600, DAY, 400 * DAY])
choices = st.integers(0, 1_000)


class Clocks(RuleBasedStateMachine):
    """Sends, leases, settles and puts off messages while two clocks are wrong in their own ways."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START  # what the time really is
        self.errors = [0.0, 0.0]
        self.numbers = itertools.count()
        self.unsettled: set[str] = set()
        self.leases: list[Lease] = []
        self.held: dict[str, tuple[str, float]] = {}  # token and true end of the last lease
        self.queues: list[Queue] = []

    def clock(self, index: int) -> Callable[[], float]:
        return lambda: self.now + self.errors[index]

    def queue(self, choice: int) -> Queue:
        return self.queues[choice % len(self.queues)]

    @rule(choice=choices, count=st.integers(1, 3))
    def send(self, choice: int, count: int) -> None:
        bodies = [str(next(self.numbers)) for _ in range(count)]
        self.unsettled.update(bodies)
        self.queue(choice).send(bodies)

    @rule(choice=choices, seconds=seconds)
    def lease(self, choice: int, seconds: float) -> None:
        lease = self.queue(choice).lease(seconds)
        if lease is not None:
            assert lease.body in self.unsettled
            self.require_free(lease)
            self.held[lease.body] = lease.token, self.now + seconds
            self.leases.append(lease)

    def require_free(self, lease: Lease) -> None:
        """Nothing is promised while clocks jump."""

    @precondition(lambda self: self.leases)
    @rule(choice=choices)
    def done(self, choice: int) -> None:
        lease = self.leases[choice % len(self.leases)]
        try:
            self.queue(choice).done(lease)
        except LeaseLost:
            return
        assert lease.body in self.unsettled, "a lease was settled twice"
        self.unsettled.remove(lease.body)

    @precondition(lambda self: self.leases)
    @rule(choice=choices, seconds=seconds)
    def extend(self, choice: int, seconds: float) -> None:
        lease = self.leases[choice % len(self.leases)]
        try:
            self.queue(choice).extend(lease, seconds)
        except LeaseLost:
            return
        self.held[lease.body] = lease.token, self.now + seconds

    @precondition(lambda self: self.leases)
    @rule(choice=choices, after=st.one_of(st.just(0.0), seconds))
    def release(self, choice: int, after: float) -> None:
        lease = self.leases[choice % len(self.leases)]
        try:
            self.queue(choice).release(lease, after=after)
        except LeaseLost:
            return
        self.held.pop(lease.body, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def teardown(self) -> None:
        self.errors = [0.0, 0.0]
        for pause in (0, LONGEST + CLOCK_SLACK):
            self.now += pause
            counts = self.queues[0].counts()
            came = drain(self.queues[0])
            assert counts.waiting - counts.delayed == len(came)
            self.unsettled.difference_update(lease.body for lease in came)
        assert not self.unsettled
        assert self.queues[0].counts().drained


class SqliteClocks(Clocks):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name, "queue.db")
        self.queues = [SqliteQueue(path, self.clock(0)), SqliteQueue(path, self.clock(1))]

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            for queue in self.queues:
                queue.close()
            self.folder.cleanup()


class MemoryClocks(Clocks):
    def __init__(self) -> None:
        super().__init__()
        self.queues = [MemoryQueue(self.clock(0))]


class Jumping(Clocks):
    @rule(choice=choices, jump=jumps)
    def jump(self, choice: int, jump: float) -> None:
        self.errors[choice % 2] += jump

    @rule()
    def right_again(self) -> None:
        self.errors = [0.0, 0.0]


class Drifting(Clocks):
    """Both clocks differ from the true time by less than CLOCK_SLACK between them."""

    @initialize(errors=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)))
    def start(self, errors: tuple[float, float]) -> None:
        self.errors = list(errors)

    @rule(choice=choices, drift=st.floats(0, 0.4))
    def drift(self, choice: int, drift: float) -> None:
        self.errors[choice % 2] = drift

    def require_free(self, lease: Lease) -> None:
        if lease.body in self.held:
            _, end = self.held[lease.body]
            assert self.now >= end - 0.5, "two workers have a lease"


class SqliteJumping(SqliteClocks, Jumping):
    pass


class SqliteDrifting(SqliteClocks, Drifting):
    pass


class MemoryJumping(MemoryClocks, Jumping):
    pass


class MemoryDrifting(MemoryClocks, Drifting):
    pass


@pytest.mark.parametrize(
    "machine",
    [SqliteJumping, SqliteDrifting, MemoryJumping, MemoryDrifting],
    ids=lambda m: m.__name__,
)
def test_no_message_is_lost_or_blocked_for_longer_than_the_longest_lease(
    machine: type[Clocks],
) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    case().runTest()
