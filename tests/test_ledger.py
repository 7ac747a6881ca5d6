"""Receipts and failures: what they say is what was done, once."""

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.ledger import DoneTasks, Failure, Ledger, Receipt
from igneous_airflow.stage import Work
from igneous_airflow.storage.files import StoredFile, open_folder


@pytest.fixture(params=["file", "mem"])
def url(request, tmp_path):
    return {"file": f"file://{tmp_path}/run", "mem": f"mem://{uuid.uuid4()}/run"}[request.param]


@pytest.fixture
def ledger(url):
    return Ledger(url)


def receipt(task, **changes):
    fields = {"task": task, "attempt": 1, "seconds": 0.5, "worker": "host-1"}
    return Receipt(**fields | changes)


def failure(task, attempt, **changes):
    fields = {"task": task, "attempt": attempt, "error": "MissingChunk: 💀", "final": False}
    return Failure(**fields, worker="host-1", at="2020-01-01T00:00:00Z", **changes)


def test_a_new_ledger_is_empty(ledger):
    done = ledger.done(3)
    assert done.count == 0
    assert list(done.missing()) == [0, 1, 2]
    assert list(ledger.receipts()) == []
    assert ledger.failures() == []
    assert ledger.failed_attempts() == 0
    assert not ledger.has_receipt(0)


def test_receipts_tell_which_tasks_are_done(ledger, url):
    for task in (0, 2, 7, 2):
        ledger.write_receipt(receipt(task))
    done = Ledger(url).done(8)
    assert done.count == 3
    assert [task for task in range(8) if task in done] == [0, 2, 7]
    assert list(done.missing()) == [1, 3, 4, 5, 6]
    assert [ledger.has_receipt(task) for task in range(3)] == [True, False, True]


def test_a_receipt_is_read_as_it_was_written_and_the_last_one_counts(ledger):
    ledger.write_receipt(receipt(5, attempt=1))
    second = receipt(5, attempt=2, work=Work(voxels=2**60, chunks_written=3, bytes_written=9))
    ledger.write_receipt(second)
    assert list(ledger.receipts()) == [second]


def test_receipts_beyond_the_plan_and_files_of_others_do_not_count(ledger, url):
    ledger.write_receipt(receipt(9))
    folder = open_folder(url)
    for name in ("notes.txt", "x", "0000000001.tmp"):
        folder.write(f"done/{name}", StoredFile(b"1"))
    assert ledger.done(3).count == 0


def test_each_failed_attempt_is_kept(ledger):
    for task, attempt in ((1, 1), (0, 2), (0, 1), (0, 1)):
        ledger.write_failure(failure(task, attempt, traceback="Traceback\n  é"))
    assert ledger.failed_attempts() == 3
    assert [(f.task, f.attempt) for f in ledger.failures()] == [(0, 1), (0, 2), (1, 1)]
    assert len(ledger.failures(limit=2)) == 2
    assert ledger.failures()[0] == failure(0, 1, traceback="Traceback\n  é")


def test_attempts_are_in_order_however_many_there_are(ledger):
    for attempt in (10, 9, 2):
        ledger.write_failure(failure(0, attempt))
    assert [f.attempt for f in ledger.failures()] == [2, 9, 10]


def test_forgetting_failures_keeps_receipts(ledger):
    ledger.write_receipt(receipt(1))
    ledger.write_failure(failure(0, 1))
    ledger.forget_failures()
    assert ledger.failures() == []
    assert ledger.done(2).count == 1


def test_a_forgotten_run_can_be_recorded_again(ledger):
    ledger.write_receipt(receipt(1))
    ledger.write_failure(failure(0, 1))
    ledger.forget_everything()
    assert ledger.done(2).count == ledger.failed_attempts() == 0
    ledger.write_receipt(receipt(0))
    assert list(ledger.done(2).missing()) == [1]


@given(st.integers(0, 50), st.lists(st.integers(-5, 60)))
@settings(deadline=None)
def test_done_tasks_are_a_set_of_planned_numbers(planned, tasks):
    done = DoneTasks(planned)
    for task in tasks:
        done.add(task)
    expected = set(tasks) & set(range(planned))
    assert done.count == len(expected)
    assert {task for task in range(planned) if task in done} == expected
    assert list(done.missing()) == sorted(set(range(planned)) - expected)
