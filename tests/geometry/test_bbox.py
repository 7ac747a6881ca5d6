"""Vectors and boxes: their text, and their arithmetic against sets of voxels."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.testing.strategies import boxes, factors, sizes, vectors

BOX = BoundingBox.parse


def voxels_of(box):
    return set(product(*(range(low, high) for low, high in zip(box.min, box.max, strict=True))))


@given(boxes(largest=10**6, offset=10**12))
@settings(deadline=None)
def test_a_box_is_read_back_from_its_text(box):
    assert BOX(str(box)) == box


def test_negative_numbers_are_written_as_chunk_files_name_them():
    box = BoundingBox(Vec3(-64, -5, 0), Vec3(0, -1, 64))
    assert str(box) == "-64-0_-5--1_0-64"
    assert BOX("-64-0_-5--1_0-64") == box


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0-64",
        "0-64_0-64",
        "0-64_0-64_0-64_0-64",
        "0-64_0-64_0-64.gz",
        "0-64_0-64_0-64\n",
        " 0-64_0-64_0-64",
        "0-64,0-64,0-64",
        "0.5-64_0-64_0-64",
        "a-b_c-d_e-f",
        "1e3-64_0-64_0-64",
        "--1-64_0-64_0-64",
        "+1-64_0-64_0-64",
        "1_0-64_0-64_0-64",
        "\N{ARABIC-INDIC DIGIT THREE}-64_0-64_0-64",
        f"0-{'9' * 5000}_0-64_0-64",
        "0-64_0-64_0-64'; DROP TABLE chunks",
    ],
)
def test_other_text_is_refused_with_an_example(text):
    with pytest.raises(InvalidParameter, match="0-512_0-512_0-64"):
        BOX(text)


@pytest.mark.parametrize("text", ["00-64_0-64_0-64", "0-064_0-64_0-64", "-0-64_0-64_0-64"])
def test_a_number_has_one_spelling_so_that_a_box_has_one_file_name(text):
    with pytest.raises(InvalidParameter):
        BOX(text)


@given(boxes(9, 9), boxes(9, 9))
@settings(deadline=None)
def test_intersection_and_contains_agree_with_sets_of_voxels(one, other):
    common = one.intersection(other)
    assert voxels_of(common) == voxels_of(one) & voxels_of(other)
    assert bool(common) == bool(voxels_of(common))
    assert common.voxels == len(voxels_of(common)) == common.size.product
    assert one.contains(other) == (voxels_of(other) <= voxels_of(one))


@given(boxes(9, 9), vectors())
@settings(deadline=None)
def test_a_moved_box_keeps_its_size(box, by):
    assert box.translated(by).size == box.size
    assert box.translated(by).translated(by * -1) == box


@given(boxes(), boxes())
@settings(deadline=None)
def test_slices_cut_a_box_out_of_another_ones_array(one, whole):
    part = one.intersection(whole)
    for axis, cut in enumerate(part.slices_within(whole)):
        assert cut.start + whole.min[axis] == part.min[axis]
        assert cut.stop + whole.min[axis] == part.max[axis]


@given(boxes(), sizes(20), vectors(-50, 50))
@settings(deadline=None)
def test_growing_to_a_grid_adds_less_than_a_cell_on_each_side(box, cell, origin):
    grown = box.expanded_to_grid(cell, origin)
    assert grown.contains(box)
    assert (grown.min - origin) % cell == Vec3.full(0) == (grown.max - origin) % cell
    assert min(cell - (box.min - grown.min)) > 0
    assert min(cell - (grown.max - box.max)) > 0


@given(boxes(12, 12), factors())
@settings(deadline=None)
def test_a_coarser_box_covers_exactly_the_windows_it_touches(box, factor):
    windows = {tuple(Vec3(*voxel) // factor) for voxel in voxels_of(box)}
    assert voxels_of(box.downsampled(factor)) == windows


@given(vectors(), vectors(1, 20), st.integers(1, 20))
@settings(deadline=None)
def test_vectors_calculate_axis_by_axis(vector, divisor, number):
    assert vector // divisor * divisor + vector % divisor == vector
    assert vector.ceil_div(divisor) == (vector * -1 // divisor) * -1
    assert vector - number + number == vector
    assert vector * number // number == vector
    assert divisor**2 == divisor * divisor
    assert vector.minimum(divisor) + vector.maximum(divisor) == vector + divisor
    assert [vector[axis] for axis in range(3)] == list(vector)


def test_a_vector_is_made_of_three_integers():
    assert Vec3.of([1, 2.0, -3]) == Vec3(1, 2, -3)
    assert str(Vec3(1, 2, -3)) == "1,2,-3"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2],
        [1, 2, 3, 4],
        "123",
        ["1", "2", "3"],
        [1.5, 2, 3],
        [float("nan"), 0, 0],
        [float("inf"), 0, 0],
        [None, 0, 0],
        [[1], 2, 3],
    ],
    ids=repr,
)
def test_a_vector_of_anything_else_is_refused(values):
    with pytest.raises(InvalidParameter, match="three integers"):
        Vec3.of(values)
