"""Pooling against tinybrain on the whole volume, numpy, and Python's own integers."""

from itertools import product

import numpy as np
import pytest
import tinybrain
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import factors, sizes

PLANE, CUBE = Vec3(2, 2, 1), Vec3(2, 2, 2)
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES = [*INTEGERS, "float32", "float64"]
AVERAGED_BY_TINYBRAIN = [
    (dtype, factor)
    for dtype in ("uint8", "int8", "uint16", "int16")
    for factor in (PLANE, CUBE)
    if (dtype, factor) != ("int16", CUBE)  # which tinybrain takes for uint16
]
METHODS = ["average", "mode", "min", "max", "striding"]
LARGEST = 2**64 - 1


def windows(block, factor):
    """Yield the place and the voxels of each window of one level, clipped at the edges."""
    coarse = Vec3(*block.shape[:3]).ceil_div(factor)
    for place in np.ndindex(*coarse):
        corner = Vec3(*place) * factor
        x, y, z = (slice(a, a + f) for a, f in zip(corner, factor, strict=True))
        yield place, block[x, y, z]


def padded(block, factor):
    """Repeat the last voxels so that all windows of one level are whole."""
    pads = [(0, -n % f) for n, f in zip(block.shape[:3], factor, strict=True)]
    return np.pad(block, [*pads, (0, 0)], mode="edge")


