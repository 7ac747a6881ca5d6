"""How many mips a volume has, and how work on several of them at once is cut; used by pyramids."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import lcm

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid

_PREFERRED_CHUNK = 64


def count_levels(size: Vec3, factor: Vec3, wanted: int) -> int:
    """How many of `wanted` coarser mips pool anything: each needs a pooled axis longer than 1."""
    for level in range(wanted):
        pooled = [length for length, step in zip(size, factor, strict=True) if step > 1]
        if max(pooled, default=0) <= 1:
            return level
        size = size.ceil_div(factor)
    return wanted


def divisor_nearest_64(length: int) -> int:
    """The divisor of a chunk's edge that is nearest to 64: 512 gives 64, 100 gives 50."""
    divisors = (d for d in range(1, length + 1) if length % d == 0)
    return min(divisors, key=lambda d: (abs(d - _PREFERRED_CHUNK), -d))


@dataclass(frozen=True)
class PyramidGeometry:
    """A volume of `size` voxels in chunks `chunks[0]`, and its coarser mips in `chunks[1:]`.

    All boxes are relative to the volume's first voxel. A *cell* is what one task reads; a *tile*
    is what is pooled at once on the way through a cell.
    """

    size: Vec3
    factor: Vec3
    chunks: tuple[Vec3, ...]

    @property
    def levels(self) -> int:
        """Number of coarser mips."""
        return len(self.chunks) - 1

    @cached_property
    def unit(self) -> Vec3:
        """The smallest block whose every coarser mip fills whole chunks."""
        spans = [chunk * self.factor**level for level, chunk in enumerate(self.chunks) if level]
        return Vec3(*(lcm(*(span[axis] for span in spans)) for axis in range(3)))

    @cached_property
    def cell(self) -> Vec3:
        """Whole units, and whole source chunks where that does not make it much larger."""
        return Vec3(*map(_cell_edge, self.unit, self.chunks[0]))

    @cached_property
    def tile(self) -> Vec3:
        """Whole source chunks that pool evenly through all levels; else the cell itself."""
        whole = Vec3(*map(lcm, self.chunks[0], self.factor**self.levels))
        tile = Vec3(*(w if c % w == 0 else c for c, w in zip(self.cell, whole, strict=True)))
        return tile.minimum(self._whole_windows)

    @property
    def _whole_windows(self) -> Vec3:
        """The volume's size, padded to whole windows of the coarsest mip."""
        window = self.factor**self.levels
        return self.size.ceil_div(window) * window

    def tiles(self, cell: BoundingBox) -> list[BoundingBox]:
        """The tiles of a cell in nested order: each coarse chunk is completed before the next."""
        return in_nested_order(Grid(cell, self.tile), self.factor, self.chunks)

    @cached_property
    def voxels_in_memory(self) -> int:
        """The most voxels that one task holds: a tile with its pooled copies, and open chunks.

        An open chunk counts twice, for its encoded form.
        """
        levels = range(1, self.levels + 1)
        return 4 * self._tile_voxels + 2 * sum(self._open_voxels(level) for level in levels)

    def voxels_with(self, width: int) -> int:
        """The most voxels that one task holds while `width` storage operations are under way.

        So many tiles are read ahead, and so many chunks wait to be written, if a cell has as many.
        A tile counts twice, for its encoded form, and a chunk once more, while it is packed. A
        width of 1 means that nothing is done ahead.
        """
        if width == 1:
            return self.voxels_in_memory
        cell = self.cell.minimum(self._whole_windows)
        ahead = min(width, cell.ceil_div(self.tile).product) * self._tile_voxels
        chunks = written = 0
        for level in range(1, self.levels + 1):
            window = self.factor**level
            largest = self.chunks[level].minimum(self.size.ceil_div(window)).product
            chunks += cell.ceil_div(self.chunks[level] * window).product
            written = max(written, largest)
        return self.voxels_in_memory + 2 * ahead + 3 * min(width, chunks) * written

    def fitting_width(self, width: int, voxel_bytes: int, memory: int) -> int:
        """How many storage operations to keep under way within `memory` bytes, `width` at most."""
        while width > 1 and self.voxels_with(width) * voxel_bytes > memory:
            width -= 1
        return width

    @property
    def _tile_voxels(self) -> int:
        return self.tile.minimum(self._whole_windows).product

    def _open_voxels(self, level: int) -> int:
        """Voxels of a level's unfinished chunks: one chunk when levels nest, else all of a cell."""
        inner = self.tile if level == 1 else self.chunks[level - 1] * self.factor ** (level - 1)
        outer = self.chunks[level] * self.factor**level
        nested = max(outer % inner) == 0
        open_box = self.chunks[level] if nested else self.cell.ceil_div(self.factor**level)
        return open_box.minimum(self.size.ceil_div(self.factor**level)).product


def in_nested_order(
    tiles: Iterable[BoundingBox], factor: Vec3, chunks: tuple[Vec3, ...]
) -> list[BoundingBox]:
    """Sort tiles so that each chunk of a coarser mip is completed before the next is begun."""
    spans = [chunk * factor**level for level, chunk in enumerate(chunks) if level]
    return sorted(
        tiles,
        key=lambda tile: [
            (tile.min.z // span.z, tile.min.y // span.y, tile.min.x // span.x)
            for span in reversed(spans)
        ],
    )


def _cell_edge(unit: int, chunk: int) -> int:
    both = lcm(unit, chunk)
    if both <= 4 * max(unit, chunk):
        return both
    return -(-chunk // unit) * unit


def levels_that_fit(geometry: PyramidGeometry, voxel_bytes: int, memory: int) -> int:
    """How many of the levels a task can make within `memory` bytes, 0 when not even one."""
    for levels in range(geometry.levels, 0, -1):
        if truncated(geometry, levels).voxels_in_memory * voxel_bytes <= memory:
            return levels
    return 0


def truncated(geometry: PyramidGeometry, levels: int) -> PyramidGeometry:
    """The same pyramid with fewer levels."""
    return PyramidGeometry(geometry.size, geometry.factor, geometry.chunks[: levels + 1])
