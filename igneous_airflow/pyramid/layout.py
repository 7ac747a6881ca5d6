"""The scales of a pyramid, and every reason why they cannot be made; used by plans."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import PyramidGeometry, levels_that_fit, truncated
from igneous_airflow.storage.encodings import encoding_problem, writing_problem
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.tuning import described, is_lossy, level_of, level_problem

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Pyramid:
    """A scale, and the coarser ones that are made from it, each `factor` times the one before."""

    source: Scale
    levels: tuple[Scale, ...]
    factor: Vec3

    @cached_property
    def geometry(self) -> PyramidGeometry:
        """The sizes alone."""
        chunks = (self.source.chunk_size, *(scale.chunk_size for scale in self.levels))
        return PyramidGeometry(self.source.size, self.factor, chunks)

    def level_box(self, level: int, box: BoundingBox) -> BoundingBox:
        """The box of voxels of a level (1 is the first) that a box of the source becomes.

        The source box must start on a window of that level.
        """
        span, here, there = self._spans[level - 1]
        low, high = box.min, box.max  # written out: a task asks this for every tile and level
        return BoundingBox(
            Vec3(
                (low.x - here.x) // span.x + there.x,
                (low.y - here.y) // span.y + there.y,
                (low.z - here.z) // span.z + there.z,
            ),
            Vec3(
                there.x - (here.x - high.x) // span.x,
                there.y - (here.y - high.y) // span.y,
                there.z - (here.z - high.z) // span.z,
            ),
        )

    @cached_property
    def _spans(self) -> list[tuple[Vec3, Vec3, Vec3]]:
        """For each level: its span in source voxels, the source's offset, its own offset."""
        return [
            (self.factor**level, self.source.voxel_offset, scale.voxel_offset)
            for level, scale in enumerate(self.levels, start=1)
        ]

    def tiles(self, cell: BoundingBox) -> list[BoundingBox]:
        """The tiles of a cell, in voxels of the source, in the order to work on them."""
        origin = self.source.voxel_offset
        relative = self.geometry.tiles(cell.translated(origin * -1))
        return [tile.translated(origin) for tile in relative]

    def region(self, bounds: str | None) -> BoundingBox:
        """The box of the source to work on: `bounds`, or everything."""
        return self.source.bounds if bounds is None else BoundingBox.parse(bounds)


@dataclass(frozen=True, slots=True)
class ScaleWishes:
    """How new scales are to be stored; None leaves it to the scale that is there already."""

    chunk_size: Vec3 | None = None
    encoding: str | None = None
    encoding_level: int | None = None
    default_chunk_size: Vec3 | None = None  # of scales that are not there; None: the source's


def coarser_scales(
    info: Info, source: Scale, factor: Vec3, count: int, wishes: ScaleWishes
) -> tuple[tuple[Scale, ...], list[str]]:
    """The next `count` scales, and every conflict with scales that exist.

    An existing scale keeps its chunk size, encoding and level. Wishing for others is a conflict,
    since the files that are there would be orphaned or garbled.
    """
    scales: list[Scale] = []
    conflicts: list[str] = []
    if wishes.encoding_level is not None:
        problem = level_problem(wishes.encoding or source.encoding, wishes.encoding_level)
        conflicts += [problem] if problem else []
    wanted = source.stored_as(
        wishes.encoding, wishes.encoding_level, wishes.chunk_size or wishes.default_chunk_size
    )
    for _ in range(count):
        wanted = wanted.downsampled(factor)
        present = info.scale_at(wanted.resolution)
        if present is not None:
            conflicts += scale_conflicts(present, wanted, wishes)
        elif (other := info.scale_in(wanted.key)) is not None:
            conflicts.append(
                f"the new scale {wanted.key} would overwrite the files of the scale of resolution "
                f"{other.resolution} nm, whose key is {other.key}: give that one another key"
            )
        scales.append(present or wanted)
    return tuple(scales), conflicts


def scale_conflicts(present: Scale, wanted: Scale, wishes: ScaleWishes) -> Iterator[str]:
    """Reasons why an existing scale cannot take what is wanted of it."""
    name = f"the existing scale {present.key}"
    way_out = "delete that mip first, or leave the parameter empty to keep what is there"
    if present.sharded:
        yield f"{name} is sharded; only unsharded mips can be written"
    if (present.size, present.voxel_offset) != (wanted.size, wanted.voxel_offset):
        yield (
            f"{name} has size {present.size} and offset {present.voxel_offset}, but pooling by "
            f"this factor gives size {wanted.size} and offset {wanted.voxel_offset}"
        )
    if wishes.chunk_size not in (None, present.chunk_size):
        yield f"chunk_size: {wishes.chunk_size}, but {name} has {present.chunk_size}: {way_out}"
    if wishes.encoding not in (None, present.encoding):
        yield f"encoding: {wishes.encoding}, but {name} has {present.encoding}: {way_out}"
    elif wishes.encoding_level not in (None, level := level_of(present.encoding, present.tuning)):
        has = "no level" if level is None else described(present.encoding, present.tuning)
        yield f"encoding_level: {wishes.encoding_level}, but {name} has {has}: {way_out}"


