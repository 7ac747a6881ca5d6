"""Virtual datasets of HDF5: arrays that are made of parts of other datasets, mostly in other files.

HDF5 would open these files wherever they lie, and read zeros where one is missing. Here each is
opened as a file of the source's folder, and what is missing is named.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import (
    IgneousError,
    InvalidParameter,
    SourceNotFound,
    UnreadableSource,
)
from igneous_airflow.sources.protocol import (
    ALWAYS_BEARABLE,
    Array,
    ArrayFacts,
    Findings,
    Part,
    VoxelArray,
    counted,
    named,
    worthwhile_block,
)
from igneous_airflow.sources.reach import companion, companion_name
from igneous_airflow.storage import hdf5
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    import h5py

_SAME_FILE = "."
_SIGNS = re.compile("%[%b]")
_AT_ONCE = 16  # files that are looked into at the same time


class Axis(NamedTuple):
    """Positions on an axis: `count` blocks of `block` positions, one every `stride` from `start`."""

    start: int
    stride: int
    count: int
    block: int

    @property
    def length(self) -> int:
        """How many positions there are."""
        return self.count * self.block

    @property
    def last(self) -> int:
        """The last one."""
        return self.start + (self.count - 1) * self.stride + self.block - 1

    def before(self, position: int) -> int:
        """How many of them come before a position."""
        block, within = divmod(position - self.start, self.stride)
        return min(max(block * self.block + min(within, self.block), 0), self.length)

    def runs(self, low: int, high: int) -> Iterator[tuple[int, slice]]:
        """The positions number `low` to `high`, as slices, each with the number that it begins at."""
        if self.stride == self.block or self.count == 1:
            yield low, slice(self.start + low, self.start + high)
            return
        while low < high:
            block, within = divmod(low, self.block)
            length = min(self.block - within, high - low)
            begin = self.start + block * self.stride + within
            yield low, slice(begin, begin + length)
            low += length

    def positions(self, low: int, high: int) -> NDArray[np.int64]:
        """The positions number `low` to `high`."""
        numbers = np.arange(low, high)
        return self.start + numbers // self.block * self.stride + numbers % self.block


@dataclass(frozen=True, slots=True)
class Mapping:
    """A part of the array that is taken from a dataset: which positions here and there, by axis.

    None takes all of the dataset, whatever its shape is.
    """

    file: str
    path: str
    into: tuple[Axis, ...]
    taken: tuple[Axis, ...] | None

    def taken_of(self, shape: Sequence[int]) -> tuple[Axis, ...]:
        """The positions in a dataset of some shape."""
        return _all_of(shape) if self.taken is None else self.taken

    def pairs(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Axes of the array with those of a dataset that they are taken from.

        Raises ValueError where they do not belong to each other one by one.
        """
        axes = [
            [(i, axis.length) for i, axis in enumerate(side) if axis.length > 1]
            for side in (self.into, self.taken_of(shape))
        ]
        here, there = axes
        if [length for _, length in here] != [length for _, length in there]:
            sizes = ["x".join(str(length) for _, length in side) for side in axes]
            raise ValueError(f"it makes {sizes[0]} voxels of the {sizes[1]} of {self}")
        return [(i, j) for (i, _), (j, _) in zip(here, there, strict=True)]

    def __str__(self) -> str:
        return f"{self.path} in {self.file}"


