"""Symbolic links within a folder on disk: they are read within it, and never lead out of it.

A layer is worked on with the rights of whoever runs the workers. Who may only put files into it
could otherwise have them read, copy, overwrite and delete any file of theirs, by a link in place of
a chunk, of a scale or of the meshes. The folder itself may be reached by links.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from igneous_airflow.errors import AccessDenied
from igneous_airflow.storage.allowed import require_allowed
from igneous_airflow.storage.files import SUFFIXES

_FILE = "file://"
_FRESH = 1.0  # seconds
_REMEMBERED = 1_000  # folders


class Links:
    """Judges what lies below a folder on disk; every method raises AccessDenied, with the way out.

    The folders on the way to a file are looked at again after a second, and the file itself each
    time: links may come while a worker is at work.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        # folders, and until when they need no other look
        self._checked: dict[str, float] = {}
        self._without_links: dict[str, float] = {}

    def check_way(self, path: str) -> None:
        """Check every folder on the way to a path from the folder."""
        self._check_each(path, self.is_there, self._checked)

    def check_change(self, path: str) -> None:
        """Check the way to what is written, moved or removed, on which no folder may be a link.

        Through a link within the layer, deleting one mip would empty another.
        """
        self._check_each(path, self._require_no_link, self._without_links)

    def _check_each(
        self, path: str, check: Callable[[str], object], checked: dict[str, float]
    ) -> None:
        if path.endswith("/..") or "/../" in path[len(self._root) :]:
            raise AccessDenied(f"{path} may lead out of {self._root}: names hold no '..'")
        way, now = path[: path.rfind("/")], time.monotonic()
        if checked.get(way, 0.0) > now:
            return
        end = len(self._root)
        while (end := path.find("/", end + 1)) >= 0:
            check(path[:end])
        if len(checked) >= _REMEMBERED:
            checked.clear()
        checked[way] = now + _FRESH

    def _require_no_link(self, path: str) -> None:
        state = self._state(path)
        if state is not None and stat.S_ISLNK(state):
            raise AccessDenied(
                f"{path} is a link to {self._target(path)}: nothing is written, moved or deleted "
                "through it. Put the folder itself in its place, or remove the link"
            )

    def check_folder(self, path: str) -> None:
        """Check a folder, and every folder on the way to it."""
        if path != self._root:
            self.check_way(f"{path}/")

    def is_there(self, path: str) -> bool:
        """Whether there is a file or folder, also by a link within the folder."""
        state = self._state(path)
        return state is not None and (not stat.S_ISLNK(state) or bool(self._target(path)))

    def is_file(self, path: str) -> bool:
        """Whether there is a file, also by a link within the folder."""
        state = self._state(path)
        if state is not None and stat.S_ISLNK(state):
            return os.path.isfile(self._target(path))  # noqa: PTH113
        return state is not None and stat.S_ISREG(state)

    def is_finished(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry of a listing is a file, also by a link within the folder."""
        if entry.is_file(follow_symlinks=False):
            return True
        # a link to a folder is no file, and is refused when something in it is asked for
        return entry.is_symlink() and not entry.is_dir() and self.is_file(entry.path)

    def open(self, path: str, flags: int) -> FileIO:
        """Open a file, by the flags of `os.open`, and no link that leads outside."""
        try:
            return _opened(path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        return _opened(self._target(path), flags | os.O_NOFOLLOW)

    def below(self, folder: Path) -> Iterator[tuple[str, list[str]]]:
        """Every folder below one, the deepest first, with the names of its files."""
        for parent, folders, files in os.walk(folder, topdown=False):
            for name in (*folders, *files):
                self.is_there(f"{parent}/{name}")
            yield parent, files

    def _state(self, path: str) -> int | None:
        try:  # `suppress` costs a tenth as much as the call
            return os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _target(self, path: str) -> str:
        """What a link leads to, without any link on the way, when that is in the folder."""
        target = os.path.realpath(path)
        if not _is_inside(os.path.realpath(self._root), target):
            raise AccessDenied(
                f"{path} is a link to {target}, out of {self._root}: put a copy in its place, or "
                "remove it"
            )
        if not os.path.exists(target):  # noqa: PTH110
            raise AccessDenied(
                f"{path} is a link to {target}, which is not there: remove the link, or put back "
                "what it leads to"
            )
        return target


class AnyLinks(Links):
    """Lets links pass: the files of a source may be gathered by links from all that is allowed.

    What a link leads to is looked at when it is opened, since it may have come after the plan.
    """

    def check_way(self, path: str) -> None:
        """Check nothing."""

    def check_change(self, path: str) -> None:
        """Check nothing."""

    def is_finished(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry of a listing leads to a file."""
        return entry.is_file()

    def _target(self, path: str) -> str:
        target = os.path.realpath(path)
        require_allowed(f"{_FILE}{target}")
        return target


def _opened(path: str, flags: int) -> FileIO:
    """A file, unbuffered; `open` with an opener takes longer."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        return FileIO(descriptor, "r" if flags & os.O_ACCMODE == os.O_RDONLY else "w")
    except BaseException:
        os.close(descriptor)
        raise


def _is_inside(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def leads_outside(url: str, name: str) -> bool:
    """Whether a name, in any compression, leads out of a folder on disk."""
    if not url.startswith(_FILE):
        return False
    root = os.path.realpath(url.removeprefix(_FILE))
    variants = (f"{root}/{name}{suffix}" for suffix in ("", *SUFFIXES.values()))
    return not all(_is_inside(root, os.path.realpath(path)) for path in variants)
