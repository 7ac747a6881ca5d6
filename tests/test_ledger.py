"""Receipts and failures: what they say is what was done, once."""

import json
import re
import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AuditFailed, InvalidParameter
from igneous_airflow.ledger import DoneTasks, Failure, Ledger
from igneous_airflow.proof import FoundFile, require_files
from igneous_airflow.receipts import Receipt
from igneous_airflow.stage import Work
from igneous_airflow.storage.files import StoredFile, open_folder

LAUNCH = "1a2b"


@pytest.fixture(params=["file", "mem"])
def url(request, tmp_path):
    return {"file": f"file://{tmp_path}/run", "mem": f"mem://{uuid.uuid4()}/run"}[request.param]


@pytest.fixture
def ledger(url):
    return Ledger(url, LAUNCH)


def receipt(task, **changes):
    fields = {"task": task, "attempt": 1, "seconds": 0.5, "worker": "host-1"}
    return Receipt(**fields | changes)


def failure(task, attempt, **changes):
    fields = {"task": task, "attempt": attempt, "error": "MissingChunk: 💀", "final": False}
    return Failure(**fields | changes, worker="host-1", at="2020-01-01T00:00:00Z")


def test_a_new_ledger_is_empty(ledger):
    done = ledger.done(3)
    assert done.count == 0
    assert list(done.missing()) == [0, 1, 2]
    assert list(ledger.read_receipts()) == []
    assert last_failures(ledger) == []
    assert ledger.failed_attempts() == ledger.failed_attempts_at(0) == ledger.given_back(0) == 0
    assert ledger.given_up(done) == 0
    assert not ledger.has_receipt(0)
    assert ledger.receipt(0) is None


def test_receipts_tell_which_tasks_are_done(ledger, url):
    for task in (0, 2, 7, 2):
        ledger.write_receipt(receipt(task))
    done = Ledger(url, LAUNCH).done(8)
    assert done.count == 3
    assert [task for task in range(8) if task in done] == [0, 2, 7]
    assert list(done.missing()) == [1, 3, 4, 5, 6]
    assert [ledger.has_receipt(task) for task in range(3)] == [True, False, True]


def test_a_receipt_is_read_as_it_was_written_and_the_last_one_counts(ledger):
    ledger.write_receipt(receipt(5, attempt=1))
    second = receipt(5, attempt=2, work=Work(voxels=2**60, chunks_written=3, bytes_written=9))
    ledger.write_receipt(second)
    assert list(ledger.read_receipts()) == [([5], [second])]


def test_receipts_beyond_the_plan_and_files_of_others_do_not_count(ledger, url):
    ledger.write_receipt(receipt(9))
    folder = open_folder(url)
    for name in ("notes.txt", "x", "0000000001", "0000000001.tmp", f"one-{LAUNCH}", f"-1-{LAUNCH}"):
        folder.write(f"done/{name}", StoredFile(b"1"))
    assert ledger.done(3).count == 0


def test_what_another_launch_left_does_not_count(ledger, url):
    older = Ledger(url, "0f0f")
    older.write_receipt(receipt(1, work=Work(left_out=("8_8_40/0-8_0-8_0-8",))))
    older.write_failure(failure(0, 1, final=True))
    older.note_given_back(2)
    done = ledger.done(3)
    assert done.count == 0
    assert not ledger.has_receipt(1)
    assert list(ledger.read_receipts()) == last_failures(ledger) == []
    assert ledger.failed_attempts() == ledger.failed_attempts_at(0) == ledger.given_back(2) == 0
    assert ledger.given_up(done) == 0
    assert list(ledger.account(3, 3, 1).tasks()) == []


def test_a_long_receipt_is_compressed(tmp_path):
    names = tuple(f"16_16_40/{n}-{n + 64}_0-64_0-64" for n in range(0, 64_000, 64))
    ledger = Ledger(f"file://{tmp_path}", LAUNCH)
    ledger.write_receipt(receipt(0, work=Work(left_out=names)))
    (file,) = (tmp_path / "done").iterdir()
    assert file.suffix == ".gz"
    assert file.stat().st_size < 10_000 < len(str(names))
    assert ledger.receipt(0).work.left_out == names
    assert ledger.has_receipt(0)
    assert ledger.done(1).count == 1


def test_what_receipts_say_is_added_up_without_names(ledger):
    for task in range(3):
        ledger.write_receipt(receipt(task, work=Work(voxels=2**60, left_out=(f"{task}",))))
    assert ledger.account(3, 3, 1).read_all() == Work(voxels=3 * 2**60)


def last_failures(ledger, planned=100, limit=1000):
    return ledger.last_failures(ledger.done(planned), limit)


