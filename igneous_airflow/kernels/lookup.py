"""Voxels replaced by what a table says of them; called by stages that change values one by one."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_PIECE = 1 << 16  # voxels at once: numpy makes 8-byte indices of them, which should stay in cache


def look_up_sections(voxels: Array, tables: Iterable[Array]) -> Array:
    """Replace each voxel by the entry of its section's table at its value.

    voxels: (x, y, z, channel), unsigned integers. tables: one for each z, of the same dtype, with
    an entry for every value that occurs. The result is in Fortran order.
    """
    result = np.empty(voxels.shape, voxels.dtype, "F")
    for section, table in zip(range(voxels.shape[2]), tables, strict=True):
        values = voxels[:, :, section].reshape(-1, order="F")
        into = result[:, :, section].reshape(-1, order="F")  # a view, as are its slices
        for start in range(0, len(values), _PIECE):
            stop = start + _PIECE
            # clipping changes nothing, but spares a copy of the result
            np.take(table, values[start:stop], out=into[start:stop], mode="clip")
    return result
