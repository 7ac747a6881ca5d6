"""The two queues on SQS that make up one of ours, tasks and dead letters; used by `sqs.py`."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from igneous_airflow.queue.protocol import Counts, DeadLetter, Lease
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_answers import ARN, NONSENSE, RECEIVED, SENT
from igneous_airflow.queue.sqs_counters import DEAD, Directory, missing, read_attributes
from igneous_airflow.queue.sqs_sender import BATCH_ENTRIES, MESSAGE_BYTES, send_all
from igneous_airflow.queue.sqs_service import QueueGone, Service

_RETENTION = 1_209_600  # 14 days, the most that SQS permits
_VISIBILITY = 120  # of messages that others than our workers receive
#: The most that SQS permits. Workers count attempts that failed and bury tasks themselves, saying
#: why; SQS counts as well what was only fetched ahead, or given back by a worker that had to stop.
_MAX_RECEIVES = 1_000
_CREATED_SECONDS = 1.0  # until SQS promises that a new queue can be used
_PURGED_SECONDS = 60.0  # during which a purge may still take messages that are sent after it

_LIST_SECONDS = 30  # others cannot see dead letters while they are listed
_REDRIVE_SECONDS = 900  # the same, while they are looked through for those to be moved
_LIST_WAIT = 1  # a poll that does not wait asks only some of SQS's machines
_REDRIVEN = "no worker settled it: those that took it died, or their leases ran out"


class QueuePair:
    """Finds, makes, counts, purges and removes the queues of an address."""

    def __init__(self, address: Address, service: Service) -> None:
        self._address = address
        self._service = service
        self._directory = Directory(address)

    def forget(self) -> None:
        """Look the queues up again when they are next needed."""
        self._directory.urls.clear()

    def find_tasks(self) -> str | None:
        """Return the URL of the queue; None when it is missing and may be made.

        Raises InvalidParameter when it is missing and somebody else's.
        """
        try:
            return self.tasks()
        except QueueGone as error:
            if self._address.create:
                return None
            raise missing(error) from error

    def tasks(self) -> str:
        """Return the URL of the queue; raises QueueGone."""
        return self._service.take(self._directory.tasks())

    def dead(self) -> str:
        """Return the URL of the dead-letter queue; raises QueueGone.

        Raises InvalidParameter when the queue is somebody else's and has none.
        """
        return self._service.take(self._directory.dead())

    def make(self) -> str:
        """Make both queues, which others may do at the same time, and return the tasks' URL."""
        dead = self._make_one(DEAD, "dead letters", {})
        redrive = {
            "deadLetterTargetArn": self._service.take(read_attributes(dead, [ARN]))[ARN],
            "maxReceiveCount": str(_MAX_RECEIVES),
        }
        policy = {"VisibilityTimeout": str(_VISIBILITY), "RedrivePolicy": json.dumps(redrive)}
        tasks = self._make_one("", "tasks", policy)
        self._directory.urls.update(tasks=tasks, dead=dead)
        time.sleep(_CREATED_SECONDS)
        return tasks

    def counts(self) -> Counts:
        """Ask for the approximate counters; a queue that is missing holds nothing."""
        return self._service.take(self._directory.counts())

    def purge(self) -> None:
        """Empty both queues and wait until SQS has done so."""
        self._with_both("purge_queue")
        time.sleep(_PURGED_SECONDS)

    def delete(self) -> None:
        """Remove both queues, which may be gone already."""
        self._with_both("delete_queue")
        self.forget()

    def _with_both(self, operation: str) -> None:
        for find in (self.tasks, self.dead):
            with suppress(QueueGone):
                self._service.call(operation, {"QueueUrl": find()})

    def _make_one(self, ending: str, holds: str, policy: dict[str, str]) -> str:
        request = {
            "QueueName": self._address.name + ending,
            "Attributes": {"MessageRetentionPeriod": str(_RETENTION), **policy},
            "tags": {"application": "igneous_airflow", "holds": holds},
        }
        url: str = self._service.call("create_queue", request)["QueueUrl"]
        return url


