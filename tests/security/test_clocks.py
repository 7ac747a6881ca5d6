"""A clock that is wrong, or is set, blocks no work: what a lease keeps from others ends in time."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from igneous_airflow.queue import sqlite_file
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.queue.protocol import LONGEST_LEASE, Counts, Queue
from igneous_airflow.queue.sqlite import SqliteQueue
from igneous_airflow.testing.queues import drain, take

DAY = 86_400.0

FIRST_LAYOUT = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, due REAL NOT NULL,
    attempt INTEGER NOT NULL, token TEXT, body TEXT NOT NULL);
CREATE INDEX schedule ON messages (due);
CREATE INDEX leases ON messages (due) WHERE token IS NOT NULL;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, reason TEXT NOT NULL, body TEXT NOT NULL);
PRAGMA application_id = 0x69676E31;
"""


class Wall:
    """A clock of the wall that somebody sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + 1_700_000_000 + self.ahead


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(time, "time", wall)
    return wall


@pytest.fixture(params=["sqlite", "memory"])
def queue(request: pytest.FixtureRequest, wall: Wall, tmp_path: Path):
    queue = MemoryQueue() if request.param == "memory" else SqliteQueue(tmp_path / "queue.db")
    yield queue
    queue.close()


@pytest.mark.parametrize("ahead", [-400 * DAY, -3600, -5, 5, 3600, 400 * DAY])
def test_setting_the_wall_clock_neither_ends_a_lease_nor_makes_it_longer(
    queue: Queue, wall: Wall, ahead: float
) -> None:
    queue.send(["kept", "expired"])
    kept, _ = take(queue, 60), take(queue, 0.05)
    wall.ahead = ahead
    assert take(queue).body == "expired"
    assert queue.lease(60) is None
    queue.done(kept)
    assert queue.counts().leased == 1


@pytest.mark.parametrize("ahead", [-400 * DAY, 400 * DAY])
def test_setting_the_wall_clock_neither_ends_a_delay_nor_makes_it_longer(
    queue: Queue, wall: Wall, ahead: float
) -> None:
    queue.send(["short", "long"])
    short, long = take(queue), take(queue)
    queue.release(short, after=0.05)
    queue.release(long, after=60)
    wall.ahead = ahead
    assert take(queue).body == "short"
    assert queue.lease(60) is None
    assert queue.counts() == Counts(1, 1, 0, delayed=1)


@pytest.mark.parametrize("ahead", [2.0, 3600, DAY, 1e12])
def test_what_a_worker_whose_clock_is_ahead_has_leased_or_put_off_waits_for_others(
    tmp_path: Path, ahead: float
) -> None:
    now = 1_700_000_000.0
    right = SqliteQueue(tmp_path / "queue.db", lambda: now)
    wrong = SqliteQueue(tmp_path / "queue.db", lambda: now + ahead)
    right.send(["leased", "put off"])
    take(wrong, 120)
    wrong.release(take(wrong, 120), after=120)
    assert right.counts() == Counts(2, 0, 0, expired=1)
    assert [lease.body for lease in drain(right)] == ["leased", "put off"]
    assert right.counts().drained
    right.close()
    wrong.close()


def test_what_was_sent_by_a_clock_that_was_ahead_is_given_out_in_its_order(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    wrong = SqliteQueue(tmp_path / "queue.db", lambda: now + DAY)
    wrong.send(["a", "b", "c"])
    wrong.close()
    right = SqliteQueue(tmp_path / "queue.db", lambda: now)
    assert [lease.body for lease in drain(right)] == ["a", "b", "c"]
    right.close()


def test_a_lease_that_only_the_file_says_is_longer_than_any_is_void(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "queue.db")
    queue.send(["a"])
    take(queue, 60)
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE messages SET due = due + 3600")
    connection.close()
    assert queue.counts() == Counts(1, 0, 0, expired=1)
    assert take(queue).attempt == 2
    queue.close()


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_no_lease_or_delay_is_longer_than_the_longest(
    tmp_path: Path, kind: str, seconds: float
) -> None:
    now = 1_700_000_000.0
    path = tmp_path / "queue.db"
    queue = SqliteQueue(path, lambda: now) if kind == "sqlite" else MemoryQueue(lambda: now)
    queue.send(["a", "b", "c"])
    one, two, three = take(queue, seconds), take(queue), take(queue)
    assert one.expires == now + LONGEST_LEASE
    queue.extend(two, seconds)
    queue.release(three, after=seconds)
    now += LONGEST_LEASE
    assert queue.counts() == Counts(3, 0, 0, expired=2)
    queue.close()


class Machine:
    """What a machine says of its start, and its clock that runs from there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = folder / "boot_id"
        self.uptime, self.now = 1_000_000.0, 1_700_000_000.0
        clock = SimpleNamespace(monotonic=lambda: self.uptime, time=lambda: self.now)
        monkeypatch.setattr(sqlite_file, "_BOOT", self.boot)
        monkeypatch.setattr(sqlite_file, "time", clock)

    def runs(self, seconds: float) -> None:
        self.uptime += seconds
        self.now += seconds

    def starts(self, boot: str = "") -> None:
        self.uptime = 5.0
        self.now += 10
        if boot:
            self.boot.write_text(boot)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_new_start_of_the_machine_keeps_the_order_and_blocks_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    machine.starts("first\n")
    queue = SqliteQueue(tmp_path / "queue.db")
    queue.send(["a", "b"])
    machine.runs(1)
    queue.send(["c"])
    machine.runs(1)
    queue.release(take(queue))
    take(queue, 30)
    queue.close()
    machine.starts("second\n")
    queue.send(["d"])
    assert queue.counts().waiting == 3
    machine.runs(20)
    assert [lease.body for lease in drain(queue)] == ["c", "a", "d", "b"]
    queue.close()


