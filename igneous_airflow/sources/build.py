"""Build chunks: a folder of files, each named by the box of its voxels.

A file holds a zlib stream of a `.npy` stream, of shape (x, y, z, channel), or (x, y, z), or, as
older writers had it, (1, x, y, z). `LAYER/build/` is where they lie by custom.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Self

import numpy as np

from igneous_airflow.errors import IgneousError, SourceNotFound, UnreadableSource
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.coverage import Coverage
from igneous_airflow.geometry.mips import divisor_nearest_64
from igneous_airflow.sources.data_types import data_type_for, data_type_notes
from igneous_airflow.sources.protocol import (
    Array,
    Findings,
    Resolution,
    copy_voxels,
    named,
)
from igneous_airflow.storage.codecs import decompress_bytes, decompress_first, inflate
from igneous_airflow.storage.files import Buffer, Folder, StoredFile
from igneous_airflow.storage.overlap import Overlap, overlap_width
from igneous_airflow.wording import counted

_NOWHERE = Vec3(0, 0, 0)
_HEADS_AT_ONCE = 16
_HEAD = 1 << 10  # bytes of a file that hold the header of the .npy stream
_LONGEST = 1 << 16  # bytes of a header


@dataclass(frozen=True, slots=True)
class _Header:
    """What a `.npy` stream says of itself, and where its voxels begin."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: "np.dtype[Any]"
    offset: int

    @classmethod
    def read(cls, content: Buffer) -> Self:
        """Parse it; raises ValueError."""
        stream = io.BytesIO(memoryview(content)[:_LONGEST])
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        return cls(shape, is_fortran, dtype, stream.tell())

    def channels_in(self, size: Vec3) -> int:
        """Channels of the voxels of a box; raises ValueError when it is another box's array."""
        x, y, z = size
        if self.shape in ((x, y, z), (1, x, y, z)):
            return 1
        if self.shape[:3] == (x, y, z) and len(self.shape) == 4 and self.shape[3] > 0:
            return self.shape[3]
        raise ValueError(f"its array has the shape {self.shape}, and its name says {size}")


