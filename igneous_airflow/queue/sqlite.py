"""The queue of one machine: `sqlite:///abs/path/file.db`, shared by its processes.

SQLite keeps the file whole whatever happens to a process. The write-ahead log is shared memory, so
that the file must be on a disk of the machine, not on a network file system.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from igneous_airflow.errors import InvalidParameter, LeaseLost
from igneous_airflow.queue.protocol import CLOCK_SLACK, LONGEST_LEASE, Counts, DeadLetter, Lease
from igneous_airflow.queue.sqlite_file import Database

_SCHEME = "sqlite://"

_LEASE = """
UPDATE messages SET due = ?, seconds = ?, attempt = attempt + 1, token = ?
WHERE id = (SELECT id FROM messages WHERE due <= ? ORDER BY due, id LIMIT 1)
RETURNING id, body, attempt
"""
_SEND = "INSERT INTO messages (due, attempt, body) VALUES (?, 0, ?)"
_EXTEND = "UPDATE messages SET due = ?, seconds = ? WHERE id = ? AND token = ?"
_RELEASE = "UPDATE messages SET due = ?, seconds = ?, token = NULL WHERE id = ? AND token = ?"
_DONE = "DELETE FROM messages WHERE id = ? AND token = ?"
_BURY = "INSERT INTO dead (attempt, reason, body) VALUES (?, ?, ?)"
_DEAD_LETTERS = "SELECT body, attempt, reason FROM dead ORDER BY id LIMIT ?"
_NEXT_DEAD = "SELECT id, body FROM dead WHERE id > ? ORDER BY id LIMIT ?"
_FORGET_DEAD = "DELETE FROM dead WHERE id = ?"
_COUNTS = """
SELECT (SELECT count(*) FROM messages),
    (SELECT count(*) FROM messages WHERE due > ? AND due <= ? + seconds),
    (SELECT count(*) FROM messages WHERE token IS NOT NULL AND due > ? AND due <= ? + seconds),
    (SELECT count(*) FROM messages WHERE token IS NOT NULL),
    (SELECT count(*) FROM dead)
