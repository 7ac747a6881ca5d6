"""Boxes of any sizes that should tile a volume: which lie where, where they overlap, what is left.

Used by sources made of many files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid


@dataclass(frozen=True)
class Coverage:
    """At least one box; each has voxels."""

    boxes: tuple[BoundingBox, ...]

    @cached_property
    def bounds(self) -> BoundingBox:
        """The smallest box that holds them all."""
        low = reduce(Vec3.minimum, (box.min for box in self.boxes))
        high = reduce(Vec3.maximum, (box.max for box in self.boxes))
        return BoundingBox(low, high)

    @cached_property
    def largest(self) -> Vec3:
        """The longest edge of any box on each axis."""
        return reduce(Vec3.maximum, (box.size for box in self.boxes))

    @cached_property
    def _bins(self) -> dict[BoundingBox, list[BoundingBox]]:
        """The boxes that reach into each cell of a grid, of which no box can touch more than 8."""
        bins: dict[BoundingBox, list[BoundingBox]] = {}
        for box in self.boxes:
            for cell in self._grid.overlapping(box):
                bins.setdefault(cell, []).append(box)
        return bins

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.bounds, self.largest)

    def overlapping(self, box: BoundingBox) -> list[BoundingBox]:
        """The boxes that share voxels with a box, each once."""
        cells = self._grid.overlapping(box)
        near = dict.fromkeys(other for cell in cells for other in self._bins.get(cell, ()))
        return [other for other in near if other.intersection(box)]

    def overlaps(self) -> Iterator[tuple[BoundingBox, BoundingBox]]:
        """Pairs of boxes that share voxels, each once."""
        for cell, boxes in self._bins.items():
            for i, one in enumerate(boxes):
                for other in boxes[:i]:
                    common = one.intersection(other)
                    if common and cell.contains(BoundingBox.at(common.min, Vec3.full(1))):
                        yield other, one

    def holes(self) -> Iterator[BoundingBox]:
        """Boxes that make up what no box covers; they may be very many."""
        for cell in self._grid.overlapping(self.bounds):
            left = [cell]
            for box in self._bins.get(cell, ()):
                left = [piece for part in left for piece in _without(part, box)]
            yield from left

    @property
    def uncovered(self) -> int:
        """How many voxels no box covers, provided that none overlap."""
        return self.bounds.voxels - sum(box.voxels for box in self.boxes)


def _without(box: BoundingBox, other: BoundingBox) -> Iterator[BoundingBox]:
    """What is left of a box without the voxels of another one."""
    common = box.intersection(other)
    if not common:
        yield box
        return
    low, high = list(box.min), list(box.max)
    for axis in (2, 1, 0):  # slabs below and above what both have, thick ones first
        for start, stop in ((low[axis], common.min[axis]), (common.max[axis], high[axis])):
            if start < stop:
                corner, end = [*low], [*high]
                corner[axis], end[axis] = start, stop
                yield BoundingBox(Vec3(*corner), Vec3(*end))
        low[axis], high[axis] = common.min[axis], common.max[axis]