def test_each_failed_attempt_is_kept_and_the_last_one_tells(ledger):
    for task, attempt in ((1, 1), (0, 2), (0, 1), (0, 1)):
        ledger.write_failure(failure(task, attempt, traceback="Traceback\n  é"))
    assert ledger.failed_attempts() == 3
    assert [ledger.failed_attempts_at(task) for task in range(3)] == [2, 1, 0]
    assert [(f.task, f.attempt) for f in last_failures(ledger)] == [(0, 2), (1, 1)]
    assert len(last_failures(ledger, limit=1)) == 1
    assert last_failures(ledger)[0] == failure(0, 2, traceback="Traceback\n  é")


def test_attempts_are_in_order_however_many_there_are(ledger):
    for attempt in (10, 9, 2):
        ledger.write_failure(failure(0, attempt))
    assert [f.attempt for f in last_failures(ledger)] == [10]


def test_tasks_that_were_given_up_count_unless_they_were_done_after_all(ledger):
    ledger.write_failure(failure(0, 1))
    ledger.write_failure(failure(1, 2, final=True))
    ledger.write_failure(failure(2, 1, final=True))
    assert ledger.given_up(ledger.done(3)) == 2
    ledger.write_receipt(receipt(2))
    assert ledger.given_up(ledger.done(3)) == 1
    assert [f.task for f in last_failures(ledger)] == [0, 1]


def test_a_task_that_was_given_back_is_counted(ledger):
    for _ in range(3):
        ledger.note_given_back(7)
    assert [ledger.given_back(task) for task in (6, 7)] == [0, 3]
    assert ledger.failed_attempts() == 0


def test_forgetting_failures_keeps_receipts(ledger):
    ledger.write_receipt(receipt(1))
    ledger.write_failure(failure(0, 1, final=True))
    ledger.note_given_back(0)
    ledger.forget_failures()
    assert last_failures(ledger) == []
    assert ledger.given_up(ledger.done(2)) == ledger.given_back(0) == 0
    assert ledger.done(2).count == 1


def test_a_forgotten_run_leaves_nothing_and_can_be_recorded_again(ledger, url):
    ledger.write_receipt(receipt(1, work=Work(left_out=("a",))))
    ledger.write_failure(failure(0, 1, final=True))
    ledger.note_given_back(0)
    ledger.forget_everything()
    assert ledger.done(2).count == ledger.failed_attempts() == 0
    for kind in ("done", "left_out", "failed", "given_up", "given_back"):
        assert list(open_folder(url).names(kind)) == []
    ledger.write_receipt(receipt(0))
    assert list(ledger.done(2).missing()) == [1]


# What tasks say of their files


def missing(ledger, absent, batch=1, tasks=9):
    """Which of the absent files of each block no task has left out."""
    files = dict(absent)

    def files_of(block):
        return [FoundFile(name, None) for name in files.get(block, ())]

    account = ledger.account(tasks, tasks * batch, batch)
    try:
        require_files(files_of, tasks * batch, "the layer", account)
    except AuditFailed as failed:
        named = re.search(r": (.*)\.$", str(failed))
        return named[1].split(", "), list(failed.cells)
    return [], []


def leave_out(ledger, task, *names):
    ledger.write_receipt(receipt(task, work=Work(chunks_skipped=len(names), left_out=names)))


def test_files_that_no_task_left_out_are_missing(ledger):
    ledger.write_receipt(receipt(0))
    leave_out(ledger, 1, "b")
    assert missing(ledger, [(0, ["a"])]) == (["a"], [0])
    assert missing(ledger, []) == ([], [])


def test_what_a_task_left_out_may_be_absent(ledger):
    leave_out(ledger, 3, "a", "b", "c")
    assert missing(ledger, [(3, ["c", "a", "b"])]) == ([], [])


def test_a_file_that_was_lost_beside_those_left_out_is_found(ledger):
    for task in (2, 5):
        leave_out(ledger, task)
    leave_out(ledger, 3, "a", "b")
    leave_out(ledger, 4, "d")
    absent = [(2, ["x"]), (3, ["a", "b", "lost"]), (4, ["d"]), (5, ["y", "z"])]
    assert missing(ledger, absent) == (["x", "lost", "y", "z"], [2, 3, 5])


def test_a_file_that_was_lost_in_place_of_one_left_out_is_found(ledger):
    """As many files are absent as were left out: one of an earlier run is there all the same."""
    leave_out(ledger, 0, "a", "b")
    assert missing(ledger, [(0, ["a", "lost"])]) == (["lost"], [0])


