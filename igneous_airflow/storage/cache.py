"""Files that a machine makes for itself once and keeps for a while, for all of its processes.

They lie in the folder for temporary files. A file's name is a hash of everything that it was made
from, so that one of other content is another file.
"""

import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from igneous_airflow.errors import AccessDenied
from igneous_airflow.storage.local import LocalFolder, disk_errors, locked

_KEPT = 7 * 24 * 3600.0  # seconds after the last use
_PARTIAL = ".partial"


def cached_file(made_from: str, make: Callable[[BinaryIO], None]) -> Path:
    """The file of this machine that is made from something, made now unless it is there.

    `make` writes its content; processes that ask at the same time wait for the first one. A file
    appears whole or not at all. Raises StorageUnavailable when there is no room, AccessDenied when
    the folder is somebody else's.
    """
    folder = _folder()
    path = folder / sha256(made_from.encode()).hexdigest()
    with disk_errors("write", path), locked(LocalFolder(folder)):
        if path.exists():
            os.utime(path)
        else:
            _remove_unused(folder)
            partial = path.with_suffix(_PARTIAL)
            try:
                with partial.open("wb") as stream:
                    make(stream)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path


def _folder() -> Path:
    """A folder that only this user can write to, whoever else uses the place."""
    folder = Path(tempfile.gettempdir()) / f"igneous_airflow-{os.getuid()}"
    with disk_errors("write", folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise AccessDenied(f"{folder} belongs to somebody else: remove it, or set TMPDIR")
    return folder


def _remove_unused(folder: Path) -> None:
    """Remove files that nobody has used for long, and those whose maker was killed.

    Who has one open keeps it: its name goes, its bytes stay.
    """
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.suffix == _PARTIAL or time.time() - path.stat().st_mtime > _KEPT:
                path.unlink()
