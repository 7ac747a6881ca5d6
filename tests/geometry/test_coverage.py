"""Coverage, against counting voxel by voxel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.coverage import Coverage
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.testing.strategies import boxes, sizes

some_boxes = st.lists(boxes(largest=7, offset=6), min_size=1, max_size=8, unique=True)


def counted(coverage, others):
    """How many of some boxes hold each voxel of the bounds."""
    count = np.zeros(tuple(coverage.bounds.size), int)
    for box in others:
        count[box.slices_within(coverage.bounds)] += 1
    return count


@given(some_boxes)
def test_boxes_overlap_where_a_voxel_is_in_two_of_them(some):
    coverage = Coverage(tuple(some))
    pairs = list(coverage.overlaps())
    expected = {
        frozenset((one, other)) for one in some for other in some
        if one != other and one.intersection(other)
    }  # fmt: skip
    assert {frozenset(pair) for pair in pairs} == expected
    assert len(pairs) == len(expected)


@given(some_boxes)
def test_holes_are_what_no_box_covers_once_each(some):
    coverage = Coverage(tuple(some))
    holes = list(coverage.holes())
    covered = counted(coverage, some)
    np.testing.assert_array_equal(counted(coverage, holes), covered == 0)
    if covered.max() == 1:
        assert coverage.uncovered == np.count_nonzero(covered == 0)


@given(some_boxes, boxes(largest=9, offset=9))
def test_the_boxes_near_a_box_are_found(some, box):
    found = Coverage(tuple(some)).overlapping(box)
    assert set(found) == {other for other in some if other.intersection(box)}
    assert len(found) == len(set(found))


@given(boxes(largest=30), sizes(9))
@settings(max_examples=50, deadline=None)
def test_a_grid_has_neither_holes_nor_overlaps(box, cell):
    coverage = Coverage(tuple(Grid(box, cell)))
    assert coverage.bounds == box
    assert coverage.largest == cell.minimum(box.size)
    assert not list(coverage.holes())
    assert not list(coverage.overlaps())
    assert coverage.uncovered == 0


def test_boxes_worlds_apart_cost_nothing():
    far = BoundingBox.at(Vec3.full(10**15), Vec3.full(4))
    coverage = Coverage((BoundingBox.at(Vec3.full(0), Vec3.full(4)), far))
    assert next(coverage.holes()) == BoundingBox.parse("4-8_0-4_0-4")
    assert coverage.uncovered == (10**15 + 4) ** 3 - 128
