"""Calls to SQS that retry and explain; used by `sqs.py` and its parts.

The only module that knows boto3, which it imports when a client is first needed.
"""

import random
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    LeaseLost,
    StorageUnavailable,
)
from igneous_airflow.queue.protocol import MakeClient
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_answers import NONSENSE, checked

#: Longer than the 60 seconds for which SQS refuses to purge again or to remake a deleted queue.
PATIENCE = 90.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CONNECTIONS = 32
_READ_SECONDS = 40  # more than a long poll takes

_GONE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_LOST = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight"})
_BUSY = frozenset(
    {
        "RequestThrottled", "ThrottlingException", "Throttling", "TooManyRequestsException",
        "RequestLimitExceeded", "OverLimit", "KmsThrottled", "KMS.ThrottlingException",
        "InternalError", "InternalFailure", "ServiceUnavailable", "RequestTimeout",
        "PurgeQueueInProgress", "QueueDeletedRecently",
    }
)  # fmt: skip
_DENIED = frozenset(
    {
        "AccessDenied", "AccessDeniedException", "KmsAccessDenied", "KMS.AccessDeniedException",
        "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "InvalidSecurity",
        "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidSignatureException",
        "MissingAuthenticationToken", "OptInRequired",
    }
)  # fmt: skip


Result = TypeVar("Result")

#: Gives names of operations with their requests, gets the responses, and returns a result.
Steps = Generator[tuple[str, dict[str, Any]], dict[str, Any], Result]


class QueueGone(StorageUnavailable):
    """There is no such queue now; there may have been, and may be again."""


class Refused(InvalidParameter):
    """SQS refuses a request for what it says; `code` tells why."""

    def __init__(self, message: str, code: str = "") -> None:  # one argument: to be pickled
        super().__init__(message)
        self.code = code


def connect(address: Address) -> Any:
    """Make a boto3 client, with credentials by its default chain."""
    from boto3.session import Session

    return Session().client(
        "sqs", region_name=address.region, endpoint_url=address.endpoint, config=client_config()
    )


def client_config() -> Any:
    """Make the configuration of a client whose retries are left to `Service`."""
    from botocore.config import Config

    return Config(
        connect_timeout=10,
        read_timeout=_READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 1},
    )


