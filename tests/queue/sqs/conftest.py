"""What the tests of SQS share: a server on this machine, queues on it, and accidents on the way."""

import itertools
import json
import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from igneous_airflow.queue import sqs_queues
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_service import connect

SERVER = runpy.run_path(str(Path(__file__).parents[1] / "sqs_server.py"))
NUMBERS = itertools.count()

Handler = Callable[..., Any]


@pytest.fixture(scope="session")
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
    """The address of a queue that is not there yet."""
    return f"sqs://test-{next(NUMBERS)}?region=us-east-1&endpoint={endpoint}"


@pytest.fixture
def client(endpoint: str) -> Any:
    """Boto3's own client of the server."""
    return connect(Address("any", "us-east-1", endpoint))


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


@pytest.fixture
def answer() -> Callable[..., Handler]:
    """Makes handlers that answer the first requests with an error, without sending them."""

    def make(code: str, status: int = 400, times: int = 1_000_000) -> Handler:
        left = itertools.count(times, -1)

        def handler(request: Any, **_: Any) -> AWSResponse | None:
            if next(left) <= 0:
                return None
            error = {"__type": f"com.amazonaws.sqs#{code}", "message": "as told"}
            response = AWSResponse(request.url, status, {}, None)
            response._content = json.dumps(error).encode()
            return response

        return handler

    return make


@pytest.fixture
def counting() -> Callable[[Counter[str]], tuple[str, Handler]]:
    """Makes handlers that count the requests of each operation."""

    def make(counter: Counter[str]) -> tuple[str, Handler]:
        def handler(model: Any, **_: Any) -> None:
            counter[model.name] += 1

        return "before-call.sqs", handler

    return make


@pytest.fixture
def name_of() -> Callable[[str], str]:
    """Gives the name of the queue at an address."""
    return lambda url: Address.parse(url).name
