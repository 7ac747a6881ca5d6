"""Maps from labels to labels, in a file: which other label each one becomes; used by remapping.

A `.npy` file holds the image of label k at index k. An HDF5 file has a dataset `main`, written by
programs that count from 1: its first element is the image of label 1, and 0 stays 0.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import IgneousError, InvalidParameter, StorageUnavailable
from igneous_airflow.storage import hdf5, magic
from igneous_airflow.storage.cache import cached_file
from igneous_airflow.storage.files import Folder, open_file
from igneous_airflow.storage.hdf5_chunks import ChunkCodec

if TYPE_CHECKING:
    import h5py

_ZIP = b"PK\x03\x04"
_DATASET = "main"
_DTYPES = ("uint32", "uint64")
_PIECE = 1 << 22  # elements of a dataset that are converted at once
_LARGEST_CHUNK = 1 << 28  # bytes of a chunk, which is unpacked as a whole
_COPIED = 1 << 24  # bytes that are copied at once


@dataclass(frozen=True)
class LabelMap:
    """A map of labels that is there; its values are read when first asked for.

    `version` changes with the file's content. `length` is the number of labels from 0 that it has
    images of, `background` the image of 0.
    """

    folder: Folder
    name: str
    version: str
    dtype: "np.dtype[Any]"
    length: int
    background: int
    values_at: int | None  # bytes before the values; None in an HDF5 file

    @classmethod
    def open(cls, url: str) -> "LabelMap":
        """Look into the file; raises InvalidParameter saying what is wrong with it."""
        folder, name = open_file(url)
        if folder.entry(name) is None:  # nor is it opened: a pipe would be waited for
            raise InvalidParameter(f"{url} is not there, or no file")
        version, stream = folder.version(name), folder.stream(name)
        if version is None or stream is None:
            raise InvalidParameter(f"{url} is not there, or no file")
        with stream:
            head = stream.read(magic.LONGEST)
            stream.seek(0)
            try:
                if head.startswith(magic.NPY):
                    shape, dtype, background = _look_into_npy(stream)
                    values_at = stream.tell() - dtype.itemsize
                elif magic.is_hdf5(head):
                    (shape, dtype), background, values_at = _look_into_hdf5(stream), 0, None
                else:
                    raise InvalidParameter(_kind_problem(head))
            except InvalidParameter as error:
                raise InvalidParameter(f"{url}: {error}") from error
        length = shape[0] + (values_at is None)
        return cls(folder, name, version, dtype, length, background, values_at)

    @property
    def url(self) -> str:
        """The file's address."""
        return f"{self.folder.url}/{self.name}"

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copy that each machine needs in its temporary folder; 0 when none."""
        is_mapped = self.values_at is not None and self.folder.url.startswith("file://")
        return 0 if is_mapped else (self.values_at or 0) + self.length * self.dtype.itemsize

    @cached_property
    def values(self) -> NDArray[Any]:
        """The image of each label, mapped into memory; a copy is made where the file forbids it.

        Raises StorageUnavailable when the file changes while it is copied, or has changed.
        """
        if not self.copied_bytes:
            path = self.url.removeprefix("file://")
        else:
            path = str(cached_file(f"label map {self.url} {self.version}", self._copy))
        place = self.values_at or 0
        mapped = np.memmap(path, self.dtype, "r", offset=place, shape=(self.length,))
        return np.asarray(mapped)  # whose indexing is not in Python

    def _copy(self, copy: BinaryIO) -> None:
        stream = self.folder.stream(self.name)
        if stream is not None:
            with stream:
                if self.values_at is None:
                    _convert_hdf5(stream, copy, self.dtype)
                else:
                    shutil.copyfileobj(stream, copy, _COPIED)
        if self.folder.version(self.name) != self.version:
            raise StorageUnavailable(f"{self.url} was changed while it was read")


def _look_into_npy(stream: io.BufferedReader) -> "tuple[tuple[int, ...], np.dtype[Any], int]":
    """Shape, dtype and first value; raises InvalidParameter."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise InvalidParameter(f"its header cannot be read: {error}") from error
    _check_kind(shape, dtype)
    start = stream.tell()
    size = stream.seek(0, io.SEEK_END) - start
    if size < shape[0] * dtype.itemsize:
        raise InvalidParameter(
            f"it is cut off: its header promises {shape[0] * dtype.itemsize:,} bytes of values, "
            f"and {size:,} follow"
        )
    stream.seek(start)
    return shape, dtype, int(np.frombuffer(stream.read(dtype.itemsize), dtype)[0])


