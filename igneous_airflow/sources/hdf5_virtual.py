"""Virtual datasets of HDF5: arrays that are made of parts of other datasets, mostly in other files.

HDF5 would open these files wherever they lie, and read zeros where one is missing. Here each is
opened as a file of the source's folder, and what is missing is named.
"""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import (
    IgneousError,
    InvalidParameter,
    SourceNotFound,
    UnreadableSource,
)
from igneous_airflow.sources.hdf5_mappings import SAME_FILE, Mapping, mappings
from igneous_airflow.sources.protocol import (
    ALWAYS_BEARABLE,
    Array,
    ArrayFacts,
    Findings,
    Part,
    VoxelArray,
    named,
    worthwhile_block,
)
from igneous_airflow.sources.reach import companion
from igneous_airflow.storage import hdf5
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.wording import counted

if TYPE_CHECKING:
    import h5py

_AT_ONCE = 16  # files that are looked into at the same time
_NAMED_AT_MOST = 10


class Opener(Protocol):
    """Opens datasets; with `missing`, what is not there is that value."""

    @property
    def missing(self) -> float | None:
        """What missing datasets hold; None when they are refused."""

    @property
    def looked(self) -> set[tuple[str, str, int]]:
        """The datasets that were looked into: file, path, and how many others lead there."""

    def at(self, file: FileInParts, path: str | None, depth: int) -> VoxelArray:
        """Open the dataset at a path of a file, to which `depth` others lead."""


@dataclass(frozen=True)
class VirtualArray:
    """A virtual dataset `path` of a file; what no mapping fills is `fill`."""

    facts: ArrayFacts
    file: FileInParts
    path: str
    mappings: tuple[Mapping, ...]
    fill: Any
    opener: Opener
    depth: int

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part from all the datasets that have some of it.

        Raises SourceNotFound for a missing one, unless missing ones are background.
        """
        size = [span.stop - span.start for span in part]
        array = np.full(size, self.fill, self.facts.dtype)
        low, high = self._corners
        starts, stops = np.array([(s.start, s.stop) for s in part]).T
        touching = ((low < stops) & (high >= starts)).all(axis=1)
        for index in np.flatnonzero(touching):
            self._paste(self.mappings[index], part, array, overlap)
        return array

    @cached_property
    def _corners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first and the last position of each mapping."""
        low = [[axis.start for axis in mapping.into] for mapping in self.mappings]
        high = [[axis.last for axis in mapping.into] for mapping in self.mappings]
        return np.array(low, np.int64), np.array(high, np.int64)

    def _paste(self, mapping: Mapping, part: Part, array: Array, overlap: Overlap) -> None:
        spans = [
            (axis.before(span.start), axis.before(span.stop))
            for axis, span in zip(mapping.into, part, strict=True)
        ]
        if any(low >= high for low, high in spans):
            return
        source = self._source_or_none(mapping)
        if source is None:
            places = [
                axis.positions(*numbers) - span.start
                for axis, numbers, span in zip(mapping.into, spans, part, strict=True)
            ]
            array[np.ix_(*places)] = self.opener.missing
            return
        shape = source.facts.shape
        positions, pairs = mapping.taken_of(shape), mapping.pairs(shape)
        whole = [(0, 1) for _ in positions]
        for here, there in pairs:
            whole[there] = spans[here]
        runs = (axis.runs(*numbers) for axis, numbers in zip(positions, whole, strict=True))
        for run in product(*runs):
            taken = source.read(tuple(span for _, span in run), overlap)
            places = [np.array([axis.start]) for axis in mapping.into]
            for here, there in pairs:
                begin, span = run[there]
                end = begin + span.stop - span.start
                places[here] = mapping.into[here].positions(begin, end)
            corners = [place - span.start for place, span in zip(places, part, strict=True)]
            array[np.ix_(*corners)] = taken.reshape([len(place) for place in places])

    def _source_or_none(self, mapping: Mapping) -> VoxelArray | None:
        try:
            return self.source(mapping)
        except (SourceNotFound, InvalidParameter):
            if self.opener.missing is None:
                raise
            return None

    @property
    def _name(self) -> str:
        return f"the virtual dataset {self.path} of {self.file.url}"

    def _file_of(self, mapping: Mapping) -> FileInParts:
        if mapping.file == SAME_FILE:
            return self.file
        return companion(self.file, mapping.file, self._name)

    def source(self, mapping: Mapping) -> VoxelArray:
        """The dataset that a mapping takes voxels from.

        Raises SourceNotFound or InvalidParameter when it is not there, or has too few voxels, and
        UnreadableSource when it lies outside of the folder or cannot be taken.
        """
        by = self._name
        array = self.opener.at(self._file_of(mapping), mapping.path, self.depth + 1)
        shape, dtype = array.facts.shape, array.facts.dtype
        if not mapping.fits(shape):
            raise _TooSmall(
                f"{by} takes {mapping.taken_text} of {mapping}, which has "
                f"{'x'.join(map(str, shape))}"
            )
        try:
            mapping.pairs(shape)
        except ValueError as error:
            raise UnreadableSource(f"{by} cannot be read: {error}") from error
        if not np.can_cast(dtype, self.facts.dtype):
            raise UnreadableSource(
                f"{by} is of {self.facts.dtype}, but {mapping} of {dtype}, which it cannot hold"
            )
        if array.facts.whole_bytes > max(self.facts.whole_bytes, ALWAYS_BEARABLE):
            raise UnreadableSource(
                f"{by}: {mapping} is stored in chunks of {array.facts.whole_bytes:,} bytes, far "
                "larger than the others: store it as they are"
            )
        return array

    def look(self) -> Findings:
        """Name the datasets that are missing, and those that cannot be taken."""
        unique = {(mapping.file, mapping.path): mapping for mapping in self.mappings}
        with Overlap(_AT_ONCE) as overlap:
            looked = [found for _, found in overlap.map(self._look_at, unique.values())]
        problems = [problem for found in looked for problem in found.problems]
        notes = [note for found in looked for note in found.notes]
        if missing := [found.missing for found in looked if found.missing]:
            gone = (
                f"{len(missing):,} of {counted(len(unique), 'source')} of {self._name} are "
                f"missing: {named(missing, '; ')}"
            )
            if self.opener.missing is None:
                problems.append(f"{gone}. Restore them, or set fill_missing to make background")
            else:
                notes.append(f"{gone}; they become background")
        first = dict.fromkeys(problems)
        return Findings(tuple(first)[:_NAMED_AT_MOST], tuple(dict.fromkeys(notes)))

    def _look_at(self, mapping: Mapping) -> "_Looked":
        """Look at a source; into each dataset once, however often it is taken."""
        try:
            place = (self._file_of(mapping).entry.name, mapping.path, self.depth)
            source = self.source(mapping)
        except UnreadableSource as error:
            return _Looked((str(error),))
        except _TooSmall as error:
            return _Looked(missing=f"{mapping} ({error})")
        except InvalidParameter:
            return _Looked(missing=f"{mapping} (the file has no such dataset of numbers)")
        except SourceNotFound:
            return _Looked(missing=str(mapping))
        if place in self.opener.looked:
            return _Looked()
        self.opener.looked.add(place)
        found = source.look()
        return _Looked(found.problems, found.notes)


