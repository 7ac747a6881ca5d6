"""An array in a file as voxels for a layer: axes in order, data types that layers have."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.sources.data_types import data_type_for, data_type_notes
from igneous_airflow.sources.protocol import (
    Array,
    Findings,
    Part,
    Resolution,
    VoxelArray,
    copy_voxels,
    require_bearable,
)
from igneous_airflow.storage.overlap import Overlap

_CHUNK = 64
_ORIGIN = Vec3(0, 0, 0)
_SLOWEST_FIRST = "tczyx"  # of the layer's arrays


@dataclass(frozen=True)
class ArraySource:
    """The voxels of an array, its first one at `origin` in the layer.

    `axes` names the array's axes by letters of tczyx, each once, x and y among them.
    """

    array: VoxelArray
    axes: str
    origin: Vec3 = _ORIGIN

    @classmethod
    def of(cls, array: VoxelArray, axes: str | None, name: str, memory: int) -> Self:
        """Take the axes asked for, or those that the file names; a task may use `memory` bytes.

        Raises InvalidParameter when there are none, or when they do not fit the array, and
        UnreadableSource when it is stored in blocks that are too large to be decoded.
        """
        facts = array.facts
        shape = "x".join(map(str, facts.shape))
        letters = axes or facts.axes
        if letters is None:
            example = "zyxc"[: len(facts.shape)] if len(facts.shape) > 3 else "zyx"
            raise InvalidParameter(
                f"axes: {name} does not say which of its axes is which; its shape is {shape}. Set "
                f"axes to one letter each: {example} is how numpy and zarr mostly have it"
            )
        known = {"x", "y"} <= set(letters) <= set(_SLOWEST_FIRST)
        if not known or not len(set(letters)) == len(letters) == len(facts.shape):
            raise InvalidParameter(
                f"axes: {name} has the shape {shape}, but its axes would be {letters}: give one "
                "letter of tczyx for each axis, x and y among them, and none twice"
            )
        if 0 in facts.shape:
            raise InvalidParameter(f"source: {name} has no voxels, its shape is {shape}")
        source = cls(array, letters)
        if (times := source._length("t")) > 1:
            raise InvalidParameter(
                f"axes: {name} has {times} points in time, and a layer has none. If they are "
                f"sections, set axes to {letters.replace('z', '').replace('t', 'z')}"
            )
        _ = source.data_type  # raises when there is none
        block, whole = prod(facts.block) * facts.dtype.itemsize, facts.whole_bytes
        if facts.is_encoded:
            all_of_it = prod(facts.shape) * facts.dtype.itemsize
            require_bearable(name, max(block, whole), all_of_it, memory)
        return source

    def _length(self, letter: str) -> int:
        place = self.axes.find(letter)
        return 1 if place < 0 else self.array.facts.shape[place]

    def _block(self, letter: str) -> int:
        place = self.axes.find(letter)
        return 1 if place < 0 else self.array.facts.block[place]

    @cached_property
    def bounds(self) -> BoundingBox:
        """The box of its voxels in the layer."""
        return BoundingBox.at(self.origin, Vec3(*map(self._length, "xyz")))

    def placed(self, origin: Vec3) -> Self:
        """The same voxels, the first one elsewhere."""
        return replace(self, origin=origin)

    @property
    def has_place(self) -> bool:
        """Whether the files themselves say where the voxels lie."""
        return False

    @property
    def channels(self) -> int:
        """Channels of a voxel."""
        return self._length("c")

    @cached_property
    def data_type(self) -> str:
        """The data type of the layer; raises InvalidParameter where there is none for such voxels.

        Scaled values become float32.
        """
        made = data_type_for(self.array.facts.dtype)
        return made if self.array.facts.scaling is None else "float32"

    @property
    def resolution(self) -> Resolution | None:
        """Nanometres of a voxel on x,y,z, where the metadata say."""
        return self.array.facts.resolution

    @property
    def default_chunk_size(self) -> Vec3:
        """The chunk size of a new layer where none is asked for."""
        return Vec3.full(_CHUNK)

    def info_keys(self, layer_type: str) -> dict[str, Any]:  # noqa: ARG002
        """What the info of a new layer says besides."""
        return {}

    @property
    def chunk_size(self) -> Vec3:
        """Voxels that are best read as a whole."""
        return Vec3(*map(self._block, "xyz"))

    @property
    def decodes_chunks(self) -> bool:
        """Whether these must be decoded as a whole, even for a part of them."""
        return self.array.facts.is_encoded

    @property
    def whole_bytes(self) -> int:
        """Bytes of a block as it is decoded, where it goes on beyond the voxels."""
        return self.array.facts.whole_bytes if self.decodes_chunks else 0

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel as it is read, with all channels."""
        return self.array.facts.dtype.itemsize * self.channels

    @property
    def changes_voxels(self) -> bool:
        """Whether voxels are held in two forms: in another type or order, or encoded."""
        facts = self.array.facts
        order = [
            _SLOWEST_FIRST.index(letter)
            for letter, length in zip(self.axes, facts.shape, strict=True)
            if length > 1
        ]
        in_order = order == sorted(order, reverse=facts.first_fastest)
        return (
            facts.reads_ahead
            or not in_order
            or facts.dtype != self.data_type
            or facts.scaling is not None
        )

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""
        return self.array.facts.overlap_width

    def phase(self, region: BoundingBox) -> Vec3:
        """How many voxels before a region the block begins that the region starts in."""
        return (region.min - self.origin) % self.chunk_size

    def parts(self, box: BoundingBox, overlap: Overlap) -> Iterator[tuple[BoundingBox, Array]]:
        """Read a box as a whole, in Fortran order."""
        low, high = box.min - self.origin, box.max - self.origin
        spans = {letter: slice(low[i], high[i]) for i, letter in enumerate("xyz")}
        part: Part = tuple(
            spans.get(letter, slice(0, n))
            for letter, n in zip(self.axes, self.array.facts.shape, strict=True)
        )
        stored = self.array.read(part, overlap)
        order = [self.axes.find(letter) for letter in "xyzc" if letter in self.axes]
        times = [place for place, letter in enumerate(self.axes) if letter == "t"]
        voxels = stored.transpose([*order, *times]).reshape(*box.size, self.channels, order="A")
        yield box, self._converted(voxels)

    def _converted(self, voxels: Array) -> Array:
        """The voxels as the layer holds them: little-endian on every machine we know."""
        scaling = self.array.facts.scaling
        if scaling is None and voxels.dtype == self.data_type and voxels.flags.f_contiguous:
            return voxels
        converted = np.empty(voxels.shape, self.data_type, order="F")
        if scaling is None:
            copy_voxels(converted, voxels)
            return converted
        factor, shift = scaling
        for z in range(voxels.shape[2]):  # computed in double precision, a plane at a time
            converted[:, :, z] = voxels[:, :, z] * np.float64(factor) + shift
        return converted

    def look(self) -> Findings:
        """What only a look into every file can tell."""
        return self.array.look()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of the source."""
        facts, made = self.array.facts, self.data_type
        if facts.scaling is None:
            return (*facts.notes, *data_type_notes(facts.dtype, made))
        factor, shift = facts.scaling
        return (*facts.notes, f"voxels become {factor:g} * value + {shift:g}, as the header says")