def test_where_starts_of_the_machine_cannot_be_told_apart_a_new_one_blocks_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    queue = SqliteQueue(tmp_path / "queue.db")
    queue.send(["a", "b"])
    take(queue, 60)
    queue.close()
    machine.starts()
    assert [lease.body for lease in drain(queue)] == ["a", "b"]
    queue.close()


def first_layout(path: Path, *rows: tuple[float, str | None, str]) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_LAYOUT)
    connection.executemany(
        "INSERT INTO messages (due, attempt, token, body) VALUES (?, 1, ?, ?)", rows
    )
    connection.execute("INSERT INTO dead VALUES (1, 5, 'broken', 'dead')")
    connection.commit()
    connection.close()


def test_a_file_of_the_first_layout_is_read_and_its_leases_end(tmp_path: Path) -> None:
    path, now = tmp_path / "queue.db", time.time()
    first_layout(path, (now + 60, "token", "leased"), (now + DAY, "other", "ahead"))
    queue = SqliteQueue(path)
    queue.send(["new"])
    assert queue.counts() == Counts(3, 0, 1, expired=2)
    assert [letter.reason for letter in queue.dead_letters()] == ["broken"]
    assert sorted(lease.body for lease in drain(queue)) == ["ahead", "leased", "new"]
    queue.close()


_OPEN = """
import sys
from pathlib import Path
from igneous_airflow.queue.sqlite import SqliteQueue
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    queue = SqliteQueue(Path(f"{sys.argv[1]}-{number}"))
    print(queue.counts().waiting)
    queue.close()
"""


def test_processes_may_all_be_the_first_to_open_files_of_the_first_layout(tmp_path: Path) -> None:
    for number in range(20):
        first_layout(tmp_path / f"queue-{number}", (0, None, "a"))
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(tmp_path / "queue")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    outputs = [opener.communicate("go\n")[0] for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0, 0]
    assert outputs == ["1\n" * 20] * 3
