"""Histograms of grey values: counted, and made into stretches of contrast; called by stages.

Counts are int64 arrays with an entry for each grey value: 256 for uint8, 65536 for uint16.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Counts = NDArray[np.int64]
PIECE = 1 << 18  # voxels counted at once: numpy makes a count's bytes of each
COUNT_BYTES = 8


def count_sections(voxels: Array, counts: Counts) -> None:
    """Add the voxels of each section to its row of `counts`.

    voxels: (x, y, z, 1), uint8 or uint16. counts: (z, grey value).
    """
    values = voxels.reshape(-1, len(counts), order="F")  # a column for each section
    for section, row in enumerate(counts):
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE, section]
            if len(piece) < len(row):  # an array of all grey values would cost more than the voxels
                np.add.at(row, piece, 1)
            else:
                np.add(row, np.bincount(piece, minlength=len(row)), out=row)


def clip_values(counts: Counts, low: float, high: float) -> tuple[int, int]:
    """Find the grey values that become black and white.

    Up to `low` of the voxels are as dark as the first or darker, up to `high` of them brighter
    than the second. Voxels of value 0 count for nothing: they are padding. Both are equal where
    there is nothing to stretch.
    """
    counted = counts.copy()
    counted[0] = 0
    below = np.cumsum(counted)
    if below[-1] == 0:
        return 0, 0
    share = below / below[-1]
    lower, upper = (int(np.searchsorted(share, s, "right")) - 1 for s in (low, 1 - high))
    return lower, max(lower, upper)


def stretch_table(dtype: "np.dtype[Any]", clip: tuple[int, int], limits: tuple[int, int]) -> Array:
    """Tabulate the stretch that makes one grey value black and another white, for each grey value.

    In float32, rounded half to even, and clipped to `limits`. Where both values are equal, grey
    values stay as they are within the limits.
    """
    white = np.iinfo(dtype).max
    values = np.arange(white + 1, dtype=np.float32)
    lower, upper = clip
    if lower != upper:
        values = (values - np.float32(lower)) * np.float32(white / (upper - lower))
    return np.clip(np.round(values), *limits).astype(dtype)
