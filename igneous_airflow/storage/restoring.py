"""Bringing back what is in the trash of a layer; used by the command `trash restore`.

Each step may be done again, so that a restore that was stopped is done by starting it again: files
that are back are not in the trash any more, and what the entry says of itself goes last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from igneous_airflow.errors import InvalidInfo, InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.files import SUFFIXES, Folder, plain_name
from igneous_airflow.storage.info import put_back, read_info
from igneous_airflow.storage.provenance import read_provenance, record_processing
from igneous_airflow.storage.trash import (
    Entry,
    Trash,
    holds_files,
    new_entry_name,
    require_entry,
)

_NAMED_AT_MOST = 10
_TASK = "RestoreTask"


@dataclass(frozen=True, slots=True)
class Restored:
    """How many files came back, and how many a run has moved to the entry meanwhile.

    `unrecorded` is why the layer's provenance does not tell of it; empty when it does.
    """

    files: int
    left: int = 0
    unrecorded: str = ""


def restore(
    layer: Folder, name: str, by: str, *, replace: bool = False, unfinished: bool = False
) -> Restored:
    """Put an entry of the trash back where it was.

    Files, then scales and the mesh folder's name in the info, then the provenance. What was written
    in its place meanwhile is not replaced: raises PlanRefused naming it, unless `replace` says so.
    An entry to which a run may still move files is refused as well, unless `unfinished` says so.
    Raises InvalidParameter when there is no such entry, InvalidInfo when other scales or meshes
    have taken their places in the info.
    """
    trash, entry = require_entry(layer, name, rebuilt=unfinished)
    if not (entry.complete or unfinished):
        raise PlanRefused("restore", [f"{entry.why_unfinished} to restore what is there now"])
    _require_room_in_info(layer, entry)
    for moved, _ in list(trash.files()):
        layer.complete_move(trash.path_of(moved), moved)
    if not replace and (taken := list(islice(_taken(layer, trash, entry), _NAMED_AT_MOST + 1))):
        others = " and others" if len(taken) > _NAMED_AT_MOST else ""
        named = ", ".join(taken[:_NAMED_AT_MOST])
        raise PlanRefused(
            "restore",
            [f"{named}{others} were written since: set --yes to replace them by what is restored"],
        )
    files = _put_files_back(layer, trash, entry)
    put_back(layer, entry.scales, entry.mesh)
    unrecorded = _record(layer, entry, by)
    left = 0 if trash.remove_if_empty() else sum(1 for _ in trash.files())
    return Restored(files, left, unrecorded)


def was_restored(layer: Folder, name: str) -> bool:
    """Whether an entry that is not there any more was brought back, as the provenance tells."""
    try:
        processing = read_provenance(layer)["processing"]
    except InvalidInfo:
        return False
    return any(
        isinstance(entry, dict)
        and isinstance(method := entry.get("method"), dict)
        and (method.get("task"), method.get("entry")) == (_TASK, name)
        for entry in processing
    )


def _record(layer: Folder, entry: Entry, by: str) -> str:
    """Record what came back as written by this restore; says why where that is not possible."""
    written = {
        folder: BoundingBox.parse(entry.parts[folder]) if folder in entry.parts else None
        for folder in entry.folders
    }
    method = {"task": _TASK, "entry": entry.name, "what": entry.what}
    try:
        record_processing(layer, method, by, written=written)
    except InvalidInfo as error:
        return str(error)
    return ""


def _require_room_in_info(layer: Folder, entry: Entry) -> None:
    """Raise InvalidInfo, before anything is moved, when the info cannot take back what it lost."""
    info = read_info(layer).with_entries(entry.scales)
    if entry.mesh is not None:
        info.with_mesh_directory(entry.mesh)


def _taken(layer: Folder, trash: Trash, entry: Entry) -> Iterator[str]:
    """What is in the place of files of the trash: mesh folders and files, by their names."""
    if entry.mesh is not None:
        if trash.holds(entry.mesh) and holds_files(layer, entry.mesh):
            yield f"the meshes in {entry.mesh}"
        return
    for name, _ in trash.files():
        if layer.exists(plain_name(name)):
            yield name


def _put_files_back(layer: Folder, trash: Trash, entry: Entry) -> int:
    """Move the files back; those that took their places go to an entry of their own instead."""
    aside = Trash(layer, new_entry_name())
    if entry.mesh is not None:
        files = _swap_meshes(layer, trash, aside, entry)
    else:
        files = _swap_files(layer, trash, aside, entry)
    aside.complete()
    return files


def _swap_files(layer: Folder, trash: Trash, aside: Trash, entry: Entry) -> int:
    coming, moved = {name for name, _ in trash.files()}, 0
    for name in sorted(coming):
        for present in _in_its_place(layer, name):
            if present == name or present not in coming:
                aside.begin(_replaced_by(trash, aside, entry))
                layer.rename(present, aside.path_of(present))
        moved += layer.rename(trash.path_of(name), name)
    return moved


def _in_its_place(layer: Folder, name: str) -> list[str]:
    """The files that readers would find in a file's place, in whatever compression."""
    plain = plain_name(name)
    if not layer.exists(plain):
        return []
    variants = (f"{plain}{suffix}" for suffix in ("", *SUFFIXES.values()))
    return [variant for variant in variants if layer.entry(variant) is not None]


def _swap_meshes(layer: Folder, trash: Trash, aside: Trash, entry: Entry) -> int:
    """Put a mesh folder back as a whole; one that took its place goes to the trash instead."""
    folder, files = entry.mesh or "", sum(1 for _ in trash.files())
    if trash.holds(folder):
        if holds_files(layer, folder):
            aside.begin(_replaced_by(trash, aside, entry))
            aside.put_folder(folder)
        layer.rename(trash.path_of(folder), folder)
    return files


def _replaced_by(trash: Trash, aside: Trash, entry: Entry) -> Entry:
    """What an entry says of files that those of another one replace."""
    return Entry(
        name=aside.name,
        what=f"what took the place of {trash.name}",
        stage="restore",
        folders=entry.folders,
        parts=entry.parts,
        mesh=entry.mesh,
    )


def require_disk(layer: Folder) -> None:
    """Raise InvalidParameter for a layer in a bucket, which has no trash."""
    if not layer.renames:
        raise InvalidParameter(
            f"{layer.url} is in a bucket, which has no trash: what was deleted there is gone, "
            "unless the bucket keeps versions, from which its own tools bring it back"
        )
