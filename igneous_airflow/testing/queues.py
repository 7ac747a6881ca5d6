"""What every queue backend must do: subclass `QueueTests` and give it the fixture `url`."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from igneous_airflow.errors import InvalidParameter, LeaseLost
from igneous_airflow.queue.protocol import Counts, DeadLetter, Lease, Queue, open_queue

HOSTILE_BODIES = {
    "empty": "",
    "quotes": "'; DROP TABLE messages; -- \" ` %s ? :1 \\ \\n {} $x",
    "json": '{"run": "a", "cells": [0, 1]}',
    "white space": " \t\r\n  leading and trailing \r\n",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028",
    "emoji": "🧠👩‍🔬 \U0010ffff",
    "unicode": "é e\u0301 شبكة 神経 \ufeff\u202e",
    "markup": "<Message>&amp;&#0;</Message>]]>",
    "large": "voxel🧊" * 22_000,
}


class QueueTests:
    """The contract of a queue, for pytest.

    The subclass supplies the fixture `url`, the address of a queue that does not exist or is
    empty. A backend that promises less says so by the attributes below.
    """

    #: Seconds after which short leases and delays of these tests end.
    moment: ClassVar[float] = 0.1
    #: Whether the oldest message comes first, and `dead_letters` gives the oldest of many.
    ordered: ClassVar[bool] = True
    #: Whether there is no queue before somebody sends to it.
    made_by_send: ClassVar[bool] = True
    #: Which of HOSTILE_BODIES are refused instead of stored.
    refused_bodies: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    def url(self) -> str:
        """Return the address of the queue; supplied by the subclass."""
        raise NotImplementedError

    @pytest.fixture
    def queue(self, url: str) -> Iterator[Queue]:
        """Open the queue and remove it after the test."""
        queue = open_queue(url)
        yield queue
        queue.delete()
        queue.close()

    def test_a_new_queue_is_empty_and_drained(self, queue: Queue) -> None:
        assert self.lease_or_none(queue) is None
        assert_counts(queue, waiting=0, leased=0, dead=0)
        assert queue.counts().drained
        assert queue.dead_letters() == []

    def test_only_send_makes_a_queue_even_when_there_is_nothing_to_send(
        self, url: str, queue: Queue
    ) -> None:
        if not self.made_by_send:
            assert queue.exists()
            return
        queue.counts()
        queue.purge()
        assert queue.lease(60) is None
        assert queue.dead_letters() == []
        assert not queue.exists()
        other = open_queue(url)
        assert other.send([]) == 0
        assert queue.exists()
        assert other.exists()
        other.close()

    def test_who_waits_for_a_queue_that_is_missing_gets_its_first_message(
        self, url: str, queue: Queue
    ) -> None:
        assert self.lease_or_none(queue) is None
        other = open_queue(url)
        other.send(["a"])
        lease = take(queue)
        assert lease.body == "a"
        queue.done(lease)
        other.close()

    def test_send_returns_how_many_it_stored(self, queue: Queue) -> None:
        assert queue.send([]) == 0
        assert queue.send(f"body {i}" for i in range(25)) == 25
        assert queue.send(["same", "same"]) == 2
        assert_counts(queue, waiting=27, leased=0, dead=0)
        assert not queue.counts().drained

    def test_every_message_sent_is_given_out_once(self, queue: Queue) -> None:
        bodies = [f"body {i}" for i in range(50)]
        queue.send(bodies)
        leases = drain(queue)
        assert sorted(lease.body for lease in leases) == sorted(bodies)
        assert len({lease.message_id for lease in leases}) == 50
        assert len({lease.token for lease in leases}) == 50
        assert_counts(queue, waiting=0, leased=0, dead=0)

    def test_the_oldest_waiting_message_comes_first(self, queue: Queue) -> None:
        if not self.ordered:
            pytest.skip("this queue promises no order")
        queue.send(["a", "b"])
        queue.send(["c"])
        first = take(queue)
        assert first.body == "a"
        queue.release(first)
        assert [lease.body for lease in drain(queue)] == ["b", "c", "a"]

    @pytest.mark.parametrize("name", HOSTILE_BODIES)
    def test_a_body_comes_back_as_it_was_or_is_refused(self, queue: Queue, name: str) -> None:
        body = HOSTILE_BODIES[name]
        if name in self.refused_bodies:
            with pytest.raises(InvalidParameter):
                queue.send([body])
            body = "harmless"
        queue.send([body])
        lease = take(queue)
        assert lease.body == body
        reason = HOSTILE_BODIES[name]
        queue.bury(lease, reason)
        assert queue.dead_letters() == [DeadLetter(body, 1, reason)]

    def test_an_error_of_the_bodies_reaches_the_sender(self, queue: Queue) -> None:
        def bodies() -> Iterator[str]:
            yield "first"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            queue.send(bodies())
        queue.send(["after"])
        assert "after" in {lease.body for lease in drain(queue)}

    def test_bodies_may_come_from_the_queue_itself(self, queue: Queue) -> None:
        queue.send(["a", "b"])

        def again() -> Iterator[str]:
            for _ in range(2):
                lease = take(queue)
                queue.done(lease)
                yield lease.body.upper()

        assert queue.send(again()) == 2
        assert sorted(lease.body for lease in drain(queue)) == ["A", "B"]

    def test_a_leased_message_is_given_to_nobody_else(self, queue: Queue) -> None:
        queue.send(["a"])
        take(queue)
        assert self.lease_or_none(queue) is None
        assert_counts(queue, waiting=0, leased=1, dead=0)
        assert not queue.counts().drained

    def test_a_lease_tells_when_it_expires_and_which_attempt_it_is(self, queue: Queue) -> None:
        queue.send(["a"])
        before = time.time()
        lease = take(queue, 60)
        assert before + 59 <= lease.expires <= time.time() + 61
        assert lease.attempt == 1

    def test_a_lease_that_expired_is_given_to_another_worker(self, queue: Queue) -> None:
        queue.send(["a"])
        first = take(queue, self.moment)
        second = take(queue)
        assert (second.body, second.attempt) == ("a", 2)
        assert second.message_id == first.message_id
        assert second.token != first.token
        assert second.expires > first.expires

    def test_an_expired_lease_counts_as_waiting(self, queue: Queue) -> None:
        queue.send(["a"])
        take(queue, self.moment)
        time.sleep(1.5 * self.moment)
        assert_counts(queue, waiting=1, leased=0, dead=0, expired=1)

    @pytest.mark.parametrize("ahead", [-86_400, 86_400])
    def test_a_clock_that_is_set_meanwhile_neither_ends_nor_prolongs_a_lease(
        self, queue: Queue, monkeypatch: pytest.MonkeyPatch, ahead: float
    ) -> None:
        right = time.time
        queue.send(["a", "b"])
        expired, kept = take(queue, self.moment), take(queue)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: right() + ahead)
            assert take(queue).body == expired.body
            assert self.lease_or_none(queue) is None
        queue.done(kept)

    def test_a_lost_lease_changes_nothing(self, queue: Queue) -> None:
        queue.send(["a"])
        first = take(queue, self.moment)
        second = take(queue)
        assert_lost(queue, first)
        assert_counts(queue, waiting=0, leased=1, dead=0)
        assert self.lease_or_none(queue) is None
        queue.done(second)
        assert_counts(queue, waiting=0, leased=0, dead=0)

    def test_a_settled_lease_is_lost(self, queue: Queue) -> None:
        queue.send(["a", "b", "c"])
        done, buried, released = take(queue), take(queue), take(queue)
        queue.done(done)
        queue.bury(buried, "broken")
        queue.release(released, after=60)
        for lease in (done, buried, released):
            assert_lost(queue, lease)
        assert_counts(queue, waiting=1, leased=0, dead=1, delayed=1)

    def test_an_extended_lease_outlives_its_first_end(self, queue: Queue) -> None:
        queue.send(["a"])
        lease = take(queue, 3 * self.moment)
        queue.extend(lease, 60)
        time.sleep(4 * self.moment)
        assert self.lease_or_none(queue) is None
        assert_counts(queue, waiting=0, leased=1, dead=0)
        queue.done(lease)
        assert queue.counts().drained

    def test_extend_counts_from_now(self, queue: Queue) -> None:
        queue.send(["a"])
        queue.extend(take(queue, 60), self.moment)
        assert take(queue).attempt == 2

    def test_a_released_message_is_given_out_again(self, queue: Queue) -> None:
        queue.send(["a"])
        queue.release(take(queue, 60))
        assert_counts(queue, waiting=1, leased=0, dead=0)
        assert take(queue).attempt == 2

    def test_a_message_released_for_later_waits_so_long(self, queue: Queue) -> None:
        queue.send(["a"])
        lease = take(queue)
        queue.release(lease, after=60)
        assert self.lease_or_none(queue) is None
        assert_counts(queue, waiting=1, leased=0, dead=0, delayed=1)
        assert not queue.counts().drained

    def test_a_delay_ends(self, queue: Queue) -> None:
        queue.send(["a", "b"])
        start = time.monotonic()
        first = take(queue)
        queue.release(first, after=self.moment)
        assert take(queue).body != first.body
        assert take(queue).body == first.body
        assert time.monotonic() - start >= 0.9 * self.moment

    def test_dead_letters_are_kept_with_their_reasons_oldest_first(self, queue: Queue) -> None:
        for body, reason in (("a", "first"), ("b", "second\n  traceback")):
            queue.send([body])
            queue.bury(take(queue), reason)
        queue.send(["c"])
        queue.release(take(queue))
        queue.bury(take(queue), "third")
        letters = [
            DeadLetter("a", 1, "first"),
            DeadLetter("b", 1, "second\n  traceback"),
            DeadLetter("c", 2, "third"),
        ]
        assert queue.dead_letters() == letters
        some = queue.dead_letters(limit=2)
        assert some == (letters[:2] if self.ordered else [x for x in letters if x in some])
        assert len(some) == 2
        assert self.lease_or_none(queue) is None
        assert_counts(queue, waiting=0, leased=0, dead=3)

    def test_dead_letters_do_not_keep_a_queue_from_being_drained(self, queue: Queue) -> None:
        queue.send(["a"])
        queue.bury(take(queue), "broken")
        assert queue.counts().drained

    def test_dead_letters_that_are_wanted_become_new_messages(self, queue: Queue) -> None:
        queue.send([f"good {i}" for i in range(15)] + [f"bad {i}" for i in range(12)])
        while lease := self.lease_or_none(queue):
            queue.bury(lease, "broken")
        queue.send(["waiting"])
        assert queue.redrive(lambda body: body.startswith("good")) == 15
        assert_counts(queue, waiting=16, leased=0, dead=12)
        leases = drain(queue)
        assert {lease.attempt for lease in leases} == {1}
        assert sorted(lease.body for lease in leases) == sorted(
            ["waiting", *(f"good {i}" for i in range(15))]
        )
        assert {letter.reason for letter in queue.dead_letters()} == {"broken"}
        assert queue.redrive(lambda body: body.startswith("good")) == 0
        assert queue.redrive(lambda _: True) == 12
        assert_counts(queue, waiting=12, leased=0, dead=0)

    def test_lease_returns_at_once_when_it_shall_not_wait(self, queue: Queue) -> None:
        queue.counts()  # the queue may be made on first use, which takes time
        start = time.monotonic()
        assert queue.lease(60) is None
        assert time.monotonic() - start < 2

    def test_lease_waits_so_long_and_no_longer(self, queue: Queue) -> None:
        queue.counts()
        start = time.monotonic()
        assert queue.lease(60, wait=2 * self.moment) is None
        assert 1.9 * self.moment <= time.monotonic() - start < 2 * self.moment + 3

    def test_a_waiting_lease_gets_what_is_sent_meanwhile(self, queue: Queue) -> None:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(queue.lease, 60, wait=10)
            time.sleep(self.moment)
            start = time.monotonic()
            queue.send(["a"])
            lease = waiting.result()
        assert lease is not None
        assert lease.body == "a"
        assert time.monotonic() - start < 5

    def test_purge_forgets_waiting_leased_and_dead_messages(self, queue: Queue) -> None:
        queue.send(["dead", "leased", "delayed", "waiting"])
        queue.bury(take(queue), "broken")
        leased = take(queue)
        queue.release(take(queue), after=self.moment)
        queue.purge()
        assert_counts(queue, waiting=0, leased=0, dead=0)
        assert queue.dead_letters() == []
        assert_lost(queue, leased)
        assert queue.lease(60, wait=2 * self.moment) is None

    def test_a_lease_from_before_a_purge_cannot_settle_a_later_message(self, queue: Queue) -> None:
        queue.send(["a"])
        old = take(queue)
        queue.purge()
        queue.send(["b"])
        new = take(queue)
        assert_lost(queue, old)
        queue.done(new)

    def test_delete_tolerates_a_queue_that_is_gone(self, url: str, queue: Queue) -> None:
        queue.send(["a"])
        queue.delete()
        queue.delete()
        other = open_queue(url)
        other.delete()
        other.close()

    def test_a_deleted_queue_holds_nothing(self, url: str, queue: Queue) -> None:
        queue.send(["dead", "leased", "waiting"])
        queue.bury(take(queue), "broken")
        lease = take(queue)
        queue.delete()
        again = open_queue(url)
        again.send(["new"])
        assert_lost(again, lease)
        assert_counts(again, waiting=1, leased=0, dead=0)
        assert [lease.body for lease in drain(again)] == ["new"]
        again.close()

    def test_messages_stay_when_a_queue_is_closed(self, url: str, queue: Queue) -> None:
        queue.send(["a", "b", "c"])
        buried = take(queue)
        queue.bury(buried, "broken")
        lease = take(queue)
        queue.close()
        queue.close()
        again = open_queue(url)
        assert_counts(again, waiting=1, leased=1, dead=1)
        again.done(lease)
        assert {buried.body, lease.body, take(again).body} == {"a", "b", "c"}
        again.close()

    def test_two_who_open_a_queue_share_it(self, url: str, queue: Queue) -> None:
        other = open_queue(url)
        queue.send(["a"])
        lease = take(other)
        assert self.lease_or_none(queue) is None
        queue.extend(lease, 60)
        queue.done(lease)
        assert_lost(other, lease)
        other.close()

    def test_no_message_is_given_twice_to_racing_threads(self, queue: Queue) -> None:
        bodies = [f"body {i}" for i in range(200)]
        queue.send(bodies)
        with ThreadPoolExecutor(8) as threads:
            drained = [threads.submit(drain, queue) for _ in range(8)]
        leases = [lease for future in drained for lease in future.result()]
        assert sorted(lease.body for lease in leases) == sorted(bodies)
        assert {lease.attempt for lease in leases} == {1}
        assert queue.counts().drained

    def test_a_lease_can_be_extended_from_another_thread(self, queue: Queue) -> None:
        queue.send(["a"])
        lease = take(queue, 60)
        thread = threading.Thread(target=queue.extend, args=(lease, 60))
        thread.start()
        thread.join()
        queue.done(lease)

    def lease_or_none(self, queue: Queue) -> Lease | None:
        """Take what is there, giving a message that should not be there a moment to show up."""
        return queue.lease(60, wait=self.moment / 2)


def take(queue: Queue, seconds: float = 60) -> Lease:
    """Lease a message that is there or comes soon."""
    lease = queue.lease(seconds, wait=10)
    assert lease is not None, "a message should have been waiting"
    return lease


def drain(queue: Queue) -> list[Lease]:
    """Settle every message that waits, and return the leases."""
    leases = []
    while lease := queue.lease(60):
        queue.done(lease)
        leases.append(lease)
    return leases


def assert_lost(queue: Queue, lease: Lease) -> None:
    """Check that nothing can be done any more with a lease."""
    with pytest.raises(LeaseLost):
        queue.extend(lease, 60)
    with pytest.raises(LeaseLost):
        queue.release(lease)
    with pytest.raises(LeaseLost):
        queue.bury(lease, "too late")
    with pytest.raises(LeaseLost):
        queue.done(lease)


def assert_counts(
    queue: Queue, *, waiting: int, leased: int, dead: int, delayed: int = 0, expired: int = 0
) -> None:
    """Check the counts of a queue that counts exactly."""
    counts = queue.counts()
    if counts.exact:
        assert counts == Counts(waiting, leased, dead, delayed=delayed, expired=expired)
