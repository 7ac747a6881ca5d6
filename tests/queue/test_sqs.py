import itertools
import json
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.awsrequest import AWSResponse

from igneous_airflow.errors import (
    AccessDenied,
    InvalidParameter,
    LeaseLost,
    StorageUnavailable,
)
from igneous_airflow.progress import State
from igneous_airflow.queue import sqs_queues
from igneous_airflow.queue.protocol import Counts, Lease, Queue, open_queue
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_cost import describe_cost, request_range
from igneous_airflow.queue.sqs_leases import LONGEST_LEASE, LeaseBook
from igneous_airflow.queue.sqs_service import connect
from igneous_airflow.run import Run, run_folder_name
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.testing.queues import QueueTests, drain, take
from igneous_airflow.worker.loop import Worker, WorkerOptions

SERVER = runpy.run_path(str(Path(__file__).with_name("sqs_server.py")))
NUMBERS = itertools.count()

Handler = Callable[..., Any]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start the server; where it cannot be installed, skip on a laptop and fail in CI."""
    with SERVER["required"]() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only Amazon's own servers need time for."""
    for name, value in SERVER["CREDENTIALS"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sqs_queues, "_CREATED_SECONDS", 0)
    monkeypatch.setattr(sqs_queues, "_PURGED_SECONDS", 0)
    monkeypatch.setattr(sqs_queues, "_LIST_WAIT", 0)


@pytest.fixture
def url(endpoint: str) -> str:
    return f"sqs://test-{next(NUMBERS)}?region=us-east-1&endpoint={endpoint}"


@pytest.fixture
def client(endpoint: str) -> Any:
    return connect(Address("any", "us-east-1", endpoint))


class TestSqsQueue(QueueTests):
    moment: ClassVar[float] = 1
    ordered: ClassVar[bool] = False
    refused_bodies: ClassVar[frozenset[str]] = frozenset({"empty", "control characters"})

    @pytest.fixture
    def url(self, url: str) -> str:
        return url

    def lease_or_none(self, queue: Queue) -> Lease | None:
        return queue.lease(60)  # waiting takes whole seconds, and this server is exact


@pytest.fixture
def make_queue(url: str) -> Iterator[Callable[..., SqsQueue]]:
    """Makes queues at `url` whose clients have handlers of botocore's events."""
    queues = []

    def make(*handlers: tuple[str, Handler], at: str = url, patience: float = 5) -> SqsQueue:
        def make_client(address: Address) -> Any:
            client = connect(address)
            for event, handler in handlers:
                client.meta.events.register(event, handler)
            return client

        queues.append(SqsQueue(Address.parse(at), make_client, patience))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def answer(code: str, status: int = 400, times: int = 1_000_000) -> Handler:
    """Answers the first requests with an error, without sending them."""
    left = itertools.count(times, -1)

    def handler(request: Any, **_: Any) -> AWSResponse | None:
        if next(left) <= 0:
            return None
        body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "as told"}).encode()
        response = AWSResponse(request.url, status, {}, None)
        response._content = body
        return response

    return handler


def counting(counter: Counter[str]) -> tuple[str, Handler]:
    def handler(model: Any, **_: Any) -> None:
        counter[model.name] += 1

    return "before-call.sqs", handler


def name_of(url: str) -> str:
    return Address.parse(url).name


def queue_names(client: Any, prefix: str) -> list[str]:
    urls = client.list_queues(QueueNamePrefix=prefix).get("QueueUrls", [])
    return sorted(url.rpartition("/")[2] for url in urls)


# addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("sqs://tasks", Address("tasks")),
        ("sqs://My_q-1?region=eu-west-1", Address("My_q-1", "eu-west-1")),
        (
            "sqs://q?endpoint=http://127.0.0.1:5555&region=a",
            Address("q", "a", "http://127.0.0.1:5555"),
        ),
        ("sqs://q?endpoint=http%3A%2F%2Fsqs%3A9324", Address("q", None, "http://sqs:9324")),
        ("sqs://q?create=false", Address("q", create=False)),
        (
            "https://sqs.eu-west-1.amazonaws.com/123456789012/q",
            Address("q", "eu-west-1", create=False, account="123456789012"),
        ),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q?create=false",
            Address("q", "cn-north-1", create=False, account="123456789012"),
        ),
    ],
)
def test_an_address_says_where_the_queue_is(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(address.url) == address
    assert isinstance(open_queue(text), SqsQueue)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqs://", "1 to 75 letters"),
        ("sqs://a/b", "names no SQS queue"),
        ("sqs://a.b", "1 to 75 letters"),
        ("sqs://key:secret@q", "1 to 75 letters"),
        ("sqs://" + "a" * 76, "1 to 75 letters"),
        ("sqs://" + "a" * 81 + "?create=false", "1 to 80 letters"),
        ("sqs://q.fifo", "standard queue"),
        ("sqs://q?region=", "region=NAME"),
        ("sqs://q?create=no", "create=false"),
        ("sqs://q?aws_secret_access_key=abc", "Credentials never stand"),
        ("sqs://q?endpoint=127.0.0.1:80", "http://HOST:PORT"),
        ("sqs://q?endpoint=http://me:secret@host", "without credentials"),
        ("https://example.com/123456789012/q", "names no SQS queue"),
        ("https://sqs.eu-west-1.amazonaws.com/q", "names no SQS queue"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/q?create=true", "leave out"),
    ],
)
def test_an_address_that_names_no_queue_is_refused_with_the_way_out(url: str, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=reason) as caught:
        open_queue(url)
    if "?aws_" in url or "endpoint=http://me" in url:
        assert "abc" not in str(caught.value)
        assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("run", ["", "a", "manual__2026-01-01T00_00_00.123_00_00" * 3, "ünïcode"])
def test_a_run_has_a_queue_whose_name_sqs_takes_and_tells_it_from_others(run: str) -> None:
    folders = [run_folder_name("igneous_downsample", run, group) for group in ("a", "b")]
    names = [Address.of_run(folder).name for folder in folders]
    assert names[0] != names[1]
    for name, folder in zip(names, folders, strict=True):
        assert Address.parse(f"sqs://{name}").name == name
        assert name.startswith("igneous-igneous_downsample_")
        assert name.endswith(folder[-9:])


@pytest.mark.parametrize(
    ("messages", "size", "fewest", "most"),
    [
        (0, 700, 0, 0),
        (1, 700, 3, 3),
        (1000, 700, 300, 2_100),
        (1000, 20_000, 100 * (4 + 1 + 4), 400 + 2_000),  # 200 kB a batch are billed fourfold
        (10, 1_000_000, 10 * (16 + 1 + 16), 160 + 160 + 10),
    ],
)
def test_requests_are_counted_as_they_are_billed(
    messages: int, size: int, fewest: int, most: int
) -> None:
    assert request_range(messages, size) == (fewest, most)
    assert (f"{most:,} when" in describe_cost(messages, size)) == (messages > 0)


