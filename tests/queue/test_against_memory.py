import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from igneous_airflow.errors import LeaseLost
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import Lease, Queue
from igneous_airflow.queue.sqlite import SqliteQueue

seconds = st.sampled_from([0.5, 1, 2, 5, 60])
choices = st.integers(0, 1_000)


class SameAsMemory(RuleBasedStateMachine):
    """Does the same with both queues; leases of any age are used again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "queue.db")
        self.memory: Queue = MemoryQueue(clock=lambda: self.now)
        self.sqlite: Queue = SqliteQueue(self.path, clock=lambda: self.now)
        self.leases: list[tuple[Lease, Lease]] = []

    def teardown(self) -> None:
        self.sqlite.close()
        self.folder.cleanup()

    def settle(self, choice: int, action: Callable[[Queue, Lease], None]) -> None:
        outcomes = []
        pair = self.leases[choice % len(self.leases)]
        for queue, lease in zip((self.memory, self.sqlite), pair, strict=True):
            try:
                action(queue, lease)
                outcomes.append("settled")
            except LeaseLost:
                outcomes.append("lost")
        assert outcomes[0] == outcomes[1]

    @rule(bodies=st.lists(st.text(max_size=5), max_size=4))
    def send(self, bodies: list[str]) -> None:
        assert self.memory.send(bodies) == self.sqlite.send(iter(bodies)) == len(bodies)

    @rule(letter=st.sampled_from("abc0"))
    def redrive(self, letter: str) -> None:
        sent = [queue.redrive(lambda body: letter in body) for queue in (self.memory, self.sqlite)]
        assert sent[0] == sent[1]

    @rule(seconds=seconds)
    def lease(self, seconds: float) -> None:
        one, two = self.memory.lease(seconds), self.sqlite.lease(seconds)
        if one is None or two is None:
            assert one is two
            return
        assert visible(one) == visible(two)
        self.leases.append((one, two))

    @precondition(lambda self: self.leases)
    @rule(choice=choices)
    def done(self, choice: int) -> None:
        self.settle(choice, lambda queue, lease: queue.done(lease))

    @precondition(lambda self: self.leases)
    @rule(choice=choices, seconds=seconds)
    def extend(self, choice: int, seconds: float) -> None:
        self.settle(choice, lambda queue, lease: queue.extend(lease, seconds))

    @precondition(lambda self: self.leases)
    @rule(choice=choices, after=st.one_of(st.just(0), seconds))
    def release(self, choice: int, after: float) -> None:
        self.settle(choice, lambda queue, lease: queue.release(lease, after=after))

    @precondition(lambda self: self.leases)
    @rule(choice=choices, reason=st.text(max_size=5))
    def bury(self, choice: int, reason: str) -> None:
        self.settle(choice, lambda queue, lease: queue.bury(lease, reason))

    @rule(seconds=seconds)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reopen(self) -> None:
        self.sqlite.close()
        self.sqlite = SqliteQueue(self.path, clock=lambda: self.now)

    @rule(choice=choices)
    def purge_or_delete(self, choice: int) -> None:
        if choice < 100:  # seldom, or there is never much in the queue
            name = "purge" if choice % 2 else "delete"
            for queue in (self.memory, self.sqlite):
                getattr(queue, name)()

    @invariant()
    def hold_the_same(self) -> None:
        assert self.memory.counts() == self.sqlite.counts()
        assert self.memory.dead_letters(3) == self.sqlite.dead_letters(3)


def visible(lease: Lease) -> tuple[Any, ...]:
    return lease.body, lease.attempt, lease.expires


TestSameAsMemory = SameAsMemory.TestCase
TestSameAsMemory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
