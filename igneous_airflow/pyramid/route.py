"""How voxels get into a layer: what is read and written, in which pieces; and doing a piece."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import count_levels
from igneous_airflow.geometry.rechunk import RechunkGeometry
from igneous_airflow.pyramid.blocks import in_blocks
from igneous_airflow.pyramid.copier import FileCopier
from igneous_airflow.pyramid.destination import Destination
from igneous_airflow.pyramid.layout import (
    Pyramid,
    ScaleWishes,
    coarser_scales,
    count_problems,
    encoding_problems,
    writing_problems,
)
from igneous_airflow.pyramid.source import LayerSource, VoxelSource
from igneous_airflow.pyramid.writer import PyramidWriter, WriteOptions
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.overlap import Overlap


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """How work may be cut into tasks; `memory` in bytes, `shape` in voxels of a task."""

    max_mips: int
    factor: Vec3
    shape: Vec3 | None
    memory: int


@dataclass(frozen=True)
class Route:
    """A source, a destination, and the pieces in which the voxels go there."""

    source: VoxelSource
    place: Destination
    pyramid: Pyramid
    limits: TaskLimits
    conflicts: tuple[str, ...]
    copies: bool = False  # chunk files, as they are
    cut_short: bool = False  # whether memory allows fewer mips than there could be

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel that is written, with all channels."""
        return self.place.layer.dtype.itemsize * self.place.info.channels

    @cached_property
    def width(self) -> int:
        """How many storage operations to keep under way where memory allows."""
        return max(self.source.overlap_width, self.place.layer.overlap_width)

    @cached_property
    def geometry(self) -> RechunkGeometry:
        """The sizes alone, relative to the region."""
        scales = (self.place.scale, *self.pyramid.levels)
        return RechunkGeometry(
            size=self.place.region.size,
            factor=self.pyramid.factor,
            chunks=tuple(scale.chunk_size for scale in scales),
            read=self.source.chunk_size,
            phase=self.source.phase(self.place.region),
            voxel_bytes=self.voxel_bytes,
            read_voxel_bytes=self.source.voxel_bytes,
            keeps_both=self.source.changes_voxels,
            by_chunks=self.source.decodes_chunks,
            whole_bytes=self.source.whole_bytes,
            memory=self.limits.memory,
            shape=self.limits.shape,
            width=self.width,
        ).fitting()

    @property
    def cells(self) -> Grid:
        """The pieces, in voxels of the destination."""
        return Grid(self.place.region, self.geometry.cell)

    @property
    def written(self) -> list[tuple[Scale, BoundingBox]]:
        """Each scale that is written, and the region of it."""
        return self.written_in(self.place.region)

    def written_in(self, box: BoundingBox) -> list[tuple[Scale, BoundingBox]]:
        """Each scale that a cell or the whole region writes, and the box of it."""
        levels = enumerate(self.pyramid.levels, start=1)
        coarser = [(scale, self.pyramid.level_box(level, box)) for level, scale in levels]
        return [(self.place.scale, box), *coarser]

    def problems(self) -> Iterator[str]:
        """Every reason why the layer cannot take the voxels, or not in such pieces."""
        yield from self.conflicts
        yield from encoding_problems(self.place.info, [scale for scale, _ in self.written])
        if not self.copies:
            yield from writing_problems(scale for scale, _ in self.written)
        shape, unit = self.limits.shape, self.geometry.unit
        if shape is not None and shape % unit != Vec3.full(0):
            fitting = shape.ceil_div(unit) * unit
            yield (
                f"shape: tasks of {shape} voxels would fill only parts of chunks, which come in "
                f"blocks of {unit} voxels with all mips: use {fitting}, or fewer mips"
            )
            return
        if not self.place.scale.bounds.contains(self.place.region) or not self.place.region:
            return
        yield from count_problems(self.cells)
        if self.geometry.bytes_in_memory > self.limits.memory:
            yield (
                f"memory_target: {self.limits.memory:,} bytes are too few for a task, which needs "
                f"{self.geometry.bytes_in_memory:,}: raise memory_target, or choose a smaller "
                "chunk_size"
            )

    def carry(self, cell: BoundingBox, options: WriteOptions) -> PyramidWriter | FileCopier:
        """Do one piece; the answer counts what was written."""
        width = self.geometry.width
        with Overlap(width) as overlap:
            if self.copies and isinstance(self.source, LayerSource):
                copier = FileCopier(self.source, self.place, options)
                for chunk in self.place.scale.chunks.overlapping(cell):
                    overlap.submit(partial(copier.copy, chunk))
                return copier
            writer = PyramidWriter(self.place.layer, self.pyramid, options, overlap, finest=True)
            origin = self.place.region.min
            for tile in self.geometry.tiles(cell.translated(origin * -1)):
                box = tile.translated(origin)
                parts = self.source.parts(box, overlap)
                # writes that are under way must not keep all of a tile
                blocks = in_blocks(box, self.geometry.block, parts, apart=width > 1)
                for block, voxels in blocks:
                    writer.push(block, voxels)
                    del voxels  # before the next tile is read, so that memory holds one
            writer.close()
            return writer


def find_route(
    source: VoxelSource, place: Destination, wishes: ScaleWishes, limits: TaskLimits
) -> Route:
    """Lay work out with as many mips as its memory allows; reads nothing.

    All that is wrong is in the route's `problems`, and in those of its source and its place.
    """
    count = count_levels(place.scale.size, limits.factor, limits.max_mips)
    levels, conflicts = coarser_scales(place.info, place.scale, limits.factor, count, wishes)
    pyramid = Pyramid(place.scale, levels, limits.factor)
    route = Route(source, place, pyramid, limits, tuple(conflicts))
    while route.pyramid.levels and place.region and route.geometry.bytes_in_memory > limits.memory:
        fewer = replace(route.pyramid, levels=route.pyramid.levels[:-1])
        route = replace(route, pyramid=fewer, cut_short=True)
    return route
