"""Datasets of HDF5 files, wherever in the source's folder their voxels lie.

Files are opened for each read and closed after it. Other files that a dataset, a link or a virtual
dataset names are opened by us, never by HDF5, so that they are all in the source's folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igneous_airflow.errors import IgneousError, InvalidParameter, UnreadableSource
from igneous_airflow.sources.hdf5_virtual import open_virtual
from igneous_airflow.sources.joined import JoinedFiles
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    Findings,
    Part,
    VoxelArray,
    named,
    require,
    worthwhile_block,
)
from igneous_airflow.sources.raw import raw_array
from igneous_airflow.sources.reach import companion
from igneous_airflow.storage import hdf5
from igneous_airflow.storage.files import open_file
from igneous_airflow.storage.hdf5_chunks import ChunkCodec, StoredChunk
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts, PartStream

if TYPE_CHECKING:
    import h5py

_FEWEST_AXES = 2
_DEEPEST = 4  # files that lead from one to the next
_KEPT = 16  # datasets that stay known, each with some of its file when that is in a bucket
_DISK = "file://"


@dataclass(frozen=True)
class Hdf5File:
    """A file that is opened whenever it is read; one thread at a time, as HDF5 has it."""

    file: FileInParts

    @property
    def is_local(self) -> bool:
        """Whether HDF5 can open it by its path."""
        return self.file.url.startswith(_DISK)

    @cached_property
    def stream(self) -> PartStream:
        """The file in a bucket, of which some parts stay here between reads."""
        return self.file.stream()

    @property
    def content(self) -> Any:
        """What HDF5 opens."""
        return self.file.url.removeprefix(_DISK) if self.is_local else self.stream


@dataclass(frozen=True)
class Dataset:
    """A dataset whose values are in its own file, mostly in chunks; no links lead to its `path`.

    Chunks are fetched and unpacked here, by many threads where they come from a bucket. HDF5 does
    that itself only where it is the only one that can (`codec` says so, or there is none).
    """

    facts: ArrayFacts
    source: Hdf5File
    path: str
    codec: ChunkCodec | None
    is_as_read: bool  # whether the voxels are stored in the dtype of the facts
    fill: Any

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part; raises UnreadableSource."""
        try:
            with hdf5.opened(self.source.content) as file:
                dataset = self._found(file)
                if self.codec is None:
                    return self._by_hdf5(dataset, part)
                stored = list(self.codec.chunks(dataset, part))
                if not self.is_as_read or not self.codec.is_ours:
                    return self._checked_by_us(dataset, part, overlap.map(self._fetch, stored))
            return self._from_chunks(part, overlap.map(self._unpacked, stored))
        except IgneousError:
            raise
        except Exception as error:
            raise UnreadableSource(
                f"{self.source.file.url}, dataset {self.path}, cannot be read: {error}"
            ) from error

    def _found(self, file: "h5py.File") -> "h5py.Dataset":
        """The dataset as it was when it was looked at first; raises ValueError."""
        dataset = hdf5.find(file, self.path)
        if dataset is None or isinstance(dataset, hdf5.ExternalLink):
            raise ValueError("it is not there any more")
        if problem := hdf5.lies_elsewhere(dataset):
            raise ValueError(problem)
        codec = None if dataset.chunks is None else ChunkCodec.of(dataset)
        if (hdf5.shape_of(dataset), dataset.dtype, codec) != (*self._kind, self.codec):
            raise ValueError("it is another dataset than before")
        return dataset

    @property
    def _kind(self) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
        return self.facts.shape, self.facts.dtype

    @staticmethod
    def _by_hdf5(dataset: "h5py.Dataset", part: Part) -> Array:
        array: Array = dataset[part]
        return array

    def _checked_by_us(
        self, dataset: "h5py.Dataset", part: Part, fetched: Iterator[tuple[StoredChunk, bytearray]]
    ) -> Array:
        """Let HDF5 unpack chunks that will not become longer than they may."""
        assert self.codec is not None  # noqa: S101 - only datasets in chunks get here
        ahead = {}
        for chunk, content in fetched:
            self.codec.unpacked(content, chunk.left_out)
            if not self.source.is_local:
                ahead[chunk.offset] = content
        if not ahead:
            return self._by_hdf5(dataset, part)
        self.source.stream.ahead = ahead
        try:
            return self._by_hdf5(dataset, part)
        finally:
            self.source.stream.ahead = {}

    def _from_chunks(self, part: Part, unpacked: Iterator[tuple[StoredChunk, Array]]) -> Array:
        size = tuple(span.stop - span.start for span in part)
        array = np.full(size, self.fill, self.facts.dtype)
        for chunk, values in unpacked:
            into, taken = [], []
            for span, corner, edge in zip(part, chunk.corner, values.shape, strict=True):
                low, high = max(span.start, corner), min(span.stop, corner + edge)
                into.append(slice(low - span.start, high - span.start))
                taken.append(slice(low - corner, high - corner))
            array[tuple(into)] = values[tuple(taken)]
        return array

    def _fetch(self, chunk: StoredChunk) -> bytearray:
        return self.source.file.read(chunk.offset, chunk.size)

    def _unpacked(self, chunk: StoredChunk) -> Array:
        assert self.codec is not None  # noqa: S101 - only datasets in chunks get here
        values = self.codec.unpacked(self._fetch(chunk), chunk.left_out)
        assert values is not None  # noqa: S101 - `is_ours`
        return values

    def look(self) -> Findings:
        """Nothing that opening has not found: no chunk is read to find out."""
        return Findings()


