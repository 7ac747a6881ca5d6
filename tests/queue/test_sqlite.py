import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from igneous_airflow.errors import InvalidParameter, StorageUnavailable
from igneous_airflow.queue.protocol import Queue, open_queue
from igneous_airflow.queue.sqlite import SqliteQueue
from igneous_airflow.testing.queues import QueueTests, drain, take

DRAIN = """
import sys
from igneous_airflow.queue.protocol import open_queue
queue = open_queue(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while lease := queue.lease(60, wait=0.3):
    queue.done(lease)
    print(lease.attempt, lease.body)
"""

FIRST = """
import sys
from igneous_airflow.queue.protocol import open_queue
print("ready", flush=True)
sys.stdin.readline()
for index in range(50):
    queue = open_queue(f"{sys.argv[1]}-{index}")
    queue.send([])
    queue.close()
"""

HOLD = """
import sys, time
from igneous_airflow.queue.protocol import open_queue
queue = open_queue(sys.argv[1])
lease = queue.lease(float(sys.argv[2]))
print(lease.body, flush=True)
while True:
    queue.extend(lease, float(sys.argv[2]))
    queue.send(["noise"])
"""


class TestSqliteQueue(QueueTests):
    @pytest.fixture(params=["queue.db", "a 100%20 b/ü?#&神.db"], ids=["plain", "odd path"])
    def url(self, tmp_path: Path, request: pytest.FixtureRequest) -> str:
        return f"sqlite://{tmp_path}/new/{request.param}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_together(program: str, *arguments: str) -> list[list[str]]:
    """Start four processes, let them go at the same time and return the lines they print."""
    workers = [start(program, *arguments) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate()[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    return outputs


def test_processes_that_drain_one_file_settle_each_message_once(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(str(i) for i in range(1500))
    outputs = run_together(DRAIN, f"sqlite://{path}")
    lines = [line for lines in outputs for line in lines]
    assert sorted(lines) == sorted(f"1 {i}" for i in range(1500))
    assert sum(map(bool, outputs)) > 1, "one process did all the work"
    assert queue.counts().drained
    queue.close()


def test_processes_may_all_be_the_first_to_open_a_file(path: Path) -> None:
    assert run_together(FIRST, f"sqlite://{path}") == [[], [], [], []]


def test_a_message_returns_when_the_process_that_held_it_is_killed(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(["held"])
    for attempt in (2, 3, 4):
        with start(HOLD, f"sqlite://{path}", "0.3") as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "held\n"
            time.sleep(0.05)
            worker.send_signal(signal.SIGKILL)
        queue.close()
        time.sleep(0.3)
        leases = {lease.body: lease for lease in drain(queue)}
        assert leases["held"].attempt == 2, attempt
        assert queue.counts().drained
        queue.send(["held"])
    queue.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def use_after_fork(queue: Queue) -> None:
    lease = take(queue)
    queue.done(lease)
    queue.send([lease.body.upper()])
    os._exit(0)


def test_a_queue_may_be_used_on_both_sides_of_a_fork(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(["a", "b"])
    child = multiprocessing.get_context("fork").Process(target=use_after_fork, args=(queue,))
    child.start()
    queue.done(take(queue))
    queue.close()  # this process must not take itself for the last one that uses the log
    child.join()
    assert child.exitcode == 0
    assert queue.counts().waiting == 1
    assert take(queue).body in "AB"
    queue.close()


def test_no_connection_is_open_while_a_process_forks(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(["a"])
    child = os.fork()
    if child == 0:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        os._exit(any(link.readlink().is_relative_to(path.parent) for link in links))
    assert os.waitpid(child, 0)[1] == 0
    assert queue.counts().waiting == 1
    queue.close()


def test_nothing_is_made_before_something_is_sent(tmp_path: Path) -> None:
    queue = open_queue(f"sqlite://{tmp_path}/new/queue.db")
    assert queue.counts().drained
    assert queue.lease(60, wait=0.1) is None
    queue.purge()
    assert not (tmp_path / "new").exists()
    queue.send([])
    assert (tmp_path / "new/queue.db").exists()
    queue.close()


def test_delete_leaves_no_file(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(["a"])
    other = SqliteQueue(path)
    assert other.counts().waiting == 1
    queue.delete()
    assert list(path.parent.iterdir()) == []
    other.close()


def test_whoever_has_a_deleted_queue_open_sees_the_new_one(path: Path) -> None:
    one, two = SqliteQueue(path), SqliteQueue(path)
    one.send(["old", "old"])
    assert two.counts().waiting == 2
    one.delete()
    one.send(["new", "newer"])
    assert take(two).body == "new"
    one.send(["newest"])
    assert [lease.body for lease in drain(two)] == ["newer", "newest"]
    one.delete()
    assert two.counts().waiting == 0
    one.close()
    two.close()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://queue.db", "sqlite://./queue.db", "sqlite:///a/"]
)
def test_an_address_without_an_absolute_path_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(InvalidParameter, match="three slashes"):
        open_queue(url)


@pytest.mark.parametrize("content", [b"not a database" * 500, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    queue = SqliteQueue(path)
    with pytest.raises(InvalidParameter, match=r"queue\.db"):
        queue.send(["a"])
    assert path.read_bytes() == content
    queue.delete()
    assert queue.send(["a"]) == 1
    queue.close()


def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE messages (text)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(InvalidParameter, match="something else"):
        SqliteQueue(path).counts()
    assert path.read_bytes() == content


def test_a_damaged_queue_is_named(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send("body" * 200 for _ in range(200))
    queue.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 20 * 4096)
    with pytest.raises(InvalidParameter, match=r"queue\.db"):
        queue.lease(60)
    queue.close()


def test_a_folder_that_cannot_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    queue = SqliteQueue(tmp_path / "file" / "queue.db")
    assert not queue.exists()
    with pytest.raises(InvalidParameter, match=r"file.*queue\.db"):
        queue.send([])


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=str(tmp_path)):
        SqliteQueue(tmp_path).counts()


_WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.sqlite import SqliteQueue
if os.geteuid() == 0:  # who may write everywhere
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        SqliteQueue(Path(path)).send([])
    except InvalidParameter as error:
        print(error)
"""


def test_a_folder_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/queue.db", f"{folder}/new/queue.db"]
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_RIGHTS, *paths],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        Path(folder).chmod(0o700)
    first, second = done.stdout.splitlines()
    assert paths[0] in first
    assert paths[1] in second


def test_a_file_that_stays_locked_is_unavailable_until_it_is_free(path: Path) -> None:
    queue = SqliteQueue(path, busy_seconds=0.05)
    queue.send(["a"])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match=r"queue\.db.*locked"):
        queue.lease(60)
    assert queue.counts().waiting == 1
    connection.execute("ROLLBACK")
    connection.close()
    assert take(queue).attempt == 1
    queue.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(["a"])
    with queue._database.connected() as connection:
        connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StorageUnavailable, match=r"queue\.db.*full"):
        queue.send("body" * 200 for _ in range(1000))
    assert [lease.body for lease in drain(queue)] == ["a"]
    queue.close()


def test_send_keeps_batches_bounded_and_lets_others_work_in_between(path: Path) -> None:
    queue = SqliteQueue(path)
    stored = []

    def bodies():
        for index in range(6_000):
            yield f"{index}"
            if index % 3_000 == 2_999:
                stored.append(queue.counts().waiting)
        for _ in range(3):
            yield "x" * 3_000_000
        stored.append(queue.counts().waiting)

    assert queue.send(bodies()) == 6_003
    assert stored == [2_000, 6_000, 6_002]
    assert take(queue).body == "0"
    queue.close()


def test_a_body_that_utf_8_cannot_hold_is_refused_and_the_queue_goes_on(path: Path) -> None:
    queue = SqliteQueue(path)
    with pytest.raises(ValueError, match="surrogates"):
        queue.send(["a", "\ud800"])
    assert queue.counts().waiting == 0
    queue.send(["b"])
    assert take(queue).body == "b"
    queue.close()


def test_a_lease_that_expired_but_was_given_to_nobody_else_can_still_be_settled(path: Path) -> None:
    now = 0.0
    queue = SqliteQueue(path, clock=lambda: now)
    queue.send(["a"])
    lease = take(queue, 10)
    now = 20.0
    queue.done(lease)
    assert queue.counts().drained
    queue.close()


def test_waiting_does_not_keep_other_threads_from_the_queue(path: Path) -> None:
    queue = SqliteQueue(path)
    thread = threading.Thread(target=queue.lease, args=(60,), kwargs={"wait": 1})
    thread.start()
    begin = time.monotonic()
    for _ in range(20):
        queue.counts()
    assert time.monotonic() - begin < 0.9
    thread.join()
    queue.close()


@pytest.mark.parametrize(
    "statement",
    ["_LEASE", "_COUNTS", "_DONE", "_EXTEND", "_DEAD_LETTERS", "_ANY_VOID", "_FREE_VOID"],
)
def test_no_statement_reads_the_whole_table_of_messages(path: Path, statement: str) -> None:
    from igneous_airflow.queue import sqlite

    sql = getattr(sqlite, statement)
    queue = SqliteQueue(path)
    with queue._database.connected() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [0] * sql.count("?")).fetchall()
    queue.close()
    steps = [step for *_, step in plan]
    assert steps
    assert not any("SCAN messages" in step and "INDEX" not in step for step in steps)
    assert not any("TEMP B-TREE" in step for step in steps)


def test_a_table_that_is_damaged_is_named_when_its_messages_are_counted(path: Path) -> None:
    """Their numbers come from indexes, which may be whole when no worker can take a message."""
    queue = SqliteQueue(path)
    queue.send(["a", "b"])
    queue.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = "SELECT rootpage FROM sqlite_master WHERE name = 'messages'"
        (page,) = connection.execute(root).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(
        InvalidParameter, match=r"does not work as a queue: .*malformed.*remove this"
    ):
        SqliteQueue(path).counts()