def layer_problems(info: Info, pyramid: Pyramid) -> Iterator[str]:
    """Reasons why such a layer cannot be read, or its new scales not be stored."""
    yield from sharding_problems(pyramid.source)
    if not pyramid.levels:
        yield (
            f"num_mips: there is nothing left to pool, since the volume of {pyramid.source.size} "
            f"voxels has one voxel on each axis pooled by {pyramid.factor}"
        )
    yield from encoding_problems(info, (pyramid.source, *pyramid.levels))
    yield from writing_problems(pyramid.levels)


def sharding_problems(scale: Scale) -> Iterator[str]:
    """The reason why the chunks of a scale cannot be read."""
    if scale.sharded:
        yield f"scale {scale.key} is sharded; only unsharded layers can be read"


def label_problems(info: Info) -> Iterator[str]:
    """The reason why the voxels of a layer cannot be labels."""
    if not info.data_type.startswith("uint"):
        yield f"the source holds {info.data_type}, but labels are unsigned integers"


def encoding_problems(info: Info, scales: Iterable[Scale]) -> Iterator[str]:
    """Reasons why the voxels cannot be stored as the scales say."""
    problems = [
        encoding_problem(
            scale.encoding, info.data_type, info.channels, scale.chunk_size.minimum(scale.size)
        )
        for scale in scales
    ]
    yield from filter(None, dict.fromkeys(problems))


def writing_problems(scales: Iterable[Scale]) -> Iterator[str]:
    """Reasons why chunks of the scales are read, but not written."""
    problems = [writing_problem(scale.encoding) for scale in scales]
    yield from filter(None, dict.fromkeys(problems))


def loss_notes(source: Scale | None, written: Iterable[Scale]) -> Iterator[str]:
    """Where encodings change voxels; `source` is the scale that is decoded, where there is one."""
    is_lossy_already = source is not None and is_lossy(source.encoding, source.tuning)
    if source is not None and is_lossy_already:
        encoding = described(source.encoding, source.tuning)
        yield f"{source.key} is stored as lossy {encoding}: its compression artifacts carry over"
    lossy = [scale for scale in written if is_lossy(scale.encoding, scale.tuning)]
    for encoding in dict.fromkeys(described(scale.encoding, scale.tuning) for scale in lossy):
        if is_lossy_already:
            yield f"voxels are encoded again, as {encoding}, which is lossy: more detail is lost"
        else:
            yield (
                f"voxels are encoded as {encoding}, which is lossy: detail is lost; png, or jxl "
                "with an encoding_level of 100, keeps every voxel"
            )


def background_problems(dtype: "np.dtype[Any]", value: float) -> Iterator[str]:
    """The reason why a value cannot be a voxel's."""
    import numpy as np

    if dtype.kind == "f":
        return
    limits = np.iinfo(dtype)
    if not value.is_integer() or not limits.min <= value <= limits.max:
        yield f"background_color: {value:g} is not a value of {dtype}"


def memory_problems(
    info: Info, pyramid: Pyramid, voxel_bytes: int, memory_target: int
) -> Iterator[str]:
    """The reason why so many mips do not fit in one task, and how to go on."""
    geometry = pyramid.geometry
    wanted = geometry.levels
    if not wanted or not pyramid.source.bounds:
        return
    fitting = levels_that_fit(geometry, voxel_bytes, memory_target)
    if fitting == wanted:
        return
    needed = truncated(geometry, fitting or 1).voxels_in_memory * voxel_bytes
    if fitting == 0:
        yield (
            f"memory_target: {memory_target:,} bytes are too few for a task that makes one mip, "
            f"which needs {needed:,}: raise memory_target"
        )
        return
    needed = geometry.voxels_in_memory * voxel_bytes
    made = pyramid.levels[:fitting]
    mips = [*info.scales, *(scale for scale in made if scale not in info.scales)]
    mip = mips.index(made[-1])
    yield (
        f"memory_target: {wanted} mips at once need {needed:,} bytes a task, {memory_target:,} are "
        f"allowed; {fitting} fit. Set num_mips to {fitting}, and start again with mip {mip} and "
        f"num_mips {wanted - fitting} when that is done; or raise memory_target"
    )


def count_problems(cells: Grid) -> Iterator[str]:
    """The reason why there are too many tasks."""
    if cells.shape.product > sys.maxsize:
        yield f"bounds: {cells.box} makes more tasks than can be counted: choose a part"


def bounds_problems(pyramid: Pyramid, region: BoundingBox) -> Iterator[str]:
    """The reason why a part of the volume cannot be worked on by itself."""
    volume = pyramid.source.bounds
    if not volume:
        yield f"scale {pyramid.source.key} has no voxels: its size is {pyramid.source.size}"
        return
    if not volume.contains(region):
        yield f"bounds: {region} reaches out of the volume, which is {volume}"
        return
    yield from count_problems(Grid(region, pyramid.geometry.cell))
    unit = pyramid.geometry.unit if pyramid.levels else Vec3.full(1)
    if not Grid(volume, unit).is_aligned(region):
        aligned = region.expanded_to_grid(unit, volume.min).intersection(volume)
        yield (
            f"bounds: {region} would fill only parts of chunks of the coarsest mip, which come in "
            f"blocks of {unit} voxels counted from {volume.min}: use {aligned}, or fewer mips"
        )