@pytest.mark.parametrize(("dtype", "factor"), AVERAGED_BY_TINYBRAIN)
def test_averages_are_tinybrains_bit_for_bit(dtype, factor):
    block = random_voxels(Vec3(96, 64, 64), dtype)
    expected = tinybrain.downsample_with_averaging(block, factor=tuple(factor), num_mips=5)
    for ours, theirs in zip(pool(block, factor, 5, "average"), expected, strict=True):
        assert ours.dtype == block.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("factor", [PLANE, CUBE], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_of_floats_are_tinybrains_but_for_the_last_bits(dtype, factor):
    """Those of tinybrain depend on where in the block a voxel lies."""
    block = random_voxels(Vec3(96, 64, 64), dtype)
    expected = tinybrain.downsample_with_averaging(block, factor=tuple(factor), num_mips=4)
    for ours, theirs in zip(pool(block, factor, 4, "average"), expected, strict=True):
        assert ours.dtype == block.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("factor", [PLANE, CUBE], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_modes_are_tinybrains_bit_for_bit(dtype, factor):
    block = random_voxels(Vec3(96, 64, 64), dtype)
    expected = tinybrain.downsample_segmentation(block, factor=tuple(factor), num_mips=5)
    for ours, theirs in zip(pool(block, factor, 5, "mode"), expected, strict=True):
        assert ours.dtype == block.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_sparse_modes_are_tinybrains_for_labels_it_can_hold():
    block = random_voxels(Vec3(64, 64, 8), "uint32").astype(np.uint64)
    expected = tinybrain.downsample_segmentation(block, factor=(2, 2, 1), num_mips=3, sparse=True)
    for ours, theirs in zip(pool(block, PLANE, 3, "mode", sparse=True), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
@pytest.mark.parametrize(
    ("corners", "plain", "sparse"),
    [
        ((5, 6, 7, 8), 8, 8),
        ((7, 7, 8, 8), 7, 7),
        ((7, 8, 8, 7), 8, 8),
        ((7, 8, 7, 8), 7, 7),
        ((1, 2, 3, 3), 3, 3),
        ((0, 0, 0, 7), 0, 7),
        ((0, 0, 7, 8), 0, 8),
        ((7, 0, 0, 0), 0, 7),
        ((0, 7, 0, 0), 0, 7),
        ((0, 0, 7, 0), 0, 7),
        ((0, 0, 0, 0), 0, 0),
        ((255, 255, 0, 0), 255, 255),
    ],
)
def test_the_corner_vectors_of_countless(corners, plain, sparse, dtype):
    a, b, c, d = corners
    block = np.zeros((2, 2, 1, 1), dtype)
    block[0, 0], block[0, 1], block[1, 0], block[1, 1] = a, b, c, d
    assert pool(block, PLANE, 1, "mode")[0].item() == plain
    assert pool(block, PLANE, 1, "mode", sparse=True)[0].item() == sparse


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("factor", [PLANE, CUBE, Vec3(2, 1, 1), Vec3(4, 2, 1)], ids=str)
@pytest.mark.parametrize("labels", [(LARGEST, LARGEST - 1, 0), (2**53, 2**53 + 1, 0)], ids=str)
def test_labels_above_2_53_are_never_mixed_up(labels, factor, sparse):
    """Every window holds one label three times in four or more, so that it must win."""
    random = np.random.default_rng(1)
    coarse = np.array(labels, np.uint64)[random.integers(0, 3, (6, 5, 4, 1))]
    fine = coarse.repeat(factor.x, 0).repeat(factor.y, 1).repeat(factor.z, 2)
    np.testing.assert_array_equal(pool(fine, factor, 1, "mode", sparse=sparse)[0], coarse)
    if factor.product == 4 and factor == PLANE:
        noisy = fine.copy()
        noisy[::2, ::2] = random.integers(1, 99, noisy[::2, ::2].shape, dtype=np.uint64)
        kept = coarse != 0 if sparse else np.ones(coarse.shape, bool)
        pooled = pool(noisy, factor, 1, "mode", sparse=sparse)[0]
        np.testing.assert_array_equal(pooled[kept], coarse[kept])


@pytest.mark.parametrize("factor", [PLANE, CUBE, Vec3(1, 2, 2), Vec3(2, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_a_label_that_has_the_majority_of_a_window_wins(dtype, factor):
    block = random_voxels(Vec3(16, 16, 8), dtype)[..., :1]
    pooled = pool(block, factor, 1, "mode")[0]
    for place, window in windows(block, factor):
        labels, counts = np.unique(window, return_counts=True)
        if counts.max() * 2 > window.size:
            assert pooled[place].item() == labels[counts.argmax()]
        assert pooled[place].item() in labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_block_stays_constant_whatever_its_shape(dtype, method):
    limits = np.finfo(dtype) if dtype.startswith("f") else np.iinfo(dtype)
    for value, sparse in product((limits.max, limits.min, 100), (False, True)):
        for shape in [(5, 5, 1), (1, 1, 7), (33, 2, 3), (1, 9, 1), (8, 8, 8)]:
            for factor in [PLANE, CUBE, Vec3(4, 4, 1), Vec3(4, 2, 1), Vec3(1, 2, 2)]:
                block = np.full((*shape, 1), value, dtype, order="F")
                with np.errstate(over="ignore"):  # sums of the largest floats are infinite
                    pooled = pool(block, factor, 2, method, sparse=sparse)
                if np.isfinite(pooled[-1]).all() or value == 100:
                    for array in pooled:
                        assert (array == block.flat[0]).all(), (shape, factor, value, sparse)


@given(sizes(20), factors(), st.sampled_from(METHODS), st.sampled_from(DTYPES), st.booleans())
@settings(deadline=None, max_examples=150)
def test_shape_dtype_and_input_are_kept(size, factor, method, dtype, sparse):
    block = random_voxels(size, dtype)
    if dtype.startswith("f"):
        block /= 1000
    before = block.copy()
    block.flags.writeable = False
    for array in pool(block, factor, 2, method, sparse=sparse):
        size = size.ceil_div(factor)
        assert array.shape == (*size, 1)
        assert array.dtype == block.dtype
    np.testing.assert_array_equal(block, before)


@given(sizes(9), factors(), st.sampled_from(INTEGERS), st.booleans())
@settings(deadline=None, max_examples=150)
def test_integer_averages_are_exact_and_truncated_toward_zero(size, factor, dtype, sparse):
    if max(factor) > 2:
        factor = factor.minimum(2)
    block = random_voxels(size, dtype)
    pooled = pool(block, factor, 1, "average", sparse=sparse)[0]
    for place, window in windows(padded(block, factor), factor):
        values = [int(value) for value in window.flat if value or not sparse]
        total, count = sum(values), max(len(values), 1)
        exact = total // count if total >= 0 else -(-total // count)
        assert int(pooled[place].item()) == exact


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_averages_of_four_levels_are_those_of_the_whole_window(dtype):
    block = random_voxels(Vec3(64, 64, 2), dtype)
    level = pool(block, PLANE, 4, "average")[3]
    whole = block.reshape(4, 16, 4, 16, 2, 1).astype(np.int64).sum(axis=(1, 3)) // 256
    np.testing.assert_array_equal(level, whole)


@given(sizes(12), factors(), st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=100)
def test_min_max_and_striding_are_numpys(size, factor, dtype):
    block = random_voxels(size, dtype)
    small, large, first = (pool(block, factor, 1, m)[0] for m in ("min", "max", "striding"))
    for place, window in windows(block, factor):
        assert small[place].item() == window.min()
        assert large[place].item() == window.max()
        assert first[place].item() == window.flat[0]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("factor", [PLANE, CUBE, Vec3(2, 1, 2), Vec3(4, 2, 1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32"])
def test_channels_are_pooled_each_by_itself(dtype, method, factor, sparse):
    block = random_voxels(Vec3(21, 16, 5), dtype, channels=3)
    together = pool(block, factor, 2, method, sparse=sparse)
    for channel in range(3):
        alone = pool(block[..., channel : channel + 1], factor, 2, method, sparse=sparse)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one[..., channel : channel + 1], other)


@given(
    sizes(30),
    factors(),
    st.integers(1, 3),
    st.tuples(st.sampled_from(METHODS), st.booleans()),
    st.sampled_from(["uint8", "uint16", "int32", "uint64", "float32", "float64"]),
    sizes(3),
)
@settings(deadline=None, max_examples=150)
def test_block_by_block_gives_what_the_whole_gives(
    size, factor, levels, how, dtype, windows_in_block
):
    volume = random_voxels(size, dtype)
    method, sparse = how
    whole = pool(volume, factor, levels, method, sparse=sparse)
    edge = factor**levels * windows_in_block
    for place in np.ndindex(*size.ceil_div(edge)):
        corner = Vec3(*place) * edge
        cut = tuple(slice(a, a + e) for a, e in zip(corner, edge, strict=True))
        pooled = pool(np.asfortranarray(volume[cut]), factor, levels, method, sparse=sparse)
        for level, part in enumerate(pooled, start=1):
            low = corner // factor**level
            there = tuple(slice(a, a + n) for a, n in zip(low, part.shape, strict=False))
            np.testing.assert_array_equal(part, whole[level - 1][there])


def test_sparse_averages_leave_zeros_out():
    block = np.array([[0, 8], [0, 0]], np.uint8).reshape(2, 2, 1, 1)
    assert pool(block, PLANE, 1, "average")[0].item() == 2
    assert pool(block, PLANE, 1, "average", sparse=True)[0].item() == 8
    assert pool(block * 0, PLANE, 1, "average", sparse=True)[0].item() == 0


def test_averages_of_very_large_integers_do_not_overflow():
    block = np.full((2, 2, 2, 1), LARGEST, np.uint64)
    block[0, 0, 0] = LARGEST - 8
    assert pool(block, CUBE, 1, "average")[0].item() == LARGEST - 1
    low = np.full((2, 2, 2, 1), -(2**63), np.int64)
    assert pool(low, CUBE, 1, "average")[0].item() == -(2**63)