class _TooSmall(SourceNotFound):
    """A dataset that has fewer voxels than are taken of it."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a look at a source has found; `missing` names it when it is not there."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""


def open_virtual(
    file: FileInParts, dataset: "h5py.Dataset", opener: Opener, depth: int
) -> VirtualArray:
    """Describe a virtual dataset; raises UnreadableSource for sources outside of the folder.

    None of them is opened but the first, which tells how to read them. Raises ValueError for kinds
    of virtual datasets that are not read.
    """
    path = dataset.name or ""
    parts = tuple(mappings(file, dataset, path))
    shape, dtype = hdf5.shape_of(dataset), dataset.dtype
    mapped = sum(prod(axis.length for axis in mapping.into) for mapping in parts)
    voxels = prod(shape)
    if mapped > 2 * voxels:
        raise ValueError(f"{path} takes {mapped:,} voxels for the {voxels:,} that it has")
    facts = ArrayFacts(
        shape,
        dtype,
        worthwhile_block(shape, dtype.itemsize, file.worthwhile),
        hdf5.axis_letters(dataset),
        overlap_width=file.overlap_width,
        whole_bytes=sys.maxsize,  # until the first source is known
        notes=_unfilled(path, voxels - mapped, dataset.fillvalue),
    )
    found = VirtualArray(facts, file, path, parts, dataset.fillvalue, opener, depth)
    return replace(found, facts=_read_as_the_first(found))


def _read_as_the_first(array: VirtualArray) -> ArrayFacts:
    """What is best read at once of the first source, as a block of the array."""
    unknown = replace(array.facts, whole_bytes=0)
    if not array.mappings:
        return unknown
    mapping = array.mappings[0]
    try:
        first = array.source(mapping).facts
    except IgneousError:  # which `look` and `read` name
        return unknown
    block = [1] * len(array.facts.shape)
    for here, there in mapping.pairs(first.shape):
        block[here] = first.block[there]
    return replace(
        array.facts,
        block=tuple(block),
        is_encoded=first.is_encoded,
        reads_ahead=first.reads_ahead,
        whole_bytes=first.whole_bytes,
    )


def _unfilled(path: str, voxels: int, fill: Any) -> tuple[str, ...]:
    """A note on voxels that no source is named for."""
    if voxels <= 0:
        return ()
    return (
        f"{voxels:,} voxels of the virtual dataset {path} come from no source: they are {fill}",
    )
