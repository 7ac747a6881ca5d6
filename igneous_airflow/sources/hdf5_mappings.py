"""Which voxels of a virtual dataset of HDF5 come from which voxels of which other dataset."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.sources.reach import companion_name
from igneous_airflow.storage import hdf5
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    import h5py

SAME_FILE = "."
_SIGNS = re.compile("%[%b]")


@dataclass(frozen=True, slots=True)
class Axis:
    """Positions on an axis: `count` blocks of `block` positions, one every `stride` from `start`.

    No block reaches into the next one.
    """

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
        """The positions number `low` to `high`, as slices, each with the number of its first."""
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

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a dataset has all the voxels that are taken."""
        if self.taken is None:
            return prod(shape) == prod(axis.length for axis in self.into)
        return len(self.taken) == len(shape) and all(
            axis.last < length for axis, length in zip(self.taken, shape, strict=True)
        )

    @property
    def taken_text(self) -> str:
        """What a dataset must have."""
        if self.taken is None:
            return f"{prod(axis.length for axis in self.into):,} voxels"
        return f"{'x'.join(str(axis.last + 1) for axis in self.taken)} voxels"

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


def mappings(file: FileInParts, dataset: "h5py.Dataset", path: str) -> Iterator[Mapping]:
    """The parts of a virtual dataset; first of all, no file may lie outside of the folder."""
    properties = dataset.id.get_create_plist()
    numbers = range(properties.get_virtual_count())
    names = [_file_name(properties.get_virtual_filename(i)) for i in numbers]
    for name in dict.fromkeys(names):
        if name != SAME_FILE:
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
        raise ValueError(
            "it is a virtual dataset of odd parts, which are not read: copy its values"
        )
    axes = [
        Axis(int(start), max(int(stride), int(block)), int(count), int(block))
        for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True)
    ]
    if any(h5py.h5s.UNLIMITED in (axis.count, axis.block) for axis in axes):
        raise ValueError(
            "it is a virtual dataset that grows with its sources, which is not read: make one of a "
            "fixed shape, or give the sources one by one"
        )
    return tuple(axes)
