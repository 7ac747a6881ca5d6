"""Quantizing, against exact arithmetic and the acceptance vectors of the formula."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.kernels.quantizing import quantize

DTYPES = ["float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_truncated_clipped_and_never_wrap(dtype):
    """Igneous wraps what lies outside: there 1.1 becomes 24 and -0.1 becomes 231."""
    values = np.array([0, 0.5, 0.999, 1, 1.1, -0.1, np.inf, -np.inf, 1e300, -0.0], np.float64)
    with np.errstate(over="ignore"):
        values = values.astype(dtype)
    grey, nans = quantize(values, 0, 1)
    assert grey.tolist() == [0, 127, 254, 255, 255, 0, 255, 0, 255, 0]
    assert grey.dtype == np.uint8
    assert nans == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_the_usual_range_it_is_the_product_with_255_bit_for_bit(dtype):
    values = np.random.default_rng(2).random(300_000).astype(dtype)
    grey, _ = quantize(values, 0, 1)
    np.testing.assert_array_equal(grey, (values * 255).astype(np.uint8))


@pytest.mark.parametrize("low", [0, -2])
def test_nan_become_0_and_are_counted(low):
    values = np.full((70, 40, 50, 1), 0.5, np.float32, order="F")
    values[::7] = np.nan
    grey, nans = quantize(values, low, 1)
    assert nans == 10 * 40 * 50
    assert (grey[::7] == 0).all()
    assert (grey[1] > 100).all()


@given(
    st.sampled_from(DTYPES),
    st.floats(-1e6, 1e6, width=32),
    st.floats(2**-10, 1e6, width=32),
    st.lists(st.floats(-2e6, 2e6, width=32), min_size=1),
)
@settings(deadline=None)
def test_any_range_becomes_all_greys(dtype, low, span, values):
    high = low + span
    low, high = (float(np.dtype(dtype).type(end)) for end in (low, high))
    if low >= high:
        return
    grey, _ = quantize(np.array([low, high, *values], dtype), low, high)
    assert grey[:2].tolist() == [0, 255]
    for value, result in zip(values, grey[2:].tolist(), strict=True):
        exact = (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low)) * 255
        exact = min(max(exact, Fraction(0)), Fraction(255))
        assert abs(result - math.floor(exact)) <= 1
        assert result <= math.ceil(exact)


def test_order_and_read_only_memory_do_not_matter():
    values = np.asfortranarray(np.random.default_rng(1).random((5, 4, 3, 1), np.float32))
    values.flags.writeable = False
    grey, _ = quantize(values, 0, 1)
    assert grey.flags.f_contiguous
    np.testing.assert_array_equal(grey, (values * 255).astype(np.uint8))