def test_files_of_an_earlier_run_where_some_were_left_out_are_named(ledger):
    leave_out(ledger, 0, "a", "b")
    assert missing(ledger, [(0, ["b"])]) == ([], [])
    said = wrong_among(ledger, [FoundFile("a", 9), FoundFile("b", None)])
    assert "a (there, although the new voxels are background: set skip_empty to delete)" in said
    assert "b" not in said.partition(": ")[2].partition(" (")[0]


def test_a_task_that_left_out_other_files_when_it_was_repeated_is_believed_the_last_time(ledger):
    leave_out(ledger, 0, "a", "b")
    leave_out(ledger, 0, "a")
    assert missing(ledger, [(0, ["a"])]) == ([], [])
    assert missing(ledger, [(0, ["a", "b"])]) == (["b"], [0])


def test_a_receipt_that_was_withdrawn_counts_no_more(ledger):
    leave_out(ledger, 0, "a")
    leave_out(ledger, 1, "b")
    ledger.withdraw([1, 7])
    assert list(ledger.done(2).missing()) == [1]
    assert [written.blocks for written in ledger.account(2, 2, 1).tasks()] == [range(1)]


def test_a_task_of_several_blocks_tells_what_all_of_them_left_out(ledger):
    leave_out(ledger, 0, "0a", "2b")
    leave_out(ledger, 1, "3a")
    absent = [(0, ["0a"]), (2, ["2b"]), (3, ["3a", "lost"]), (5, ["lost too"])]
    assert missing(ledger, absent, batch=3) == (["lost", "lost too"], [3, 5])


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_exactly_what_was_left_out_may_be_absent(data):
    ledger = Ledger(f"mem://{uuid.uuid4()}/run", LAUNCH)
    batch = data.draw(st.integers(1, 3))
    names = st.sampled_from([set(), {"a"}, {"b"}])
    left_out = data.draw(st.dictionaries(st.integers(0, 8), names, max_size=9))
    absent = data.draw(st.dictionaries(st.integers(0, 8), names, max_size=9))
    for task in range(9):
        blocks = range(task * batch, task * batch + batch)
        leave_out(ledger, task, *(f"{c}{n}" for c in blocks for n in left_out.get(c, ())))
    listed = [(block, [f"{block}{n}" for n in absent[block]]) for block in sorted(absent)]
    lost = {
        f"{block}{name}" for block in absent for name in absent[block] - left_out.get(block, set())
    }
    named, blocks = missing(ledger, listed, batch)
    assert set(named) == lost
    assert blocks == sorted({int(name[0]) for name in lost})


def write_older(url, **fields):
    """Write a receipt of format 1, which says nothing of files."""
    older = {"task": 0, "attempt": 1, "seconds": 1.5, "worker": "h:1"} | fields
    name = f"done/{older['task']:010d}-{LAUNCH}"
    open_folder(url).write(name, StoredFile(json.dumps(older).encode()))


def wrong_among(ledger, found):
    """What is wrong with files of one task that are as `found`."""
    account = ledger.account(1, 1, 1)
    try:
        require_files(lambda _: found, 1, "layer", account)
    except AuditFailed as failed:
        return f"{failed.cells}: {failed}"
    return ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a": 10, "b": 7}, ""),
        ({"a": 10, "b": 0}, r"b \(0 bytes, not 7\)"),
        ({"a": 9, "b": 7}, r"a \(9 bytes, not 10\)"),
        ({"a": 10, "b": 8}, r"b \(8 bytes, not 7\)"),
        ({"a": 10, "b": None}, r": b\."),
        ({"a": 10, "b": 7, "c": 1}, r"c \(there, but its task did not write it\)"),
    ],
)
def test_files_of_other_sizes_than_their_task_recorded_are_named(ledger, found, words):
    ledger.write_receipt(receipt(0, work=Work(files={"a": 10, "b": 7})))
    said = wrong_among(ledger, [FoundFile(*pair) for pair in found.items()])
    assert re.search(words, said)
    assert bool(words) == bool(said)


@pytest.mark.parametrize(("size", "is_fine"), [(0, False), (1, True), (99, True), (None, False)])
def test_without_recorded_sizes_a_file_must_have_a_possible_one(ledger, url, size, is_fine):
    """As receipts of format 1 do, which say nothing of sizes."""
    write_older(url)
    assert (wrong_among(ledger, [FoundFile("a", size)]) == "") is is_fine


@pytest.mark.parametrize("size", [0, 11, 21])
def test_a_size_that_was_recorded_must_be_possible_as_well(ledger, size):
    ledger.write_receipt(receipt(0, work=Work(files={"a": size})))
    said = wrong_among(ledger, [FoundFile("a", size, 12, 20)])
    assert f"a ({size} bytes, not 12 to 20)" in said


