"""Boxes cut into cells, sections into slabs, as tasks are numbered; used by stages and storage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from igneous_airflow.geometry.bbox import BoundingBox, Vec3


@dataclass(frozen=True, slots=True)
class Grid(Sequence[BoundingBox]):
    """A box cut from its lowest corner into cells of one shape; the last ones are clipped.

    It is a sequence that makes its cells when asked: x runs fastest, then y, then z.
    """

    box: BoundingBox
    cell: Vec3

    @property
    def shape(self) -> Vec3:
        """Number of cells on each axis."""
        return self.box.size.ceil_div(self.cell)

    def __len__(self) -> int:
        return self.shape.product

    @overload
    def __getitem__(self, index: int) -> BoundingBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BoundingBox]: ...
    def __getitem__(self, index: int | slice) -> BoundingBox | Sequence[BoundingBox]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        nx, ny, _ = self.shape
        return self.at(Vec3(position % nx, position // nx % ny, position // (nx * ny)))

    def at(self, place: Vec3) -> BoundingBox:
        """The cell at grid coordinates, counted in cells."""
        low = self.box.min + place * self.cell
        return BoundingBox(low, (low + self.cell).minimum(self.box.max))

    def is_cell(self, box: BoundingBox) -> bool:
        """Whether a box is one of the cells; the quickest way to know."""
        whole, low, high, cell = self.box, box.min, box.max, self.cell
        return (
            bool(box)
            and whole.contains(box)
            and (low.x - whole.min.x) % cell.x == 0
            and (low.y - whole.min.y) % cell.y == 0
            and (low.z - whole.min.z) % cell.z == 0
            and high == (low + cell).minimum(whole.max)
        )

    def index_of(self, cell: BoundingBox) -> int:
        """The position of one of the cells; raises ValueError for any other box."""
        if not self.is_cell(cell):
            raise ValueError(f"{cell} is not a cell of this grid")
        place = (cell.min - self.box.min) // self.cell
        nx, ny, _ = self.shape
        return place.x + nx * (place.y + ny * place.z)

    def lines(self, box: BoundingBox) -> Iterator[range]:
        """Positions of the cells that share voxels with a box, line by line along x."""
        low, high = self._places(box)
        nx, ny, _ = self.shape
        for z in range(low.z, high.z):
            for y in range(low.y, high.y):
                start = nx * (y + ny * z)
                yield range(start + low.x, start + high.x)

    def overlapping(self, box: BoundingBox) -> Iterator[BoundingBox]:
        """The cells that share voxels with a box, in the grid's order."""
        low, high = self._places(box)
        for z in range(low.z, high.z):
            for y in range(low.y, high.y):
                for x in range(low.x, high.x):
                    yield self.at(Vec3(x, y, z))

    def _places(self, box: BoundingBox) -> tuple[Vec3, Vec3]:
        """Grid coordinates of the first cell that shares voxels with a box, and after the last."""
        common = box.intersection(self.box)
        if not common:
            return self.box.min * 0, self.box.min * 0
        low = (common.min - self.box.min) // self.cell
        return low, (common.max - self.box.min).ceil_div(self.cell)

    def is_aligned(self, box: BoundingBox) -> bool:
        """Whether a box inside the grid is made of whole cells."""
        grown = box.expanded_to_grid(self.cell, self.box.min).intersection(self.box)
        return self.box.contains(box) and grown == box


@dataclass(frozen=True, slots=True)
class Slab:
    """The sections from `start` up to, and not including, `stop`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))


@dataclass(frozen=True, slots=True)
class Slabs(Sequence[Slab]):
    """Sections cut where a grid of `depth` sections that starts at `origin` is cut.

    The first and the last slab are clipped. Like a grid, it makes them when asked.
    """

    whole: Slab
    depth: int
    origin: int

    def __len__(self) -> int:
        return -((self.origin - self.whole.stop) // self.depth) - self._first if self.whole else 0

    @property
    def _first(self) -> int:
        return (self.whole.start - self.origin) // self.depth

    @overload
    def __getitem__(self, index: int) -> Slab: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Slab]: ...
    def __getitem__(self, index: int | slice) -> Slab | Sequence[Slab]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self.origin + (self._first + range(len(self))[index]) * self.depth
        return Slab(max(start, self.whole.start), min(start + self.depth, self.whole.stop))