"""
_NEXT_BODY = "SELECT body FROM messages ORDER BY due LIMIT 1"
# Due later than so many seconds from now, for which it was leased or put off: the clock was wrong.
_ANY_VOID = "SELECT 1 FROM messages WHERE due > ? AND due > ? + seconds LIMIT 1"
_FREE_VOID = "UPDATE messages SET due = ?, seconds = 0 WHERE due > ? AND due > ? + seconds"

#: A transaction of `send` ends at this many messages or characters, to let workers in.
_BATCH_MESSAGES = 2_000
_BATCH_CHARACTERS = 4_000_000

#: Seconds between looks at an empty queue: the pause doubles from the first to the last.
_PAUSES = (0.01, 0.2)


class SqliteQueue:
    """A queue in one file; may be used from several threads, and after a fork.

    Folder and file are made by the first `send`; until then the queue looks empty. Leases are
    measured in the file's own time, or by `clock`, which gives the seconds since the epoch; the
    `wait` of `lease` is real time all the same. Every method
    raises StorageUnavailable when others keep the file locked for `busy_seconds` or the disk is
    full, and InvalidParameter when the file is not a queue.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] | None = None, busy_seconds: float = 30
    ) -> None:
        self._database = Database(path, busy_seconds)
        self._now = clock or self._database.now  # asked only while connected

    def exists(self) -> bool:
        """Whether there is a file."""
        return self._database.exists()

    def send(self, bodies: Iterable[str]) -> int:
        """Add messages and return how many; makes the file if it is missing.

        They are stored in transactions of bounded size, and can be leased while others are still
        made. After an error those of earlier transactions stay.
        """
        sent = 0
        with self._database.connected(make=True):  # even if there is nothing to send
            due = self._now()
        for batch in _batches(bodies):
            with self._database.connected(make=True) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_SEND, ((due, body) for body in batch))
                connection.execute("COMMIT")
            sent += len(batch)
        return sent

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        """Take the oldest waiting message; None when there is none within `wait`."""
        deadline = time.monotonic() + wait
        pause, longest = _PAUSES
        while (lease := self._take(seconds)) is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            time.sleep(min(pause, remaining))
            pause = min(2 * pause, longest)
        return lease

    def extend(self, lease: Lease, seconds: float) -> None:
        """Let a lease end `seconds` from now; raises LeaseLost."""
        with self._database.connected() as connection:
            _settle(connection, lease, _EXTEND, *self._until(seconds))

    def done(self, lease: Lease) -> None:
        """Remove a message for good; raises LeaseLost."""
        with self._database.connected() as connection:
            _settle(connection, lease, _DONE)

    def release(self, lease: Lease, *, after: float = 0) -> None:
        """Give a message back, to be leased again `after` seconds from now; raises LeaseLost."""
        with self._database.connected() as connection:
            _settle(connection, lease, _RELEASE, *self._until(after))

    def bury(self, lease: Lease, reason: str) -> None:
        """Move a message to the dead letters; raises LeaseLost."""
        with self._database.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            _settle(connection, lease, _DONE)
            connection.execute(_BURY, (lease.attempt, reason, lease.body))
            connection.execute("COMMIT")

    def counts(self) -> Counts:
        """Count the messages; a lease that has expired or is void counts as waiting."""
        with self._database.connected() as connection:
            now = self._now()
            values = (now, now + CLOCK_SLACK) * 2
            total, later, leased, held, dead = connection.execute(_COUNTS, values).fetchone()
            connection.execute(_NEXT_BODY).fetchone()  # indexes count on in a damaged table
        return Counts(total - leased, leased, dead, delayed=later - leased, expired=held - leased)

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the first dead letters, in the order in which they were buried."""
        with self._database.connected() as connection:
            return [DeadLetter(*row) for row in connection.execute(_DEAD_LETTERS, (limit,))]

    def redrive(self, wanted: Callable[[str], bool]) -> int:
        """Send the dead letters whose bodies are wanted once more; returns how many."""
        sent, last = 0, 0
        while True:
            with self._database.connected() as connection:
                connection.execute("BEGIN IMMEDIATE")
                rows = connection.execute(_NEXT_DEAD, (last, _BATCH_MESSAGES)).fetchall()
                back = [(number, body) for number, body in rows if wanted(body)]
                due = self._now()
                connection.executemany(_SEND, ((due, body) for _, body in back))
                connection.executemany(_FORGET_DEAD, ((number,) for number, _ in back))
                connection.execute("COMMIT")
            if not rows:
                return sent
            sent += len(back)
            last = rows[-1][0]

    def purge(self) -> None:
        """Forget every message, leased and dead ones too; the file keeps its size."""
        with self._database.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM messages")
            connection.execute("DELETE FROM dead")
            connection.execute("COMMIT")

    def delete(self) -> None:
        """Remove the file and its log; they may be gone already."""
        self._database.remove()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        self._database.close()

    def cost(self, messages: int, size: int) -> str:  # noqa: ARG002
        """Return nothing: these messages cost nothing."""
        return ""

    def _take(self, seconds: float) -> Lease | None:
        with self._database.connected() as connection:
            lease = self._take_due(connection, seconds)
            if lease is None and self._free_void(connection):
                lease = self._take_due(connection, seconds)
        return lease

    def _take_due(self, connection: sqlite3.Connection, seconds: float) -> Lease | None:
        expires, seconds = self._until(seconds)
        values = (expires, seconds, uuid.uuid4().hex, self._now())
        # A single statement is a transaction, which like the others waits for the write lock.
        for number, body, attempt in connection.execute(_LEASE, values).fetchall():
            return Lease(str(number), values[2], body, attempt, expires)
        return None

    def _free_void(self, connection: sqlite3.Connection) -> bool:
        """Let messages wait whose leases and delays are void; whether there are any."""
        now = self._now()
        if connection.execute(_ANY_VOID, (now, now + CLOCK_SLACK)).fetchone() is None:
            return False
        connection.execute("BEGIN IMMEDIATE")
        now = self._now()  # again: others may have taken leases while this waited for the lock
        connection.execute(_FREE_VOID, (now, now, now + CLOCK_SLACK))
        connection.execute("COMMIT")
        return True

    def _until(self, seconds: float) -> tuple[float, float]:
        """When a lease or delay that begins now ends, and its seconds."""
        seconds = min(seconds, LONGEST_LEASE)
        return self._now() + seconds, seconds


def _settle(connection: sqlite3.Connection, lease: Lease, statement: str, *values: float) -> None:
    """Change the leased message, or raise LeaseLost if somebody else has it or settled it."""
    if not connection.execute(statement, (*values, lease.message_id, lease.token)).rowcount:
        raise LeaseLost(
            f"the lease of message {lease.message_id}, attempt {lease.attempt}, has ended"
        )


def _batches(bodies: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for body in bodies:
        batch.append(body)
        characters += len(body)
        if len(batch) >= _BATCH_MESSAGES or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def open_queue(url: str) -> SqliteQueue:
    """Open the file of `sqlite:///abs/path/file.db`, taken literally: no %-escapes.

    Raises InvalidParameter for an address without an absolute path to a file.
    """
    path = url.removeprefix(_SCHEME)
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidParameter(
            f"{url!r} names no file: write sqlite:// and an absolute path, as in "
            "sqlite:///data/run/queue.db (three slashes)"
        )
    return SqliteQueue(Path(path))
