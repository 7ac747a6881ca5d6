"""Where a file's name leads to on disk, through links; used by the viewer."""

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
    root = Path(url.removeprefix(_ON_DISK)).resolve()
    found = set()
    for suffix in ("", *SUFFIXES.values()):
        path = root / f"{name}{suffix}"
        if not path.exists() and not path.is_symlink():
            continue
        behind = path.resolve()
        if not behind.is_relative_to(root) or not behind.is_file():
            return None
        found.add(plain_name(str(behind.relative_to(root))))
    return frozenset(found)


def folder_is_inside(url: str, folder: str) -> bool:
    """Whether a folder of a layer is inside of it, once links are followed."""
    if not url.startswith(_ON_DISK):
        return True
    root = Path(url.removeprefix(_ON_DISK)).resolve()
    return (root / folder).resolve().is_relative_to(root)
