"""What to ask SQS to find and count queues, as steps that leave the asking to whoever takes them.

`sqs_service.py` takes them with boto3, one request after the other; `AsyncCounter` with a client
whose operations are coroutines, as aiobotocore's are.
"""

from collections.abc import Generator
from typing import Any, TypeVar

from igneous_airflow.errors import IgneousError, InvalidParameter
from igneous_airflow.queue.protocol import Counts
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_answers import (
    ARN,
    DELAYED,
    IN_FLIGHT,
    POLICY,
    VISIBLE,
    checked,
    redrive_target,
)
from igneous_airflow.queue.sqs_service import QueueGone, Steps, explained

#: Follows the name of a queue of ours in that of its dead letters.
DEAD = "-dead"

Result = TypeVar("Result")


class Directory:
    """Where the two queues of an address are, and what they hold; URLs are looked up once."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.urls: dict[str, str] = {}

    def tasks(self) -> Steps[str]:
        """The URL of the queue; raises QueueGone."""
        if "tasks" not in self.urls:
            self.urls["tasks"] = yield from _look_up(self._address.name, self._address.account)
        return self.urls["tasks"]

    def dead(self) -> Steps[str]:
        """The URL of the dead-letter queue; raises QueueGone.

        Raises InvalidParameter when the queue is somebody else's and has none.
        """
        if "dead" not in self.urls:
            name, account = self._address.name + DEAD, ""
            if not self._address.create:
                account, name = yield from self._redrive_target()
            self.urls["dead"] = yield from _look_up(name, account)
        return self.urls["dead"]

    def counts(self) -> Steps[Counts]:
        """The approximate counters; a queue that is missing, and may be made, holds nothing."""
        visible, in_flight, delayed = yield from self._counters(self.tasks())
        dead = yield from self._counters(self.dead())
        return Counts(visible + delayed, in_flight, sum(dead), exact=False)

    def _counters(self, find: Steps[str]) -> Steps[tuple[int, int, int]]:
        names = [VISIBLE, IN_FLIGHT, DELAYED]
        try:
            url = yield from find
            values = yield from read_attributes(url, names)
        except QueueGone as error:
            if self._address.create:
                return 0, 0, 0
            raise missing(error) from error
        return int(values[VISIBLE]), int(values[IN_FLIGHT]), int(values[DELAYED])

    def _redrive_target(self) -> Steps[tuple[str, str]]:
        """Account and name of the queue that gets the dead letters of somebody else's queue."""
        url = yield from self.tasks()
        # the name too, which every queue has: an answer without it tells nothing of the policy
        policy = (yield from read_attributes(url, [POLICY, ARN])).get(POLICY)
        if not policy:
            raise InvalidParameter(
                f"queue {self._address.name} has no dead-letter queue: give it a redrive policy"
            )
        return redrive_target(policy)


def read_attributes(url: str, names: list[str]) -> Steps[dict[str, str]]:
    """Some attributes of a queue; a redrive policy that it does not have is left out."""
    response = yield "get_queue_attributes", {"QueueUrl": url, "AttributeNames": names}
    found: dict[str, str] = response.get("Attributes", {})
    return found


def missing(error: QueueGone) -> InvalidParameter:
    """The error for a queue that should be there, since it is somebody else's."""
    return InvalidParameter(
        f"{error}; make it, or look whether account and region are the right ones"
    )


def _look_up(name: str, account: str) -> Steps[str]:
    owner = {"QueueOwnerAWSAccountId": account} if account else {}
    url: str = (yield "get_queue_url", {"QueueName": name, **owner})["QueueUrl"]
    return url


class AsyncCounter:
    """Counts the messages of an address again and again, through one asynchronous client."""

    def __init__(self, address: Address, client: Any) -> None:
        self._address = address
        self._client = client
        self._directory = Directory(address)

    async def counts(self) -> Counts:
        """Count once, without retries; errors are those of SqsQueue, and may pass."""
        try:
            return await self._take(self._directory.counts())
        except IgneousError:
            self._directory.urls.clear()  # the queue may have been removed and made again
            raise

    async def _take(self, steps: Generator[Any, Any, Result]) -> Result:
        try:
            operation, request = next(steps)
            while True:
                try:
                    with explained(self._address.name, operation):
                        answer = await getattr(self._client, operation)(**request)
                        response = checked(operation, request, answer)
                except IgneousError as error:
                    operation, request = steps.throw(error)
                else:
                    operation, request = steps.send(response)
        except StopIteration as end:
            result: Result = end.value
            return result