class Opener:
    """Opens datasets in the source's own file and in those that it names; keeps none of them open.

    What is not there is `missing`; with None it is refused.
    """

    def __init__(self, missing: float | None) -> None:
        self.missing = missing
        #: The datasets that were looked into: file, path, and how many others lead there.
        self.looked: set[tuple[str, str, int]] = set()
        self._known = lru_cache(_KEPT)(self._at)

    def at(self, file: FileInParts, path: str | None, depth: int) -> VoxelArray:
        """Open the dataset at a path of a file, or its only one, `depth` files after the source.

        Raises UnreadableSource, and SourceNotFound or InvalidParameter for what is not there.
        """
        return self._known(file, path, depth)

    def _at(self, file: FileInParts, path: str | None, depth: int) -> VoxelArray:
        if depth > _DEEPEST:
            raise UnreadableSource(
                f"{file.url} is reached through more than {_DEEPEST} other files or datasets: give "
                "the file with the voxels as the source"
            )
        source = Hdf5File(file)
        try:
            with hdf5.opened(source.content) as opened:
                found = _chosen(opened, path, file.url)
                if not isinstance(found, hdf5.ExternalLink):
                    return self._described(source, found, depth)
        except IgneousError:
            raise
        except Exception as error:
            raise UnreadableSource(f"{file.url} is no HDF5 that can be read: {error}") from error
        other = companion(file, found.file, f"the external link {found.at} of {file.url}")
        return self.at(other, found.path, depth + 1)

    def _described(self, source: Hdf5File, dataset: "h5py.Dataset", depth: int) -> VoxelArray:
        if hdf5.is_virtual(dataset):
            return open_virtual(source.file, dataset, self, depth)
        file, facts = source.file, _facts(source, dataset)
        is_as_read = bool(dataset.id.get_type().equal(_type_of(dataset.dtype)))
        if files := hdf5.external_files(dataset):
            if not is_as_read:
                raise ValueError(f"{dataset.name} has values of odd bits in another file")
            content = JoinedFiles.of(file, files)
            return raw_array(content, 0, replace(facts, reads_ahead=False), file.worthwhile)
        is_moved = dataset.file.userblock_size > 0
        begins = dataset.id.get_offset() if is_as_read and not is_moved else None
        if begins is not None:  # it lies in the file as it is
            return raw_array(file, begins, replace(facts, reads_ahead=False), file.worthwhile)
        codec = None if dataset.chunks is None else ChunkCodec.of(dataset)
        return Dataset(facts, source, dataset.name or "", codec, is_as_read, dataset.fillvalue)


def open_hdf5(file: FileInParts, name: str | None, missing: float | None = None) -> VoxelArray:
    """Open a dataset, or the only one that could be a volume when no name is given.

    Holes of virtual datasets become `missing`; with None they are refused. Raises UnreadableSource,
    and InvalidParameter naming the datasets there are.
    """
    require("h5py", "HDF5")
    return Opener(missing).at(_where_it_is(file), name, 0)


def _where_it_is(file: FileInParts) -> FileInParts:
    """The file itself, where the source is a link to it: other files lie beside that."""
    if not file.url.startswith(_DISK):
        return file
    path = Path(file.url.removeprefix(_DISK)).resolve()
    folder, name = open_file(f"{_DISK}{path}")
    return FileInParts(folder, replace(file.entry, name=name))


def _type_of(dtype: "np.dtype[Any]") -> Any:
    import h5py

    return h5py.h5t.py_create(dtype)


def _facts(source: Hdf5File, dataset: "h5py.Dataset") -> ArrayFacts:
    shape, dtype = hdf5.shape_of(dataset), dataset.dtype
    return ArrayFacts(
        shape,
        dtype,
        dataset.chunks or worthwhile_block(shape, dtype.itemsize, source.file.worthwhile),
        hdf5.axis_letters(dataset),
        overlap_width=source.file.overlap_width,
        reads_ahead=not source.is_local,
        whole_bytes=prod(dataset.chunks or (0,)) * dtype.itemsize,
    )


def _chosen(file: "h5py.File", path: str | None, url: str) -> "h5py.Dataset | hdf5.ExternalLink":
    """The dataset of a path, or the only one there is; raises InvalidParameter."""
    if path is not None:
        found = hdf5.find(file, path)
        if isinstance(found, hdf5.ExternalLink) or (found is not None and _is_volume(found)):
            return found
    there = hdf5.contents(file)
    volumes = {name: item for name, item in there.datasets.items() if _is_volume(item)}
    links = [item for item in there.links.values() if isinstance(item, hdf5.ExternalLink)]
    if path is None and len(volumes) == 1:
        return next(iter(volumes.values()))
    if path is None and not volumes and len(links) == 1:
        return links[0]
    described = [
        f"{name} ({'x'.join(map(str, hdf5.shape_of(item)))} {item.dtype})"
        for name, item in volumes.items()
    ]
    described += [f"{link.at} (in {link.file})" for link in links]
    problem = "holds" if path is None else f"has no dataset {path!r} of numbers; it holds"
    way_out = "set dataset to one of them" if described else "choose another file"
    raise InvalidParameter(
        f"dataset: {url} {problem} {named(described) or 'no volumes'}: {way_out}"
    )


def _is_volume(dataset: "h5py.Dataset") -> bool:
    return dataset.dtype.kind in "biuf" and len(hdf5.shape_of(dataset)) >= _FEWEST_AXES
