"""What the formats have in common: an array that is read in parts; used by every source."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.storage.overlap import Overlap

Array = NDArray[Any]
Part = tuple[slice, ...]
Resolution = tuple[float, float, float]
ALWAYS_BEARABLE = 1 << 26  # bytes of a block, however small the array is that it is a part of
_NAMED_AT_MOST = 10
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Findings:
    """What a look into every file has found: reasons to refuse, and what is worth knowing."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArrayFacts:
    """What an array is, before any voxel of it is read.

    `dtype` is that of the parts as they are read. `block` is what is best read as a whole, or, when
    the array `is_encoded`, must be decoded so; decoded, one has `whole_bytes` where these are more
    than what of the array it holds. `axes` names each axis by a letter of tczyx, None
    where the file does not. `resolution` is in nm, x,y,z. With a `scaling` (a, b), the voxels are
    a * stored + b.
    Parts are read in C order, with `first_fastest` in Fortran order. When it `reads_ahead`, their
    encoded bytes are held besides.
    """

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    block: tuple[int, ...]
    axes: str | None = None
    resolution: Resolution | None = None
    scaling: tuple[float, float] | None = None
    is_encoded: bool = True
    first_fastest: bool = False
    reads_ahead: bool = False
    whole_bytes: int = 0
    overlap_width: int = 1
    notes: tuple[str, ...] = ()


class VoxelArray(Protocol):
    """An array in a file or in several; parts of it may be read by many threads at once."""

    @property
    def facts(self) -> ArrayFacts:
        """What is known of it."""

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part, one slice for each axis, all inside of the array.

        Raises SourceNotFound, UnreadableSource and the storage's errors.
        """

    def look(self) -> Findings:
        """What only a look into every file can tell; may take its time."""


def copy_voxels(out: Array, voxels: Array) -> None:
    """Copy (x, y, z, channel) voxels into an array of their shape, in which x is the fastest.

    Where another axis of space is in theirs, it goes by blocks that stay in the cache, which is
    several times faster than all at once.
    """
    space = list(zip(voxels.strides, voxels.shape, strict=True))[:3]
    strides = [stride if length > 1 else inf for stride, length in space]
    fastest = strides.index(min(strides))
    if fastest == 0:
        out[...] = voxels
        return
    for i in range(0, voxels.shape[0], _BLOCK):
        for j in range(0, voxels.shape[fastest], _BLOCK):
            part = [slice(None)] * voxels.ndim
            part[0], part[fastest] = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
            out[tuple(part)] = voxels[tuple(part)]


def require_bearable(name: str, whole: int, all_of_it: int, most: int) -> None:
    """Raise UnreadableSource when what must be decoded as a whole is too large; reads nothing.

    All in bytes: of a block as it is decoded, of all the voxels there are, and that a task may use.
    """
    if whole > most:
        raise UnreadableSource(
            f"memory_target: {name} is stored in blocks of {whole:,} bytes, which are decoded as a "
            f"whole, and a task may use {most:,}: raise memory_target, or store it in smaller ones"
        )
    if whole > max(all_of_it, ALWAYS_BEARABLE):
        raise UnreadableSource(
            f"source: {name} is stored in blocks of {whole:,} bytes, though all of its voxels have "
            f"{all_of_it:,}: store it in smaller ones"
        )


def checked_shape(shape: Sequence[Any], name: str) -> tuple[int, ...]:
    """A shape that a file tells; raises UnreadableSource for what no array can have."""
    if any(type(length) is not int or length < 0 for length in shape):
        raise UnreadableSource(
            f"{name} says that its shape is {'x'.join(map(str, shape))}, which no array has: its "
            "header is damaged"
        )
    return tuple(shape)


def require(library: str, format_name: str) -> None:
    """Raise UnreadableSource when a library of the extra `ingest` is not installed."""
    if find_spec(library) is None:
        raise UnreadableSource(
            f"source: {format_name} is read by {library}, which is not installed: "
            "pip install 'igneous-airflow[ingest]'"
        )


def named(items: Sequence[str], separator: str = ", ") -> str:
    """List the first few of many, and say how many more there are."""
    more = len(items) - _NAMED_AT_MOST
    return separator.join(items[:_NAMED_AT_MOST]) + (f" and {more:,} more" if more > 0 else "")


def worthwhile_block(shape: Sequence[int], itemsize: int, worthwhile: int) -> tuple[int, ...]:
    """What to read at once of an array that lies as it is in a file, fastest axis last.

    It is contiguous and holds about as many bytes as are worth a read. Where it does not span an
    axis its edge is a power of two, to go well with chunks.
    """
    block = [1] * len(shape)
    held = itemsize
    for axis in reversed(range(len(shape))):
        wanted = -(-worthwhile // max(held, 1))  # of an array without voxels nothing is held
        block[axis] = min(1 << (wanted - 1).bit_length(), shape[axis])
        held *= block[axis]
        if block[axis] < shape[axis]:
            break
    return tuple(block)
