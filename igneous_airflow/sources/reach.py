"""What a source may reach: the files of its own folder, wherever names and links in it lead.

One place for the rule, for every format. The address of a source, which a person has chosen, may
itself be a link, and links may lead from one place in the folder to another.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator

from igneous_airflow.errors import SourceNotFound, UnreadableSource
from igneous_airflow.storage.allowed import require_allowed
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.folder_names import readings
from igneous_airflow.storage.local import disk_errors
from igneous_airflow.storage.parts import FileInParts

_DISK = "file://"


def companion(file: FileInParts, name: str, by: str) -> FileInParts:
    """A file that is named in another one, beginning where that one lies; `by` says how.

    Raises UnreadableSource when it lies outside of the folder, SourceNotFound when it is not there,
    AccessDenied when this process may not open it.
    """
    inside = companion_name(file, name, by)
    require_allowed(f"{file.folder.url}/{inside}")
    entry = file.folder.entry(inside)
    if entry is None:
        raise SourceNotFound(f"{by} names {file.folder.url}/{inside}, which is not there")
    return FileInParts(file.folder, entry)


def companion_name(file: FileInParts, name: str, by: str) -> str:
    """The name in the folder of a file that is named in another one; raises UnreadableSource."""
    folder = file.folder
    beside = posixpath.dirname(file.entry.name)
    on_disk = folder.url.startswith(_DISK)
    inside = _on_disk(folder, beside, name) if on_disk else _in_bucket(beside, name)
    if inside is None:
        raise UnreadableSource(
            f"{by} names the file {name!r}, which lies outside of {folder.url}: only files in the "
            "folder of a source are read. Copy it there, or write its voxels into the source"
        )
    return inside


def require_inside(folder: Folder, name: str) -> None:
    """Raise UnreadableSource when links lead from a name in a folder on disk out of it."""
    for found, target in leading_out(folder, (name,)):
        raise _outside(folder, [f"{found} -> {target}"])


def require_all_inside(folder: Folder, names: Iterable[str]) -> None:
    """Raise UnreadableSource naming the files directly in a folder that are links out of it."""
    links = _links(folder)
    wanted = (name for name in names if name in links) if links else ()
    if out := [f"{name} -> {target}" for name, target in leading_out(folder, wanted)]:
        raise _outside(folder, out)


def leading_out(folder: Folder, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The names in a folder that links lead out of it, and where to; never any in a bucket."""
    if not folder.url.startswith(_DISK):
        return
    root = os.path.realpath(folder.url.removeprefix(_DISK))
    for name in names:
        target = os.path.realpath(posixpath.join(root, name))
        if target != root and not _is_below(target, root):
            yield name, target


def _outside(folder: Folder, found: list[str]) -> UnreadableSource:
    first = ", ".join(found[:10]) + (f" and {len(found) - 10:,} more" if len(found) > 10 else "")
    return UnreadableSource(
        f"source: links lead out of {folder.url}: {first}. Put the files themselves there, or give "
        "the folder in which they are"
    )


def _links(folder: Folder) -> set[str]:
    """The names of the links directly in a folder on disk, without those to nothing."""
    if not folder.url.startswith(_DISK):
        return set()
    path = folder.url.removeprefix(_DISK)
    with disk_errors("list", path), os.scandir(path) as entries:
        return {entry.name for entry in entries if entry.is_symlink() and _leads_somewhere(entry)}


def _leads_somewhere(entry: "os.DirEntry[str]") -> bool:
    return os.path.exists(entry.path)  # noqa: PTH110 - an entry has a text


def _on_disk(folder: Folder, beside: str, name: str) -> str | None:
    if "\0" in name:
        return None
    root = os.path.realpath(folder.url.removeprefix(_DISK))
    target = os.path.realpath(os.path.join(root, beside, name))  # noqa: PTH118 - as text
    return os.path.relpath(target, root) if _is_below(target, root) else None


def _in_bucket(beside: str, name: str) -> str | None:
    """The name in the folder, if that is where it leads in all ways in which servers read it."""
    if not name:
        return None
    for text in map("/".join, readings(name)):
        path = posixpath.normpath(posixpath.join(beside, text))
        if path in (".", "..") or path.startswith(("/", "../")) or "\0" in text or "://" in text:
            return None
    return posixpath.normpath(posixpath.join(beside, name))


def _is_below(path: str, root: str) -> bool:
    return path.startswith(f"{root.rstrip('/')}/")
