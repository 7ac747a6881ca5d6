"""Prefixes: every number has exactly one, and every group has some."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.geometry.prefixes import Prefixes


def starts_of(prefixes):
    return [start for group in prefixes for start in group.starts]


@pytest.mark.parametrize(("digits", "count"), [(1, 9), (2, 99), (3, 999), (4, 9999)])
def test_there_are_ten_to_the_digits_minus_one(digits, count):
    starts = starts_of(Prefixes(digits, 16))
    assert len(starts) == len(set(starts)) == count


def test_two_digits_are_the_known_ones():
    expected = [f"{n}:" for n in range(1, 10)] + [str(n) for n in range(10, 100)]
    assert sorted(starts_of(Prefixes(2, 7))) == sorted(expected)
    assert starts_of(Prefixes(2, 1000)) == expected


@given(st.integers(1, 2**64 - 1) | st.integers(1, 2000), st.integers(1, 4), st.integers(1, 20_000))
def test_every_label_begins_in_exactly_one_way(label, digits, groups):
    prefixes = Prefixes(digits, groups)
    assert len(prefixes) == min(groups, 10**digits - 1)
    starts = starts_of(prefixes) if digits < 4 else starts_of(Prefixes(digits, 16))
    assert sum(f"{label}:0:0-64_0-64_0-64".startswith(start) for start in starts) == 1


@given(st.integers(1, 3), st.integers(1, 1200))
def test_groups_are_alike_and_have_names_of_their_own(digits, groups):
    prefixes = Prefixes(digits, groups)
    sizes = [len(group.starts) for group in prefixes]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len({str(group) for group in prefixes}) == len(prefixes)
    assert prefixes[1:3] == list(prefixes)[1:3]
    assert prefixes[-1] == list(prefixes)[-1]


def test_labels_of_similar_beginnings_are_shared_out():
    """All labels of a volume are often of one magnitude, as 10,000 to 19,999."""
    groups = Prefixes(3, 16)
    work = [sum(start.startswith("1") for start in group.starts) for group in groups]
    assert max(work) - min(work) <= 2
