"""Where sections are sampled: patches of whole chunks, and which of them are drawn; used by stages.

Patches are drawn by lot with equal chances, each at most once, so that every voxel of a section is
as likely to be in the sample as any other.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import overload

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Slab


@dataclass(frozen=True, slots=True)
class Patches(Sequence[BoundingBox]):
    """A box cut in x and y into patches of nearly equal size; x runs fastest.

    They are cut between chunks of `chunk` voxels, one of which starts at `origin`, so that no
    chunk reaches into two patches, and are at most `edge` voxels long unless a chunk is longer. In
    z each patch is as deep as the box.
    """

    box: BoundingBox
    chunk: Vec3
    origin: Vec3
    edge: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of patches in x and in y."""
        return self._count(0), self._count(1)

    def __len__(self) -> int:
        across, down = self.shape
        return across * down

    @overload
    def __getitem__(self, index: int) -> BoundingBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BoundingBox]: ...
    def __getitem__(self, index: int | slice) -> BoundingBox | Sequence[BoundingBox]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        y, x = divmod(range(len(self))[index], self.shape[0])
        low, high = self.box.min, self.box.max
        return BoundingBox(
            Vec3(self._cut(0, x), self._cut(1, y), low.z),
            Vec3(self._cut(0, x + 1), self._cut(1, y + 1), high.z),
        )

    def _chunks(self, axis: int) -> tuple[int, int]:
        """The first chunk along an axis, and the one after the last, counted from the origin."""
        origin, chunk = self.origin[axis], self.chunk[axis]
        low, high = self.box.min[axis] - origin, self.box.max[axis] - origin
        return low // chunk, -(-high // chunk)

    def _count(self, axis: int) -> int:
        first, last = self._chunks(axis)
        return -(-(last - first) // max(self.edge // self.chunk[axis], 1))

    def _cut(self, axis: int, place: int) -> int:
        """Where the patch at a place along an axis begins."""
        first, last = self._chunks(axis)
        cut = first + (last - first) * place // self._count(axis)
        low, high = self.box.min[axis], self.box.max[axis]
        return min(max(self.origin[axis] + cut * self.chunk[axis], low), high)


@dataclass(frozen=True, slots=True)
class Sample:
    """A share of the patches, drawn anew for each layer of chunks; `lot` names all the drawings.

    Sections that share chunks share the places of their patches as well, so that no chunk is
    decoded for the sake of one section alone.
    """

    patches: Patches
    share: float
    lot: str

    @property
    def size(self) -> int:
        """How many patches of a section are drawn: the share, rounded up."""
        exact = len(self.patches) * self.share
        nearest = round(exact)  # 100 * 0.07 is a little more than 7
        return nearest if math.isclose(exact, nearest, rel_tol=1e-9) else math.ceil(exact)

    @property
    def voxels(self) -> int:
        """How many voxels that is, about; exactly where all are drawn."""
        return self.patches.box.voxels * self.size // len(self.patches)

    def of(self, slab: Slab) -> list[BoundingBox]:
        """The patches drawn for sections that share chunks."""
        chunk, origin = self.patches.chunk.z, self.patches.origin.z
        layer = (slab.start - origin) // chunk * chunk + origin
        numbers = drawn(len(self.patches), self.size, f"{self.lot}/{layer}")
        return [_between(self.patches[number], slab) for number in numbers]


def _between(box: BoundingBox, slab: Slab) -> BoundingBox:
    low, high = box.min, box.max
    return BoundingBox(Vec3(low.x, low.y, slab.start), Vec3(high.x, high.y, slab.stop))


def drawn(count: int, wanted: int, lot: str) -> list[int]:
    """Draw `wanted` of the numbers below `count`, in ascending order.

    The same lot draws the same numbers for ever, and those of a smaller sample again.
    """
    seed = int.from_bytes(sha256(lot.encode()).digest())
    # of the module's promises this is the one that holds for all versions: `random()` by a seed
    chance = random.Random(seed).random  # noqa: S311 - not for secrets
    chances = [(chance(), number) for number in range(count)]
    return sorted(number for _, number in sorted(chances)[:wanted])
