"""Natural order, and what is missing in a numbering."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.sources.order import natural_key, numbering


@pytest.mark.parametrize(
    "names",
    [
        ["s1.tif", "s2.tif", "s10.tif"],
        ["01.tif", "1.tif", "2.tif"],
        ["W01_Sec2.tif", "W01_Sec10.tif", "W02_Sec1.tif"],
        ["a.tif", "a1.tif", "b.tif"],
        ["9.tif", "10.tif", "a.tif"],
        ["em_0099.png", "em_0100.png", "em_12345678901234567890.png"],
        ["\u0661.tif", "\u0662.tif"],  # digits, but none that anybody numbers files with
    ],
)
def test_numbers_in_names_are_compared_as_numbers(names):
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == names


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=9))
def test_any_names_have_an_order(names):
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def expanded(text):
    """The numbers that `3, 7-9` names."""
    spans = [part.split("-") for part in text.split(", ") if part]
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


@given(
    st.sets(st.integers(0, 60), min_size=2, max_size=12),
    st.sampled_from(["{}", "em_{:05}", "x{}_y3"]),
)
def test_the_numbers_that_are_missing_are_found(numbers, form):
    ordered = sorted(numbers)
    found = numbering([form.format(number) + ".tif" for number in ordered])
    assert found.numbers == tuple(ordered)
    missing = set(range(ordered[0], ordered[-1] + 1, found.step)) - numbers
    assert found.missing == len(missing)
    if found.step == 1 and "more" not in found.missing_text():
        assert expanded(found.missing_text()) == missing
    assert [ordered[0] + place * found.step for place in found.places] == ordered
    assert found.doubled == []


@pytest.mark.parametrize(
    ("names", "numbers", "text"),
    [
        (["s1.tif", "s4.tif", "s5.tif"], (1, 4, 5), "2-3"),
        (["s0.tif", "s10.tif", "s30.tif"], (0, 10, 30), "20"),
        (["s1_t0915.tif", "s3_t0917.tif", "s4_t1000.tif"], (1, 3, 4), "2"),
        (["s1_c1.tif", "s1_c2.tif", "s2_c1.tif"], None, ""),
        (["a1.tif", "b2.tif"], None, ""),
        (["left.tif", "right.tif"], None, ""),
        (["only.tif"], None, ""),
        (["7.tif"], (7,), ""),
        ([f"{n}.tif" for n in range(0, 100, 2)] + ["99.tif"], (*range(0, 100, 2), 99), None),
    ],
)
def test_numberings(names, numbers, text):
    found = numbering(names)
    if numbers is None:
        assert found is None
        return
    assert found.numbers == numbers
    if text is None:
        assert found.missing_text().endswith("and 39 more gaps")
    else:
        assert found.missing_text() == text


@pytest.mark.parametrize(
    "names", [["1.tif", "01.tif"], ["s2.png", "s2.tif"], ["a3_1.tif", "a3_01.tif"]]
)
def test_files_of_the_same_number_are_found(names):
    assert numbering(sorted(names, key=natural_key)).doubled == [1]
