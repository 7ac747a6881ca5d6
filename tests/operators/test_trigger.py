"""Watching a run, and the trigger that does so in the triggerer."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.module_loading import import_string

from igneous_airflow.errors import StorageUnavailable
from igneous_airflow.operators.trigger import Rhythm, StageDrainedTrigger, Verdict, Watch
from igneous_airflow.progress import Progress
from igneous_airflow.run import Run

pytestmark = pytest.mark.airflow


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_with_every_receipt_is_done() -> None:
    assert Watch(60).judge(Progress(planned=3, done=3, dead=1)) is Verdict.DONE


def test_a_run_with_tasks_given_up_and_nothing_left_has_failed() -> None:
    assert Watch(60).judge(Progress(planned=3, done=2, dead=1)) is Verdict.FAILED


def test_tasks_given_up_do_not_end_the_wait_while_others_are_worked_on() -> None:
    assert Watch(60).judge(Progress(planned=3, done=1, dead=1, leased=1)) is Verdict.WAIT


def test_lost_messages_are_believed_at_the_second_look() -> None:
    watch, lost = Watch(60), Progress(planned=3, done=1)
    assert watch.judge(lost) is Verdict.WAIT
    assert watch.judge(lost) is Verdict.LOST


def test_a_queue_from_which_nobody_takes_is_unattended_when_patience_ends() -> None:
    clock = Clock()
    watch, waiting = Watch(60, clock), Progress(planned=3, done=1, waiting=2)
    assert watch.judge(waiting) is Verdict.WAIT
    clock.now = 59
    assert watch.judge(waiting) is Verdict.WAIT
    clock.now = 60
    assert watch.judge(waiting) is Verdict.UNATTENDED


def test_any_change_renews_the_patience() -> None:
    clock = Clock()
    watch = Watch(60, clock)
    watch.judge(Progress(planned=3, done=1, waiting=2))
    clock.now = 59
    watch.judge(Progress(planned=3, done=2, waiting=1))
    clock.now = 118
    assert watch.judge(Progress(planned=3, done=2, waiting=1)) is Verdict.WAIT


def test_a_long_task_may_take_longer_than_the_patience_while_its_lease_lives() -> None:
    clock = Clock()
    watch, leased = Watch(60, clock), Progress(planned=3, done=1, waiting=1, leased=1)
    for clock.now in (0, 1000, 2000):
        assert watch.judge(leased) is Verdict.WAIT


def test_counters_that_lag_are_believed_when_nothing_changes_for_a_minute() -> None:
    for lost, verdict in (
        (Progress(planned=3, done=1, exact=False), Verdict.LOST),
        (Progress(planned=3, done=1, dead=1, exact=False), Verdict.FAILED),
    ):
        clock = Clock()
        watch = Watch(600, clock)
        seen = []
        for clock.now in (0, 30, 59, 60):
            seen.append(watch.judge(lost))
        assert seen == [Verdict.WAIT] * 3 + [verdict]
        clock.now = 61
        assert watch.judge(lost.model_copy(update={"done": 2})) is Verdict.WAIT
        clock.now = 200
        assert watch.judge(lost.model_copy(update={"done": 2})) is Verdict.WAIT, "two looks"
        assert watch.judge(lost.model_copy(update={"done": 2})) is verdict


def test_the_receipts_of_a_run_are_believed_whatever_the_counters_say() -> None:
    assert Watch(60).judge(Progress(planned=3, done=3, waiting=9, exact=False)) is Verdict.DONE


def test_looks_become_rare_while_nothing_happens_and_frequent_near_the_end() -> None:
    clock = Clock()
    rhythm = Rhythm(5, 60, clock)
    still = Progress(planned=1000, done=0, waiting=1000)
    pauses = [rhythm.seconds(None), *(rhythm.seconds(still) for _ in range(8))]
    assert pauses[:3] == [5, 7.5, 11.25]
    assert pauses[-2:] == [60, 60]
    clock.now = 100
    assert rhythm.seconds(still.model_copy(update={"done": 100})) == 60, "900 seconds are left"
    clock.now = 900
    assert rhythm.seconds(still.model_copy(update={"done": 900})) == pytest.approx(100 / 3)
    clock.now = 999
    assert rhythm.seconds(still.model_copy(update={"done": 999})) == 5


def trigger(**changes: Any) -> StageDrainedTrigger:
    arguments: dict[str, Any] = {
        "run_url": "file:///nowhere/run",
        "intervals": [0.01, 0.02],
        "patience": 60.0,
        "until": time.time() + 60,
        "resends": 2,
        "aws_conn_id": "aws_default",
    }
    return StageDrainedTrigger(**{**arguments, **changes})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let every run look like this, one look after the other; errors are raised."""

    def see(*seen: Progress | Exception) -> None:
        remaining = list(seen)

        class Looked:
            queue = "sqlite:///queue.db"

            def progress(self) -> Progress:
                found = remaining.pop(0)
                if isinstance(found, Exception):
                    raise found
                return found

        monkeypatch.setattr(Run, "load", lambda _url: Looked())

    return see


def test_a_trigger_survives_the_way_through_the_database() -> None:
    path, arguments = trigger().serialize()
    again = import_string(path)(**json.loads(json.dumps(arguments)))
    assert isinstance(again, StageDrainedTrigger)
    assert again.serialize() == (path, arguments)


async def fired(trigger: StageDrainedTrigger) -> dict[str, Any]:
    events = [event async for event in trigger.run()]
    assert len(events) == 1
    payload: dict[str, Any] = json.loads(json.dumps(events[0].payload))
    return payload


@pytest.mark.asyncio
async def test_the_trigger_fires_when_the_run_is_decided(looks: Callable[..., None]) -> None:
    looks(
        Progress(planned=2, done=0, waiting=2),
        Progress(planned=2, done=1, leased=1),
        Progress(planned=2, done=2),
    )
    assert await fired(trigger()) == {"verdict": "done", "resends": 2, "message": ""}


@pytest.mark.asyncio
async def test_the_first_look_comes_after_an_interval(looks: Callable[..., None]) -> None:
    looks(Progress(planned=1, done=1))
    started = time.monotonic()
    await fired(trigger(intervals=[0.2, 0.2]))
    assert time.monotonic() - started >= 0.2


@pytest.mark.asyncio
async def test_storage_that_does_not_answer_for_a_while_is_waited_for(
    looks: Callable[..., None],
) -> None:
    looks(StorageUnavailable("try later"), Progress(planned=1, done=1))
    assert (await fired(trigger()))["verdict"] == "done"


@pytest.mark.asyncio
async def test_storage_that_never_answers_ends_at_the_deadline(looks: Callable[..., None]) -> None:
    looks(*[StorageUnavailable("try later")] * 2)
    assert (await fired(trigger(until=time.time() - 1)))["verdict"] == "timeout"


@pytest.mark.asyncio
async def test_an_undecided_run_ends_at_the_deadline(looks: Callable[..., None]) -> None:
    looks(Progress(planned=1, done=0, leased=1))
    assert (await fired(trigger(until=time.time() - 1)))["verdict"] == "timeout"


@pytest.mark.asyncio
async def test_an_error_becomes_an_event() -> None:
    event = await fired(trigger())
    assert event["verdict"] == "error"
    assert event["message"].startswith("RunNotFound: no run is recorded at file:///nowhere/run")
