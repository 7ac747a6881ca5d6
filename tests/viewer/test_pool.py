"""The viewer's threads: bounded, with deadlines, and never all taken by one storage that hangs."""

import asyncio
import gc
import threading
import time
from contextlib import contextmanager

import pytest

from igneous_airflow.viewer.pool import Busy, PoolLimits, RequestPool

QUICK = PoolLimits(threads=8, share=3, waiting=4, seconds=0.3, stalled=0.1)
PATIENT = PoolLimits(threads=8, share=3, waiting=4, seconds=60, stalled=60)


class Storage:
    """Answers when it is told to."""

    def __init__(self):
        self.asked = 0
        self._answers = threading.Event()
        self._lock = threading.Lock()

    def call(self):
        with self._lock:
            self.asked += 1
        self._answers.wait(60)
        return "answer"

    def answer(self):
        self._answers.set()


@contextmanager
def storage():
    """A storage that hangs until the end, at the latest."""
    made = Storage()
    try:
        yield made
    finally:
        made.answer()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def ended(pool):
    await until(lambda: pool.threads == 0)
    return True


def test_a_call_gives_what_it_returns_and_raises_what_it_raises():
    async def scenario():
        pool = RequestPool()
        assert await pool.run("disk", lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await pool.run("disk", lambda: 1 // 0)
        assert pool.threads == 0

    asyncio.run(scenario())


def test_a_call_is_made_outside_of_the_event_loops_thread():
    async def scenario():
        return await RequestPool().run("disk", threading.get_ident)

    assert asyncio.run(scenario()) != threading.get_ident()


def test_a_thread_of_a_hung_call_does_not_keep_the_process_from_ending():
    async def scenario():
        return await RequestPool().run("disk", lambda: threading.current_thread().daemon)

    assert asyncio.run(scenario())


def test_no_more_calls_than_the_share_go_to_one_storage():
    async def scenario():
        with storage() as slow:
            pool = RequestPool(PATIENT)
            calls = [asyncio.create_task(pool.run("slow", slow.call)) for _ in range(6)]
            await until(lambda: slow.asked == 3)
            assert pool.threads == 3
            slow.answer()
            assert await asyncio.gather(*calls) == ["answer"] * 6
            assert slow.asked == 6
            assert await ended(pool)

    asyncio.run(scenario())


def test_a_request_is_answered_at_its_deadline_and_its_thread_given_up():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(QUICK)
            began = time.monotonic()
            with pytest.raises(Busy, match="does not answer in time") as refused:
                await pool.run("hung", hung.call)
            assert time.monotonic() - began >= QUICK.seconds
            assert refused.value.retry_after >= 1
            assert (pool.threads, pool.abandoned) == (1, 1)
            hung.answer()
            assert await ended(pool)
            assert pool.abandoned == 0

    asyncio.run(scenario())


def test_an_abandoned_call_says_nothing_when_it_fails_in_the_end(caplog):
    async def scenario():
        released = threading.Event()

        def fail():
            released.wait(60)
            raise ValueError("late")

        pool = RequestPool(QUICK)
        with pytest.raises(Busy):
            await pool.run("hung", fail)
        released.set()
        assert await ended(pool)
        gc.collect()  # an error that is never looked at is told of when it is thrown away

    asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["igneous_airflow.viewer.pool"]
    assert "1 abandoned" in caplog.text


def test_others_are_served_while_one_storage_hangs():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(PATIENT)
            stuck = [asyncio.create_task(pool.run("hung", hung.call)) for _ in range(7)]
            await until(lambda: hung.asked == 3)
            for _ in range(20):
                assert await pool.run("disk", lambda: "here") == "here"
            hung.answer()
            await asyncio.gather(*stuck)

    asyncio.run(scenario())


def test_requests_beyond_those_that_may_wait_are_refused_at_once():
    async def scenario():
        with storage() as slow:
            pool = RequestPool(PATIENT)
            taken = [asyncio.create_task(pool.run("slow", slow.call)) for _ in range(3 + 4)]
            await until(lambda: slow.asked == 3)
            with pytest.raises(Busy, match="too many"):
                await pool.run("slow", slow.call)
            slow.answer()
            await asyncio.gather(*taken)

    asyncio.run(scenario())


def test_a_request_that_waits_for_a_stalled_storage_is_refused_before_the_deadline():
    async def scenario():
        limits = PoolLimits(threads=8, share=3, waiting=4, seconds=60, stalled=0.1)
        with storage() as hung:
            pool = RequestPool(limits)
            stuck = [asyncio.create_task(pool.run("hung", hung.call)) for _ in range(3)]
            await until(lambda: hung.asked == 3)
            with pytest.raises(Busy, match="does not answer"):
                await pool.run("hung", hung.call)
            assert hung.asked == 3
            hung.answer()
            await asyncio.gather(*stuck)

    asyncio.run(scenario())


def test_a_storage_whose_places_are_all_abandoned_is_tried_ever_more_seldom():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(QUICK)
            answers = await asyncio.gather(
                *(pool.run("hung", hung.call) for _ in range(3)), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [Busy] * 3
            assert pool.abandoned == 3
            with pytest.raises(Busy, match="for long"):
                await pool.run("hung", hung.call)
            assert hung.asked == 3
            pauses = []
            for abandoned in (4, 5):
                began = time.monotonic()
                while hung.asked < abandoned:
                    with pytest.raises(Busy):
                        await pool.run("hung", hung.call)
                    await asyncio.sleep(0.01)
                pauses.append(time.monotonic() - began - QUICK.seconds)
            assert pauses[1] > pauses[0]
            assert pauses[1] > QUICK.seconds
            assert await pool.run("disk", lambda: "here") == "here"

    asyncio.run(scenario())


def test_abandoned_calls_keep_their_places():
    async def scenario():
        with storage() as hung, storage() as slow:
            pool = RequestPool(QUICK)
            for _ in range(2):
                with pytest.raises(Busy):
                    await pool.run("s3", hung.call)
            calls = [asyncio.create_task(pool.run("s3", slow.call)) for _ in range(2)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert slow.asked == 1
            assert [type(answer) for answer in answers] == [Busy, Busy]

    asyncio.run(scenario())


def test_a_storage_that_answers_again_is_served_though_some_calls_never_return():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(QUICK)
            await asyncio.gather(
                *(pool.run("s3", hung.call) for _ in range(3)), return_exceptions=True
            )
            served = 0
            while served < 3:
                try:
                    assert await pool.run("s3", lambda: "here") == "here"
                    served += 1
                except Busy:
                    await asyncio.sleep(0.02)
            assert pool.abandoned == 3

    asyncio.run(scenario())


def test_a_storage_whose_calls_have_returned_is_served_at_once():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(QUICK)
            await asyncio.gather(
                *(pool.run("s3", hung.call) for _ in range(3)), return_exceptions=True
            )
            hung.answer()
            assert await ended(pool)
            assert await pool.run("s3", lambda: "here") == "here"

    asyncio.run(scenario())


def test_there_are_never_more_threads_than_allowed_in_all():
    async def scenario():
        with storage() as hung:
            pool = RequestPool(PATIENT)
            stuck = [asyncio.create_task(pool.run(f"s3://{i}", hung.call)) for i in range(8)]
            await until(lambda: hung.asked == 8)
            with pytest.raises(Busy):
                await pool.run("another", hung.call)
            assert pool.threads == 8
            hung.answer()
            await asyncio.gather(*stuck)
            assert await pool.run("another", lambda: 1) == 1

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_leaves_its_place_in_the_queue_and_its_thread():
    async def scenario():
        with storage() as slow:
            pool = RequestPool(PATIENT)
            running = [asyncio.create_task(pool.run("slow", slow.call)) for _ in range(3)]
            await until(lambda: slow.asked == 3)
            waiting = asyncio.create_task(pool.run("slow", slow.call))
            await asyncio.sleep(0)
            waiting.cancel()
            running[0].cancel()
            await asyncio.gather(waiting, running[0], return_exceptions=True)
            assert (pool.threads, pool.abandoned) == (3, 1)
            slow.answer()
            assert await asyncio.gather(*running[1:]) == ["answer"] * 2
            assert await ended(pool)
            assert slow.asked == 3

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_as_its_turn_comes_gives_its_place_on():
    class Cancelling(RequestPool):
        victim = None

        def _admit(self):
            super()._admit()
            if self.victim is not None:
                self.victim.cancel()

    async def scenario():
        with storage() as slow:
            pool = Cancelling(PoolLimits(share=1, seconds=60, stalled=60))
            running = asyncio.create_task(pool.run("slow", slow.call))
            await until(lambda: slow.asked == 1)
            pool.victim = asyncio.create_task(pool.run("slow", slow.call))
            await asyncio.sleep(0)
            slow.answer()
            assert await running == "answer"
            with pytest.raises(asyncio.CancelledError):
                await pool.victim
            pool.victim = None
            assert pool.threads == 0
            assert await pool.run("slow", lambda: "next") == "next"
            assert slow.asked == 1

    asyncio.run(scenario())


def test_a_thousand_requests_at_once_are_all_served():
    """A browser, or a few, may want that many chunks of a storage that answers."""

    async def scenario():
        pool = RequestPool()
        calls = (pool.run("disk", lambda i=i: (time.sleep(0.001), i)[1]) for i in range(1000))
        assert await asyncio.gather(*calls) == list(range(1000))
        assert pool.threads == 0

    asyncio.run(scenario())


def test_a_machine_without_threads_refuses_and_keeps_the_place_free(monkeypatch):
    async def scenario():
        pool = RequestPool(QUICK)
        with monkeypatch.context() as patched:
            patched.setattr(
                threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no"))
            )
            with pytest.raises(Busy, match="no thread"):
                await pool.run("disk", lambda: 1)
        assert pool.threads == 0
        assert await pool.run("disk", lambda: 1) == 1

    asyncio.run(scenario())
