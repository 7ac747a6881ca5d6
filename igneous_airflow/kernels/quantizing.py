"""Floating point numbers made grey values; called by stages that turn predictions into images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 16  # voxels at once, so that what numpy makes on the way stays in cache
_WHITE = 255


def quantize(values: NDArray[Any], low: float, high: float) -> tuple[NDArray[np.uint8], int]:
    """Make 0 of `low`, 255 of `high`, and truncate what lies between; count the NaN.

    values: floating point, any shape, in Fortran order; the arithmetic is that of its dtype, for
    float16 that of float32. What lies outside is clipped, NaN becomes 0. Returns an array of the
    same shape, and how many NaN.
    """
    flat = values.reshape(-1, order="F")
    result = np.empty(flat.shape, np.uint8)
    precision = np.result_type(flat.dtype, np.float32)
    start_value, end_value = precision.type(low), precision.type(high)
    span = end_value - start_value
    nans = 0
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(precision, copy=False)
        grey = np.clip(piece, start_value, end_value)
        if np.isnan(grey.min()):
            is_nan = np.isnan(grey)
            nans += int(np.count_nonzero(is_nan))
            grey[is_nan] = start_value
        if start_value:
            grey -= start_value
        if span != 1:  # divided, since a product would miss 255 by a rounding error
            grey /= span
        grey *= _WHITE
        result[start : start + _PIECE] = grey
    return result.reshape(values.shape, order="F"), nans
