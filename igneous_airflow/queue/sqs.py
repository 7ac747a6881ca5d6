"""The queue in the cloud: `sqs://NAME`, on Amazon SQS or a server that speaks its language.

SQS promises less than a database: messages come in any order, now and then twice, and its counts
are approximate. Whether a run is done is judged by receipts, never by this queue alone.

A queue of a run's own is made by the first `send`, with a dead-letter queue `NAME-dead`. Workers
need the permissions sqs:GetQueueUrl, ReceiveMessage, DeleteMessage, ChangeMessageVisibility and
GetQueueAttributes, and SendMessage for the dead letters; whoever sends also needs CreateQueue,
TagQueue, PurgeQueue and DeleteQueue. With `?create=false`, or a full https URL, the queue is
somebody else's: it is never made, purged or deleted, and must have a redrive policy, which tells
where its dead letters go.
"""

import math
import os
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from typing import Any

from igneous_airflow.errors import IgneousError, InvalidParameter, LeaseLost, TransientError
from igneous_airflow.queue.protocol import LONGEST_LEASE, Counts, DeadLetter, Lease, MakeClient
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_answers import RECEIVED
from igneous_airflow.queue.sqs_cost import describe_cost
from igneous_airflow.queue.sqs_leases import LeaseBook
from igneous_airflow.queue.sqs_queues import (
    QueuePair,
    list_dead_letters,
    make_visible,
    redrive,
    send_dead_letter,
)
from igneous_airflow.queue.sqs_sender import send_all
from igneous_airflow.queue.sqs_service import PATIENCE, QueueGone, Service, connect

_LONGEST_POLL = 20
_LOOK_SECONDS = 0.5  # between looks for a queue that is not there yet
_BURY_SECONDS = 60  # the lease while a message is moved
_SETTLE_PATIENCE = 10.0  # for requests whose failure only costs a repeated task
_TICK = 0.5  # seconds between looks at what waits to be acknowledged or given back

_QUEUES: weakref.WeakSet["SqsQueue"] = weakref.WeakSet()


def _after_fork() -> None:
    for queue in list(_QUEUES):
        queue.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


