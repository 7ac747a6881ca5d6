"""Queues that are made, and queues that are there."""

import json
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue import sqs_queues
from igneous_airflow.queue.protocol import Counts, open_queue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.testing.queues import take


def queue_names(client: Any, prefix: str) -> list[str]:
    urls = client.list_queues(QueueNamePrefix=prefix).get("QueueUrls", [])
    return sorted(url.rpartition("/")[2] for url in urls)


def test_only_send_makes_the_queue(url: str, client: Any, name_of: Any) -> None:
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


def test_a_queue_is_made_with_tags_retention_and_dead_letters(
    url: str, client: Any, name_of: Any
) -> None:
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
        if holds == "tasks":  # a receipt is no failure: workers count those
            assert int(policy["maxReceiveCount"]) == 1_000
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


def test_a_queue_that_should_be_there_but_is_not_is_named(url: str, name_of: Any) -> None:
    for at in (f"{url}&create=false", full_url(url)):
        queue = open_queue(at)
        for use in (lambda: queue.send(["a"]), lambda: queue.lease(60), queue.counts):  # noqa: B023
            with pytest.raises(InvalidParameter, match=f"{name_of(url)} does not exist.*region"):
                use()
        queue.close()


@pytest.fixture
def foreign(url: str, client: Any, name_of: Any) -> Iterator[tuple[str, str]]:
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
    foreign: tuple[str, str], client: Any, name_of: Any
) -> None:
    name = f"{name_of(foreign[0])}-graveyard"
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