@dataclass(frozen=True)
class BuildSource:
    """The voxels of build chunks, moved by `shift`; `missing` fills holes.

    Every file has the dtype and the channels of the first one.
    """

    folder: Folder
    coverage: Coverage
    dtype: "np.dtype[Any]"
    channels: int
    missing: float | None
    shift: Vec3 = _NOWHERE

    @classmethod
    def open(cls, folder: Folder, boxes: tuple[BoundingBox, ...], missing: float | None) -> Self:
        """Read the header of the first file; raises UnreadableSource."""
        header, channels = _header(folder, boxes[0])
        data_type_for(header.dtype)
        return cls(folder, Coverage(boxes), header.dtype, channels, missing)

    @cached_property
    def bounds(self) -> BoundingBox:
        """The box of its voxels in the layer."""
        return self.coverage.bounds.translated(self.shift)

    def placed(self, origin: Vec3) -> Self:
        """The same voxels, the first one elsewhere."""
        return replace(self, shift=origin - self.coverage.bounds.min)

    @property
    def has_place(self) -> bool:
        """Whether the files themselves say where the voxels lie."""
        return True

    @property
    def data_type(self) -> str:
        """The data type of the layer."""
        return data_type_for(self.dtype)

    @property
    def resolution(self) -> Resolution | None:
        """Nanometres of a voxel: build chunks do not say."""
        return None

    @property
    def default_chunk_size(self) -> Vec3:
        """On each axis the divisor of a build chunk's edge that is nearest to 64."""
        return Vec3(*map(divisor_nearest_64, self.coverage.largest))

    def info_keys(self, layer_type: str) -> dict[str, Any]:
        """Segmentations name their folder of meshes."""
        return {"mesh": "mesh"} if layer_type == "segmentation" else {}

    @property
    def chunk_size(self) -> Vec3:
        """Voxels of the largest file."""
        return self.coverage.largest

    @property
    def decodes_chunks(self) -> bool:
        """Whether a file must be decoded as a whole: always."""
        return True

    @property
    def whole_bytes(self) -> int:
        """Bytes of a file as it is decoded, where it goes on beyond the voxels: it never does."""
        return 0

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in a file, with all channels."""
        return self.dtype.itemsize * self.channels

    @property
    def changes_voxels(self) -> bool:
        """Whether voxels are converted, or brought into Fortran order: files seldom are in it."""
        return True

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""
        return overlap_width(self.folder.url)

    def phase(self, region: BoundingBox) -> Vec3:
        """How many voxels before a region the file begins that it starts in, in a regular grid."""
        return (region.min - self.bounds.min) % self.chunk_size

    def parts(self, box: BoundingBox, overlap: Overlap) -> Iterator[tuple[BoundingBox, Array]]:
        """Put a box together from the files that reach into it; raises UnreadableSource."""
        origin = box.translated(self.shift * -1)
        voxels = np.empty((*box.size, self.channels), self.data_type, order="F")
        files = self.coverage.overlapping(origin)
        if self.missing is not None:
            voxels[...] = self.missing
        for file, content in overlap.map(self._load, files):
            common = file.intersection(origin)
            copy_voxels(voxels[common.slices_within(origin)], content[common.slices_within(file)])
        yield box, voxels

    def _load(self, file: BoundingBox) -> Array:
        """The voxels of a file as (x, y, z, channel)."""
        try:
            content = self._inflated(file)
            header = _Header.read(content)
            if (header.dtype, header.channels_in(file.size)) != (self.dtype, self.channels):
                raise ValueError(f"it holds {header.dtype}, not what the plan has found")
            voxels: Array = np.frombuffer(
                content, header.dtype, file.voxels * self.channels, header.offset
            )
            voxels = voxels.reshape(header.shape, order="F" if header.is_fortran else "C")
        except ValueError as error:  # a CorruptChunk is one
            raise UnreadableSource(f"{self.folder.url}/{file} cannot be read: {error}") from error
        return voxels.reshape(*file.size, self.channels)

    def _inflated(self, file: BoundingBox) -> Buffer:
        most = file.voxels * self.voxel_bytes + _LONGEST
        return inflate(_stored(self.folder, file, 2 * most), most)

    def look(self) -> Findings:
        """Name overlaps, holes that nothing fills, and files whose headers do not fit."""
        problems = list(self._place_problems())
        with Overlap(_HEADS_AT_ONCE) as overlap:
            found = [problem for _, problem in overlap.map(self._problem, self.coverage.boxes)]
        if broken := [problem for problem in found if problem is not None]:
            count = counted(len(broken), "build chunk")
            problems.append(f"{count} cannot be read: {named(broken, '; ')}")
        return Findings(tuple(problems))

    def _problem(self, file: BoundingBox) -> str | None:
        try:
            header, channels = _header(self.folder, file)
        except IgneousError as error:
            return str(error).removeprefix(f"{self.folder.url}/")
        if (header.dtype, channels) == (self.dtype, self.channels):
            return None
        return (
            f"{file} holds {header.dtype} in {channels} channel(s), "
            f"{self.coverage.boxes[0]} {self.dtype} in {self.channels}"
        )

    def _place_problems(self) -> Iterator[str]:
        """What the names of the files tell."""
        pairs = [f"{one} and {other}" for one, other in islice(self.coverage.overlaps(), 10)]
        if pairs:
            yield f"build chunks overlap, so that voxels are told twice: {named(pairs)}"
        elif self.missing is None and self.coverage.uncovered:
            yield f"{self._holes()}: add the files, or set fill_missing to read background"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of the source."""
        holes = [f"{self._holes()}: they become background"] if self.coverage.uncovered else []
        count, bounds = counted(len(self.coverage.boxes), "build chunk"), self.coverage.bounds
        return (
            f"{count} of up to {self.coverage.largest} voxels make up {bounds}",
            *holes,
            *data_type_notes(self.dtype, self.data_type),
        )

    def _holes(self) -> str:
        first = list(map(str, islice(self.coverage.holes(), 11)))
        more = " and others" if len(first) > 10 else ""
        return (
            f"build chunks leave {self.coverage.uncovered:,} voxels out: "
            f"{', '.join(first[:10])}{more}"
        )


def _header(folder: Folder, file: BoundingBox) -> tuple[_Header, int]:
    """The header of a file and its channels, of which only the beginning is read."""
    url = f"{folder.url}/{file}"
    try:
        content = _beginning(folder, file)
        header = _Header.read(content)
        return header, header.channels_in(file.size)
    except UnreadableSource:
        raise
    except (ValueError, zlib.error) as error:
        raise UnreadableSource(
            f"{url} is no zlib stream of a .npy stream that fits its name: {error}"
        ) from error


def _beginning(folder: Folder, file: BoundingBox) -> bytes:
    """The first bytes of the `.npy` stream of a file; raises zlib.error and others."""
    entry = folder.entry(str(file))
    head: Buffer = bytearray(min(_HEAD, entry.size) if entry else 0)
    try:
        if entry is not None:
            folder.read_part(entry.name, 0, memoryview(head))
        else:  # compressed once more, as its suffix says
            head = _head_of_stored(folder, file)
    except UnreadableSource:  # compressed once more, as the bucket says
        head = _head_of_stored(folder, file)
    return zlib.decompressobj().decompress(head, _HEAD)


def _head_of_stored(folder: Folder, file: BoundingBox) -> Buffer:
    """The beginning of the zlib stream of a file that was compressed once more."""
    return decompress_first(_read(folder, file), _HEAD)


def _stored(folder: Folder, file: BoundingBox, most: int) -> Buffer:
    """The zlib stream of a file, of `most` bytes at most.

    Raises CorruptChunk, SourceNotFound and the storage's errors.
    """
    return decompress_bytes(_read(folder, file), most)


def _read(folder: Folder, file: BoundingBox) -> StoredFile:
    stored = folder.read(str(file))
    if stored is None:
        raise SourceNotFound(f"{folder.url}/{file} is not there")
    return stored
