"""The trash of a layer: what was deleted or replaced, until it is restored or the trash is emptied.

It lies in the layer's own folder, so that a disk moves files there without copying them:
`.trash/ENTRY/files/` holds them under the names that they had in the layer, and
`.trash/ENTRY/entry.json` says what they are. The latter is there before the first file and goes
after the last one. Buckets have no trash: a file of theirs cannot be moved without being copied.
"""

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from igneous_airflow.errors import InvalidInfo, InvalidParameter
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.files import SUFFIXES, Folder
from igneous_airflow.storage.folder_names import TRASH, folder_problem
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.json_files import read_json, write_json
from igneous_airflow.storage.partials import remove_abandoned

_ENTRY, _FILES = "entry.json", "files"
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{6}")


def new_entry_name() -> str:
    """A name for an entry: the time in UTC, and something that tells it from others."""
    return f"{datetime.now(UTC).strftime(_TIME)}-{uuid.uuid4().hex[:6]}"


def _inside(name: str) -> str:
    """A folder of the layer, and not of its trash; raises ValueError."""
    if problem := folder_problem(name):
        raise ValueError(f"{name!r} {problem}")
    return name


FolderName = Annotated[str, AfterValidator(_inside)]


class Entry(BaseModel):
    """What `entry.json` says: what went, when, by which stage, and where it was.

    `folders` are those of the layer that its files came from. `scales` are the entries that the
    layer's info had for them, where those went as well. `mesh` is the mesh folder, where it was
    moved as a whole. `complete` is set when nothing more is to come.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    name: str = Field(pattern=_NAME.pattern)
    what: str
    stage: str
    by: str = ""
    folders: tuple[FolderName, ...]
    scales: tuple[dict[str, Any], ...] = ()
    mesh: FolderName | None = None
    complete: bool = False

    @model_validator(mode="after")
    def _has_scales_of_its_folders(self) -> Self:
        try:
            keys = {Scale.parse(entry).key for entry in self.scales}
        except InvalidInfo as error:
            raise ValueError(str(error)) from error
        if not keys <= set(self.folders):
            raise ValueError(f"scales {sorted(keys)} are not those of the folders {self.folders}")
        return self

    @property
    def when(self) -> datetime:
        """When it went, as its name says."""
        return time_of(self.name)


def time_of(name: str) -> datetime:
    """When an entry of that name was made; raises InvalidParameter for the name of none."""
    match = _NAME.fullmatch(name)
    try:
        if match is not None:
            return datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
    except ValueError:  # a month 13
        pass
    raise InvalidParameter(f"{name!r} is not the name of an entry of the trash")


class Trash:
    """One entry of a layer's trash; its folder need not be there."""

    def __init__(self, layer: Folder, name: str) -> None:
        time_of(name)
        self.layer = layer
        self.name = name
        self._root = f"{TRASH}/{name}"

    @property
    def url(self) -> str:
        """The entry's address."""
        return f"{self.layer.url}/{self._root}"

    def read(self) -> Entry | None:
        """What the entry says of itself; None when there is none. Raises InvalidParameter."""
        entry = read_json(self.layer, f"{self._root}/{_ENTRY}", Entry)
        if entry is not None and entry.name != self.name:
            raise InvalidParameter(f"{self.url}/{_ENTRY} is that of {entry.name}")
        return entry

    def write(self, entry: Entry) -> None:
        """Say what the entry is; after a power cut it is known what the files were."""
        name = f"{self._root}/{_ENTRY}"
        write_json(self.layer, name, entry)
        sync(self.layer.url, [name])
        remove_abandoned(self.url)

    def begin(self, entry: Entry) -> None:
        """Say what the entry will be, before any file goes there; may be done again."""
        if self.read() is None:
            self.write(entry)

    def put(self, name: str) -> None:
        """Move a file of the layer here, in all its compressions; it may be absent."""
        for suffix in ("", *SUFFIXES.values()):
            self.layer.rename(f"{name}{suffix}", f"{self._root}/{_FILES}/{name}{suffix}")

    def put_folder(self, name: str) -> None:
        """Move a folder of the layer here, as a whole; it may be absent."""
        self.layer.rename(name, self.path_of(name))

    def folders_of(self, name: str) -> list[str]:
        """The folders that are made for a folder of the layer, from the layer's own on."""
        path = PurePosixPath(self.path_of(name))
        return [str(folder) for folder in (*reversed(path.parents), path)]

    def holds(self, name: str) -> bool:
        """Whether files of a folder of the layer are here."""
        return holds_files(self.layer, self.path_of(name))

    def path_of(self, name: str) -> str:
        """Where a file or folder of the layer is, or would be, in the trash."""
        return f"{self._root}/{_FILES}/{name}"

    def files(self) -> Iterator[tuple[str, int]]:
        """The files, by the full names that they had in the layer, and their bytes."""
        start = f"{self._root}/{_FILES}"
        for name, size in files_below(self.layer, start):
            yield name.removeprefix(f"{start}/"), size

    def remove(self) -> None:
        """Delete the entry for good; what it says goes last, so that this can be done again."""
        self.layer.delete_folder(f"{self._root}/{_FILES}")
        self.layer.delete(f"{self._root}/{_ENTRY}")
        self.layer.delete_folder(self._root)


def files_below(folder: Folder, prefix: str) -> Iterator[tuple[str, int]]:
    """All files below a folder, however deep: full names from the folder's root, and bytes."""
    for entry in folder.entries(prefix):
        yield f"{prefix}/{entry.name}", entry.size
    for inner in folder.folders(prefix):
        yield from files_below(folder, f"{prefix}/{inner}")


def holds_files(folder: Folder, prefix: str) -> bool:
    """Whether there is a file below a folder, however deep."""
    return any(True for _ in files_below(folder, prefix))


def entries_of(layer: Folder) -> list[Trash]:
    """The entries of a layer's trash, the newest first; folders of other names are left alone."""
    names = [name for name in layer.folders(TRASH) if _NAME.fullmatch(name)]
    return [Trash(layer, name) for name in sorted(names, reverse=True)]


def require_entry(layer: Folder, name: str) -> tuple[Trash, Entry]:
    """An entry that is there, and what it says; raises InvalidParameter naming those there are."""
    trash = Trash(layer, name)
    entry = trash.read()
    if entry is None:
        there = ", ".join(other.name for other in entries_of(layer)) or "nothing"
        raise InvalidParameter(f"{layer.url} has no {name} in its trash, which holds: {there}")
    return trash, entry
