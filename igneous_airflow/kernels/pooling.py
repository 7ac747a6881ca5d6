"""Pooling a block of voxels into several coarser mips; called by stages that make pyramids.

The compiled kernels are tinybrain's: averages that keep exact sums over four levels, and COUNTLESS
modes (the most frequent label of 2 x 2, found by comparisons alone). tinybrain 1.7 is wrong or
fails at odd and narrow edges, and writes out of bounds for cubes of several channels: so blocks are
padded to whole windows first and cropped after, and cubes are pooled channel by channel.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import tinybrain
from numpy.typing import NDArray

from igneous_airflow.geometry.bbox import Vec3

Array = NDArray[Any]
Method = Literal["average", "mode", "min", "max", "striding"]
# not floats: the last bit of tinybrain's averages differs with the place of a voxel in the block
_TINYBRAIN_AVERAGES = frozenset(map(np.dtype, [np.uint8, np.int8, np.uint16, np.int16]))
_TINYBRAIN_SPARSE = frozenset(map(np.dtype, [np.uint8, np.uint16]))
_SPARSE_LEVELS = 4
_PLANE, _CUBE = Vec3(2, 2, 1), Vec3(2, 2, 2)


def pool(
    block: Array, factor: Vec3, levels: int, method: Method, *, sparse: bool = False
) -> list[Array]:
    """Pool a block into `levels` coarser arrays, each `factor` times smaller than the one before.

    block: (x, y, z, channel), any dtype of the format. factor: powers of two per axis.
    Where a window sticks out of the block, the last voxels of its level are repeated, so that a
    constant block stays constant. Sizes are rounded up. Averages are truncated toward zero.
    `sparse` keeps zeros out of averages and out of modes.
    """
    steps = _steps(factor)
    padded = _pad(block, factor, levels)
    pooled = _pool_whole(padded, steps, levels, method, sparse)
    if padded is block:
        return pooled
    size = Vec3(*block.shape[:3])
    for level, array in enumerate(pooled):
        size = size.ceil_div(factor)
        pooled[level] = array[: size.x, : size.y, : size.z]
    return pooled


def _steps(factor: Vec3) -> list[Vec3]:
    """Split a factor into steps that halve each axis at most once: 4,2,1 is 2,2,1 then 2,1,1."""
    steps = []
    while max(factor) > 1:
        step = factor.minimum(2)
        steps.append(step)
        factor = factor // step
    return steps


def _pad(block: Array, factor: Vec3, levels: int) -> Array:
    """Repeat the last voxels of each level until every axis has whole windows at all levels.

    Repeating the last 2^k voxels of the block repeats the last voxel of level k.
    """
    for axis in range(3):
        window = factor[axis] ** levels
        if block.shape[axis] % window == 0:
            continue
        places = list(range(block.shape[axis]))
        span = 1
        while span < window:
            if len(places) // span % 2:
                places += places[-span:]
            span *= 2
        block = np.take(block, places, axis=axis)
    return block


def _pool_whole(
    block: Array, steps: list[Vec3], levels: int, method: Method, sparse: bool
) -> list[Array]:
    """Pool a block that has whole windows at every level."""
    if method == "average" and _is_exact_in_tinybrain(block.dtype, steps, sparse):
        return _tinybrain_averages(block, steps, levels, sparse)
    one_step: dict[Method, Callable[[Array, Vec3], Array]] = {
        "average": partial(_average, sparse=sparse),
        "mode": partial(_mode, sparse=sparse),
        "min": partial(_reduce, combine=np.minimum),
        "max": partial(_reduce, combine=np.maximum),
        "striding": lambda array, step: array[:: step.x, :: step.y, :: step.z],
    }
    pooled = []
    for _ in range(levels):
        for step in steps:
            block = one_step[method](block, step)
        pooled.append(block)
    return pooled


def _is_exact_in_tinybrain(dtype: "np.dtype[Any]", steps: list[Vec3], sparse: bool) -> bool:
    """Whether tinybrain averages such voxels exactly: short types, one kind of step."""
    exact = _TINYBRAIN_SPARSE if sparse else _TINYBRAIN_AVERAGES
    if steps[0] == _CUBE and dtype == np.int16:  # tinybrain takes it for uint16
        return False
    return dtype in exact and len(set(steps)) == 1 and steps[0].product >= 4


def _tinybrain_averages(block: Array, steps: list[Vec3], levels: int, sparse: bool) -> list[Array]:
    """Average many levels in one call, which keeps exact sums from level to level."""
    wanted = levels * len(steps)
    # tinybrain truncates its sums every four levels, but forgets to when it is sparse
    at_once = _SPARSE_LEVELS if sparse else wanted
    averages: list[Array] = []
    while len(averages) < wanted:
        average = partial(
            tinybrain.downsample_with_averaging,
            factor=tuple(_CUBE if steps[0] == _CUBE else _PLANE),
            num_mips=min(at_once, wanted - len(averages)),
            sparse=sparse,
        )
        averages += _call_tinybrain(average, averages[-1] if averages else block, steps[0])
    return averages[len(steps) - 1 :: len(steps)]


def _call_tinybrain(
    kernel: Callable[[Array], list[Array]], block: Array, step: Vec3
) -> list[Array]:
    """Call a kernel that pools x and y, or all axes, for whatever plane a step pools."""
    if step == _CUBE:
        channels = [kernel(_writable(block[..., c])) for c in range(block.shape[3])]
        return [np.stack(level, axis=3) for level in zip(*channels, strict=True)]
    preserved = list(step).index(1)
    return [
        np.swapaxes(level, preserved, 2)
        for level in kernel(_writable(np.swapaxes(block, preserved, 2)))
    ]


def _writable(array: Array) -> Array:
    """A Fortran-ordered array that Cython takes: it refuses read-only memory, even to read."""
    return np.require(array, requirements=["F", "W"])


def _corners(block: Array, step: Vec3) -> list[Array]:
    """The voxels of each window as strided views; the last pooled axis runs fastest."""
    return [block[x :: step.x, y :: step.y, z :: step.z] for x, y, z in np.ndindex(*step)]


def _reduce(block: Array, step: Vec3, combine: np.ufunc) -> Array:
    first, *others = _corners(block, step)
    result = np.array(first, order="F")
    for other in others:
        combine(result, other, out=result)
    return result


def _average(block: Array, step: Vec3, sparse: bool) -> Array:
    """Average windows exactly, truncating integers toward zero as tinybrain does."""
    corners = _corners(block, step)
    exact = _wide_enough(block.dtype)
    count: Array = np.array(len(corners), dtype=exact)
    if sparse:
        count = np.maximum(_sum((corner != 0 for corner in corners), exact), count.dtype.type(1))
    if exact.kind == "f":
        return np.asfortranarray(_sum(corners, exact) / count, dtype=block.dtype)
    # quotients and remainders apart: the sum of 64-bit integers does not fit 64 bits
    rest = _sum((corner.astype(exact) % count for corner in corners), exact)
    mean = _sum((corner.astype(exact) // count for corner in corners), exact) + rest // count
    toward_zero = (mean < 0) & (rest % count > 0)
    return np.asfortranarray(mean + toward_zero.astype(exact), dtype=block.dtype)


def _wide_enough(dtype: "np.dtype[Any]") -> "np.dtype[Any]":
    """The dtype to average in; small, since a task's memory is planned."""
    if dtype.kind == "f":
        return np.dtype(np.float64)
    return dtype if dtype.itemsize == 8 else np.dtype(np.int32 if dtype.itemsize < 4 else np.int64)