def _look_into_hdf5(stream: io.BufferedReader) -> "tuple[tuple[int, ...], np.dtype[Any]]":
    """Shape and dtype; raises InvalidParameter."""
    with _opened_hdf5(stream) as dataset:
        _check_kind(dataset.shape, dataset.dtype)
        _codec(dataset)
        return dataset.shape, dataset.dtype


def _convert_hdf5(stream: io.BufferedReader, copy: BinaryIO, dtype: "np.dtype[Any]") -> None:
    """Write the values of a dataset that counts from 1, after the image of 0."""
    copy.write(bytes(dtype.itemsize))
    with _opened_hdf5(stream) as dataset:
        codec = _codec(dataset)
        piece = _PIECE if codec is None else -(-_PIECE // codec.shape[0]) * codec.shape[0]
        for start in range(0, dataset.shape[0], piece):
            part = slice(start, min(start + piece, dataset.shape[0]))
            if codec is not None:
                _require_bounded(codec, dataset, part)
            copy.write(np.ascontiguousarray(dataset[part], dtype).data)


def _require_bounded(codec: ChunkCodec, dataset: "h5py.Dataset", part: slice) -> None:
    """Unpack the chunks of a part within bounds, before HDF5 does so without any."""
    for chunk in codec.chunks(dataset, (part,)):
        _, stored = dataset.id.read_direct_chunk(chunk.corner)
        codec.unpacked(stored, chunk.left_out)


@contextmanager
def _opened_hdf5(stream: io.BufferedReader) -> "Iterator[h5py.Dataset]":
    """The dataset of a file while it is open; raises InvalidParameter for what goes wrong."""
    if find_spec("h5py") is None:
        raise InvalidParameter("HDF5 files need a library that is not installed: pip install h5py")
    try:
        with hdf5.opened(stream) as file:
            yield _dataset(file)
    except IgneousError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidParameter(f"it is damaged: {error}") from error


def _dataset(file: "h5py.File") -> "h5py.Dataset":
    found = hdf5.find(file, _DATASET)
    if found is None:
        names = ", ".join(sorted(file)) or "nothing"
        raise InvalidParameter(f"there is no dataset {_DATASET!r} in it; it has {names}")
    if isinstance(found, hdf5.ExternalLink):
        raise InvalidParameter(f"{found}, which is not opened: write the map itself into the file")
    if problem := hdf5.lies_elsewhere(found):
        raise InvalidParameter(
            f"{problem}, which is not opened: write the map itself into the file"
        )
    return found


def _codec(dataset: "h5py.Dataset") -> ChunkCodec | None:
    """How its chunks were packed, if any; raises InvalidParameter for too large ones."""
    if dataset.chunks is None:
        return None
    codec = ChunkCodec.of(dataset)
    if codec.bytes > _LARGEST_CHUNK:
        raise InvalidParameter(
            f"its chunks have {codec.bytes:,} bytes, and {_LARGEST_CHUNK:,} are the most: store it "
            "in smaller ones, for example by h5repack -l CHUNK=1048576"
        )
    return codec


def _check_kind(shape: tuple[int, ...] | None, dtype: "np.dtype[Any]") -> None:
    if dtype.name not in _DTYPES:
        raise InvalidParameter(
            f"it holds {dtype.name}, but labels are {' or '.join(_DTYPES)}: write it from "
            "map.astype(numpy.uint64)"
        )
    if shape is None or len(shape) != 1:
        raise InvalidParameter(f"its shape is {shape}, but a map has one axis: write map.ravel()")
    if type(shape[0]) is not int or shape[0] < 0:
        raise InvalidParameter(f"it says that it has {shape[0]} values: its header is damaged")
    if shape[0] == 0:
        raise InvalidParameter("it is empty")


def _kind_problem(head: bytes) -> str:
    if head.startswith(_ZIP):
        return "it is an archive of arrays (.npz): write the map alone, with numpy.save"
    return "it is neither a .npy nor an HDF5 file"
