import itertools
from typing import ClassVar

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.testing.queues import QueueTests

names = itertools.count()


class TestMemoryQueue(QueueTests):
    made_by_send: ClassVar[bool] = False

    @pytest.fixture
    def url(self) -> str:
        return f"memory://test-{next(names)}"


def test_a_name_is_one_queue_in_a_process() -> None:
    assert open_queue("memory://same") is open_queue("memory://same")
    assert open_queue("memory://same") is not open_queue("memory://other")


def test_a_name_is_needed() -> None:
    with pytest.raises(InvalidParameter, match="memory://name"):
        open_queue("memory://")


def test_messages_that_were_sent_together_stay_in_order_after_many_leases() -> None:
    queue = MemoryQueue()
    queue.send(str(i) for i in range(1000))
    for _ in range(1000):
        lease = queue.lease(60)
        assert lease is not None
        queue.release(lease)
    bodies = []
    while lease := queue.lease(60):
        bodies.append(int(lease.body))
    assert bodies == list(range(1000))


def test_a_lease_that_expired_but_was_given_to_nobody_else_can_still_be_settled() -> None:
    now = 0.0
    queue = MemoryQueue(clock=lambda: now)
    queue.send(["a"])
    lease = queue.lease(10)
    assert lease is not None
    now = 20.0
    queue.done(lease)
    assert queue.counts().drained
