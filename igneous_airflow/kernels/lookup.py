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
    values = voxels.reshape(-1, len(tables), order="F")  # a column for each section
    if voxels.dtype == np.uint8:  # for bytes Python itself has this, at twice the speed of numpy
        columns = enumerate(tables)
        parts = [values[:, section].tobytes().translate(table.data) for section, table in columns]
        return np.frombuffer(bytearray().join(parts), np.uint8).reshape(voxels.shape, order="F")
    result = np.empty(values.shape, voxels.dtype, "F")
    for section, table in enumerate(tables):
        for start in range(0, len(values), _PIECE):
            piece = slice(start, start + _PIECE), section
            # clipping changes nothing, but spares a copy of the result
            np.take(table, values[piece], out=result[piece], mode="clip")
    return result.reshape(voxels.shape, order="F")
