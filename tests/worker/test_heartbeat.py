import threading
import time
from collections.abc import Callable

import pytest

from igneous_airflow.errors import AccessDenied, LeaseLost, StorageUnavailable
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import Lease
from igneous_airflow.worker.heartbeat import Heartbeat


class Recording(MemoryQueue):
    """Counts beats, and answers some of them with an error."""

    def __init__(self, errors: list[Exception] | None = None) -> None:
        super().__init__()
        self.beats: list[float] = []
        self.errors = errors or []

    def extend(self, lease: Lease, seconds: float) -> None:
        self.beats.append(seconds)
        if self.errors:
            raise self.errors.pop(0)
        super().extend(lease, seconds)


def held(queue: MemoryQueue, seconds: float) -> Lease:
    queue.send(["task"])
    lease = queue.lease(seconds)
    assert lease is not None
    return lease


def test_a_lease_lives_as_long_as_the_block():
    queue = Recording()
    lease = held(queue, 0.3)
    with Heartbeat(queue, 0.3).keep(lease):
        assert queue.lease(1, wait=0.8) is None
    assert set(queue.beats) == {0.3}
    queue.done(lease)


def test_it_beats_no_more_after_the_block_and_leaves_it_at_once(wait_until: Callable[..., None]):
    queue = Recording()
    with Heartbeat(queue, 0.03).keep(held(queue, 0.03)):
        wait_until(lambda: queue.beats)
    after = len(queue.beats)
    time.sleep(0.05)
    assert len(queue.beats) == after
    started = time.monotonic()
    with Heartbeat(queue, 600).keep(held(queue, 600)):
        pass
    assert time.monotonic() - started < 1


def test_an_unreachable_queue_is_tried_again_at_the_next_beat(wait_until: Callable[..., None]):
    queue = Recording([StorageUnavailable("locked"), StorageUnavailable("locked")])
    lease = held(queue, 60)
    with Heartbeat(queue, 0.03).keep(lease):
        wait_until(lambda: len(queue.beats) >= 3)
    queue.done(lease)


def test_a_lost_lease_is_not_asked_for_again(wait_until: Callable[..., None]):
    queue = Recording([LeaseLost("somebody else has it")])
    with Heartbeat(queue, 0.03).keep(held(queue, 60)):
        wait_until(lambda: queue.beats)
        time.sleep(0.1)
    assert len(queue.beats) == 1


def test_an_error_in_the_block_goes_through():
    queue = Recording()
    with pytest.raises(ZeroDivisionError), Heartbeat(queue, 60).keep(held(queue, 60)):
        raise ZeroDivisionError


def test_one_thread_serves_task_after_task_and_ends_without_one(wait_until: Callable[..., None]):
    queue = Recording()
    heartbeat = Heartbeat(queue, 0.6)
    before = threading.active_count()
    for _ in range(20):
        with heartbeat.keep(held(queue, 0.6)):
            assert threading.active_count() <= before + 1
    assert not queue.beats, "short tasks need no beat"
    with heartbeat.keep(lease := held(queue, 0.6)):
        wait_until(lambda: len(queue.beats) >= 2)
    queue.done(lease)
    wait_until(lambda: threading.active_count() == before)
    with heartbeat.keep(held(queue, 0.6)):
        wait_until(lambda: len(queue.beats) >= 3)


def test_a_beat_that_is_refused_does_not_end_those_of_later_tasks(wait_until: Callable[..., None]):
    queue = Recording([AccessDenied("the credentials have expired")])
    heartbeat = Heartbeat(queue, 0.06)
    with heartbeat.keep(held(queue, 60)):
        wait_until(lambda: len(queue.beats) >= 2)
    with heartbeat.keep(held(queue, 60)):
        wait_until(lambda: len(queue.beats) >= 4)
