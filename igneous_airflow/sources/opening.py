"""From an address to voxels: looks at what is there and chooses the format; called by ingest."""

import fnmatch
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Literal

from igneous_airflow.errors import InvalidParameter, SourceNotFound, UnreadableSource
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.sources import hdf5, nifti, raw, tiff
from igneous_airflow.sources.array_source import ArraySource
from igneous_airflow.sources.build import BuildSource
from igneous_airflow.sources.order import natural_key
from igneous_airflow.sources.pictures import is_whole_picture
from igneous_airflow.sources.protocol import Findings, VoxelArray, named
from igneous_airflow.sources.reach import require_all_inside
from igneous_airflow.sources.sections import look_at_sections, open_sections
from igneous_airflow.sources.tiff_stack import open_tiff
from igneous_airflow.sources.zarr_array import MARKS, open_zarr
from igneous_airflow.storage import magic
from igneous_airflow.storage.allowed import require_links_allowed
from igneous_airflow.storage.files import (
    FileEntry,
    Folder,
    open_file,
    open_source_folder,
    plain_name,
)
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.wording import counted

FileSource = ArraySource | BuildSource
Kind = Literal["build", "sections", "file", "zarr"]

_PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_PATTERN = re.compile(r"[*?\[]")
_SOURCES_KEPT = 2


@dataclass(frozen=True)
class Found:
    """What is at an address: the files, in order, and their state in a few words.

    The state tells changed files apart, as far as a listing can: by names, sizes and, on disks,
    times, in buckets ETags or generations. Of Zarr it is the metadata.
    """

    url: str
    kind: Kind
    files: tuple[FileEntry, ...]
    state: str

    @property
    def folder(self) -> Folder:
        """Where the files lie."""
        if self.kind == "file":  # its neighbors need not be allowed
            return open_file(f"{self.url}/{self.files[0].name}")[0]
        return open_source_folder(self.url)


def find_source(url: str) -> Found:
    """Look at an address: a file, a folder, or a pattern for files of a folder.

    Raises SourceNotFound, and UnreadableSource for a folder of which nothing is understood.
    """
    is_bucket = url.rpartition("/")[0].endswith(":/")  # above which there is nothing
    if not is_bucket:
        above, name = open_file(url)
        if (entry := above.entry(name)) is not None:
            return _found(above, "file", [entry])
        if _PATTERN.search(name):
            above = open_source_folder(above.url)
            files = [entry for entry in _shown(above) if fnmatch.fnmatchcase(entry.name, name)]
            if files:  # otherwise it may be a folder of that name
                return _found(above, "sections", files)
    return _find_in_folder(open_source_folder(url))


def _find_in_folder(folder: Folder) -> Found:
    marks = [entry for mark in MARKS if (entry := folder.entry(mark)) is not None]
    if marks:
        return _found(folder, "zarr", marks[:1])
    files = _shown(folder)
    if not files:
        raise SourceNotFound(f"source: there is no file at {folder.url}, nor any below it")
    pictures = [entry for entry in files if entry.name.lower().endswith(_PICTURES)]
    if pictures:
        return _found(folder, "sections", pictures)
    if chunks := [entry for entry in files if _box(entry) is not None]:
        return _found(folder, "build", chunks)
    names = sorted(entry.name for entry in files)
    raise UnreadableSource(
        f"source: {folder.url} holds neither pictures ({', '.join(_PICTURES)}) nor build chunks, "
        f"but {named(names)}. Give one file, or a pattern such as {folder.url}/*"
    )


def _shown(folder: Folder) -> list[FileEntry]:
    """The files of a folder without the hidden ones, such as macOS leaves for each picture."""
    return [entry for entry in folder.entries("") if not entry.name.startswith(".")]


def _found(folder: Folder, kind: Kind, files: Iterable[FileEntry]) -> Found:
    ordered = tuple(sorted(files, key=lambda entry: natural_key(entry.name)))
    require_links_allowed(folder.url, (entry.name for entry in ordered))
    if kind != "file":  # which the address names itself
        require_all_inside(folder, [entry.name for entry in ordered])
    digest = sha256()
    for entry in ordered:
        try:
            digest.update(f"{entry.name}\0{entry.size}\0{entry.state}\0".encode())
        except UnicodeEncodeError as error:
            raise UnreadableSource(
                f"source: in {folder.url} the name {entry.name!r} is no UTF-8: rename the file"
            ) from error
    size = sum(entry.size for entry in ordered)
    state = f"{counted(len(ordered), 'file')}, {size:,} bytes, {digest.hexdigest()[:12]}"
    return Found(folder.url, kind, ordered, state)


def _box(entry: FileEntry) -> BoundingBox | None:
    with suppress(InvalidParameter):
        box = BoundingBox.parse(plain_name(entry.name))
        return box if box else None
    return None


@dataclass(frozen=True)
class Reading:
    """How a source is to be read; `dataset` and `axes` where its files do not say.

    With `fill_missing`, holes are background; otherwise they are refused or closed up. A task may
    use `memory` bytes.
    """

    dataset: str | None = None
    axes: str | None = None
    fill_missing: bool = False
    background: float = 0
    memory: int = 3_500_000_000


@lru_cache(_SOURCES_KEPT)
def open_source(found: Found, reading: Reading) -> FileSource:
    """Open what was found, reading a header; the tasks of a process share what was opened.

    Raises UnreadableSource, InvalidParameter saying what must be known besides, and the storage's
    errors.
    """
    if found.kind == "build":
        boxes = dict.fromkeys(box for entry in found.files if (box := _box(entry)) is not None)
        missing = reading.background if reading.fill_missing else None
        return BuildSource.open(found.folder, tuple(boxes), missing)
    array = _open_array(found, reading)
    name = f"{found.url}/{found.files[0].name}" if found.kind == "file" else found.url
    return ArraySource.of(array, reading.axes, name, reading.memory)


def look_into(found: Found, reading: Reading) -> Findings:
    """Look into every file, and name what is wrong with which; may take its time.

    Sections are looked into before they are opened, so that all the broken ones are named.
    """
    if found.kind == "sections":
        return look_at_sections(found.folder, found.files, reading.memory)
    return open_source(found, reading).look()


def _open_array(found: Found, reading: Reading) -> VoxelArray:
    if found.kind == "zarr":
        return open_zarr(found.folder, reading.dataset)
    missing = reading.background if reading.fill_missing else None
    if found.kind == "sections":
        return open_sections(found.folder, found.files, missing, reading.memory)
    file = FileInParts(found.folder, found.files[0])
    if magic.is_hdf5(bytes(file.head(magic.LONGEST))):
        return hdf5.open_hdf5(file, reading.dataset, missing)
    return _open_file(file, reading.memory)


def _open_file(file: FileInParts, memory: int) -> VoxelArray:
    """Open one file, whose first bytes tell its format."""
    head = bytes(file.head(magic.LONGEST))
    if head.startswith(tiff.MAGIC):
        return open_tiff(file, memory)
    if head.startswith(magic.NPY):
        return raw.open_npy(file)
    if is_whole_picture(head):
        return open_sections(file.folder, (file.entry,), None, memory)
    if nifti.is_nifti(head) or head.startswith(nifti.GZIP):
        return nifti.open_nifti(file)
    raise UnreadableSource(
        f"source: {file.url} is none of TIFF, PNG, JPEG, .npy, HDF5, NIfTI, as its first bytes say"
    )
