"""Workers leave notes while they live, take them away at the end, and are never held up by them."""

import os

import pytest

from igneous_airflow.run import Run
from igneous_airflow.worker import presence as presence_module
from igneous_airflow.worker.presence import Presence


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(presence_module, "_PERIOD", 0.05)


@pytest.fixture
def run(held_layer, tmp_path) -> Run:
    return held_layer.launch(tmp_path / "state")


def message(run: Run) -> str:
    queue = run.open_queue()
    lease = queue.lease(60)
    queue.close()
    assert lease is not None
    return lease.body


def test_a_worker_is_seen_with_its_task_until_it_is_gone(run, wait_until):
    with Presence(run.runs_folder) as presence:
        presence.takes(17, message(run))
        wait_until(lambda: [note.task for note in run.ledger.workers(10)] == [0])
        assert run.ledger.workers(10)[0].worker.endswith(":17")
        presence.rests(17)
        wait_until(lambda: [note.task for note in run.ledger.workers(10)] == [None])
        presence.gone(17)
        assert run.ledger.workers(10) == []


def test_notes_are_taken_away_at_the_end(run, wait_until):
    with Presence(run.runs_folder) as presence:
        for process in (17, 18):
            presence.takes(process, message(run))
        wait_until(lambda: len(run.ledger.workers(10)) == 2)
    assert run.ledger.workers(10) == []


def test_a_message_of_somebody_elses_and_a_storage_that_fails_hold_nobody_up(run, monkeypatch):
    monkeypatch.setattr("igneous_airflow.ledger.Ledger.note_worker", None)
    with Presence(run.runs_folder) as presence:
        presence.takes(17, "no task at all")
        presence.takes(18, message(run))
        presence.rests(19)
        presence.gone(20)
    assert os.getpid()
