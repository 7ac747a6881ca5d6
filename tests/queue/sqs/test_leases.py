"""Leases: what was lost, and fewer requests than tasks."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from igneous_airflow.errors import LeaseLost
from igneous_airflow.queue.protocol import Counts, Lease, open_queue
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_leases import LONGEST_LEASE, LeaseBook
from igneous_airflow.testing.queues import drain, take


def test_a_message_that_sqs_gives_twice_can_be_settled_twice(
    make_queue: Callable[..., SqsQueue],
) -> None:
    def twice(parsed: dict[str, Any], **_: Any) -> None:
        messages = parsed.get("Messages", [])
        messages += [m | {"ReceiptHandle": m["ReceiptHandle"] + "-again"} for m in messages]

    queue = make_queue(("after-call.sqs.ReceiveMessage", twice))
    queue.send(["a"])
    first, second = take(queue), take(queue)
    assert first.message_id == second.message_id
    queue.done(first)
    queue.done(second)
    assert queue.counts().drained
    queue.delete()


@pytest.mark.parametrize(
    "code", ["ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"]
)
def test_whatever_sqs_says_of_an_expired_receipt_the_lease_is_lost(
    make_queue: Callable[..., SqsQueue], code: str, answer: Any
) -> None:
    queue = make_queue(("before-send.sqs.ChangeMessageVisibility", answer(code)))
    queue.send(["a"])
    lease = take(queue)
    with pytest.raises(LeaseLost, match=code):
        queue.extend(lease, 60)
    with pytest.raises(LeaseLost):
        queue.done(lease)
    queue.delete()


def test_a_lease_of_a_queue_that_is_gone_is_lost(url: str) -> None:
    queue, other = open_queue(url), open_queue(url)
    queue.send(["a"])
    lease = take(other)
    queue.delete()
    with pytest.raises(LeaseLost):
        other.release(lease)
    assert other.lease(60) is None
    queue.close()
    other.close()


def test_no_lease_outlives_the_12_hours_of_sqs(make_queue: Callable[..., SqsQueue]) -> None:
    asked: list[int] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append(params["VisibilityTimeout"])

    now = 0.0
    event = "before-parameter-build.sqs"
    queue = make_queue(
        (f"{event}.ReceiveMessage", note), (f"{event}.ChangeMessageVisibility", note)
    )
    queue._book = LeaseBook(clock=lambda: now)
    queue.send(["a"])
    lease = take(queue, 100_000)
    now = LONGEST_LEASE - 100.0
    queue.extend(lease, 60)
    now += 50
    queue.extend(lease, 60)
    assert asked == [LONGEST_LEASE, 60, 50]
    now += 49.5
    with pytest.raises(LeaseLost, match="12 hours"):
        queue.extend(lease, 60)
    queue.delete()


def test_durations_are_whole_seconds_rounded_up(make_queue: Callable[..., SqsQueue]) -> None:
    asked = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append((params["VisibilityTimeout"], params["WaitTimeSeconds"]))

    queue = make_queue(("before-parameter-build.sqs.ReceiveMessage", note))
    queue.send(["a"])
    assert queue.lease(0.2, wait=0.2) is not None
    assert queue.lease(59.1) is None
    assert asked == [(1, 1), (60, 0)]
    queue.delete()


def test_fast_tasks_cost_few_requests_each(
    make_queue: Callable[..., SqsQueue], counting: Any
) -> None:
    requests: Counter[str] = Counter()
    queue = make_queue(counting(requests))
    queue.send(map(str, range(200)))
    requests.clear()
    assert len(drain(queue)) == 200
    assert requests["ReceiveMessage"] <= 25
    assert requests["DeleteMessageBatch"] <= 25
    assert set(requests) == {"ReceiveMessage", "DeleteMessageBatch"}
    queue.delete()


def test_slow_tasks_are_not_fetched_ahead() -> None:
    now = 0.0
    book = LeaseBook(clock=lambda: now)
    assert book.wanted(120) == 1, "nothing is known yet"
    for seconds, wanted in ((0.01, 10), (5, 1), *[(0.2, 1)] * 4, (0.2, 2)):
        lease = book.take([lease_of("a")], 120)
        now += seconds
        assert book.finish(lease)
        assert book.wanted(120) == wanted, seconds


def test_what_was_fetched_ahead_of_a_task_that_is_slow_is_given_back(url: str) -> None:
    queue, other = open_queue(url), open_queue(url)
    queue.send(map(str, range(6)))
    queue.done(take(queue, 10))
    queue._book._pace = 0.01  # however slow this machine is now
    held = take(queue, 10)
    assert other.lease(60) is None, "everything should have been fetched ahead"
    time.sleep(3)  # the task
    assert {lease.attempt for lease in drain(other)} == {2}
    queue.done(held)
    assert queue.counts().drained
    queue.delete()
    queue.close()
    other.close()


def test_an_acknowledgement_does_not_wait_for_the_next_task(
    url: str, client: Any, name_of: Any
) -> None:
    queue = open_queue(url)
    queue.send(["a"])
    queue.done(take(queue))
    there = client.get_queue_url(QueueName=name_of(url))["QueueUrl"]
    assert held_by_the_service(client, there) == 1
    time.sleep(2)
    assert held_by_the_service(client, there) == 0
    queue.delete()
    queue.close()


def test_closing_acknowledges_and_gives_back(url: str, client: Any) -> None:
    queue = open_queue(url)
    queue.send(["a", "b", "c", "d"])
    queue.done(take(queue))
    lease = take(queue)
    queue.close()
    again = open_queue(url)
    assert again.counts() == Counts(waiting=2, leased=1, dead=0, exact=False)
    queue.done(lease)
    queue.delete()
    queue.close()
    again.close()


def held_by_the_service(client: Any, there: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counters = client.get_queue_attributes(QueueUrl=there, AttributeNames=names)["Attributes"]
    return sum(map(int, counters.values()))


def lease_of(body: str) -> Lease:
    return Lease("id", "token", body, 1, 0.0)
