"""A service in trouble: what is waited for, and what is said in the end."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.errors import (
    AccessDenied,
    InvalidParameter,
    StorageUnavailable,
)
from igneous_airflow.queue import sqs_queues
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.testing.queues import drain, take


@pytest.mark.parametrize(
    ("code", "status"),
    [("RequestThrottled", 403), ("ThrottlingException", 400), ("InternalError", 500), ("", 503)],
)
def test_throttling_and_errors_of_the_service_are_waited_for(
    make_queue: Callable[..., SqsQueue], code: str, status: int, answer: Any
) -> None:
    queue = make_queue(("before-send.sqs", answer(code, status, times=3)))
    assert queue.send(map(str, range(30))) == 30
    assert len(drain(queue)) == 30
    queue.delete()


def test_a_service_that_only_throttles_is_unavailable_after_a_while(
    make_queue: Callable[..., SqsQueue], answer: Any
) -> None:
    queue = make_queue(("before-send.sqs", answer("RequestThrottled")), patience=0.2)
    start = time.monotonic()
    for use in (lambda: queue.send(["a"]), lambda: queue.lease(60), queue.counts, queue.purge):
        with pytest.raises(StorageUnavailable, match="RequestThrottled"):
            use()
    assert time.monotonic() - start < 4


def test_a_service_that_does_not_answer_is_unavailable(make_queue: Callable[..., SqsQueue]) -> None:
    queue = make_queue(at="sqs://q?region=us-east-1&endpoint=http://127.0.0.1:1", patience=0.3)
    with pytest.raises(StorageUnavailable, match="does not answer"):
        queue.send(["a"])


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDeniedException", 403), ("ExpiredToken", 400), ("Other", 403)]
)
def test_a_missing_permission_is_named_with_the_queue(
    make_queue: Callable[..., SqsQueue], url: str, code: str, status: int, answer: Any, name_of: Any
) -> None:
    queue = make_queue(("before-send.sqs.SendMessageBatch", answer(code, status)))
    with pytest.raises(AccessDenied, match=rf"{name_of(url)}.*{code}.*grant sqs:SendMessage "):
        queue.send(["a"])
    queue.delete()


def test_missing_credentials_are_named(
    make_queue: Callable[..., SqsQueue], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessDenied, match="no AWS credentials"):
        make_queue().send(["a"])


def test_a_missing_region_is_named(
    make_queue: Callable[..., SqsQueue], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(InvalidParameter, match=r"add \?region="):
        make_queue(at="sqs://q").send(["a"])


def test_a_purge_waits_for_one_that_is_under_way(
    make_queue: Callable[..., SqsQueue], monkeypatch: pytest.MonkeyPatch, answer: Any, counting: Any
) -> None:
    monkeypatch.setattr(sqs_queues, "_PURGED_SECONDS", 0.5)
    requests: Counter[str] = Counter()
    busy = answer("PurgeQueueInProgress", times=2)
    queue = make_queue(("before-send.sqs.PurgeQueue", busy), counting(requests))
    queue.send(["a"])
    start = time.monotonic()
    queue.purge()
    assert time.monotonic() - start > 0.5
    assert queue.counts().waiting == 0
    queue.purge()
    assert requests["PurgeQueue"] == 4, "an empty queue needs no purge"
    queue.delete()


def test_a_queue_deleted_recently_is_made_again_when_that_is_permitted(
    make_queue: Callable[..., SqsQueue], answer: Any
) -> None:
    recently = answer("QueueDeletedRecently", times=3)
    queue = make_queue(("before-send.sqs.CreateQueue", recently))
    assert queue.send(["a"]) == 1
    assert take(queue).body == "a"
    queue.delete()
