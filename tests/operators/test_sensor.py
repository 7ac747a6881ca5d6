"""The sensor, waiting by itself and by the triggerer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    TaskDeferred,
)

from igneous_airflow.operators.sensor import StageDrainedSensor
from igneous_airflow.operators.trigger import StageDrainedTrigger
from igneous_airflow.progress import State
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample

pytestmark = pytest.mark.airflow

BOTH = pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "plain"])


@pytest.fixture
def run(make_layer: Callable[..., Path], tmp_path: Path) -> Run:
    """A run of four tasks that are in its queue."""
    run, _ = Run.launch(
        Downsample(layer=str(make_layer()), num_mips=1),
        url=f"file://{tmp_path}/run",
        queue=f"sqlite://{tmp_path}/run/queue.db",
        by="me",
    )
    run.enqueue()
    return run


def sensor(run: Run, **options: Any) -> StageDrainedSensor:
    arguments: dict[str, Any] = {"poke_interval": 0.01, "patience": 0.05, **options}
    return StageDrainedSensor(task_id="drained", run_url=run.url, **arguments)


def event(verdict: str, resends: int = 0, message: str = "") -> dict[str, Any]:
    return {"verdict": verdict, "resends": resends, "message": message}


def do(run: Run, tasks: int) -> None:
    """Take tasks from the queue and do them, as far as receipts tell."""
    queue = run.open_queue()
    for task in range(tasks):
        lease = queue.lease(60)
        assert lease is not None
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=1, worker="me"))
        queue.done(lease)


def give_up(run: Run) -> None:
    """Bury the next task, as workers do."""
    queue = run.open_queue()
    lease = queue.lease(60)
    assert lease is not None
    queue.bury(lease, "it is broken")


@BOTH
def test_a_run_that_is_done_ends_the_wait_at_once(run: Run, deferrable: bool) -> None:
    do(run, 4)
    sensor(run, deferrable=deferrable).execute({})


@BOTH
def test_a_failed_run_fails_at_once_without_a_retry(run: Run, deferrable: bool) -> None:
    do(run, 3)
    give_up(run)
    with pytest.raises(AirflowFailException, match=r"1 of 4 tasks .* they were given up"):
        sensor(run, deferrable=deferrable).execute({})


def test_an_undecided_run_is_left_to_the_triggerer(run: Run) -> None:
    do(run, 1)
    with pytest.raises(TaskDeferred) as deferred:
        sensor(run, poke_interval=0.01, timeout=100).execute({})
    trigger = deferred.value.trigger
    assert isinstance(trigger, StageDrainedTrigger)
    assert trigger.run_url == run.url
    assert trigger.intervals == (1, 60), "a trigger that fires at once is lost"
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout.total_seconds() > 100, "the trigger itself comes first"


def test_the_task_goes_on_as_the_trigger_says(run: Run) -> None:
    do(run, 3)
    give_up(run)
    sensor(run).execute_complete({}, event("done"))
    with pytest.raises(AirflowFailException, match="they were given up"):
        sensor(run).execute_complete({}, event("failed"))
    with pytest.raises(AirflowSensorTimeout, match="undecided after 100 seconds"):
        sensor(run, timeout=100).execute_complete({}, event("timeout"))
    with pytest.raises(AirflowException, match=r"cannot look at .* RunNotFound") as caught:
        sensor(run).execute_complete({}, event("error", message="RunNotFound: ..."))
    assert not isinstance(caught.value, AirflowFailException)


def test_lost_messages_are_sent_again_three_times(run: Run) -> None:
    do(run, 1)
    for resends in range(3):
        run.open_queue().purge()
        with pytest.raises(TaskDeferred) as deferred:
            sensor(run).execute_complete({}, event("lost", resends))
        assert deferred.value.trigger.resends == resends + 1
        assert run.progress().waiting == 3
    run.open_queue().purge()
    with pytest.raises(AirflowFailException, match="their messages are gone"):
        sensor(run).execute_complete({}, event("lost", 3))


def test_a_plain_sensor_sends_lost_messages_again_and_gives_up_when_nobody_takes_them(
    run: Run,
) -> None:
    run.open_queue().purge()
    with pytest.raises(AirflowFailException, match="no worker has come yet"):
        sensor(run, deferrable=False).execute({})
    assert run.progress().waiting == 4
    assert run.progress().state is State.WAITING


def test_a_plain_sensor_waits_while_others_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sensor(run, deferrable=False, patience=60)
    monkeypatch.setattr("time.sleep", lambda _seconds: do(run, 4))
    plain.execute({})


def test_an_undecided_run_ends_at_the_timeout_of_a_plain_sensor(run: Run) -> None:
    with pytest.raises(AirflowSensorTimeout):
        sensor(run, deferrable=False, patience=60, timeout=0.05).execute({})


def test_deferrable_or_not_the_sensor_is_retried(run: Run) -> None:
    assert sensor(run).retries >= 1
