"""Runs whose queue is on SQS, as Airflow sees them: a real server, real clients, real mishaps."""

import asyncio
import itertools
import json
import runpy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from igneous_airflow.errors import AccessDenied
from igneous_airflow.operators import aws, trigger
from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.settings import load_run
from igneous_airflow.operators.stage import (
    EnqueueStage,
    FinishStage,
    PlanStage,
)
from igneous_airflow.operators.trigger import StageDrainedTrigger
from igneous_airflow.operators.workers import LocalWorkers
from igneous_airflow.progress import State
from igneous_airflow.queue import sqs_queues
from igneous_airflow.queue.protocol import Lease, open_queue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_service import connect
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.worker.assignments import Assignment, Assignments
from igneous_airflow.worker.loop import Worker, WorkerOptions, fail

pytestmark = pytest.mark.airflow

SERVER = runpy.run_path(str(Path(__file__).parents[1] / "queue" / "sqs_server.py"))
SECRET = "the-secret-key-of-the-connection"
Make = Callable[..., Any]


def assigned(run: Run, lease: Lease) -> Assignment:
    return Assignments(run.runs_folder).of(lease.body)


STEP = Step(Downsample)
FORM = Form(Chain((STEP,)))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start the server; where it cannot be installed, skip on a laptop and fail in CI."""
    with SERVER["required"]() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def connection(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Airflow a Connection with all that is needed, and the environment no credentials."""
    extra = {"region_name": "eu-west-1", "service_config": {"sqs": {"endpoint_url": endpoint}}}
    value = {"conn_type": "aws", "login": "AKIATESTING", "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(value))
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", "sqs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sqs_queues, "_CREATED_SECONDS", 0)
    monkeypatch.setattr(sqs_queues, "_PURGED_SECONDS", 0)
    monkeypatch.setattr(trigger, "_LAG_SECONDS", 0.2)


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a person would use to look at the queues."""
    for name, value in SERVER["CREDENTIALS"].items():
        monkeypatch.setenv(name, value)
    client = connect(Address("any", "eu-west-1", endpoint))
    client.list_queues()  # takes up the credentials
    for name in SERVER["CREDENTIALS"]:
        monkeypatch.delenv(name)
    return client


numbers = itertools.count()


@pytest.fixture
def run(make_layer: Make, context: Make) -> Run:
    """A run of four tasks, planned, with its queue."""
    planned = PlanStage(task_id="plan", form=FORM, step=STEP).execute(
        context(layer=str(make_layer()), num_mips=1, run_id=f"manual-{next(numbers)}")
    )
    run = load_run(planned["run_url"])
    with closing(run.open_queue()) as queue:
        queue.send([])  # makes it
    return run


def names(client: Any) -> list[str]:
    return [url.rpartition("/")[2] for url in client.list_queues().get("QueueUrls", [])]


def work(run: Run, tasks: int = 1_000) -> None:
    """Work as a worker elsewhere does, with credentials of its own."""
    worker = Worker(
        run.open_queue(), run.runs_folder, WorkerOptions(idle_seconds=0, until_done=True), print
    )
    queue = run.open_queue()
    for _ in range(tasks):
        if (lease := queue.lease(60)) is None:
            break
        worker.settle(lease)
    queue.close()


def finish(run: Run) -> None:
    FinishStage(task_id="finish", run_url=run.url).execute({})


def test_a_run_has_a_queue_of_its_own_until_it_is_proved(run: Run, client: Any) -> None:
    assert EnqueueStage(task_id="enqueue", run_url=run.url).execute({}) == ["local"]
    name = Address.parse(run.queue).name
    assert {name, f"{name}-dead"} <= set(names(client))
    there = {"QueueUrl": client.get_queue_url(QueueName=name)["QueueUrl"]}
    assert client.list_queue_tags(**there)["Tags"]["application"] == "igneous_airflow"
    attributes = client.get_queue_attributes(**there, AttributeNames=["All"])["Attributes"]
    assert json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].endswith(f"{name}-dead")
    assert int(attributes["VisibilityTimeout"]) > 0

    with pytest.raises(AirflowFailException, match="are not done"):
        finish(run)
    assert name in names(client), "tasks are not done: the run can be resumed"
    work(run)
    finish(run)
    assert not {name, f"{name}-dead"} & set(names(client))


def test_secrets_stay_in_the_connection(
    run: Run, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    EnqueueStage(task_id="enqueue", run_url=run.url).execute({})
    kept = [path.read_text() for path in Path(run.url.removeprefix("file://")).rglob("*.json")]
    queue = run.open_queue()
    lease = queue.lease(1)
    assert lease is not None
    queue.close()
    said = capsys.readouterr()
    for text in (*kept, lease.body, run.queue, said.out, said.err):
        assert SECRET not in text
        assert "AKIATESTING" not in text
    with pytest.raises(Exception, match="no AWS credentials"):
        open_queue(run.queue).counts()  # the address alone opens nothing
    run.open_queue().delete()


def test_the_plan_in_the_log_says_what_the_queue_costs(
    run: Run, capsys: pytest.CaptureFixture[str], context: Make, make_layer: Make
) -> None:
    capsys.readouterr()
    step = PlanStage(task_id="plan", form=FORM, step=STEP)
    step.execute(context(layer=str(make_layer("x")), num_mips=1, run_id="cost", batch=3))
    log = capsys.readouterr().out
    assert "2 tasks" in log
    assert "each task works on 3 blocks" in log
    assert "costs 3 requests to SQS" in log
    run.open_queue().delete()


def test_a_queue_that_is_there_is_used_and_left(
    make_layer: Make, context: Make, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = client.create_queue(QueueName="theirs-dead")["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]
    policy = {"deadLetterTargetArn": arn["QueueArn"], "maxReceiveCount": "5"}
    attributes = {"RedrivePolicy": json.dumps(policy)}
    theirs = client.create_queue(QueueName="theirs", Attributes=attributes)["QueueUrl"]
    client.send_message(QueueUrl=dead, MessageBody="of another run, long ago")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", "theirs = sqs://theirs")
    planned = PlanStage(task_id="plan", form=FORM, step=STEP).execute(
        context(layer=str(make_layer()), num_mips=1, run_id="theirs", queue="theirs")
    )
    run = load_run(planned["run_url"])
    assert not run.own_queue
    EnqueueStage(task_id="enqueue", run_url=run.url).execute({})
    work(run, tasks=3)
    assert run.progress().state is State.INTERRUPTED
    work(run)
    assert run.progress().dead == 0, "dead letters of others are not this run's"
    finish(run)
    assert {"theirs", "theirs-dead"} <= set(names(client))
    client.delete_queue(QueueUrl=theirs)
    client.delete_queue(QueueUrl=dead)


def test_a_queue_that_should_be_there_but_is_not_fails_before_anything_is_sent(
    make_layer: Make, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", "sqs://nowhere")
    planned = PlanStage(task_id="plan", form=FORM, step=STEP).execute(
        context(layer=str(make_layer()), run_id="none", queue="sqs://nowhere")
    )
    with pytest.raises(AirflowFailException, match="nowhere does not exist"):
        EnqueueStage(task_id="enqueue", run_url=planned["run_url"]).execute({})


def test_local_workers_get_the_keys_of_the_connection_by_their_environment(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.prepare()
    run.enqueue()
    capsys.readouterr()
    LocalWorkers(task_id="workers", run_url=run.url).execute({"params": {"workers": 1}})
    log = capsys.readouterr().out
    assert "100.0 % done" in log
    assert log.count("credentials retrieved") <= 2, "Airflow is not asked at every look"
    assert run.progress().state is State.DONE
    finish(run)


def test_keys_that_would_expire_are_not_handed_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aws.static_keys("aws_default")["AWS_SECRET_ACCESS_KEY"] == SECRET
    value = {"conn_type": "aws", "login": "key", "password": "secret"}
    for extra in ({"aws_session_token": "token"}, {"role_arn": "arn:aws:iam::1:role/r"}):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**value, "extra": extra}))
        assert aws.static_keys("other") == {}
    assert aws.static_keys("missing") == {}


# the trigger


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> "Requests":
    """Records what the trigger's clients do, and answers as told."""
    requests = Requests()
    make = aws.make_async_client

    def make_client(conn_id: str, address: Address) -> Any:
        requests.clients += 1
        return requests.watched(make(conn_id, address))

    monkeypatch.setattr(aws, "make_async_client", make_client)
    return requests


