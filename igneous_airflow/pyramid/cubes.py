"""A volume in overlapping cubes as a source of voxels: where each cube belongs, and its voxels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import MissingChunk
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.hypersquare import NAMED_AT_MOST, Cube, first_few
from igneous_airflow.storage.overlap import Overlap, overlap_width

Array = NDArray[Any]


@dataclass(frozen=True)
class CubeGrid:
    """Cubes side by side, without the half of the `overlap` that each loses on all sides.

    What is left of the largest is the cell of the grid; the last ones on an axis may be shorter.
    """

    cubes: Sequence[Cube]
    overlap: int
    others: Sequence[str] = ()  # folders without metadata

    def kept(self, cube: Cube) -> BoundingBox:
        """The part of a cube that is its own."""
        half = self.overlap // 2
        return BoundingBox(cube.box.min + half, cube.box.max - half)

    @cached_property
    def grid(self) -> Grid:
        """The places of the cubes, those of missing ones included."""
        boxes = [self.kept(cube) for cube in self.cubes]
        low, high, cell = boxes[0].min, boxes[0].max, boxes[0].size
        for box in boxes[1:]:
            low, high, cell = low.minimum(box.min), high.maximum(box.max), cell.maximum(box.size)
        return Grid(BoundingBox(low, high), cell)

    @cached_property
    def by_place(self) -> dict[BoundingBox, Cube]:
        """The cube of each cell of the grid that has one."""
        return {self.kept(cube): cube for cube in self.cubes}

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """Every reason why the cubes do not make a volume."""
        for cube in self.cubes:
            if min(self.kept(cube).size) < 1:
                whole = f"cube {cube.name}, which is {cube.box.size}"
                return (f"overlap: {self.overlap} voxels are all of {whole}",)
        return (*self._disagreements(), *self._place_problems())

    def _disagreements(self) -> Iterator[str]:
        for what in ("resolution", "unit"):
            by_value = {str(getattr(cube, what)): cube.name for cube in self.cubes}
            if len(by_value) > 1:
                (one, a), (other, b), *_ = by_value.items()
                yield f"the cubes do not agree on their {what}: {a} has {one}, {b} has {other}"

    def _place_problems(self) -> Iterator[str]:
        seen: dict[int, Cube] = {}
        wrong = []
        for cube in self.cubes:
            try:
                place = self.grid.index_of(self.kept(cube))
            except ValueError:
                wrong.append(cube.name)
                continue
            if place in seen:
                yield f"cubes {seen[place].name} and {cube.name} are in the same place, {cube.box}"
            seen[place] = cube
        if wrong:
            yield (
                f"with an overlap of {self.overlap}, cubes do not lie side by side in steps of "
                f"{self.grid.cell} voxels from {self.grid.box.min}: {first_few(wrong)}"
                f"{self._likely_overlap()}"
            )

    def _likely_overlap(self) -> str:
        """The overlap that the cubes seem to have, as a hint."""
        for axis in range(3):
            starts = sorted({cube.box.min[axis] for cube in self.cubes})
            steps = [after - before for before, after in pairwise(starts)]
            length = self.cubes[0].box.size[axis]
            if steps and 0 <= (shared := length - min(steps)) != self.overlap:
                return (
                    f". They are {length} voxels long and begin every {min(steps)}: set overlap to "
                    f"{shared}"
                )
        return ""

    @cached_property
    def gaps(self) -> tuple[str, ...]:
        """What is not there: places without a cube, and folders that are none."""
        found = []
        half = self.overlap // 2
        empty = self.grid.shape.product - len(self.by_place)
        if empty:
            every = self.grid.overlapping(self.grid.box)  # lazily: there may be very many
            first = islice((cell for cell in every if cell not in self.by_place), NAMED_AT_MOST)
            boxes = [str(BoundingBox(cell.min - half, cell.max + half)) for cell in first]
            found.append(f"cubes are missing at {first_few(boxes, of=empty)}")
        if self.others:
            found.append(f"folders without metadata.json are no cubes: {first_few(self.others)}")
        return tuple(found)


@dataclass(frozen=True)
class CubeSource:
    """The labels or, with `sections`, the grey values of cubes, which move by `shift`.

    `missing` fills what is missing; with None, it raises MissingChunk.
    """

    folder: Folder
    cubes: CubeGrid
    dtype: "np.dtype[Any]"
    sections: bool
    shift: Vec3
    missing: float | None = None

    @property
    def chunk_size(self) -> Vec3:
        """Voxels of what is decoded as a whole: a cube's labels, or one section of it."""
        cell = self.cubes.grid.cell
        return Vec3(cell.x, cell.y, 1) if self.sections else cell

    @property
    def whole_bytes(self) -> int:
        """Bytes of a cube as it is decoded, where it goes on beyond the voxels: it never does."""
        return 0

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel."""
        return self.dtype.itemsize

    @property
    def decodes_chunks(self) -> bool:
        """Whether whole cubes are held on the way."""
        return True

    @property
    def changes_voxels(self) -> bool:
        """Voxels stay what they are."""
        return False

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""
        return overlap_width(self.folder.url)

    def phase(self, region: BoundingBox) -> Vec3:
        """How many voxels before the region the cube begins that it starts in."""
        start = region.min - self.shift
        return (start - self.cubes.grid.box.min) % self.chunk_size

    def parts(self, box: BoundingBox, overlap: Overlap) -> Iterator[tuple[BoundingBox, Array]]:
        """Read a box from all the cubes it reaches into."""
        at = box.translated(self.shift * -1)
        for whole, voxels in overlap.map(self._read, self._parts(at)):
            part = whole.intersection(at)
            own = voxels[part.slices_within(whole)].astype(self.dtype, copy=False)
            yield part.translated(self.shift), own[..., None]

    def _parts(self, box: BoundingBox) -> Iterator[BoundingBox]:
        """What is decoded for a box: cells of the grid, or sections of them."""
        for cell in self.cubes.grid.overlapping(box):
            if not self.sections:
                yield cell
                continue
            for z in range(max(cell.min.z, box.min.z), min(cell.max.z, box.max.z)):
                low, high = cell.min, cell.max
                yield BoundingBox(Vec3(low.x, low.y, z), Vec3(high.x, high.y, z + 1))

    def _read(self, part: BoundingBox) -> Array:
        """The voxels of a part as (x, y, z)."""
        try:
            return self._decoded(part)
        except MissingChunk:
            if self.missing is None:
                raise
            return np.broadcast_to(np.array(self.missing, self.dtype), tuple(part.size))

    def _decoded(self, part: BoundingBox) -> Array:
        cell = next(self.cubes.grid.overlapping(part))
        cube = self.cubes.by_place.get(cell)
        if cube is None:
            raise MissingChunk(
                f"the cube of {cell} in {self.folder.url} is missing: restore it, or set "
                "fill_missing to take background"
            )
        own = part.slices_within(cube.box)
        if not self.sections:
            return cube.labels()[own]
        return cube.section(part.min.z - cube.box.min.z)[*own[:2], None]
