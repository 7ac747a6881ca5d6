"""Voxels replaced by what a table says of them; called by stages that change values one by one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_PIECE = 1 << 16  # voxels at once: numpy makes 8-byte indices of them, which should stay in cache


def look_up_sections(voxels: Array, tables: Sequence[Array]) -> Array:
    """Replace each voxel by the entry of its section's table at its value.

    voxels: (x, y, z, 1), unsigned integers. tables: one for each z, of the voxels' dtype, with an
    entry for every value of it. The result is in Fortran order.
    """
    if voxels.dtype == np.uint8:  # for bytes Python itself has this, at twice the speed of numpy
        stored, length = voxels.reshape(-1, order="F").data, voxels.shape[0] * voxels.shape[1]
        sections = (stored[z * length : (z + 1) * length] for z in range(len(tables)))
        parts = [bytes(s).translate(table.data) for s, table in zip(sections, tables, strict=True)]
        return np.frombuffer(bytearray().join(parts), np.uint8).reshape(voxels.shape, order="F")
    values = voxels.reshape(-1, len(tables), order="F")  # a column for each section
    result = np.empty(values.shape, voxels.dtype, "F")
    for section, table in enumerate(tables):
        for start in range(0, len(values), _PIECE):
            piece = slice(start, start + _PIECE), section
            # clipping changes nothing, but spares a copy of the result
            np.take(table, values[piece], out=result[piece], mode="clip")
    return result.reshape(voxels.shape, order="F")


def look_up(labels: Array, table: Array) -> Array:
    """Replace each label by its entry in a table.

    labels: unsigned integers below the table's length, any shape, in Fortran order. table: one
    axis, any dtype; may be mapped into memory. The result has the shape of the labels and the
    table's dtype in native byte order.
    """
    flat = labels.reshape(-1, order="F")
    result = np.empty(flat.shape, table.dtype.newbyteorder("="))
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.intp)
        result[start : start + _PIECE] = table[piece]
    return result.reshape(labels.shape, order="F")


def first_beyond(labels: Array, length: int) -> tuple[int, ...] | None:
    """Where the first label is that a table of that length lacks; None when it has all of them."""
    if int(labels.max(initial=0)) < length:
        return None
    place = int(np.argmax(labels.reshape(-1, order="F") >= length))
    return tuple(int(i) for i in np.unravel_index(place, labels.shape, order="F"))