def test_opening_asks_nothing_and_does_not_even_import_boto3() -> None:
    program = (
        "import sys; from igneous_airflow.queue.protocol import open_queue; "
        "open_queue('sqs://q?endpoint=http://127.0.0.1:1').close(); "
        "assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# queues that are made, and queues that are there


def test_only_send_makes_the_queue(url: str, client: Any) -> None:
    queue = open_queue(url)
    assert queue.lease(60, wait=0.1) is None
    assert queue.counts() == Counts(0, 0, 0, exact=False)
    assert queue.dead_letters() == []
    queue.purge()
    queue.delete()
    assert queue_names(client, name_of(url)) == []
    assert queue.send([]) == 0
    assert queue_names(client, name_of(url)) == [name_of(url), name_of(url) + "-dead"]
    queue.delete()
    assert queue_names(client, name_of(url)) == []
    queue.close()


def test_a_queue_is_made_with_tags_retention_and_dead_letters(url: str, client: Any) -> None:
    queue = open_queue(url)
    queue.send([])
    for name, holds in ((name_of(url), "tasks"), (name_of(url) + "-dead", "dead letters")):
        there = {"QueueUrl": client.get_queue_url(QueueName=name)["QueueUrl"]}
        tags = client.list_queue_tags(**there)["Tags"]
        assert tags == {"application": "igneous_airflow", "holds": holds}
        attributes = client.get_queue_attributes(**there, AttributeNames=["All"])["Attributes"]
        assert attributes["MessageRetentionPeriod"] == str(14 * 24 * 3600)
        policy = json.loads(attributes.get("RedrivePolicy", "{}"))
        assert policy.get("deadLetterTargetArn", "").endswith("-dead") == (holds == "tasks")
    queue.delete()
    queue.close()


def test_senders_may_all_be_the_first(url: str) -> None:
    queues = [open_queue(url) for _ in range(4)]
    threads = [threading.Thread(target=queue.send, args=(["a"] * 15,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queues[0].counts().waiting == 60
    queues[0].delete()
    for queue in queues:
        queue.close()


def test_a_task_that_kills_whatever_takes_it_ends_in_the_dead_letters(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqs_queues, "_MAX_RECEIVES", 1)
    queue = open_queue(url)
    queue.send(["poison"])
    take(queue, 1)
    assert queue.lease(60, wait=2) is None
    (letter,) = queue.dead_letters()
    assert letter.body == "poison"
    assert "no worker settled it" in letter.reason
    assert queue.counts() == Counts(0, 0, 1, exact=False)
    queue.delete()
    queue.close()


def full_url(url: str) -> str:
    address = Address.parse(url)
    start = f"https://sqs.us-east-1.amazonaws.com/000000000000/{address.name}"
    return f"{start}?endpoint={address.endpoint}"


def test_a_queue_that_should_be_there_but_is_not_is_named(url: str) -> None:
    for at in (f"{url}&create=false", full_url(url)):
        queue = open_queue(at)
        for use in (lambda: queue.send(["a"]), lambda: queue.lease(60), queue.counts):  # noqa: B023
            with pytest.raises(InvalidParameter, match=f"{name_of(url)} does not exist.*region"):
                use()
        queue.close()


@pytest.fixture
def foreign(url: str, client: Any) -> Iterator[tuple[str, str]]:
    """A queue of somebody else, without dead letters: our address and its own URL."""
    there = client.create_queue(QueueName=name_of(url))["QueueUrl"]
    yield f"{url}&create=false", there
    client.delete_queue(QueueUrl=there)


def test_a_foreign_queue_needs_a_redrive_policy(foreign: tuple[str, str]) -> None:
    queue = open_queue(foreign[0])
    queue.send(["a"])
    lease = take(queue)
    with pytest.raises(InvalidParameter, match="redrive policy"):
        queue.bury(lease, "broken")
    queue.done(lease)
    queue.close()


def test_a_foreign_queue_is_used_with_its_own_dead_letters_and_otherwise_left_alone(
    foreign: tuple[str, str], client: Any
) -> None:
    name = f"graveyard-{next(NUMBERS)}"
    graveyard = client.create_queue(QueueName=name)["QueueUrl"]
    arn = f"arn:aws:sqs:us-east-1:000000000000:{name}"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
    client.set_queue_attributes(QueueUrl=foreign[1], Attributes={"RedrivePolicy": policy})
    client.send_message(QueueUrl=foreign[1], MessageBody="foreign")
    queue = open_queue(foreign[0])
    queue.bury(take(queue), "not mine")
    assert [letter.reason for letter in queue.dead_letters()] == ["not mine"]
    assert queue.counts() == Counts(0, 0, 1, exact=False)
    with pytest.raises(InvalidParameter, match="somebody else's"):
        queue.purge()
    queue.delete()
    assert queue.send(["still there"]) == 1
    assert len(client.receive_message(QueueUrl=graveyard)["Messages"]) == 1
    client.delete_queue(QueueUrl=graveyard)
    queue.close()


def test_a_full_url_names_the_queue_as_well(foreign: tuple[str, str]) -> None:
    queue = open_queue(full_url(foreign[0].removesuffix("&create=false")))
    queue.send(["a"])
    queue.done(take(queue))
    queue.close()


def test_a_lower_limit_of_a_foreign_queue_is_a_clear_error(
    foreign: tuple[str, str], client: Any
) -> None:
    client.set_queue_attributes(QueueUrl=foreign[1], Attributes={"MaximumMessageSize": "1024"})
    queue = open_queue(foreign[0])
    with pytest.raises(InvalidParameter, match="must be shorter than 1024 bytes") as caught:
        queue.send(["a" * 1000, "b" * 1100])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    queue.close()


# sending


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
    make_queue: Callable[..., SqsQueue],
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
    make_queue: Callable[..., SqsQueue],
) -> None:
    refuse = answer("BatchRequestTooLong")

    def at_most_three(request: Any, **_: Any) -> AWSResponse | None:
        return refuse(request) if request.body.count(b"MessageBody") > 3 else None

    queue = make_queue(("before-send.sqs.SendMessageBatch", at_most_three))
    assert queue.send(map(str, range(20))) == 20
    assert queue.counts().waiting == 20
    queue.delete()


def test_sending_reads_only_a_little_ahead(make_queue: Callable[..., SqsQueue]) -> None:
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


# a service in trouble


@pytest.mark.parametrize(
    ("code", "status"),
    [("RequestThrottled", 403), ("ThrottlingException", 400), ("InternalError", 500), ("", 503)],
)
def test_throttling_and_errors_of_the_service_are_waited_for(
    make_queue: Callable[..., SqsQueue], code: str, status: int
) -> None:
    queue = make_queue(("before-send.sqs", answer(code, status, times=3)))
    assert queue.send(map(str, range(30))) == 30
    assert len(drain(queue)) == 30
    queue.delete()


def test_a_service_that_only_throttles_is_unavailable_after_a_while(
    make_queue: Callable[..., SqsQueue],
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
    make_queue: Callable[..., SqsQueue], url: str, code: str, status: int
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
    make_queue: Callable[..., SqsQueue], monkeypatch: pytest.MonkeyPatch
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
    make_queue: Callable[..., SqsQueue],
) -> None:
    recently = answer("QueueDeletedRecently", times=3)
    queue = make_queue(("before-send.sqs.CreateQueue", recently))
    assert queue.send(["a"]) == 1
    assert take(queue).body == "a"
    queue.delete()


# leases


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
    make_queue: Callable[..., SqsQueue], code: str
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


# fewer requests than tasks


def test_fast_tasks_cost_few_requests_each(make_queue: Callable[..., SqsQueue]) -> None:
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
    queue.done(take(queue, 3))
    queue._book._pace = 0.01  # however slow this machine is now
    held = take(queue, 3)
    assert other.lease(60) is None, "everything should have been fetched ahead"
    time.sleep(1.5)  # the task
    assert {lease.attempt for lease in drain(other)} == {2}
    queue.done(held)
    assert queue.counts().drained
    queue.delete()
    queue.close()
    other.close()


def test_an_acknowledgement_does_not_wait_for_the_next_task(url: str, client: Any) -> None:
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


# processes


def use_after_fork(queue: Queue) -> None:
    lease = take(queue)
    queue.done(lease)
    queue.send([lease.body.upper()])
    queue.close()
    os._exit(0)


def test_a_queue_may_be_used_on_both_sides_of_a_fork(url: str) -> None:
    queue = open_queue(url)
    queue.send(["a"])
    queue.done(take(queue))  # waits to be sent, and is the parent's to send
    queue.send(["b", "c", "d"])
    child = multiprocessing.get_context("fork").Process(target=use_after_fork, args=(queue,))
    child.start()
    queue.done(take(queue, 5))
    child.join()
    assert child.exitcode == 0
    assert len(drain(queue)) == 2
    queue.delete()
    queue.close()


DRAIN = """
import sys
from igneous_airflow.queue.protocol import open_queue
queue = open_queue(sys.argv[1])
while lease := queue.lease(60, wait=1):
    queue.done(lease)
    print(lease.attempt, lease.body)
queue.close()
"""


def test_processes_that_drain_one_queue_settle_each_message_once(url: str) -> None:
    queue = open_queue(url)
    queue.send(map(str, range(400)))
    workers = [
        subprocess.Popen([sys.executable, "-c", DRAIN, url], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(lines) == sorted(f"1 {i}" for i in range(400))
    assert queue.counts().drained
    queue.delete()
    queue.close()


# runs: judged by receipts, whatever the queue says


class Idle(Stage):
    """Does nothing, many times."""

    name: ClassVar[str] = "idle"
    count: int

    def plan(self) -> Plan:
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        pass

    def cells(self) -> Sequence[int]:
        return range(self.count)

    def run(self, cell: int) -> Work:
        return Work()

    def finish(self, by: str) -> Audit:
        return Audit(outputs={})


@pytest.fixture
def launch(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], SqsQueue]], Run]:
    """Launches a run of 20 tasks whose queue objects a function makes."""
    monkeypatch.setattr("igneous_airflow.stages.registered_stages", lambda: {"idle": Idle})

    def launch(make: Callable[[], SqsQueue]) -> Run:
        monkeypatch.setattr("igneous_airflow.run.open_queue", lambda _url: make())
        run, _ = Run.launch(Idle(count=20), url=f"file://{tmp_path}/run", queue=url, by="test")
        run.enqueue()
        return run

    return launch


def work(url: str) -> Counter[str]:
    """Work until the queue is drained and count the outcomes."""
    outcomes: Counter[str] = Counter()

    def report(event: Any) -> None:
        if hasattr(event, "outcome"):
            outcomes[event.outcome] += 1

    queue = open_queue(url)
    Worker(queue, WorkerOptions(idle_seconds=0, until_done=True), report).work()
    queue.close()
    return outcomes


def test_messages_that_sqs_loses_are_found_missing_and_sent_again(
    url: str, make_queue: Callable[..., SqsQueue], launch: Callable[..., Run]
) -> None:
    lost: list[dict[str, Any]] = []

    def lose(params: dict[str, Any], **_: Any) -> None:
        if len(lost) < 2:
            lost.append(params["Entries"].pop())

    def claim(parsed: dict[str, Any], **_: Any) -> None:
        parsed.setdefault("Successful", []).append({"Id": "9"})

    run = launch(
        lambda: make_queue(
            ("before-parameter-build.sqs.SendMessageBatch", lose),
            ("after-call.sqs.SendMessageBatch", claim),
        )
    )
    assert work(url) == {"done": 18}
    assert run.progress().state is State.STALLED
    assert run.resume() == 2
    assert work(url) == {"done": 2}
    assert run.progress().state is State.DONE
    open_queue(url).delete()


def test_counters_that_lie_for_a_while_end_no_run_and_cost_only_repeats(
    url: str, make_queue: Callable[..., SqsQueue], launch: Callable[..., Run]
) -> None:
    lies = True

    def lie(parsed: dict[str, Any], **_: Any) -> None:
        for name in parsed.get("Attributes", {}) if lies else ():
            if name.startswith("Approximate"):
                parsed["Attributes"][name] = "0"

    run = launch(lambda: make_queue(("after-call.sqs.GetQueueAttributes", lie)))
    progress = run.progress()
    assert progress.state is State.STALLED, "not done: receipts are missing"
    assert run.resume() == 20, "sent a second time, beside those that were not counted"
    lies = False
    assert run.progress().state is State.WORKING
    assert work(url) == {"done": 20, "repeated": 20}
    assert run.progress().state is State.DONE
    open_queue(url).delete()


# what the documents promise

POLICIES = Path(__file__).parents[2] / "docs" / "policies"


def granted(policy: str, queue: str) -> set[str]:
    """What a policy permits on a queue of that name."""
    found: set[str] = set()
    for statement in json.loads((POLICIES / f"{policy}.json").read_text())["Statement"]:
        resource = statement["Resource"].rpartition(":")[2]
        if fnmatch(queue, resource):
            actions = statement["Action"]
            found |= {actions} if isinstance(actions, str) else set(actions)
    return found


@pytest.fixture
def asked(make_queue: Callable[..., SqsQueue]) -> Callable[..., tuple[SqsQueue, set[Any]]]:
    """Makes a queue, and a set of what it asks of SQS: permission, and name of the queue."""

    def make(at: str) -> tuple[SqsQueue, set[Any]]:
        found: set[Any] = set()

        def note(params: dict[str, Any], model: Any, **_: Any) -> None:
            name = params.get("QueueName") or params["QueueUrl"].rpartition("/")[2]
            found.add((f"sqs:{model.name.removesuffix('Batch')}", name))
            if params.get("tags"):
                found.add(("sqs:TagQueue", name))

        return make_queue(("before-parameter-build.sqs", note), at=at), found

    return make


def live(queue: SqsQueue, worker: SqsQueue, *, own: bool) -> None:
    """Do everything that Airflow and workers do with a queue, twice where that may matter."""
    queue.send(map(str, range(12)))
    for _ in range(6):
        worker.done(take(worker, 60))
    worker.bury(take(worker, 60), "broken")
    lease = take(worker, 60)
    worker.extend(lease, 30)
    worker.release(lease)
    worker.counts()
    worker.close()
    queue.counts()
    queue.dead_letters()
    queue.redrive(lambda _: True)
    if own:
        queue.purge()
    queue.delete()


def test_policies_grant_what_is_asked_for_and_no_more(
    endpoint: str, client: Any, asked: Callable[..., tuple[SqsQueue, set[Any]]]
) -> None:
    name = f"igneous-run-{next(NUMBERS)}"
    at = f"sqs://{name}?region=us-east-1&endpoint={endpoint}"
    (queue, by_airflow), (worker, by_worker) = asked(at), asked(at)
    live(queue, worker, own=True)
    for policy, requests in (("airflow-queues", by_airflow), ("worker-queues", by_worker)):
        for of in (name, f"{name}-dead"):
            needed = {permission for permission, queue_name in requests if queue_name == of}
            assert needed <= granted(policy, of), (policy, of)
        everything = {permission for permission, _ in requests}
        assert granted(policy, name) | granted(policy, f"{name}-dead") == everything, policy


def test_policies_for_queues_that_are_given_suffice_and_grant_no_more(
    endpoint: str, client: Any, asked: Callable[..., tuple[SqsQueue, set[Any]]]
) -> None:
    dead = client.create_queue(QueueName="DEAD_LETTER_QUEUE")["QueueUrl"]
    attributes = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    arn = attributes["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 20})
    client.create_queue(QueueName="QUEUE", Attributes={"RedrivePolicy": policy})
    at = f"sqs://QUEUE?region=us-east-1&endpoint={endpoint}&create=false"
    (queue, by_airflow), (worker, by_worker) = asked(at), asked(at)
    live(queue, worker, own=False)
    sides = (("airflow-existing-queue", by_airflow), ("worker-existing-queue", by_worker))
    for name, requests in sides:
        for of in ("QUEUE", "DEAD_LETTER_QUEUE"):
            needed = {permission for permission, queue_name in requests if queue_name == of}
            assert needed == granted(name, of), (name, of)
