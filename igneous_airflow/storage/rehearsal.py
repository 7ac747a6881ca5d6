"""Folders in which nothing is written but in memory, to see what stages would go by."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, cast

from igneous_airflow.storage.files import Folder, StoredFile

_READS = frozenset(
    {
        "url", "stream", "version", "folders", "names_starting", "sizes_starting", "sizes",
        "entries", "entry", "read_part", "check_writable", "renames",
    }
)  # fmt: skip


@dataclass
class _Changes:
    """What was written and deleted, by addresses."""

    files: dict[str, StoredFile] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)  # files
    deleted_folders: set[str] = field(default_factory=set)

    def forget(self) -> None:
        """Let folders that somebody keeps be as they are stored."""
        self.files.clear()
        self.deleted.clear()
        self.deleted_folders.clear()


_changes: ContextVar[_Changes | None] = ContextVar("changes", default=None)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Let all folders opened in this block keep in memory what is written and deleted.

    They show it to each other. It is forgotten in the end, and what is stored stays as it is. Other
    threads may use such folders, but what they open themselves is real.
    """
    changes = _Changes()
    token = _changes.set(changes)
    try:
        yield
    finally:
        _changes.reset(token)
        changes.forget()


def rehearsed(folder: Folder) -> Folder:
    """The folder, as it is to be used where it was opened."""
    changes = _changes.get()
    return folder if changes is None else cast("Folder", _RehearsedFolder(folder, changes))


class _RehearsedFolder:
    """A folder over which changes are held; of sizes and folders it tells what is stored."""

    def __init__(self, stored: Folder, changes: _Changes) -> None:
        self._stored = stored
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        if name not in _READS:
            raise AttributeError(f"folders of a rehearsal have no {name}")
        return getattr(self._stored, name)

    def _address(self, name: str) -> str:
        return f"{self._stored.url}/{name}"

    def _is_deleted(self, name: str) -> bool:
        address, changes = self._address(name), self._changes
        if address in changes.deleted:
            return True
        above = changes.deleted_folders and PurePosixPath(name).parents
        return any(self._address(str(parent)) in changes.deleted_folders for parent in above)

    def read(self, name: str, most: int | None = None) -> StoredFile | None:
        held = self._changes.files.get(self._address(name))
        if held is not None or self._is_deleted(name):
            return held
        return self._stored.read(name, most)

    def exists(self, name: str) -> bool:
        if self._address(name) in self._changes.files:
            return True
        return not self._is_deleted(name) and self._stored.exists(name)

    def names(self, prefix: str) -> Iterator[str]:
        inside = f"{prefix}/" if prefix else ""
        start = self._address(inside)
        below = (a.removeprefix(start) for a in self._changes.files if a.startswith(start))
        held = {name for name in below if "/" not in name}
        yield from held
        for name in self._stored.names(prefix):
            if name not in held and not self._is_deleted(f"{inside}{name}"):
                yield name

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:  # noqa: ARG002
        self._changes.files[self._address(name)] = file

    def delete(self, name: str) -> None:
        self._changes.files.pop(self._address(name), None)
        self._changes.deleted.add(self._address(name))

    def delete_folder(self, prefix: str) -> None:
        start = self._address(f"{prefix}/")
        for address in [held for held in self._changes.files if held.startswith(start)]:
            del self._changes.files[address]
        self._changes.deleted_folders.add(self._address(prefix))

    def rename(self, old: str, new: str) -> bool:  # noqa: ARG002
        """Let a file or folder be gone; where it would be then, no plan looks."""
        self.delete(old)
        self.delete_folder(old)
        return True

    def try_writing(self) -> None:
        """Write nothing."""
