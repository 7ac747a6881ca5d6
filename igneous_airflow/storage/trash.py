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
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.files import SUFFIXES, Folder
from igneous_airflow.storage.folder_names import TRASH, folder_problem
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.json_files import read_json, write_json
from igneous_airflow.storage.partials import remove_abandoned

_ENTRY, _FILES = "entry.json", "files"
_TIME = "%Y%m%dT%H%M%SZ"
_WITHOUT_ENTRY = (
    "without it, `trash restore --unfinished` brings the files back, and leaves the info as it is"
)
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{6}")


def new_entry_name() -> str:
    """A name for an entry: the time in UTC, and something that tells it from others."""
    return f"{datetime.now(UTC).strftime(_TIME)}-{uuid.uuid4().hex[:6]}"


def _inside(name: str) -> str:
    """A folder of the layer, and not of its trash; raises ValueError."""
    if problem := folder_problem(name):
        raise ValueError(f"{name!r} {problem}")
    return name


def _box(text: str) -> str:
    """A box as text; raises ValueError."""
    return str(BoundingBox.parse(text))


FolderName = Annotated[str, AfterValidator(_inside)]
BoxText = Annotated[str, AfterValidator(_box)]


class Entry(BaseModel):
    """What `entry.json` says: what went, when, by which stage, and where it was.

    `folders` are those of the layer that its files came from, and `parts` the boxes of the files,
    by folder, where not all of them went. `scales` are the entries that the layer's info had for
    them, where those went as well. `mesh` is the mesh folder, where it was moved as a whole.
    `complete` is set when nothing more is to come. `run` and `launch` are empty outside of runs.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    name: str = Field(pattern=_NAME.pattern)
    what: str
    stage: str
    by: str = ""
    run: str = ""
    launch: str = ""
    folders: tuple[FolderName, ...]
    parts: dict[FolderName, BoxText] = {}
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
    def why_unfinished(self) -> str:
        """Why files may still come, and what to do; to be followed by what the option is for."""
        who, end = f"a {self.stage} outside of runs", "make sure that it has ended"
        if self.run:
            who = f"the {self.stage} run {self.run}"
            end = f"end it with `igneous-airflow cancel {self.run}`"
        return (
            f"{self.name} is not complete: {who} may still move files there. Let it finish; or "
            f"{end}, then set --unfinished"
        )

    def is_of(self, launch: str) -> bool:
        """Whether a launch may go on with the entry: it is its own, or begun outside of runs."""
        return self.launch == launch or not (self.launch or self.complete)

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
        try:
            entry = read_json(self.layer, f"{self._root}/{_ENTRY}", Entry)
            if entry is not None and entry.name != self.name:
                raise InvalidParameter(f"{self.url}/{_ENTRY} is that of {entry.name}")
        except InvalidParameter as error:
            raise InvalidParameter(
                f"{error}. Put the file right, or remove it: {_WITHOUT_ENTRY}"
            ) from None
        return entry

    def write(self, entry: Entry) -> None:
        """Say what the entry is; after a power cut it is known what the files were."""
        name = f"{self._root}/{_ENTRY}"
        write_json(self.layer, name, entry)
        sync(self.layer.url, [name])
        remove_abandoned(self.url)

    def require_free(self, launch: str) -> None:
        """Raise InvalidParameter when the entry is another run's than that of a launch."""
        present = self.read()
        if present is not None and (not present.is_of(launch) or (present.complete and not launch)):
            raise self._taken_by(present)

    def begin(self, entry: Entry) -> None:
        """Say what the entry will be, before any file goes there; may be done again.

        Raises InvalidParameter when it is another run's.
        """
        present = self.read()
        if present is None:
            self.write(entry)
        elif not present.is_of(entry.launch):
            raise self._taken_by(present)

    def _taken_by(self, present: Entry) -> InvalidParameter:
        run = f"of the run {present.run}" if present.run else "of another run"
        return InvalidParameter(
            f"trash_entry: {self.layer.url} has {self.name} in its trash already ({present.what}, "
            f"{run}): leave trash_entry empty, or choose another name"
        )

    def complete(self, by: str = "") -> None:
        """Say that nothing more is to come, if anything has come."""
        entry = self.read()
        if entry is not None and not entry.complete:
            self.write(entry.model_copy(update={"by": by or entry.by, "complete": True}))

    def put(self, name: str) -> None:
        """Move a file of the layer here, in all its compressions; it may be absent.

        Raises InvalidParameter when there is one of the name here: it was written again since.
        """
        for suffix in ("", *SUFFIXES.values()):
            try:
                self.layer.rename(f"{name}{suffix}", self.path_of(f"{name}{suffix}"))
            except InvalidParameter as error:
                raise InvalidParameter(
                    f"{error}. If it was written again since this run has moved it to the trash, "
                    "cancel the run and start a new delete, which has an entry of its own"
                ) from error

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

    def remove(self) -> bool:
        """Delete the files for good, then the entry; says whether it is gone."""
        self.layer.delete_folder(f"{self._root}/{_FILES}")
        return self.remove_if_empty()

    def remove_if_empty(self) -> bool:
        """Remove the entry, and say whether it is gone: while files are in it, it stays.

        What it says of itself goes last, so that this can be done again.
        """
        self.layer.remove_empty_folders(f"{self._root}/{_FILES}")
        if holds_files(self.layer, f"{self._root}/{_FILES}"):
            return False
        self.layer.delete(f"{self._root}/{_ENTRY}")
        remove_abandoned(self.url)
        self.layer.remove_empty_folders(self._root)
        return True

    def rebuilt(self) -> Entry:
        """What can be said of an entry whose files alone are there."""
        folders = tuple(sorted(self.layer.folders(f"{self._root}/{_FILES}")))
        for folder in folders:
            if problem := folder_problem(folder):
                raise InvalidParameter(f"{self.url}/{_FILES}: {folder!r} {problem}: move it away")
        return Entry(
            name=self.name, what=f"files in {', '.join(folders)}", stage="", folders=folders
        )


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


def require_entry(layer: Folder, name: str, *, rebuilt: bool) -> tuple[Trash, Entry]:
    """An entry that is there, and what it says; raises InvalidParameter naming those there are.

    With `rebuilt`, files that nothing is said of are enough.
    """
    trash = Trash(layer, name)
    entry = trash.read()
    if entry is None and any(True for _ in trash.files()):
        if not rebuilt:
            raise InvalidParameter(f"{trash.url}/{_ENTRY} is missing: {_WITHOUT_ENTRY}")
        entry = trash.rebuilt()
    if entry is None:
        there = ", ".join(other.name for other in entries_of(layer)) or "nothing"
        raise InvalidParameter(f"{layer.url} has no {name} in its trash, which holds: {there}")
    return trash, entry
