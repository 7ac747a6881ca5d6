"""What SQS must say in its answers; the only place that judges them, for all clients.

An answer that lacks something, as after a connection that was cut or from a proxy on the way, says
nothing about the queue: whoever asked must ask again.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VISIBLE = "ApproximateNumberOfMessages"
IN_FLIGHT = "ApproximateNumberOfMessagesNotVisible"
DELAYED = "ApproximateNumberOfMessagesDelayed"
RECEIVED, SENT = "ApproximateReceiveCount", "SentTimestamp"
ARN, POLICY = "QueueArn", "RedrivePolicy"

#: Attributes of queues and messages that are numbers.
_NUMBERS = frozenset({VISIBLE, IN_FLIGHT, DELAYED, RECEIVED, SENT})
#: Those that a queue need not have.
_OPTIONAL = frozenset({POLICY})

#: What clients raise, beside their own errors, when they cannot make sense of an answer.
NONSENSE = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


class _Answer(BaseModel):
    """A part of an answer; whatever else is in it is nothing to us."""

    model_config = ConfigDict(strict=True)


_Text = Annotated[str, Field(min_length=1)]


class _Url(_Answer):
    QueueUrl: _Text


class _Attributes(_Answer):
    Attributes: dict[str, str] = {}


class _Sent(_Answer):
    MessageId: _Text


class _Value(_Answer):
    StringValue: str | None = None


class _Message(_Attributes):
    MessageId: _Text
    ReceiptHandle: _Text
    Body: _Text
    MessageAttributes: dict[str, _Value] = {}


class _Messages(_Answer):
    Messages: list[_Message] = []


class _Success(_Answer):
    Id: str


class _Failure(_Success):
    Code: str
    SenderFault: bool = False
    Message: str = ""


class _Batch(_Answer):
    Successful: list[_Success] = []
    Failed: list[_Failure] = []


_ANSWERS: dict[str, type[_Answer]] = {
    "create_queue": _Url,
    "get_queue_url": _Url,
    "get_queue_attributes": _Attributes,
    "receive_message": _Messages,
    "send_message": _Sent,
    "send_message_batch": _Batch,
    "delete_message_batch": _Batch,
    "change_message_visibility_batch": _Batch,
}
_NUMBER = re.compile("[0-9]{1,19}")
_OBJECT = TypeAdapter(dict[str, Any])


def checked(operation: str, request: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """The answer to a request, by boto3's name for the operation, when it says all that it must.

    Raises one of NONSENSE for any other.
    """
    try:
        whole = _OBJECT.validate_python(answer)
        found = _ANSWERS.get(operation, _Answer).model_validate(whole)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ".".join(map(str, first["loc"])) or "the answer"
        raise ValueError(f"{what}: {first['msg']}") from error
    if isinstance(found, _Attributes):
        _require(request["AttributeNames"], found.Attributes)
    if isinstance(found, _Messages):
        for message in found.Messages:
            _require(request["MessageSystemAttributeNames"], message.Attributes)
    return whole


def _require(names: Iterable[str], found: Mapping[str, str]) -> None:
    for name in names:
        if name not in found and name not in _OPTIONAL:
            raise ValueError(f"{name} is missing")
        if name in _NUMBERS and not _NUMBER.fullmatch(found[name]):
            raise ValueError(f"{name} is {found[name]!r:.100}")
        if name == POLICY and found.get(name):
            redrive_target(found[name])


def redrive_target(policy: str) -> tuple[str, str]:
    """Account and name of the queue that gets the dead letters; raises one of NONSENSE."""
    *_, account, name = json.loads(policy)["deadLetterTargetArn"].split(":")
    return account, name
