"""The file of a queue on one machine: its tables, its connection, its time; used by `sqlite.py`.

Time in the file runs evenly. It is the wall clock's when the file is first used after the machine
has started, and from then on follows the monotonic clock, which is the same for all processes of
the machine. So setting the wall clock neither ends a lease nor makes it longer, and a machine that
was suspended goes on where it was.
"""

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from igneous_airflow.errors import InvalidParameter, StorageUnavailable

#: Marks a file as a queue with the tables below; another layout of tables needs another number.
_APPLICATION_ID = 0x69676E32
#: Of files without `seconds` and `clock`; they get both when they are opened.
_FIRST_LAYOUT = 0x69676E31

# A message is leased while it has a token and is not due; `seconds` is for how long it was leased
# or put off when `due` was set. The index `schedule` gives the next message and counts all;
# `leases` holds the few that have a token. Numbers are never used twice. The row of `clock` tells
# the file's time when the monotonic clock was at 0, for the start of the machine named `boot`.
_SECONDS = "seconds REAL NOT NULL DEFAULT 0"
_CLOCK = "CREATE TABLE IF NOT EXISTS clock (boot TEXT PRIMARY KEY, zero REAL NOT NULL)"
_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, due REAL NOT NULL,
    attempt INTEGER NOT NULL, token TEXT, body TEXT NOT NULL, {_SECONDS});
CREATE INDEX IF NOT EXISTS schedule ON messages (due);
CREATE INDEX IF NOT EXISTS leases ON messages (due) WHERE token IS NOT NULL;
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, reason TEXT NOT NULL, body TEXT NOT NULL);
{_CLOCK};
PRAGMA application_id = {_APPLICATION_ID};
COMMIT;
"""

_PAUSE = 0.01  # seconds between tries to get a lock for which SQLite does not wait
_BOOT = Path("/proc/sys/kernel/random/boot_id")

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
_DATABASES: weakref.WeakSet["Database"] = weakref.WeakSet()


def _before_fork() -> None:
    _LOCK.acquire()
    for database in list(_DATABASES):
        database.disconnect()


os.register_at_fork(
    before=_before_fork, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


class Database:
    """The connection to one file: opened when needed, used by one thread at a time.

    While there is no file an empty database in memory stands in for it.
    """

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # that is open; None for the stand-in
        self._zero = 0.0  # the file's time when the monotonic clock was at 0
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

    def now(self) -> float:
        """The file's time, to be asked for while connected: about the seconds since the epoch."""
        return self._zero + time.monotonic()

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
        if _layout(connection) == _FIRST_LAYOUT:
            _add_seconds(connection)
        if _layout(connection) != _APPLICATION_ID:
            raise InvalidParameter(f"{self._path} holds something else than a queue")
        self._zero = _find_zero(connection)
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
                time.sleep(_PAUSE)
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


def _layout(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("PRAGMA application_id").fetchone()
    return int(number)


def _add_seconds(connection: sqlite3.Connection) -> None:
    """Give a file of the first layout what it lacks; leases and delays that run in it end."""
    connection.execute("BEGIN IMMEDIATE")
    if _layout(connection) == _FIRST_LAYOUT:  # no other process was faster
        connection.execute(f"ALTER TABLE messages ADD COLUMN {_SECONDS}")
        connection.execute(_CLOCK)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute("COMMIT")


def _find_zero(connection: sqlite3.Connection) -> float:
    """The file's time when the monotonic clock was at 0, set by the first to ask since then."""
    boot = ""  # where the system does not tell its starts apart
    with suppress(OSError):
        boot = _BOOT.read_text().strip()
    wanted = "SELECT zero FROM clock WHERE boot = ?"
    if (found := connection.execute(wanted, (boot,)).fetchone()) is None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM clock WHERE boot != ?", (boot,))
        zero = time.time() - time.monotonic()
        connection.execute("INSERT OR IGNORE INTO clock VALUES (?, ?)", (boot, zero))
        connection.execute("COMMIT")
        found = connection.execute(wanted, (boot,)).fetchone()
    return float(found[0])
