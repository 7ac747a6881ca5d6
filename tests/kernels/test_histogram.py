"""Histograms are numpy's, clip values and stretches those of the specification."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels import histogram
from igneous_airflow.kernels.histogram import clip_values, count_sections, stretch_table
from igneous_airflow.testing.layers import random_voxels

BYTE, SHORT = np.dtype(np.uint8), np.dtype(np.uint16)


def whole_histogram(voxels, bins):
    return np.array([np.bincount(s.ravel(), minlength=bins) for s in np.moveaxis(voxels, 2, 0)])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "bins"), [("uint8", 256), ("uint16", 65536)])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (64, 64, 3), (600, 500, 2)], ids=str)
def test_every_voxel_is_counted_in_its_section(size, dtype, bins, order):
    voxels = random_voxels(Vec3(*size), dtype)
    counts = np.ones((size[2], bins), np.int64)
    count_sections(np.array(voxels, order=order), counts)
    np.testing.assert_array_equal(counts - 1, whole_histogram(voxels, bins))


def test_parts_of_a_chunk_can_be_counted():
    voxels = random_voxels(Vec3(40, 30, 8))
    voxels.flags.writeable = False
    counts = np.zeros((3, 256), np.int64)
    count_sections(voxels[3:17, 5:, 2:5], counts)
    np.testing.assert_array_equal(counts, whole_histogram(voxels[3:17, 5:, 2:5], 256))


def test_large_sections_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(histogram, "PIECE", 300)
    voxels = random_voxels(Vec3(40, 40, 2))
    counts = np.zeros((2, 256), np.int64)
    count_sections(voxels, counts)
    np.testing.assert_array_equal(counts, whole_histogram(voxels, 256))


def clip_by_the_book(counts, low, high):
    """The rule as the specification words it, value by value."""
    counts = [0, *counts[1:]]
    total = sum(counts)
    found = [0, 0]
    for number, share in enumerate((low, 1 - high)):
        below = 0
        for value, count in enumerate(counts):
            below += count
            if total == 0 or below / total > share:
                break
            found[number] = value
    return found[0], max(found)


def spread(**counts):
    levels = np.zeros(256, np.int64)
    for value, count in counts.items():
        levels[int(value.removeprefix("v"))] = count
    return levels


@pytest.mark.parametrize(
    ("levels", "fractions", "expected"),
    [
        (np.r_[0, np.ones(255, np.int64)], (0.01, 0.01), (2, 252)),
        (np.r_[10**9, np.ones(255, np.int64)], (0.01, 0.01), (2, 252)),  # black is padding
        (spread(v50=9, v90=9), (0, 0), (49, 255)),  # the first value that occurs, less one
        (spread(v77=1000), (0.01, 0.01), (76, 76)),  # a single grey value: unchanged
        (spread(v0=1000), (0.01, 0.01), (0, 0)),
        (spread(), (0.01, 0.01), (0, 0)),
        (np.r_[0, np.ones(255, np.int64)], (0.1, 0.02), (25, 249)),
        (np.r_[0, np.ones(255, np.int64)], (1, 0), (255, 255)),
        (np.r_[0, np.ones(255, np.int64)], (0.5, 0.5), (127, 127)),
    ],
)
def test_clip_values_of_known_levels(levels, fractions, expected):
    before = levels.copy()
    assert clip_values(levels, *fractions) == expected
    np.testing.assert_array_equal(levels, before)


@given(arrays(np.int64, 256, elements=st.integers(0, 50)), st.floats(0, 0.5), st.floats(0, 0.5))
def test_clip_values_are_those_of_the_specification(levels, low, high):
    lower, upper = clip_values(levels, low, high)
    if levels[1:].any():
        assert (lower, upper) == clip_by_the_book(levels.tolist(), low, high)
    else:
        assert (lower, upper) == (0, 0)


@pytest.mark.parametrize("dtype", [BYTE, SHORT])
@given(st.data())
@settings(max_examples=60)
def test_a_stretch_is_the_formula_in_float32_rounded_half_to_even(dtype, data):
    white = np.iinfo(dtype).max
    lower = data.draw(st.integers(0, white - 1))
    upper = data.draw(st.integers(lower + 1, white))
    table = stretch_table(dtype, (lower, upper), (0, white))
    values = np.arange(white + 1)
    exact = np.clip((values - lower) * white / (upper - lower), 0, white)
    assert table.dtype == dtype
    assert np.abs(table - exact).max() < 0.51
    single = (values.astype("f4") - np.float32(lower)) * np.float32(white / (upper - lower))
    np.testing.assert_array_equal(table, np.clip(np.round(single), 0, white))
    assert table[lower] == 0
    assert table[upper] == white


def test_halves_are_rounded_to_the_even_neighbour():
    table = stretch_table(BYTE, (0, 170), (0, 255))
    assert [table[v] for v in (1, 3, 5, 7)] == [2, 4, 8, 10]  # of 1.5, 4.5, 7.5, 10.5


def test_the_limits_clip_and_do_not_rescale():
    free, held = (stretch_table(BYTE, (20, 220), limits) for limits in ((0, 255), (10, 200)))
    np.testing.assert_array_equal(held, np.clip(free, 10, 200))
    assert held[0] == 10  # background included


def test_nothing_to_stretch_leaves_values_as_they_are():
    np.testing.assert_array_equal(stretch_table(BYTE, (76, 76), (0, 255)), np.arange(256))
    clipped = stretch_table(BYTE, (76, 76), (5, 250))
    np.testing.assert_array_equal(clipped, np.arange(256).clip(5, 250))
