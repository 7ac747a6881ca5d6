"""NIfTI volumes, `.nii` and `.nii.gz`.

Format: https://nifti.nimh.nih.gov/nifti-1 and nifti-2; the header is parsed by nibabel.
"""

import errno
import gzip
import io
import math
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, BinaryIO, Literal

from igneous_airflow.errors import StorageUnavailable, UnreadableSource
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    Findings,
    Part,
    Resolution,
    VoxelArray,
    checked_shape,
    require,
)
from igneous_airflow.sources.raw import RawArray, raw_array
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts

GZIP = b"\x1f\x8b"
_HEADER_SIZES = {348: "Nifti1Header", 540: "Nifti2Header"}
_LONGEST_HEADER = 540
_BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_NANOMETRES = {"meter": 1e9, "mm": 1e6, "micron": 1e3}
_READ = 1 << 22
_READ_LOCALLY = 1 << 16


class UnpackedBytes:
    """The content of a gzip file, unpacked once into a temporary file when it is first needed.

    The file has no name, so that nothing is left behind however the process ends.
    """

    def __init__(self, file: FileInParts, size: int) -> None:
        self._file = file
        self.size = size
        self._lock = Lock()
        self._unpacked: BinaryIO | None = None

    @property
    def url(self) -> str:
        """The packed file's address."""
        return self._file.url

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the unpacked bytes from `start` on.

        Raises UnreadableSource, and StorageUnavailable when there is no room for the file.
        """
        with self._lock:
            if self._unpacked is None:
                self._unpacked = self._unpack()
        while buffer:
            count = os.preadv(self._unpacked.fileno(), [buffer], start)
            start, buffer = start + count, buffer[count:]

    def _unpack(self) -> BinaryIO:
        unpacked = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, unpacked.close)
        try:
            for part in self._parts():
                unpacked.write(part)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StorageUnavailable(
                f"{self.url} needs {self.size:,} bytes in {tempfile.gettempdir()} when it is "
                "unpacked, which are not there: set TMPDIR to a folder with more room"
            ) from error
        return unpacked

    def _parts(self) -> Iterator[bytes]:
        """Unpack what the voxels need, and no more, in parts; raises UnreadableSource."""
        left = self.size
        try:
            with self._file.stream() as packed, gzip.GzipFile(fileobj=packed) as stream:
                while left and (part := stream.read(min(left, _READ))):
                    left -= len(part)
                    yield part
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableSource(f"{self.url} cannot be unpacked: {error}") from error
        if left:
            raise UnreadableSource(
                f"{self.url} is cut off: it holds {self.size - left:,} bytes, and needs "
                f"{self.size:,} for its voxels"
            )

    def look(self) -> Findings:
        """Count the bytes of a file whose end does not say that it holds what it must."""
        expected = self.size % 2**32
        if int.from_bytes(self._file.read(self._file.size - 4, 4), "little") != expected:
            try:
                for _ in self._parts():
                    pass
            except UnreadableSource as error:
                return Findings((str(error),))
        return Findings()


@dataclass(frozen=True)
class PackedNifti:
    """The voxels of a `.nii.gz`."""

    array: RawArray
    content: UnpackedBytes

    @property
    def facts(self) -> ArrayFacts:
        """What is known of it."""
        return self.array.facts

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part of what was unpacked."""
        return self.array.read(part, overlap)

    def look(self) -> Findings:
        """Whether all of it is there."""
        return self.content.look()


def open_nifti(file: FileInParts) -> VoxelArray:
    """Open a NIfTI file, packed or not; raises UnreadableSource."""
    require("nibabel", "NIfTI")
    try:
        header, is_packed = _header(file)
        facts, offset = _facts(header, file.url), int(header.get_data_offset())
    except UnreadableSource:
        raise
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no NIfTI that can be read: {error}") from error
    if not is_packed:
        facts = replace(facts, overlap_width=file.overlap_width)
        return raw_array(file, offset, facts, file.worthwhile)
    size = offset + math.prod(facts.shape) * facts.dtype.itemsize
    note = (
        f"{file.entry.name} is packed as a whole: each worker first unpacks it, {size:,} bytes, "
        f"into its temporary folder, which is {tempfile.gettempdir()} here"
    )
    content = UnpackedBytes(file, size)
    facts = replace(facts, notes=(*facts.notes, note))
    array = raw_array(content, offset, facts, _READ_LOCALLY)
    return PackedNifti(array, content)


def is_nifti(head: bytes) -> bool:
    """Whether a file begins as a NIfTI does, unpacked."""
    return _header_class(head) is not None and (head[344:345] + head[4:5]).strip(b"\0") == b"n"


def _header_class(head: bytes) -> str | None:
    sizes = [int.from_bytes(head[:4], order) for order in _BYTE_ORDERS]
    return next((_HEADER_SIZES[size] for size in sizes if size in _HEADER_SIZES), None)


def _header(file: FileInParts) -> tuple[Any, bool]:
    head = bytes(file.head(_LONGEST_HEADER))
    is_packed = head.startswith(GZIP)
    if is_packed:
        head = zlib.decompressobj(wbits=31).decompress(head, _LONGEST_HEADER)
    if not is_nifti(head):
        raise UnreadableSource(f"{file.url} is no NIfTI file")
    import nibabel

    kind = getattr(nibabel, str(_header_class(head)))
    header = kind.from_fileobj(io.BytesIO(head))
    if b"+" not in bytes(header["magic"]):
        raise UnreadableSource(f"{file.url} is half of a pair of .hdr and .img: make it a .nii")
    return header, is_packed


def _facts(header: Any, url: str) -> ArrayFacts:
    shape = checked_shape(tuple(map(int, header.get_data_shape())), url)
    axes, dtype = "xyztc"[: len(shape)], header.get_data_dtype()
    slope, inter = header.get_slope_inter()
    is_scaled = (slope, inter) not in ((None, None), (1, 0))
    return ArrayFacts(
        shape,
        dtype,
        shape,
        axes,
        _resolution(header),
        (float(slope), float(inter)) if is_scaled else None,
        first_fastest=True,
    )


def _resolution(header: Any) -> Resolution | None:
    """Nanometres of a voxel, where the header names a unit."""
    factor = _NANOMETRES.get(header.get_xyzt_units()[0])
    sizes = [*map(float, header.get_zooms()[:3]), 1.0, 1.0][:3]
    if factor is None or min(sizes) <= 0:
        return None
    x, y, z = (float(f"{size * factor:.7g}") for size in sizes)  # stored with seven digits
    return x, y, z
