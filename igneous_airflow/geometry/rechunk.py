"""How voxels go from one grid of chunks into another, with coarser mips made on the way.

Used by pyramids that write their finest scale as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, lcm, prod

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import in_nested_order

_LONGEST = 4  # times a chunk: cells that would have to be longer cut through chunks instead
_CELL_BYTES = 1 << 27  # of voxels in a task, where the shape is not given


@dataclass(frozen=True)
class RechunkGeometry:
    """A region of `size` voxels written in chunks `chunks[0]`, its coarser mips in `chunks[1:]`.

    It is read from chunks of `read` voxels, one of which starts `phase` voxels before the region.
    All boxes are relative to the region's first voxel, where a chunk of every written mip starts.
    A *cell* is what one task writes; a *tile* is what is read and written at once on the way
    through it. `shape` is the cell asked for. A voxel that is written has `voxel_bytes`, one that
    is read `read_voxel_bytes`; with `keeps_both`, a tile is held in both forms for a while. What is
    read is decoded by whole chunks, or, without `by_chunks`, only best read so. Chunks that go on
    beyond the region have `whole_bytes` when they are decoded. A task may use `memory` bytes, and
    keeps `width` storage operations under way.
    """

    size: Vec3
    factor: Vec3
    chunks: tuple[Vec3, ...]
    read: Vec3
    phase: Vec3
    voxel_bytes: int
    read_voxel_bytes: int
    memory: int
    keeps_both: bool = False
    by_chunks: bool = True
    whole_bytes: int = 0
    shape: Vec3 | None = None
    width: int = 1

    def fitting(self) -> "RechunkGeometry":
        """The same with fewer storage operations under way, where they would cost too much memory.

        Too much is what does not fit, and what makes tiles so small that chunks are read more
        often than they are with one operation at a time.
        """
        alone = replace(self, width=1)
        width = self.width
        while width > 1:
            fewer = replace(self, width=width)
            if fewer.bytes_in_memory <= self.memory and fewer.times_read <= alone.times_read:
                return fewer
            width //= 2
        return alone

    @property
    def levels(self) -> int:
        """Number of coarser mips."""
        return len(self.chunks) - 1

    @cached_property
    def unit(self) -> Vec3:
        """The smallest block that fills whole chunks of every mip."""
        spans = [chunk * self.factor**level for level, chunk in enumerate(self.chunks)]
        return Vec3(*(lcm(*(span[axis] for span in spans)) for axis in range(3)))

    @cached_property
    def cell(self) -> Vec3:
        """Whole units; whole chunks of what is read where possible; enough for a task's while."""
        if self.shape is not None:
            return self.shape
        most = self.size.ceil_div(self.unit) * self.unit
        edges = [min(self._cell_edge(axis), most[axis]) for axis in range(3)]
        voxel_bytes = max(self.voxel_bytes, self.read_voxel_bytes)
        while edges[0] * edges[1] * edges[2] * voxel_bytes < _CELL_BYTES:
            growing = [axis for axis in range(3) if edges[axis] < most[axis]]
            if not growing:
                break
            axis = min(growing, key=lambda axis: edges[axis])
            edges[axis] = min(2 * edges[axis], most[axis])
        return Vec3(*edges)

    def _cell_edge(self, axis: int) -> int:
        unit, read = self.unit[axis], self.read[axis]
        both = lcm(unit, read)
        if self.phase[axis] == 0 and both <= _LONGEST * max(unit, read):
            return both
        return -(-_LONGEST * read // unit) * unit

    @cached_property
    def tile(self) -> Vec3:
        """Whole chunks of the finest mip that pool evenly; whole chunks of what is read as well.

        Where memory does not allow that, it is smaller, and chunks are read once for each tile
        that they reach into.
        """
        edges = [self._tile_edge(axis) for axis in range(3)]
        while self._bytes_with(Vec3(*edges)) > self.memory:
            smaller = [self._smaller(axis, edges[axis]) for axis in range(3)]
            shrinking = [axis for axis in range(3) if smaller[axis] < edges[axis]]
            if not shrinking:
                break
            axis = max(shrinking, key=lambda axis: edges[axis] / self.block[axis])
            edges[axis] = smaller[axis]
        return Vec3(*edges)

    @cached_property
    def block(self) -> Vec3:
        """What tiles are made of: whole chunks of the finest mip, whole windows of the coarsest."""
        return Vec3(*map(lcm, self.chunks[0], self.factor**self.levels))

    def _tile_edge(self, axis: int) -> int:
        cell, whole = self.cell[axis], lcm(self.block[axis], self.read[axis])
        return whole if self.phase[axis] == 0 and cell % whole == 0 else cell

    def _smaller(self, axis: int, edge: int) -> int:
        """The next shorter edge of which cells are multiples, or the same when there is none."""
        steps = self.cell[axis] // self.block[axis]
        now = edge // self.block[axis]
        return self.block[axis] * next((n for n in range(now - 1, 0, -1) if steps % n == 0), now)

    def tiles(self, cell: BoundingBox) -> list[BoundingBox]:
        """The tiles of a cell in nested order: each coarse chunk is completed before the next."""
        return in_nested_order(Grid(cell, self.tile), self.factor, self.chunks)

    @property
    def bytes_in_memory(self) -> int:
        """The most bytes of voxels that one task holds."""
        return self._bytes_with(self.tile)

    def _bytes_with(self, tile: Vec3) -> int:
        """A tile with its pooled copies, chunks on their way in and out, and open chunks.

        An open chunk counts twice, for its encoded form, one on its way once more, while it is
        packed.
        """
        read, written = self.read_voxel_bytes, self.voxel_bytes
        held = written * (4 if self.levels else 1) + (read if self.keeps_both else 0)
        levels = enumerate(self.chunks)
        sizes = (chunk.minimum(self.size.ceil_div(self.factor**n)) for n, chunk in levels)
        chunks = max(size.product for size in sizes) * written
        if self.by_chunks:
            chunks += max(self.read.minimum(self._padded).product * read, self.whole_bytes)
        return (
            tile.minimum(self._padded).product * held
            + 3 * self.width * chunks
            + 2 * sum(self._open_voxels(tile)) * written
        )

    @property
    def _padded(self) -> Vec3:
        """The region's size, padded to whole windows of the coarsest mip."""
        window = self.factor**self.levels
        return self.size.ceil_div(window) * window

    def _open_voxels(self, tile: Vec3) -> Iterator[int]:
        """Voxels of each coarser mip's unfinished chunks while tiles pass in nested order.

        Where tiles or finer chunks do not nest in the chunks of a mip, all of the cell.
        """
        block = tile
        for level, chunk in enumerate(self.chunks[1:], start=1):
            window = self.factor**level
            span = chunk * window
            if all(b % s == 0 for b, s in zip(block, span, strict=True)):
                yield 0
                continue
            nested = all(b % s == 0 or s % b == 0 for b, s in zip(block, span, strict=True))
            block = block.maximum(span) if nested else self.cell
            yield block.minimum(self._padded).ceil_div(window).product

    @cached_property
    def times_read(self) -> float:
        """How many voxels are decoded for each voxel of the region: 1 when no chunk comes twice."""
        if not self.by_chunks:
            return 1.0
        return prod(1 + self._read_again(axis) / self.size[axis] for axis in range(3))

    def _read_again(self, axis: int) -> int:
        """Along an axis, the voxels of the chunk that each line between two tiles cuts, if any."""
        size, tile, read = self.size[axis], self.tile[axis], self.read[axis]
        phase, lines = self.phase[axis], range(tile, size, tile)
        period = read // gcd(read, tile)  # lines until they lie in chunks as before
        periods = len(lines) // period
        cut, rest = (
            sum((line + phase) % read > 0 for line in some)
            for some in (lines[:period], lines[periods * period :])
        )
        last = max((size - 1 + phase) // read * read - phase, 0)
        in_first, in_last = (
            len(range(tile, min(read - phase, size), tile)),
            len(lines) - last // tile,
        )
        beyond = -(size + phase) % read  # what the last chunk has after the region
        return (periods * cut + rest) * read - in_first * phase - in_last * beyond
