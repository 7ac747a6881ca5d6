"""The queue of one machine: `sqlite:///abs/path/file.db`, shared by its processes.

SQLite keeps the file whole whatever happens to a process. The write-ahead log is shared memory, so
that the file must be on a disk of the machine, not on a network file system.
"""

import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from igneous_airflow.errors import InvalidParameter, LeaseLost, StorageUnavailable
from igneous_airflow.queue.protocol import Counts, DeadLetter, Lease

_SCHEME = "sqlite://"

#: Marks a file as a queue with the tables below; another layout of tables needs another number.
_APPLICATION_ID = 0x69676E31

# A message is leased while it has a token and is not due. The index `schedule` gives the next
# message and counts all; `leases` holds the few that have a token. Numbers are never used twice.
_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, due REAL NOT NULL,
    attempt INTEGER NOT NULL, token TEXT, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS schedule ON messages (due);
CREATE INDEX IF NOT EXISTS leases ON messages (due) WHERE token IS NOT NULL;
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, reason TEXT NOT NULL, body TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
COMMIT;
"""

_LEASE = """
UPDATE messages SET due = ?, attempt = attempt + 1, token = ?
WHERE id = (SELECT id FROM messages WHERE due <= ? ORDER BY due, id LIMIT 1)
RETURNING id, body, attempt
"""
_SEND = "INSERT INTO messages (due, attempt, body) VALUES (?, 0, ?)"
_EXTEND = "UPDATE messages SET due = ? WHERE id = ? AND token = ?"
_RELEASE = "UPDATE messages SET due = ?, token = NULL WHERE id = ? AND token = ?"
_DONE = "DELETE FROM messages WHERE id = ? AND token = ?"
_BURY = "INSERT INTO dead (attempt, reason, body) VALUES (?, ?, ?)"
_DEAD_LETTERS = "SELECT body, attempt, reason FROM dead ORDER BY id LIMIT ?"
_NEXT_DEAD = "SELECT id, body FROM dead WHERE id > ? ORDER BY id LIMIT ?"
_FORGET_DEAD = "DELETE FROM dead WHERE id = ?"
_COUNTS = """
SELECT (SELECT count(*) FROM messages),
    (SELECT count(*) FROM messages WHERE due > ?),
    (SELECT count(*) FROM messages WHERE token IS NOT NULL AND due > ?),
    (SELECT count(*) FROM messages WHERE token IS NOT NULL AND due <= ?),
    (SELECT count(*) FROM dead)
