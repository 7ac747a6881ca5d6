"""Whatever is cut off or broken in an answer of SQS is an error that passes, and is asked again."""

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from igneous_airflow.errors import InvalidParameter, StorageUnavailable
from igneous_airflow.queue import sqs, sqs_queues, sqs_service
from igneous_airflow.queue.protocol import Lease
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_counters import AsyncCounter
from igneous_airflow.queue.sqs_service import Refused, connect

OWN = Address("q", "us-east-1")
OTHERS = Address("q", "us-east-1", create=False)
WRONG: tuple[Any, ...] = (None, 7, -1, "", "x", [], {}, True, [None], [7], [[]], {"a": 1}, [{}])
LEASE = Lease("id", "handle", "body", 1, 0.0)


def answers() -> dict[str, Any]:
    """What SQS answers to each operation that we ask for more than its success."""
    message = {
        "MessageId": "id",
        "ReceiptHandle": "handle",
        "Body": "body",
        "Attributes": {"ApproximateReceiveCount": "3", "SentTimestamp": "12"},
        "MessageAttributes": {
            "Reason": {"StringValue": '"broken"', "DataType": "String"},
            "Attempt": {"StringValue": "5", "DataType": "Number"},
        },
    }
    policy = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:q-dead"}
    attributes = {
        "ApproximateNumberOfMessages": "4",
        "ApproximateNumberOfMessagesNotVisible": "2",
        "ApproximateNumberOfMessagesDelayed": "1",
        "QueueArn": "arn:aws:sqs:us-east-1:123456789012:q",
        "RedrivePolicy": json.dumps(policy),
    }
    batch = {"Successful": [{"Id": "0"}], "Failed": []}
    return {
        "get_queue_url": {"QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/q"},
        "create_queue": {"QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/q"},
        "get_queue_attributes": {"Attributes": attributes},
        "receive_message": {"Messages": [message]},
        "send_message": {"MessageId": "id"},
        "send_message_batch": batch,
        "delete_message_batch": batch,
        "change_message_visibility_batch": batch,
    }


class Client:
    """Answers as SQS does, but for one operation, as often as `times` says."""

    def __init__(self, operation: str = "", answer: Any = None, times: int = 1_000_000) -> None:
        self.answers = answers()
        self.operation, self.answer, self.times = operation, answer, times
        self.asked = 0
        self.made = False

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda **_: self.say(operation)

    def say(self, operation: str) -> Any:
        if operation == self.operation:
            self.asked += 1
            if self.asked <= self.times:
                if isinstance(self.answer, Exception):
                    raise self.answer
                return copy.deepcopy(self.answer)
        if operation == "receive_message":  # one message, once
            found, self.answers[operation] = self.answers[operation], {}
            return found
        return self.answers.get(operation, {})


class AsyncClient(Client):
    def __getattr__(self, operation: str) -> Callable[..., Any]:
        async def ask(**_: Any) -> Any:
            return self.say(operation)

        return ask


def make(queue: SqsQueue) -> str:
    """As when the queue is missing."""
    return queue._pair.make()