def test_a_receipt_that_names_no_files_proves_none(ledger):
    ledger.write_receipt(receipt(0))
    assert "a (there, but its task did not write it)" in wrong_among(ledger, [FoundFile("a", 9)])


def test_a_file_in_two_compressions_is_named(ledger):
    ledger.write_receipt(receipt(0, work=Work(files={"a": 9})))
    said = wrong_among(ledger, [FoundFile("a", 9, is_twice=True)])
    assert "a (there in two compressions" in said


def test_a_receipt_of_format_1_is_read(ledger, url):
    write_older(url, task=3, attempt=2, work={"voxels": 9})
    assert ledger.receipt(3) == receipt(
        3, attempt=2, seconds=1.5, worker="h:1", work=Work(voxels=9), names_files=False
    )
    assert list(ledger.done(5).missing()) == [0, 1, 2, 4]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=20), st.data())
@settings(deadline=None, max_examples=50)
def test_receipts_written_together_count_like_receipts_written_alone(tasks, data):
    ledger = Ledger(f"mem://{uuid.uuid4()}/run", LAUNCH)
    ledger.write_receipt(*(receipt(task, work=Work(voxels=task)) for task in tasks))
    assert set(ledger.done(10**6 + 1).missing()).isdisjoint(tasks)
    account = ledger.account(10**6 + 1, 10**6 + 1, 1)
    assert [written.blocks.start for written in account.tasks()] == sorted(tasks)
    assert account.work == Work(voxels=sum(tasks))
    gone = data.draw(st.sets(st.sampled_from(sorted(tasks))))
    ledger.withdraw(gone)
    assert [w.blocks.start for w in account.tasks()] == sorted(tasks - gone)


def test_too_many_receipts_for_one_name_are_refused(ledger):
    with pytest.raises(ValueError, match="100 receipts do not go into one file"):
        ledger.write_receipt(*map(receipt, range(0, 100_000, 1000)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"task": "x"}',
        b"[" * 100_000,
        b'{"version": 2}',
        b'{"version": 2, "receipts": []}',
    ],
)
def test_a_damaged_receipt_is_named_with_its_blocks_and_can_be_withdrawn(ledger, url, content):
    ledger.write_receipt(receipt(0))
    open_folder(url).write(f"done/0000000001-{LAUNCH}", StoredFile(content))
    account = ledger.account(2, 7, 4)
    with pytest.raises(AuditFailed, match=r"1 receipt is damaged: .* by task 1 cannot") as failed:
        account.read_all()
    assert failed.value.cells == (4, 5, 6)
    assert ledger.receipt(1) is None
    ledger.withdraw([1])
    assert list(ledger.done(2).missing()) == [1]


def test_a_receipt_of_a_newer_version_asks_for_an_update(ledger, url):
    newer = b'{"version": 3, "receipts": []}'
    open_folder(url).write(f"done/0000000001-{LAUNCH}", StoredFile(newer))
    with pytest.raises(InvalidParameter, match="newer igneous-airflow"):
        ledger.account(2, 2, 1).read_all()


def test_a_damaged_failure_or_note_of_a_worker_hides_no_other(ledger, url):
    ledger.write_failure(failure(0, 1))
    ledger.note_worker("here:1", 0)
    folder = open_folder(url)
    folder.write(f"failed/0000000001-{LAUNCH}-0001", StoredFile(b"{"))
    folder.write("workers/there-1", StoredFile(b"{"))
    assert [f.error for f in last_failures(ledger)] == [
        failure(0, 1).error,
        "the record of this failure is damaged",
    ]
    assert [note.worker for note in ledger.workers(60)] == ["here:1"]


def test_a_worker_whose_clock_is_far_ahead_does_not_count_for_ever(ledger, monkeypatch):
    now = time.time()
    for worker, ahead in (("early:1", 50), ("far:1", 3600), ("late:1", -70), ("right:1", 0)):
        monkeypatch.setattr("time.time", lambda ahead=ahead: now + ahead)
        ledger.note_worker(worker, 0)
    monkeypatch.setattr("time.time", lambda: now)
    assert [note.worker for note in ledger.workers(60)] == ["early:1", "right:1"]


def test_a_folder_in_the_place_of_a_receipt_is_named_with_the_way_out(tmp_path):
    ledger = Ledger(f"file://{tmp_path}", LAUNCH)
    folder = tmp_path / "done" / f"0000000000-{LAUNCH}"
    folder.mkdir(parents=True)
    with pytest.raises(InvalidParameter, match=rf"{folder.name}: a folder has that name: move it"):
        ledger.write_receipt(receipt(0))
    assert not ledger.has_receipt(0)
    folder.rmdir()
    ledger.write_receipt(receipt(0))
    assert ledger.has_receipt(0)


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