class Requests:
    """Counts clients and requests, and changes what they answer."""

    def __init__(self) -> None:
        self.clients = 0
        self.made: Counter[str] = Counter()
        self.answers: list[Callable[[dict[str, Any]], dict[str, Any]]] = []

    def watched(self, context: Any) -> Any:
        outer = self

        class Watched:
            async def __aenter__(self) -> "Watched":
                self.client = await context.__aenter__()
                return self

            async def __aexit__(self, *error: Any) -> None:
                await context.__aexit__(*error)

            def __getattr__(self, operation: str) -> Any:
                async def call(**request: Any) -> Any:
                    outer.made[operation] += 1
                    response = await getattr(self.client, operation)(**request)
                    if operation == "get_queue_attributes" and outer.answers:
                        return outer.answers.pop(0)(response)
                    return response

                return call

        return Watched()


def trigger_of(run: Run, **changes: Any) -> StageDrainedTrigger:
    arguments: dict[str, Any] = {
        "run_url": run.url,
        "intervals": [0.05, 0.1],
        "patience": 30.0,
        "until": time.time() + 60,
        "resends": 0,
        "aws_conn_id": "aws_default",
    }
    return StageDrainedTrigger(**{**arguments, **changes})


async def verdict(trigger: StageDrainedTrigger) -> str:
    (event,) = [event async for event in trigger.run()]
    return f"{event.payload['verdict']} {event.payload['message']}".strip()