USES: dict[str, tuple[Address, Callable[[SqsQueue], Any], tuple[str, ...]]] = {
    "exists": (OWN, lambda q: q.exists(), ("get_queue_url",)),
    "make": (OWN, make, ("create_queue", "get_queue_attributes")),
    "send": (OWN, lambda q: q.send(["a"]), ("get_queue_url", "send_message_batch")),
    "lease": (OWN, lambda q: q.lease(60), ("get_queue_url", "receive_message")),
    "extend": (OWN, lambda q: q.extend(LEASE, 60), ("get_queue_url", "change_message_visibility")),
    "done": (OWN, lambda q: q.done(LEASE), ("get_queue_url", "delete_message")),
    "release": (OWN, lambda q: q.release(LEASE), ("change_message_visibility",)),
    "bury": (OWN, lambda q: q.bury(LEASE, "why"), ("send_message", "delete_message")),
    "counts": (OWN, lambda q: q.counts(), ("get_queue_url", "get_queue_attributes")),
    "others' counts": (OTHERS, lambda q: q.counts(), ("get_queue_url", "get_queue_attributes")),
    "dead letters": (
        OWN,
        lambda q: q.dead_letters(),
        ("receive_message", "change_message_visibility_batch"),
    ),
    "redrive": (
        OWN,
        lambda q: q.redrive(lambda _: True),
        ("receive_message", "send_message_batch", "delete_message_batch"),
    ),
    "purge": (OWN, lambda q: q.purge(), ("get_queue_attributes", "purge_queue")),
    "delete": (OWN, lambda q: q.delete(), ("get_queue_url", "delete_queue")),
}
CASES = [(use, operation) for use, (_, _, asks) in USES.items() for operation in asks]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(sqs_service, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(sqs, "_SETTLE_PATIENCE", 0)
    for name in ("_CREATED_SECONDS", "_PURGED_SECONDS"):
        monkeypatch.setattr(sqs_queues, name, 0)


def spoiled(answer: Any) -> Iterator[Any]:
    """The answer without each of its keys in turn, and with wrong values in place of each."""
    yield from WRONG
    keys = answer if isinstance(answer, dict) else range(len(answer))
    for key in keys:
        without = copy.deepcopy(answer)
        del without[key]
        yield without
        inner = answer[key]
        wrong = spoiled(inner) if isinstance(inner, dict | list) else iter(WRONG)
        for value in wrong:
            yield {**answer, key: value} if isinstance(answer, dict) else [value]


def use(name: str, client: Client, patience: float) -> Any:
    address, act, _ = USES[name]
    sqs._SETTLE_PATIENCE = patience  # put back after each test
    queue = SqsQueue(address, lambda _: client, patience)
    try:
        result = act(queue)
    finally:
        queue._book.forget()
    return (result.body, result.attempt) if isinstance(result, Lease) else result


@pytest.mark.parametrize(("name", "operation"), CASES)
def test_every_part_of_an_answer_may_be_missing_or_wrong(name: str, operation: str) -> None:
    """It is what it would have been, an empty answer, or an error that passes; never another."""
    right = use(name, Client(), 0)
    broken = 0
    for answer in spoiled(answers().get(operation, {})):
        try:
            use(name, Client(operation, answer, times=1), 0)
        except InvalidParameter as error:  # a whole answer, of a queue that has no policy
            assert "redrive policy" in str(error)  # noqa: PT017
            assert not answer["Attributes"].pop("RedrivePolicy", "")
            assert "QueueArn" in answer["Attributes"]
        except StorageUnavailable:
            broken += 1
            assert use(name, Client(operation, answer, times=2), 5) == right
    assert broken >= len([wrong for wrong in WRONG if not isinstance(wrong, dict)])


@pytest.mark.parametrize(("name", "operation"), CASES)
@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        AttributeError("x"),
        TypeError("x"),
        ValueError("x"),
        IndexError("x"),
        RecursionError("x"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
    ],
    ids=repr,
)
def test_what_a_client_stumbles_over_is_asked_again(
    name: str, operation: str, error: Exception
) -> None:
    right = use(name, Client(), 0)
    assert use(name, Client(operation, error, times=2), 5) == right
    with pytest.raises(StorageUnavailable, match="not SQS, or was cut off"):
        use(name, Client(operation, error), 0)


@pytest.mark.parametrize("address", [OWN, OTHERS], ids=["own", "others'"])
@pytest.mark.parametrize("operation", ["get_queue_url", "get_queue_attributes"])
def test_the_trigger_too_takes_every_broken_answer_for_one_that_passes(
    address: Address, operation: str
) -> None:
    right = asyncio.run(AsyncCounter(address, AsyncClient()).counts())
    assert (right.waiting, right.leased) == (5, 2)
    broken = 0
    for answer in [*spoiled(answers()[operation]), KeyError("x"), TypeError("x")]:
        counter = AsyncCounter(address, AsyncClient(operation, answer, times=1))
        try:
            asyncio.run(counter.counts())
        except InvalidParameter:
            assert not answer["Attributes"].get("RedrivePolicy")
        except StorageUnavailable:
            broken += 1
            assert asyncio.run(counter.counts()) == right
    assert broken > len(WRONG)


@pytest.mark.parametrize("answer", [{}, {"Successful": []}, {"Successful": [{"Id": "9"}]}])
@pytest.mark.parametrize("name", ["send", "redrive", "dead letters"])
def test_entries_of_a_batch_that_an_answer_leaves_out_are_sent_again(
    name: str, answer: Any
) -> None:
    operation = USES[name][2][-1]
    client = Client(operation, answer, times=2)
    assert use(name, client, 5) == use(name, Client(), 0)
    assert client.asked == 3
    with pytest.raises(StorageUnavailable, match="do not mention them"):
        use(name, Client(operation, answer), 0)