class Opener(Protocol):
    """Opens datasets; with `missing`, what is not there is that value."""

    @property
    def missing(self) -> float | None: ...

    @property
    def at(self) -> Any:
        """Called with a file, a path, and how many files lead to it."""


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

    def source(self, mapping: Mapping) -> VoxelArray:
        """The dataset that a mapping takes voxels from.

        Raises SourceNotFound or InvalidParameter when it is not there, or has too few voxels, and
        UnreadableSource when it lies outside of the folder or cannot be taken.
        """
        by = f"the virtual dataset {self.path} of {self.file.url}"
        file = self.file if mapping.file == _SAME_FILE else companion(self.file, mapping.file, by)
        array: VoxelArray = self.opener.at(file, mapping.path, self.depth + 1)
        shape, dtype = array.facts.shape, array.facts.dtype
        needed = [axis.last + 1 for axis in mapping.taken_of(shape)]
        if len(needed) != len(shape) or any(n > has for n, has in zip(needed, shape, strict=True)):
            raise SourceNotFound(
                f"{by} takes {'x'.join(map(str, needed))} voxels of {mapping}, which has "
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
        missing, broken = [], []
        with Overlap(_AT_ONCE) as overlap:
            for mapping, found in overlap.map(self._problem, unique.values()):
                if isinstance(found, UnreadableSource):
                    broken.append(str(found))
                elif found is not None:
                    missing.append(f"{mapping} ({found})" if "takes" in str(found) else f"{mapping}")
        return self._findings(len(unique), missing, broken)

    def _problem(self, mapping: Mapping) -> IgneousError | None:
        try:
            source = self.source(mapping)
        except (SourceNotFound, InvalidParameter, UnreadableSource) as error:
            return error
        problems = source.look().problems
        return UnreadableSource("; ".join(problems)) if problems else None

    def _findings(self, count: int, missing: list[str], broken: list[str]) -> Findings:
        problems = list(dict.fromkeys(broken[:10]))
        notes = []
        if missing:
            gone = (
                f"{len(missing):,} of {counted(count, 'source')} of the virtual dataset {self.path} "
                f"of {self.file.url} are missing: {named(missing, '; ')}"
            )
            if self.opener.missing is None:
                problems.append(f"{gone}. Restore them, or set fill_missing to make background")
            else:
                notes.append(f"{gone}; they become background")
        return Findings(tuple(problems), tuple(notes))


def open_virtual(
    file: FileInParts, dataset: "h5py.Dataset", opener: Opener, depth: int
) -> VirtualArray:
    """Describe a virtual dataset; raises UnreadableSource for sources outside of the folder.

    None of them is opened but the first, which tells how to read them. Raises ValueError for kinds
    of virtual datasets that are not read.
    """
    path = dataset.name or ""
    mappings = tuple(_mappings(file, dataset, path))
    shape, dtype = hdf5.shape_of(dataset), dataset.dtype
    mapped = sum(prod(axis.length for axis in mapping.into) for mapping in mappings)
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
    found = VirtualArray(facts, file, path, mappings, dataset.fillvalue, opener, depth)
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


def _mappings(file: FileInParts, dataset: "h5py.Dataset", path: str) -> Iterator[Mapping]:
    """The parts of a virtual dataset; first of all, no file may lie outside of the folder."""
    properties = dataset.id.get_create_plist()
    numbers = range(properties.get_virtual_count())
    names = [_file_name(properties.get_virtual_filename(i)) for i in numbers]
    for name in dict.fromkeys(names):
        if name != _SAME_FILE:
            by = f"the virtual dataset {path} of {file.url}"
            companion_name(file, name, by)
    for i, name in zip(numbers, names, strict=True):
        into = _selected(properties.get_virtual_vspace(i))
        if into is None:
            into = _all_of(hdf5.shape_of(dataset))
        taken = _selected(properties.get_virtual_srcspace(i))
        if all(axis.length for axis in into):
            yield Mapping(name, _file_name(properties.get_virtual_dsetname(i)), into, taken)


def _file_name(stored: str) -> str:
    """A name without HDF5's way to write it; the first one where it stands for a series."""
    return _SIGNS.sub(lambda sign: {"%%": "%", "%b": "0"}[sign[0]], stored)


def _all_of(shape: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(Axis(0, max(length, 1), 1, length) for length in shape)


def _selected(space: Any) -> tuple[Axis, ...] | None:
    """What is selected of a space, by axis; None is all of it, whatever it is.

    Raises ValueError where axes do not tell.
    """
    import h5py

    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return None
    if kind == h5py.h5s.SEL_NONE:
        return tuple(Axis(0, 1, 0, 1) for _ in space.get_simple_extent_dims())
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        raise ValueError("it is a virtual dataset of odd parts, which are not read: copy its values")
    axes = [Axis(*map(int, axis)) for axis in zip(*space.get_regular_hyperslab(), strict=True)]
    if any(h5py.h5s.UNLIMITED in (axis.count, axis.block) for axis in axes):
        raise ValueError(
            "it is a virtual dataset that grows with its sources, which is not read: make one of a "
            "fixed shape, or give the sources one by one"
        )
    return tuple(axes)


def _unfilled(path: str, voxels: int, fill: Any) -> tuple[str, ...]:
    """A note on voxels that no source is named for."""
    if voxels <= 0:
        return ()
    return (f"{voxels:,} voxels of the virtual dataset {path} come from no source: they are {fill}",)
