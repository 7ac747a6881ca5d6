"""Where a file's name leads to on disk, through links; used by the viewer."""

import os
from pathlib import Path

from igneous_airflow.storage.files import SUFFIXES, plain_name

_ON_DISK = "file://"


def names_behind(url: str, name: str) -> frozenset[str] | None:
    """The names within a layer of the files that a name stands for, once links are followed.

    On disk these are the file and its compressions, as far as they are there; empty where none is.
    None where one of them is outside of the layer, or is anything but a file: opening a pipe never
    ends. The layer's folder itself may be a link. In a bucket there are no links.
    """
    if not url.startswith(_ON_DISK):
        return frozenset({name})
    root = _real(url.removeprefix(_ON_DISK))
    found = set()
    for suffix in ("", *SUFFIXES.values()):
        path = root / f"{name}{suffix}"
        if os.path.lexists(path):
            behind = _real(path)
            if not behind.is_relative_to(root) or not os.path.isfile(behind):  # noqa: PTH113
                return None
            found.add(plain_name(str(behind.relative_to(root))))
    return frozenset(found)


def folder_is_inside(url: str, folder: str) -> bool:
    """Whether a folder of a layer is inside of it, once links are followed."""
    if not url.startswith(_ON_DISK):
        return True
    root = _real(url.removeprefix(_ON_DISK))
    return _real(root / folder).is_relative_to(root)


def _real(path: Path | str) -> Path:
    """A path without links; unlike pathlib, it does not fail for a link that leads to itself."""
    return Path(os.path.realpath(path))