def failure_types() -> tuple[type[Exception], ...]:
    """What a call of a client raises, for `explain` to tell what it means."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError


def attempts(patience: float) -> Iterator[int]:
    """Count from 0, with growing random pauses in between, until `patience` seconds are over."""
    deadline = time.monotonic() + patience
    number = 0
    while True:
        yield number
        pause = min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
        if time.monotonic() + pause > deadline:
            return
        time.sleep(pause)
        number += 1


class Service:
    """Calls SQS for one queue; used by several threads, and anew after a fork.

    Throttling, errors of the server and lost connections are retried for `patience` seconds.
    Raises StorageUnavailable then, AccessDenied, LeaseLost, QueueGone and Refused.
    """

    def __init__(self, address: Address, make_client: MakeClient, patience: float) -> None:
        self._address = address
        self._make_client = make_client
        self._patience = patience
        self.forget()

    def forget(self) -> None:
        """Make a new client at the next call, leaving the old one to whoever uses it."""
        self._lock = threading.Lock()
        self._client: Any = None

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def call(
        self, operation: str, request: Mapping[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        """Call an operation by boto3's name for it and return the response, which is checked."""
        reason: IgneousError | None = None
        for _ in attempts(self._patience if patience is None else patience):
            try:
                return self._ask(operation, request)
            except StorageUnavailable as error:
                if type(error) is not StorageUnavailable:
                    raise
                reason = error
        raise reason or StorageUnavailable(f"queue {self._address.name}: no time to ask SQS")

    def _ask(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        client = self._connected()
        with explained(self._address.name, operation):
            return checked(operation, request, getattr(client, operation)(**request))

    def take(self, steps: Steps[Result]) -> Result:
        """Take steps, one request after the other, and return what they come to."""
        try:
            operation, request = next(steps)
            while True:
                try:
                    response = self.call(operation, request)
                except IgneousError as error:
                    operation, request = steps.throw(error)
                else:
                    operation, request = steps.send(response)
        except StopIteration as end:
            result: Result = end.value
            return result

    def batch(
        self,
        operation: str,
        url: str,
        entries: Sequence[Mapping[str, Any]],
        patience: float | None = None,
    ) -> list[IgneousError]:
        """Send up to ten entries, those that failed again, and return why others never will do.

        An entry that the response does not mention at all has failed too.
        """
        waiting = {str(number): entry for number, entry in enumerate(entries)}
        refused: list[IgneousError] = []
        codes: set[str] = set()
        patience = self._patience if patience is None else patience
        for _ in attempts(patience):
            request = [{"Id": number, **entry} for number, entry in waiting.items()]
            response = self.call(operation, {"QueueUrl": url, "Entries": request}, patience)
            for success in response.get("Successful", []):
                waiting.pop(success["Id"], None)
            for failure in response.get("Failed", []):
                codes.add(failure["Code"])
                reason = self._entry_refused(operation, failure)
                if reason is not None:
                    waiting.pop(failure["Id"], None)
                    refused.append(reason)
            if not waiting:
                return refused
        raise StorageUnavailable(
            f"queue {self._address.name}: {len(waiting)} of {len(entries)} entries of "
            f"{_action(operation)} failed for {patience:.0f} s: "
            f"{', '.join(sorted(codes)) or 'the answers do not mention them'}"
        )

    def _connected(self) -> Any:
        with self._lock:  # making a client is not safe in several threads
            if self._client is None:
                try:
                    self._client = self._make_client(self._address)
                except failure_types() as error:
                    raise explain(self._address.name, "connect", error) from error
            return self._client

    def _entry_refused(self, operation: str, failure: Mapping[str, Any]) -> IgneousError | None:
        """Why an entry must not be sent again; None when it must."""
        code = failure["Code"]
        if code in _BUSY or not (failure.get("SenderFault") or code in _DENIED):
            return None
        return _judge(self._address.name, operation, code, failure.get("Message", ""), 400)


def _action(operation: str) -> str:
    """AWS's name of an operation: `send_message_batch` is SendMessageBatch."""
    return "".join(word.capitalize() for word in operation.split("_"))


@contextmanager
def explained(name: str, operation: str) -> Iterator[None]:
    """Turn what is raised by asking SQS, and by reading its answer, into our errors."""
    try:
        yield
    except failure_types() as error:
        raise explain(name, operation, error) from error
    except NONSENSE as error:
        raise StorageUnavailable(
            f"queue {name}: what answers {_action(operation)} is not SQS, or was cut off: {error}"
        ) from error


def explain(name: str, operation: str, error: Exception) -> IgneousError:
    """Turn an error of boto3 about queue `name` into ours.

    It is a plain StorageUnavailable when a retry may help.
    """
    from botocore import exceptions, parsers

    if isinstance(error, exceptions.ClientError):
        entry = error.response.get("Error", {})
        # the code of the JSON protocol, where the service gives that of the older one as well
        code = entry.get("QueryErrorCode") or entry.get("Code", "").rpartition(".")[2]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _judge(name, operation, code, entry.get("Message", ""), status)
    transient = (
        exceptions.ConnectionError, exceptions.HTTPClientError,
        exceptions.IncompleteReadError, parsers.ResponseParserError,
    )  # fmt: skip
    if isinstance(error, transient):
        return StorageUnavailable(f"queue {name}: SQS does not answer: {error}")
    credentials = (
        exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError,
        exceptions.SSOError,
    )  # fmt: skip
    if isinstance(error, credentials):
        return AccessDenied(
            f"queue {name}: no AWS credentials to be used: {error} Give some by the "
            "environment, a profile or the role of the pod"
        )
    hint = "; add ?region=" if isinstance(error, exceptions.NoRegionError) else ""
    return InvalidParameter(f"queue {name}: {error}{hint}")


def _judge(name: str, operation: str, code: str, message: str, status: int) -> IgneousError:
    action = _action(operation)
    said = f"{code}: {message}"
    settles = operation in ("change_message_visibility", "delete_message")
    # SQS names every error by a word: a number is the status of a proxy's or a load balancer's page
    if code in _BUSY or status >= 500 or status == 429 or not code.strip("0123456789"):
        return StorageUnavailable(f"queue {name}: SQS cannot do {action} now: {said}")
    if code in _GONE:
        return QueueGone(f"queue {name} does not exist: {said}")
    if code in _LOST or (settles and code == "InvalidParameterValue"):
        return LeaseLost(f"queue {name}: the lease has ended: {said}")
    if code in _DENIED or status in (401, 403):
        permission = f"sqs:{action.removesuffix('Batch')}"
        return AccessDenied(
            f"queue {name}: AWS refuses {action}: {said}; grant {permission} to these "
            "credentials, or renew them if they have expired"
        )
    return Refused(f"queue {name}: SQS refuses {action}: {said}", code)
