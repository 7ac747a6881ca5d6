"""Grids tile exactly, and their short cuts agree with looking at every cell."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid, Slab, Slabs
from igneous_airflow.testing.strategies import boxes, sizes

grids = st.builds(Grid, boxes(12, 30), sizes(9))


@given(grids)
@settings(deadline=None)
def test_every_voxel_is_in_exactly_one_cell(grid):
    count = Counter(
        voxel
        for cell in grid
        for voxel in product(*(range(a, b) for a, b in zip(cell.min, cell.max, strict=True)))
    )
    assert set(count.values()) == {1}
    assert len(count) == grid.box.voxels
    assert all(grid.box.contains(cell) for cell in grid)


@given(grids)
@settings(deadline=None)
def test_cells_are_numbered_with_x_fastest(grid):
    cells = list(grid)
    assert len(cells) == len(grid) == grid.shape.product
    assert cells == sorted(cells, key=lambda cell: tuple(cell.min)[::-1])
    assert [grid[i] for i in range(-len(grid), 0)] == cells
    assert grid[1:-1:2] == cells[1:-1:2]
    assert [grid.index_of(cell) for cell in cells] == list(range(len(cells)))
    for beyond in (len(grid), -len(grid) - 1):
        with pytest.raises(IndexError):
            grid[beyond]


@given(grids, boxes(15, 35))
@settings(deadline=None)
def test_only_cells_have_a_position(grid, box):
    assume(box not in list(grid))
    with pytest.raises(ValueError, match="is not a cell"):
        grid.index_of(box)


@given(grids, boxes(15, 35))
@settings(deadline=None)
def test_overlapping_gives_the_cells_that_share_voxels_in_order(grid, box):
    assert list(grid.overlapping(box)) == [cell for cell in grid if cell.intersection(box)]


@given(grids, boxes(12, 30))
@settings(deadline=None)
def test_a_box_is_aligned_when_cells_are_inside_or_outside_of_it(grid, box):
    inside = grid.box.contains(box)
    whole = all(box.contains(cell) for cell in grid if cell.intersection(box))
    assert grid.is_aligned(box) == (inside and whole)


@given(grids, st.data())
@settings(deadline=None)
def test_any_block_of_cells_is_aligned(grid, data):
    one = grid[data.draw(st.integers(0, len(grid) - 1))]
    two = grid[data.draw(st.integers(0, len(grid) - 1))]
    assert grid.is_aligned(BoundingBox(one.min.minimum(two.min), one.max.maximum(two.max)))


def test_a_grid_over_no_voxels_has_no_cells():
    grid = Grid(BoundingBox.at(Vec3(3, 3, 3), Vec3(5, 0, 5)), Vec3.full(4))
    assert len(grid) == 0
    assert list(grid) == []
    assert list(grid.overlapping(BoundingBox.at(Vec3.full(0), Vec3.full(9)))) == []


def test_a_grid_of_a_petabyte_costs_nothing():
    grid = Grid(BoundingBox.at(Vec3.full(0), Vec3(10**6, 10**6, 10**5)), Vec3(64, 64, 64))
    assert len(grid) == 15625 * 15625 * 1563
    assert grid.index_of(grid[-1]) == len(grid) - 1


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 20), st.integers(-50, 50))
def test_slabs_hold_every_section_once_and_are_cut_where_the_grid_is(start, count, depth, origin):
    slabs = Slabs(Slab(start, start + count), depth, origin)
    assert [z for slab in slabs for z in slab] == list(range(start, start + count))
    assert all(len({(z - origin) // depth for z in slab}) == 1 for slab in slabs)
    assert len(slabs) == len({(z - origin) // depth for z in range(start, start + count)})
    assert slabs[1:] == list(slabs)[1:]
    with pytest.raises(IndexError):
        slabs[len(slabs)]


def test_a_slab_is_written_as_a_box_writes_an_axis():
    assert str(Slab(-3, 5)) == "-3-5"