def zero(response: dict[str, Any]) -> dict[str, Any]:
    """Let all counters be zero."""
    counters = dict.fromkeys(response["Attributes"], "0")
    return {**response, "Attributes": counters}


def throttled(_response: dict[str, Any]) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    error = {"Error": {"Code": "RequestThrottled", "Message": "slow down"}}
    raise ClientError(error, "GetQueueAttributes")


@pytest.mark.asyncio
async def test_the_trigger_asks_through_one_connection(run: Run, requests: Requests) -> None:
    run.enqueue()
    waiting = asyncio.create_task(verdict(trigger_of(run)))
    while requests.made["get_queue_attributes"] < 8:
        await asyncio.sleep(0.05)
    assert not waiting.done()
    await asyncio.to_thread(run.prepare)
    await asyncio.to_thread(work, run)
    assert await waiting == "done"
    assert requests.clients == 1
    assert requests.made["get_queue_url"] == 2
    await asyncio.to_thread(finish, run)


@pytest.mark.asyncio
async def test_counters_that_lie_for_a_while_decide_nothing(run: Run, requests: Requests) -> None:
    run.enqueue()
    requests.answers = [zero] * 4  # two looks
    assert await verdict(trigger_of(run, patience=0.5)) == "unattended", "and not lost"
    assert not requests.answers
    await asyncio.to_thread(run.open_queue().delete)


@pytest.mark.asyncio
async def test_lost_messages_are_found_out_and_sent_again(run: Run) -> None:
    run.enqueue()
    queue = run.open_queue()
    queue.purge()
    assert await verdict(trigger_of(run)) == "lost"
    assert run.enqueue() == 4
    await asyncio.to_thread(run.prepare)
    await asyncio.to_thread(work, run)
    assert await verdict(trigger_of(run)) == "done"
    await asyncio.to_thread(finish, run)


@pytest.mark.asyncio
async def test_tasks_given_up_are_found_in_the_dead_letters(run: Run) -> None:
    run.enqueue()
    queue = run.open_queue()
    while lease := queue.lease(60):
        queue.bury(lease, "broken")
    assert await verdict(trigger_of(run)) == "failed"
    queue.delete()


@pytest.mark.asyncio
async def test_that_workers_gave_up_all_that_is_left_is_believed_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters lag, the ledger does not."""
    monkeypatch.setattr(trigger, "_LAG_SECONDS", 60)
    run.enqueue()
    queue = run.open_queue()
    while lease := queue.lease(60):
        fail(queue, lease, assigned(run, lease), AccessDenied("no"), WorkerOptions())
    assert await asyncio.wait_for(verdict(trigger_of(run)), 20) == "failed"
    queue.delete()


@pytest.mark.asyncio
async def test_throttling_is_waited_for(run: Run, requests: Requests) -> None:
    run.prepare()
    run.enqueue()
    work(run)
    requests.answers = [throttled] * 3
    assert await verdict(trigger_of(run)) == "done"
    assert not requests.answers
    await asyncio.to_thread(finish, run)


@pytest.mark.asyncio
async def test_a_triggerer_that_is_restarted_goes_on(run: Run, requests: Requests) -> None:
    run.prepare()
    run.enqueue()
    path, arguments = trigger_of(run).serialize()
    first = asyncio.create_task(verdict(StageDrainedTrigger(**json.loads(json.dumps(arguments)))))
    while not requests.made:
        await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.to_thread(work, run)
    again = StageDrainedTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert await verdict(again) == "done"
    assert SECRET not in json.dumps(arguments)
    await asyncio.to_thread(finish, run)


@pytest.mark.asyncio
async def test_a_queue_that_is_gone_holds_nothing(run: Run) -> None:
    run.open_queue().delete()
    assert await verdict(trigger_of(run)) == "lost"


@pytest.mark.asyncio
async def test_a_denied_look_is_an_error_that_names_the_permission(
    run: Run, requests: Requests
) -> None:
    def denied(_response: dict[str, Any]) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        error = {"Error": {"Code": "AccessDenied", "Message": "not authorized"}}
        raise ClientError(error, "GetQueueAttributes")

    requests.answers = [denied]
    said = await verdict(trigger_of(run))
    assert said.startswith("error AccessDenied:")
    assert "grant sqs:GetQueueAttributes" in said
    await asyncio.to_thread(run.open_queue().delete)
