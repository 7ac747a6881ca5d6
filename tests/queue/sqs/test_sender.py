"""Sending: in batches, until every entry is stored."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from igneous_airflow.errors import (
    AccessDenied,
    InvalidParameter,
    StorageUnavailable,
)
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.testing.queues import drain, take


def test_a_message_too_large_for_sqs_is_refused_before_it_is_sent(url: str) -> None:
    queue = open_queue(url)
    with pytest.raises(InvalidParameter, match="too large for SQS"):
        queue.send(["🧊" * 260_000])
    assert queue.counts().waiting == 0
    queue.delete()
    queue.close()


def test_the_largest_messages_are_sent_one_by_one_and_keep_their_reasons(url: str) -> None:
    queue = open_queue(url)
    largest = "x" * (1024 * 1024 - 16 * 1024)
    assert queue.send([largest] * 3) == 3
    assert queue.counts().waiting == 3
    lease = take(queue)
    queue.bury(lease, "🧊" * 100_000)
    (letter,) = queue.dead_letters()
    assert letter.body == largest
    assert set(letter.reason) == {"🧊"}
    assert len(letter.reason) > 1_000
    queue.delete()
    queue.close()


def test_failed_entries_are_sent_again_until_none_is_left(
    make_queue: Callable[..., SqsQueue], counting: Any
) -> None:
    """Four entries of a request get through, and the response does not name one of the others."""
    lost: list[dict[str, Any]] = []
    requests: Counter[str] = Counter()

    def lose(params: dict[str, Any], **_: Any) -> None:
        lost[:] = params["Entries"][4:]
        del params["Entries"][4:]

    def name_most(parsed: dict[str, Any], **_: Any) -> None:
        failure = {"Code": "InternalError", "SenderFault": False}
        parsed["Failed"] = [{"Id": entry["Id"], **failure} for entry in lost[1:]]

    queue = make_queue(
        ("before-parameter-build.sqs.SendMessageBatch", lose),
        ("after-call.sqs.SendMessageBatch", name_most),
        counting(requests),
    )
    bodies = [f"body {i}" for i in range(10)]
    assert queue.send(bodies) == 10
    assert requests["SendMessageBatch"] == 3
    assert sorted(lease.body for lease in drain(queue)) == sorted(bodies)
    queue.delete()


@pytest.mark.parametrize(
    ("code", "fault", "kind", "reason"),
    [
        ("InternalError", False, StorageUnavailable, "3 of 3 entries of SendMessageBatch failed"),
        ("RequestThrottled", True, StorageUnavailable, "RequestThrottled"),
        ("InvalidMessageContents", True, InvalidParameter, "InvalidMessageContents"),
        ("KMS.AccessDeniedException", True, AccessDenied, "grant sqs:SendMessage"),
    ],
)
def test_entries_that_fail_for_good_are_a_clear_error(
    make_queue: Callable[..., SqsQueue], code: str, fault: bool, kind: type[Exception], reason: str
) -> None:
    def fail(parsed: dict[str, Any], **_: Any) -> None:
        entries = parsed.pop("Successful")
        failed = [{"Id": e["Id"], "Code": code, "SenderFault": fault} for e in entries]
        parsed["Failed"] = failed

    queue = make_queue(("after-call.sqs.SendMessageBatch", fail), patience=0.4)
    with pytest.raises(kind, match=reason):
        queue.send(["a", "b", "c"])
    queue.delete()


def test_a_batch_that_is_too_long_for_an_older_service_is_split(
    make_queue: Callable[..., SqsQueue], answer: Any
) -> None:
    refuse = answer("BatchRequestTooLong")

    def at_most_three(request: Any, **_: Any) -> AWSResponse | None:
        return refuse(request) if request.body.count(b"MessageBody") > 3 else None

    queue = make_queue(("before-send.sqs.SendMessageBatch", at_most_three))
    assert queue.send(map(str, range(20))) == 20
    assert queue.counts().waiting == 20
    queue.delete()


def test_sending_reads_only_a_little_ahead(
    make_queue: Callable[..., SqsQueue], counting: Any
) -> None:
    made, ahead = itertools.count(), []
    requests: Counter[str] = Counter()

    def bodies() -> Iterator[str]:
        for _ in range(3_000):
            ahead.append(next(made) - 10 * requests["SendMessageBatch"])
            yield "body"

    queue = make_queue(counting(requests))
    assert queue.send(bodies()) == 3_000
    assert max(ahead) <= 10 * 34
    assert queue.counts().waiting == 3_000
    queue.delete()
