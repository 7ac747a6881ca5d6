"""Blocks hold the voxels of the parts, however these are cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.pyramid.blocks import in_blocks
from igneous_airflow.testing.strategies import sizes

corners = st.builds(Vec3, *[st.integers(-20, 20)] * 3)


@given(sizes(4), sizes(4), sizes(9), corners, st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_blocks_are_those_of_the_whole_volume(counts, block, read, phase, channels, apart):
    box = BoundingBox.at(Vec3(-7, 0, 5), counts * block)
    voxels = np.random.default_rng(1).integers(0, 2**64, (*box.size, channels), np.uint64)
    grid = Grid(BoundingBox(box.min - phase % read, box.max), read)
    parts = [part.intersection(box) for part in grid.overlapping(box)]
    read_parts = ((part, voxels[part.slices_within(box)]) for part in parts)
    blocks = list(in_blocks(box, block, read_parts, apart=apart))
    is_one_part = parts == [box]
    assert [place for place, _ in blocks] == ([box] if is_one_part else list(Grid(box, block)))
    for place, found in blocks:
        assert np.array_equal(found, voxels[place.slices_within(box)])
        assert is_one_part or found.flags.f_contiguous
        assert not apart or len(blocks) == 1 or found.base is None


def test_a_part_that_is_all_is_given_out_as_it_is():
    box, voxels = BoundingBox.parse("0-4_0-4_0-4"), np.zeros((4, 4, 4, 1), np.uint8)
    ((place, found),) = in_blocks(box, Vec3(2, 2, 2), iter([(box, voxels)]))
    assert place == box
    assert found is voxels


def test_a_box_that_is_not_made_of_whole_blocks_comes_as_a_whole():
    box, voxels = BoundingBox.parse("0-5_0-4_0-2"), np.arange(40).reshape(5, 4, 2, 1)
    parts = ((part, voxels[part.slices_within(box)]) for part in Grid(box, Vec3(5, 4, 1)))
    ((place, found),) = in_blocks(box, Vec3(4, 4, 2), parts)
    assert place == box
    assert np.array_equal(found, voxels)
    assert found.flags.f_contiguous