def test_every_part_of_an_entry_that_failed_may_be_missing_or_wrong() -> None:
    failed = {"Id": "0", "Code": "Other", "SenderFault": False, "Message": "later"}
    at_fault = {"Successful": [], "Failed": [{**failed, "SenderFault": True}]}
    for answer in spoiled({"Successful": [], "Failed": [failed]}):
        client = Client("send_message_batch", answer, times=1)
        if answer == at_fault:  # which is an answer like any other: asking again is no use
            with pytest.raises(Refused, match="Other: later"):
                use("send", client, 5)
            continue
        assert use("send", client, 5) == 1
        assert client.asked == 2 or answer == {**answer, "Successful": [{"Id": "0"}]}


@pytest.mark.parametrize("cut", [{}, {"Attributes": {}}])
def test_a_cut_answer_does_not_pass_for_a_queue_without_a_dead_letter_queue(cut: Any) -> None:
    class Cut(Client):
        def get_queue_attributes(self, AttributeNames: list[str], **_: Any) -> Any:  # noqa: N803
            return cut if "RedrivePolicy" in AttributeNames else self.say("get_queue_attributes")

    with pytest.raises(StorageUnavailable, match="QueueArn is missing"):
        use("others' counts", Cut(), 0)


def test_a_dead_letter_of_another_program_is_shown_as_it_is() -> None:
    client = Client()
    (message,) = client.answers["receive_message"]["Messages"]
    for reason in ("not JSON", "[" * 100_000, ""):
        message["MessageAttributes"] = {"Reason": {"StringValue": reason}}
        client.answers["receive_message"] = {"Messages": [message]}
        (letter,) = use("dead letters", client, 0)
        assert (letter.body, letter.attempt) == ("body", 3)


class Server(BaseHTTPRequestHandler):
    """Answers every request with the same bytes, as they are."""

    protocol_version: ClassVar[str] = "HTTP/1.1"
    raw: ClassVar[bytes] = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.raw)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def raw(body: bytes, *, status: str = "200 OK", length: int | None = None, more: str = "") -> bytes:
    kind = "application/x-amz-json-1.0"
    length = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n"
    return head.encode() + body


WHOLE = json.dumps({"QueueUrl": "https://sqs.us-east-1.amazonaws.com/123456789012/q"}).encode()
BODIES = [
    *(WHOLE[:size] for size in range(0, len(WHOLE), 7)),
    b"<html><body>502 Bad Gateway</body></html>", b"null", b"[]", b"[1]", b'"x"', b"7", b"true",
    b"\xff\xfe\x00", b"[" * 100_000, b'{"QueueUrl": null}', b'{"QueueUrl": [1]}', b'{"__type": 7}',
    b'{"__type": null, "message": []}', b'{"QueueUrl": ' + b"9" * 5_000 + b"}",
]  # fmt: skip
RAW = [
    *(raw(body) for body in BODIES),
    *(raw(body, length=1_000) for body in BODIES[:4]),
    *(raw(body, status="500 Internal Server Error") for body in BODIES),
    *(raw(body, status=status) for body in BODIES[-6:] for status in ("400 -", "403 -", "404 -")),
    raw(WHOLE, more="x-amzn-query-error: ;;;\r\n", status="503 Slow Down"),
    b"", b"HTTP/1.1", b"\x00" * 100, b"HTTP/1.1 200 OK\r\n", b"HTTP/9.9 999 ?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"Que\r\nzz",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}",
]  # fmt: skip


def test_bytes_that_are_no_answer_pass_in_a_real_client(server: str) -> None:
    queue = SqsQueue(Address("q", "us-east-1", server), connect, 0)
    for Server.raw in RAW:
        with pytest.raises(StorageUnavailable, match="queue q"):
            queue.exists()
    Server.raw = raw(WHOLE)
    assert queue.exists()
    queue.close()


def test_bytes_that_are_no_answer_pass_in_a_real_asynchronous_client(server: str) -> None:
    session = pytest.importorskip("aiobotocore.session")

    async def ask() -> None:
        address = Address("q", "us-east-1", server)
        async with session.get_session().create_client(
            "sqs", region_name="us-east-1", endpoint_url=server, config=sqs_service.client_config()
        ) as client:
            for Server.raw in RAW:
                with pytest.raises(StorageUnavailable, match="queue q"):
                    await AsyncCounter(address, client).counts()

    asyncio.run(ask())