def send_dead_letter(service: Service, url: str, lease: Lease, reason: str) -> None:
    """Send a message to the dead letters; a reason that does not fit beside it is cut."""
    attributes = {
        "Reason": {"DataType": "String", "StringValue": _encoded(reason, lease.body)},
        "Attempt": {"DataType": "Number", "StringValue": str(lease.attempt)},
    }
    request = {"QueueUrl": url, "MessageBody": lease.body, "MessageAttributes": attributes}
    service.call("send_message", request)


def list_dead_letters(service: Service, url: str, limit: int) -> list[DeadLetter]:
    """List dead letters, oldest first, and make them visible to others again."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < limit:
        messages = _look_at(service, url, limit - len(found), _LIST_SECONDS)
        new = {message["MessageId"]: message for message in messages}
        if new.keys() <= found.keys():  # none, or the same again
            break
        found |= new
    make_visible(service, url, [message["ReceiptHandle"] for message in found.values()])
    oldest_first = sorted(found.values(), key=lambda m: int(m["Attributes"][SENT]))
    return [_dead_letter(message) for message in oldest_first]


def redrive(service: Service, url: str, dead: str, wanted: Callable[[str], bool]) -> int:
    """Move the dead letters that are wanted to the queue of the tasks; returns how many."""
    sent = 0
    left: dict[str, str] = {}
    while messages := _look_at(service, dead, BATCH_ENTRIES, _REDRIVE_SECONDS):
        back = [message for message in messages if wanted(message["Body"])]
        others = {m["MessageId"]: m["ReceiptHandle"] for m in messages if m not in back}
        if not back and others.keys() <= left.keys():
            break  # they have become visible again: nothing else is there
        left |= others
        if back:
            sent += send_all(service, url, [message["Body"] for message in back])
            entries = [{"ReceiptHandle": message["ReceiptHandle"]} for message in back]
            service.batch("delete_message_batch", dead, entries)
    make_visible(service, dead, list(left.values()))
    return sent


def _look_at(service: Service, url: str, limit: int, seconds: int) -> list[dict[str, Any]]:
    """Receive some dead letters, which nobody else can see for so many seconds."""
    request = {
        "QueueUrl": url,
        "MaxNumberOfMessages": min(limit, BATCH_ENTRIES),
        "VisibilityTimeout": seconds,
        "WaitTimeSeconds": _LIST_WAIT,
        "MessageSystemAttributeNames": [SENT, RECEIVED],
        "MessageAttributeNames": ["Reason", "Attempt"],
    }
    messages: list[dict[str, Any]] = service.call("receive_message", request).get("Messages", [])
    return messages


def make_visible(service: Service, url: str, tokens: Sequence[str]) -> None:
    """Give messages back at once; those that are somebody else's meanwhile stay his."""
    for first in range(0, len(tokens), BATCH_ENTRIES):
        batch = tokens[first : first + BATCH_ENTRIES]
        entries = [{"ReceiptHandle": token, "VisibilityTimeout": 0} for token in batch]
        service.batch("change_message_visibility_batch", url, entries)


def _dead_letter(message: dict[str, Any]) -> DeadLetter:
    said = message.get("MessageAttributes", {})
    try:
        reason, attempt = said["Reason"]["StringValue"], int(said["Attempt"]["StringValue"])
        return DeadLetter(message["Body"], attempt, str(json.loads(reason)))
    except NONSENSE:  # SQS moved it by itself, or another program sent it
        return DeadLetter(message["Body"], int(message["Attributes"][RECEIVED]), _REDRIVEN)


def _encoded(reason: str, body: str) -> str:
    """Write a reason in characters that SQS takes, as JSON, cut to what fits beside the body."""
    room = MESSAGE_BYTES - len(body.encode()) - 1_000  # for the names and the other attribute
    encoded = json.dumps(reason)
    while len(encoded) > room:
        reason = reason[: len(reason) * room // (len(encoded) + 1)]
        encoded = json.dumps(reason)
    return encoded
