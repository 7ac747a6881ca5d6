"""Ranges of bytes as RFC 9110 has them, section 14."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.viewer.ranges import ByteRange, wanted_range

SIZE = 100


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=99-99", (99, 100)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=0-99999999999999999999999999999", (0, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        ("Bytes=0-0", (0, 1)),
        ("bytes= 0-0 ", (0, 1)),
        ("bytes=000-0009", (0, 10)),
        ("bytes=100-", None),
        ("bytes=100-200", None),
        ("bytes=-0", None),
        ("bytes=99999999999999999999999999999-", None),
    ],
)
def test_a_range_is_what_it_says(header, part):
    wanted = wanted_range(header)
    assert wanted is not None
    assert wanted.within(SIZE) == part


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=9-3",
        "bytes=a-b",
        "bytes=0x0-9",
        "bytes=+1-9",
        "bytes=1_0-20",
        "bytes=\u0661-\u0669",
        "bytes=--9",
        "bytes=0-9,20-29",
        "bytes=0-9,",
        "lines=0-9",
        "0-9",
        "bytes 0-9/100",
        "bytes=0-9\nx",
    ],
)
def test_a_header_that_is_not_one_range_of_bytes_is_ignored(header):
    assert wanted_range(header) is None


@pytest.mark.parametrize("header", ["bytes=0-9", "bytes=0-", "bytes=-5", "bytes=-0"])
def test_an_empty_file_has_nothing_of_any_range(header):
    assert wanted_range(header).within(0) is None


@given(first=st.integers(0, 300), last=st.integers(0, 300), size=st.integers(0, 200))
def test_ranges_cut_as_slices_do(first, last, size):
    content = bytes(i % 251 for i in range(size))
    cases = [
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{last}", content[-last:] if last else b""),
    ]
    if first <= last:
        cases.append((f"bytes={first}-{last}", content[first : last + 1]))
    for header, expected in cases:
        part = wanted_range(header).within(size)
        assert (content[slice(*part)] if part else b"") == expected


def test_a_range_is_a_value():
    assert wanted_range("bytes=3-5") == ByteRange(3, 5)
