"""A tile's voxels put together from the parts that are read, and given out in blocks.

To cut a chunk out of a tile that is larger than the processor's caches takes several times as long
as to put the voxels where they belong at once. So memory is laid out block by block.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid

Array = NDArray[Any]
Part = tuple[BoundingBox, Array]


def in_blocks(
    box: BoundingBox, block: Vec3, parts: Iterator[Part], *, apart: bool = False
) -> Iterator[Part]:
    """Give a box out in blocks of `block` voxels, x fastest, or whole where that costs nothing.

    The parts cover the box; their voxels are (x, y, z, channel). The blocks' are in Fortran order.
    They are views of one array, or, `apart`, can be kept one by one without keeping all of it. A
    box that is not made of whole blocks comes as a whole.
    """
    first, voxels = next(parts)
    if first == box:
        yield box, voxels
        return
    shape = block if box.size % block == Vec3.full(0) else box.size
    counts = box.size // shape
    memory = np.empty((*shape, voxels.shape[3], *counts), voxels.dtype, order="F")
    _put(memory, first.translated(box.min * -1), voxels)
    for part, voxels in parts:
        _put(memory, part.translated(box.min * -1), voxels)
    del voxels
    for cell in Grid(box, shape):
        voxels = memory[(..., *((cell.min - box.min) // shape))]
        yield cell, voxels.copy("F") if apart and cell != box else voxels


def _put(memory: Array, part: BoundingBox, voxels: Array) -> None:
    """Put a part, in voxels from the first one of all blocks, to its place in each of them.

    memory: (x, y, z, channel) within a block, then the block's place (x, y, z).
    """
    spans = (
        list(_spans(low, high, block))
        for low, high, block in zip(part.min, part.max, memory.shape, strict=False)
    )
    for x, y, z in product(*spans):
        inside, places = zip(*(span[1:] for span in (x, y, z)), strict=True)
        there = memory[(*inside, slice(None), *places)].transpose(0, 4, 1, 5, 2, 6, 3)
        here = voxels[x[0], y[0], z[0]]
        there[...] = here.reshape(there.shape, order="F")


def _spans(low: int, high: int, block: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut an edge of a part into what lies in one block and what fills whole ones.

    Each comes as where it is in the part, where in its blocks, and in which blocks.
    """
    start = low
    while start < high:
        place, offset = divmod(start, block)
        whole = (high - start) // block if offset == 0 else 0
        stop = start + whole * block if whole else min(start - offset + block, high)
        yield (
            slice(start - low, stop - low),
            slice(offset, block if whole else offset + stop - start),
            slice(place, place + max(whole, 1)),
        )
        start = stop
