"""The policies in the documents permit what is asked of SQS, and no more."""

import json
import uuid
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.testing.queues import take

POLICIES = Path(__file__).parents[3] / "docs" / "policies"


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
    name = f"igneous-run-{uuid.uuid4().hex[:8]}"
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