def _sum(arrays: Iterable[Array], dtype: "np.dtype[Any]") -> Array:
    remaining = iter(arrays)
    total = np.array(next(remaining), dtype=dtype, order="F")
    for array in remaining:
        np.add(total, array, out=total, casting="unsafe")
    return total


def _mode(block: Array, step: Vec3, sparse: bool) -> Array:
    """Take the most frequent label of each window by the rules of COUNTLESS."""
    if step.product == 2:  # of two labels none is more frequent
        first, second = _corners(block, step)
        return np.where(first == 0, second, first) if sparse else first
    if step.product == 4 and sparse:
        return _stippled(*_corners(block, step))
    kernel = partial(
        tinybrain.downsample_segmentation,
        factor=tuple(_CUBE if step == _CUBE else _PLANE),
        sparse=sparse,
    )
    return _call_tinybrain(kernel, block, step)[0]


def _stippled(a: Array, b: Array, c: Array, d: Array) -> Array:
    """COUNTLESS of four labels where zero never wins; tinybrain's fails at the largest label."""
    result = np.where(d != 0, d, np.where(a != 0, a, np.where(b != 0, b, c)))
    result = np.where((b == c) & (b != 0), b, result)
    return np.where(((a == b) | (a == c)) & (a != 0), a, result)