class SqsQueue:
    """A queue on SQS; may be used from several threads, and after a fork.

    Only `send` makes a queue that is missing: to all else it looks empty. Durations are whole
    seconds, rounded up. While tasks are fast `lease` fetches messages ahead, and `done` waits up to
    about a second to be sent with others: what a killed process had of either comes back when the
    lease ends. Errors: StorageUnavailable when SQS throttles or does not answer for `patience`
    seconds, AccessDenied, and InvalidParameter when SQS refuses what is asked, or when a queue that
    is somebody else's is missing or has no dead-letter queue.
    """

    def __init__(
        self,
        address: Address,
        make_client: MakeClient = connect,
        patience: float = PATIENCE,
    ) -> None:
        self._address = address
        self._service = Service(address, make_client, patience)
        self._pair = QueuePair(address, self._service)
        self._book = LeaseBook()
        _QUEUES.add(self)

    def leave_to_parent(self) -> None:
        """Forget what the parent process holds; called in the child after a fork."""
        self._service.forget()
        self._book = LeaseBook()

    def exists(self) -> bool:
        """Whether somebody has made the queue."""
        return self._pair.find_tasks() is not None

    def send(self, bodies: Iterable[str]) -> int:
        """Add messages and return how many; makes the queue if it is missing.

        They can be leased while others are still made. After an error those sent before stay.
        """
        self._pair.forget()  # it may have been removed since
        url = self._pair.find_tasks() or self._pair.make()
        return send_all(self._service, url, bodies)

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        """Take a waiting message; None when SQS gives none within `wait`, by long polling."""
        deadline = time.monotonic() + wait
        whole = _whole(seconds)
        while True:
            if lease := self._book.next(whole):
                return lease
            self._tidy()
            if leases := self._receive(whole, deadline - time.monotonic()):
                lease = self._book.take(leases, whole)
                self._watch()
                return lease
            if time.monotonic() >= deadline:
                return None

    def extend(self, lease: Lease, seconds: float) -> None:
        """Let a lease end `seconds` from now, or 12 hours after its receipt; raises LeaseLost."""
        allowed = min(_whole(seconds), int(self._book.remaining(lease)))
        if allowed < 1:
            raise LeaseLost(f"message {lease.message_id} was held for 12 hours, the most on SQS")
        self._change(lease, allowed)
        self._book.extended(lease, allowed)

    def done(self, lease: Lease) -> None:
        """Remove a message for good, within about a second; raises LeaseLost.

        A lease that was lost without this process knowing is not noticed.
        """
        if not self._book.finish(lease):
            self._delete_now(lease)
            return
        self._acknowledge(old=True)
        self._watch()

    def release(self, lease: Lease, *, after: float = 0) -> None:
        """Give a message back, to be leased again `after` seconds from now; raises LeaseLost."""
        self._change(lease, min(math.ceil(after), int(self._book.remaining(lease))))
        self._book.ended(lease)

    def bury(self, lease: Lease, reason: str) -> None:
        """Move a message to the dead-letter queue, with the reason beside it; raises LeaseLost.

        A reason that does not fit into what SQS takes is cut.
        """
        self.extend(lease, _BURY_SECONDS)
        send_dead_letter(self._service, self._pair.dead(), lease, reason)
        self._delete_now(lease)

    def counts(self) -> Counts:
        """Ask for the approximate counters, which lag behind by up to a minute; not exact.

        A message released for later counts as leased.
        """
        self._tidy()
        return self._pair.counts()

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return `limit` dead letters, oldest first; any of them when there are more.

        Others that list them at the same time see fewer.
        """
        try:
            return list_dead_letters(self._service, self._pair.dead(), limit)
        except QueueGone:
            return []

    def redrive(self, wanted: Callable[[str], bool]) -> int:
        """Send the dead letters whose bodies are wanted once more; returns how many.

        A crash on the way leaves a message in both places, whose task is repeated at worst.
        """
        try:
            return redrive(self._service, self._pair.tasks(), self._pair.dead(), wanted)
        except QueueGone:
            return 0

    def purge(self) -> None:
        """Forget every message, leased and dead ones too; takes a minute unless there is none.

        SQS takes a minute to purge, and messages with it that are sent meanwhile. Nothing is done
        when all counters are zero: a message that SQS has not counted yet then stays, whose task is
        repeated at worst. Raises InvalidParameter when the queue is somebody else's.
        """
        if not self._address.create:
            raise InvalidParameter(
                f"queue {self._address.name} is somebody else's (create=false) and is not purged"
            )
        self._book.forget()
        self._pair.forget()
        counts = self._pair.counts()
        if counts.waiting or counts.leased or counts.dead:
            self._pair.purge()

    def delete(self) -> None:
        """Remove the queue and its dead letters; they may be gone already.

        Leaves a queue alone that is somebody else's. SQS lets the next `send` wait until a minute
        is over.
        """
        if self._address.create:
            self._book.forget()
            self._pair.forget()
            self._pair.delete()

    def close(self) -> None:
        """Send what waits to be acknowledged, give back what was fetched ahead, and disconnect."""
        with suppress(IgneousError):  # leases run out, and receipts tell what is done
            self._acknowledge(old=False)
            self._give_back(late=False)
        self._service.close()

    def cost(self, messages: int, size: int) -> str:
        """Say how many requests will be billed, all workers together."""
        return describe_cost(messages, size)

    def _receive(self, seconds: int, wait: float) -> list[Lease]:
        """Ask once for messages, waiting for at most 20 seconds."""
        if url := self._pair.find_tasks():
            request = {
                "QueueUrl": url,
                "MaxNumberOfMessages": self._book.wanted(seconds),
                "VisibilityTimeout": seconds,
                "WaitTimeSeconds": max(0, min(math.ceil(wait), _LONGEST_POLL)),
                "MessageSystemAttributeNames": [RECEIVED],
            }
            with suppress(QueueGone):
                response = self._service.call("receive_message", request)
                expires = time.time() + seconds
                return [_lease(message, expires) for message in response.get("Messages", [])]
            self._pair.forget()
        time.sleep(max(0, min(wait, _LOOK_SECONDS)))
        return []

    def _change(self, lease: Lease, seconds: int) -> None:
        """Let the message be visible again in `seconds`."""
        self._settle(lease, "change_message_visibility", {"VisibilityTimeout": seconds})

    def _delete_now(self, lease: Lease) -> None:
        self._settle(lease, "delete_message", {})
        self._book.ended(lease)

    def _settle(self, lease: Lease, operation: str, change: dict[str, int]) -> None:
        try:
            request = {"QueueUrl": self._pair.tasks(), "ReceiptHandle": lease.token, **change}
            self._service.call(operation, request, _SETTLE_PATIENCE)
        except (LeaseLost, QueueGone) as error:
            self._book.ended(lease)
            raise LeaseLost(f"message {lease.message_id}: {error}") from error

    def _tidy(self) -> None:
        """Send every acknowledgement, and give back what was fetched ahead for too long."""
        with suppress(TransientError):  # which costs no more than repeated tasks
            self._acknowledge(old=False)
            self._give_back(late=True)

    def _acknowledge(self, *, old: bool) -> None:
        """Delete messages whose tasks are done; those given to others meanwhile are theirs."""
        while tokens := self._book.due(old=old):
            entries = [{"ReceiptHandle": token} for token in tokens]
            self._service.batch(
                "delete_message_batch", self._pair.tasks(), entries, _SETTLE_PATIENCE
            )

    def _give_back(self, *, late: bool) -> None:
        if unused := self._book.unused(late=late):
            make_visible(self._service, self._pair.tasks(), [lease.token for lease in unused])

    def _watch(self) -> None:
        """Let a thread look after what waits, while this one may work on a task for hours."""
        if self._book.needs_watch():
            Thread(target=self._keep_tidy, args=(self._book,), name="sqs-tidy", daemon=True).start()

    def _keep_tidy(self, book: LeaseBook) -> None:
        while not book.watch_ends():
            time.sleep(_TICK)
            with suppress(IgneousError):  # the worker meets it as well
                self._acknowledge(old=True)
                self._give_back(late=True)


def _whole(seconds: float) -> int:
    return max(1, min(math.ceil(seconds), LONGEST_LEASE))


def _lease(message: dict[str, Any], expires: float) -> Lease:
    attempt = int(message["Attributes"][RECEIVED])
    return Lease(message["MessageId"], message["ReceiptHandle"], message["Body"], attempt, expires)


def open_queue(url: str, make_client: MakeClient = connect) -> SqsQueue:
    """Open `sqs://NAME?region=&endpoint=&create=false` or a full https URL; asks nothing yet.

    Raises InvalidParameter for another address.
    """
    return SqsQueue(Address.parse(url), make_client)
