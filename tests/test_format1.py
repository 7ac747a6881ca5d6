"""What version 0.1.0 stored is read by this one, and its runs go on."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cloudvolume import CloudVolume

from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.testing.stages import snapshot

COMMAND = Path(sys.executable).with_name("igneous-airflow")


def command(*words: str) -> str:
    answer = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def mip_1(path: Path) -> np.ndarray:
    """All of mip 1; chunks of background are left out."""
    volume = CloudVolume(f"file://{path}", mip=1, progress=False, parallel=1, fill_missing=True)
    return np.asarray(volume[:])


def test_the_kept_data_name_no_place_but_the_copy(format1: Path) -> None:
    texts = [path.read_text() for path in format1.glob("runs/*/*.json")]
    for path in format1.glob("runs/*/queue.db"):
        with sqlite3.connect(path) as connection:
            bodies = "SELECT body FROM messages UNION SELECT body FROM dead"
            texts += [body for (body,) in connection.execute(bodies)]
        connection.close()
    texts += [path.read_text() for path in format1.glob("layers/*/provenance")]
    assert len(texts) == 36
    assert not [text for text in texts if "placeholder" in text]
    assert Run.load(f"file://{format1}/runs/unfinished").url == f"file://{format1}/runs/unfinished"


def test_receipts_and_failures_of_the_unfinished_run_count(format1: Path) -> None:
    run = Run.load(f"file://{format1}/runs/unfinished")
    assert list(run.done().missing()) == [2, 3, *range(7, 16)]
    assert [(failure.task, failure.final) for failure in run.final_failures()] == [
        (2, True),
        (3, False),
    ]
    queue = open_queue(run.queue)
    counts = queue.counts()
    assert (counts.waiting + counts.leased, counts.dead) == (10, 1)
    queue.close()


def test_the_unfinished_run_is_resumed_to_its_end(format1: Path) -> None:
    command("resume", f"{format1}/runs/unfinished")
    made, expected = (mip_1(format1 / "layers" / name) for name in ("image", "finished_image"))
    np.testing.assert_array_equal(made, expected)
    assert made.any()


def test_resuming_sends_tasks_whose_messages_still_wait_in_the_earlier_form(format1: Path) -> None:
    """As when its workers were stopped for the update: nothing has failed, all messages wait."""
    folder = format1 / "runs" / "unfinished"
    with sqlite3.connect(folder / "queue.db") as connection:
        (body,) = connection.execute("SELECT body FROM messages LIMIT 1").fetchone()
        again = json.dumps(json.loads(body) | {"index": 2, "start": 2, "stop": 3})
        values = "VALUES (99999, 0, 0, NULL, ?)"
        connection.execute(
            f"INSERT INTO messages(id, due, attempt, token, body) {values}", (again,)
        )
        connection.execute("UPDATE messages SET due = 0, token = NULL")
        connection.execute("DELETE FROM dead")
    connection.close()
    for name in ("given_up", "failed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    assert "sent 11 tasks" in command("resume", f"{folder}", "--send-only")
    queue = f"sqlite://{folder}/queue.db"
    assert "sent 0 tasks" in command("resume", f"{folder}", "--send-only")
    command("worker", queue, "--runs", f"{format1}/runs", "--until-done")
    assert Run.load(f"file://{folder}").done().count == 16
    command("finish", f"{folder}")


def test_the_messages_of_the_unfinished_run_are_dead_letters_and_nothing_is_written(
    format1: Path,
) -> None:
    before = snapshot(format1 / "layers")
    receipts = snapshot(format1 / "runs" / "unfinished" / "done")
    queue = f"sqlite://{format1}/runs/unfinished/queue.db"
    words = ["worker", queue, "--until-done", "--runs", f"{format1}/runs"]
    answer = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert "10 messages were refused" in answer.stderr
    assert snapshot(format1 / "layers") == before
    assert snapshot(format1 / "runs" / "unfinished" / "done") == receipts
    opened = open_queue(queue)
    letters = opened.dead_letters()
    opened.close()
    assert len(letters) == 11
    assert sum("sent by an older version" in letter.reason for letter in letters) == 10
    command("resume", f"{format1}/runs/unfinished")


@pytest.mark.parametrize("name", ["finished", "mesh", "manifest"])
def test_a_finished_run_stays_finished(format1: Path, name: str) -> None:
    assert "finished" in command("status", f"{format1}/runs/{name}")
    assert "all" in command("resume", f"{format1}/runs/{name}")


@pytest.mark.parametrize("name", ["planned", "waiting_for_approval", "rejected"])
def test_a_run_that_was_held_sends_nothing(format1: Path, name: str) -> None:
    answer = subprocess.run(
        [COMMAND, "resume", f"{format1}/runs/{name}"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert not (format1 / "runs" / name / "queue.db").exists()


def test_a_run_that_was_approved_goes_on(format1: Path) -> None:
    command("resume", f"{format1}/runs/approved")
    assert (format1 / "runs" / "approved" / "summary.json").exists()