"""

#: A transaction of `send` ends at this many messages or characters, to let workers in.
_BATCH_MESSAGES = 2_000
_BATCH_CHARACTERS = 4_000_000

#: Seconds between looks at an empty queue: the pause doubles from the first to the last.
_PAUSES = (0.01, 0.2)

_TRANSIENT = {
    sqlite3.SQLITE_BUSY: "other processes kept it locked",
    sqlite3.SQLITE_LOCKED: "other processes kept it locked",
    sqlite3.SQLITE_PROTOCOL: "other processes kept it locked",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}

# The locks of SQLite do not survive a fork: a child with an inherited connection, even an unused
# one, can make the parent believe that it is the last user and remove the log under the child.
# So all connections are closed before a fork, and opened again by whoever needs them.
_LOCK = threading.Lock()
_DATABASES: weakref.WeakSet["_Database"] = weakref.WeakSet()


def _before_fork() -> None:
    _LOCK.acquire()
    for database in list(_DATABASES):
        database.disconnect()


os.register_at_fork(
    before=_before_fork, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


class _Database:
    """The connection to one file: opened when needed, used by one thread at a time.

    While there is no file an empty database in memory stands in for it.
    """

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # that is open; None for the stand-in
        _DATABASES.add(self)

    def exists(self) -> bool:
        """Whether there is a file."""
        with self._explained():
            return self._path.exists()

    @contextmanager
    def connected(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """Lend the connection; a transaction that is left open is undone.

        A file that is missing is made when `make` is set. Raises StorageUnavailable when the file
        is locked for too long or the disk is full, and InvalidParameter when there can be no queue
        at this path.
        """
        with self._explained():
            connection = self._connect(make=make)
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.rollback()

    def remove(self) -> None:
        """Remove the file and its log; raises InvalidParameter and StorageUnavailable."""
        with self._explained():
            self.disconnect()
            # The file last: SQLite discards a log that was left beside no file.
            for suffix in ("-wal", "-shm", ""):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connection."""
        with _LOCK:
            self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the caller holds the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, *, make: bool) -> sqlite3.Connection:
        file = self._find_file()
        if self._connection is not None and self._file == file and (file or not make):
            return self._connection
        self.disconnect()
        if file or make:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._open(str(self._path))
        else:
            connection = self._open(":memory:")
        try:
            self._prepare(connection)
            self._file = self._find_file() if file or make else None
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _open(self, name: str) -> sqlite3.Connection:
        return sqlite3.connect(
            name, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )

    def _find_file(self) -> tuple[int, int] | None:
        """Which file is there now: another process may have deleted the one that was opened."""
        try:
            stat = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_dev, stat.st_ino

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # In this order, since another process may make the tables in between.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            self._use_log(connection)
            connection.executescript(_TABLES)
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        if kind != _APPLICATION_ID:
            raise InvalidParameter(f"{self._path} holds something else than a queue")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = OFF")

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log, for which SQLite itself does not wait when locked."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSES[0])
            else:
                return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Take the lock and turn errors into ours, with the path and the way out."""
        with _LOCK:
            try:
                yield
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise InvalidParameter(
                    f"there can be no queue {self._path}: {error}; choose a folder for writing"
                ) from error
            except OSError as error:
                raise StorageUnavailable(f"queue {self._path}: {error}") from error
            except sqlite3.DatabaseError as error:
                self.disconnect()
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if reason := _TRANSIENT.get(code):
                    raise StorageUnavailable(f"queue {self._path}: {reason} ({error})") from error
                raise InvalidParameter(
                    f"{self._path} does not work as a queue: {error}; choose another file in a "
                    "folder for writing, or remove this one if it is broken"
                ) from error


class SqliteQueue:
    """A queue in one file; may be used from several threads, and after a fork.

    Folder and file are made by the first `send`; until then the queue looks empty. `clock` gives
    the seconds since the epoch; the `wait` of `lease` is real time all the same. Every method
    raises StorageUnavailable when others keep the file locked for `busy_seconds` or the disk is
    full, and InvalidParameter when the file is not a queue.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, busy_seconds: float = 30
    ) -> None:
        self._database = _Database(path, busy_seconds)
        self._clock = clock

    def exists(self) -> bool:
        """Whether there is a file."""
        return self._database.exists()

    def send(self, bodies: Iterable[str]) -> int:
        """Add messages and return how many; makes the file if it is missing.

        They are stored in transactions of bounded size, and can be leased while others are still
        made. After an error those of earlier transactions stay.
        """
        due = self._clock()
        sent = 0
        with self._database.connected(make=True):
            pass  # even if there is nothing to send
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
            _settle(connection, lease, _EXTEND, self._clock() + seconds)

    def done(self, lease: Lease) -> None:
        """Remove a message for good; raises LeaseLost."""
        with self._database.connected() as connection:
            _settle(connection, lease, _DONE)

    def release(self, lease: Lease, *, after: float = 0) -> None:
        """Give a message back, to be leased again `after` seconds from now; raises LeaseLost."""
        with self._database.connected() as connection:
            _settle(connection, lease, _RELEASE, self._clock() + after)

    def bury(self, lease: Lease, reason: str) -> None:
        """Move a message to the dead letters; raises LeaseLost."""
        with self._database.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            _settle(connection, lease, _DONE)
            connection.execute(_BURY, (lease.attempt, reason, lease.body))
            connection.execute("COMMIT")

    def counts(self) -> Counts:
        """Count the messages; an expired lease counts as waiting."""
        with self._database.connected() as connection:
            row = connection.execute(_COUNTS, (self._clock(),) * 3).fetchone()
        total, later, leased, expired, dead = row
        return Counts(total - leased, leased, dead, delayed=later - leased, expired=expired)

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
                due = self._clock()
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
            now = self._clock()
            expires, token = now + seconds, uuid.uuid4().hex
            # A single statement is a transaction, which like the others waits for the write lock.
            for number, body, attempt in connection.execute(
                _LEASE, (expires, token, now)
            ).fetchall():
                return Lease(str(number), token, body, attempt, expires)
        return None


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
