"""Integer vectors and half-open boxes in voxels; used by every room above.

The text of a box, `0-64_0-64_0-64`, is the name of its chunk file in the Precomputed format
(https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md).
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from igneous_airflow.errors import InvalidParameter

# one spelling for each number, so that two names are never the same box
_NUMBER = "(0|-?[1-9][0-9]{0,18})"
_BOX = re.compile("_".join([f"{_NUMBER}-{_NUMBER}"] * 3))


@dataclass(frozen=True, slots=True)
class Vec3:
    """Three integers in x, y, z order; arithmetic is element by element."""

    x: int
    y: int
    z: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Self:
        """Make a vector of exactly three integers; raises InvalidParameter otherwise."""
        numbers = tuple(values)
        with suppress(TypeError, ValueError, OverflowError):
            x, y, z = map(int, numbers)
            if (x, y, z) == numbers:
                return cls(x, y, z)
        raise InvalidParameter(f"expected three integers x,y,z, got {numbers}")

    @classmethod
    def full(cls, value: int) -> Self:
        """Make a vector with the same number on each axis."""
        return cls(value, value, value)

    def __iter__(self) -> Iterator[int]:
        yield self.x
        yield self.y
        yield self.z

    def __getitem__(self, axis: int) -> int:
        return (self.x, self.y, self.z)[axis]

    def __add__(self, other: "Vec3 | int") -> "Vec3":
        x, y, z = _three(other)
        return Vec3(self.x + x, self.y + y, self.z + z)

    def __sub__(self, other: "Vec3 | int") -> "Vec3":
        x, y, z = _three(other)
        return Vec3(self.x - x, self.y - y, self.z - z)

    def __mul__(self, other: "Vec3 | int") -> "Vec3":
        x, y, z = _three(other)
        return Vec3(self.x * x, self.y * y, self.z * z)

    def __floordiv__(self, other: "Vec3 | int") -> "Vec3":
        x, y, z = _three(other)
        return Vec3(self.x // x, self.y // y, self.z // z)

    def __mod__(self, other: "Vec3 | int") -> "Vec3":
        x, y, z = _three(other)
        return Vec3(self.x % x, self.y % y, self.z % z)

    def __pow__(self, exponent: int) -> "Vec3":
        return Vec3(*(int(value**exponent) for value in self))

    def ceil_div(self, other: "Vec3 | int") -> "Vec3":
        """Divide, rounding up."""
        x, y, z = _three(other)
        return Vec3(-(-self.x // x), -(-self.y // y), -(-self.z // z))

    def minimum(self, other: "Vec3 | int") -> "Vec3":
        """Take the smaller number on each axis."""
        x, y, z = _three(other)
        return Vec3(
            self.x if self.x < x else x, self.y if self.y < y else y, self.z if self.z < z else z
        )

    def maximum(self, other: "Vec3 | int") -> "Vec3":
        """Take the larger number on each axis."""
        x, y, z = _three(other)
        return Vec3(
            self.x if self.x > x else x, self.y if self.y > y else y, self.z if self.z > z else z
        )

    @property
    def product(self) -> int:
        """The product of the three numbers: the voxels of a box of this size."""
        return self.x * self.y * self.z

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.z}"


def _three(operand: Vec3 | int) -> tuple[int, int, int]:
    # written out, as the arithmetic below: a task does this a hundred thousand times
    if isinstance(operand, int):
        return operand, operand, operand
    return operand.x, operand.y, operand.z


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """A box of voxels from `min` up to, and not including, `max`."""

    min: Vec3
    max: Vec3

    @classmethod
    def at(cls, corner: Vec3, size: Vec3) -> Self:
        """Make a box from its lowest corner and its size."""
        return cls(corner, corner + size)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `x0-x1_y0-y1_z0-z1`; negative numbers are allowed; raises InvalidParameter."""
        match = _BOX.fullmatch(text)
        if match is None:
            raise InvalidParameter(
                f"{text!r:.200} is not a box: write x0-x1_y0-y1_z0-z1, for example 0-512_0-512_0-64"
            )
        x0, x1, y0, y1, z0, z1 = map(int, match.groups())
        return cls(Vec3(x0, y0, z0), Vec3(x1, y1, z1))

    def __str__(self) -> str:
        return "_".join(f"{low}-{high}" for low, high in zip(self.min, self.max, strict=True))

    @property
    def size(self) -> Vec3:
        """Voxels on each axis; never negative."""
        return (self.max - self.min).maximum(0)

    @property
    def voxels(self) -> int:
        """Number of voxels in the box."""
        x, y, z = _three(self.min)
        return max(self.max.x - x, 0) * max(self.max.y - y, 0) * max(self.max.z - z, 0)

    def __bool__(self) -> bool:
        """A box without voxels is false."""
        return self.voxels > 0

    def intersection(self, other: "BoundingBox") -> "BoundingBox":
        """The box that both have in common; it has no voxels where they do not meet."""
        return BoundingBox(self.min.maximum(other.min), self.max.minimum(other.max))

    def contains(self, other: "BoundingBox") -> bool:
        """Whether every voxel of the other box is inside this one."""
        low, high, inner_low, inner_high = self.min, self.max, other.min, other.max
        return (
            low.x <= inner_low.x
            and low.y <= inner_low.y
            and low.z <= inner_low.z
            and inner_high.x <= high.x
            and inner_high.y <= high.y
            and inner_high.z <= high.z
        )

    def slices_within(self, whole: "BoundingBox") -> tuple[slice, slice, slice]:
        """Where this box lies in an array that holds the voxels of another one."""
        x, y, z = _three(whole.min)
        return (
            slice(self.min.x - x, self.max.x - x),
            slice(self.min.y - y, self.max.y - y),
            slice(self.min.z - z, self.max.z - z),
        )

    def translated(self, by: Vec3) -> "BoundingBox":
        """Move the box."""
        return BoundingBox(self.min + by, self.max + by)

    def expanded_to_grid(self, cell: Vec3, origin: Vec3) -> "BoundingBox":
        """Grow outward to whole cells of a grid that starts at `origin`."""
        low = (self.min - origin) // cell * cell + origin
        high = (self.max - origin).ceil_div(cell) * cell + origin
        return BoundingBox(low, high)

    def downsampled(self, factor: Vec3) -> "BoundingBox":
        """The box of a coarser mip that covers this one: minimum floored, maximum raised."""
        return BoundingBox(self.min // factor, self.max.ceil_div(factor))
