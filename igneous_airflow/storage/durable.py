"""Files that must survive a power cut, brought from memory to the disk; used by workers and runs.

Buckets store what they acknowledge. A local disk keeps a new file in memory for a while, and its
name and its content are written in any order: after a power cut a file may be there without bytes.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath

from igneous_airflow.storage.files import SUFFIXES
from igneous_airflow.storage.local import disk_errors

_FILE = "file://"
_AT_ONCE = 16  # a file system writes its journal once for many that wait together
_VARIANTS = ("", *SUFFIXES.values())


def sync(url: str, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Return when files, and the names in their folders, are on the disk; nothing in a bucket.

    Each file is synced once, then each folder once. Names are those of a `Folder` at the address;
    `folders` are others below it, in which files were removed. Raises StorageUnavailable.
    """
    if not url.startswith(_FILE):
        return
    root = url.removeprefix(_FILE)
    names = list(files)
    parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    with ThreadPoolExecutor(_AT_ONCE, "sync") as pool:
        for _ in pool.map(partial(_sync_file, root), names):
            pass
        for _ in pool.map(partial(_sync_folder, root), sorted(parents | set(folders))):
            pass


def _sync_file(root: str, name: str) -> None:
    path = f"{root}/{name}"
    with disk_errors("sync", path):
        for suffix in _VARIANTS:
            with suppress(FileNotFoundError):  # in another compression
                descriptor = os.open(path + suffix, os.O_RDONLY)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


def _sync_folder(root: str, name: str) -> None:
    path = f"{root}/{name}"
    with disk_errors("sync", path), suppress(FileNotFoundError):  # removed with all its files
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
