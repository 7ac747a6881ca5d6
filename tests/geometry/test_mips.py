"""How many mips there are, and how the work on them is cut."""

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import (
    PyramidGeometry,
    count_levels,
    divisor_nearest_64,
    levels_that_fit,
    truncated,
)
from igneous_airflow.testing.strategies import factors, sizes

PLANE, CUBE = Vec3(2, 2, 1), Vec3(2, 2, 2)


@st.composite
def pyramids(draw):
    chunks = draw(st.lists(sizes(9), min_size=2, max_size=4))
    factor = draw(factors())
    size = draw(sizes(60))
    return PyramidGeometry(size, factor, tuple(chunks))


@pytest.mark.parametrize(
    ("length", "divisor"), [(512, 64), (100, 50), (30, 30), (1024, 64), (96, 48), (7, 7), (1, 1)]
)
def test_the_divisor_nearest_64(length, divisor):
    assert divisor_nearest_64(length) == divisor


@pytest.mark.parametrize(
    ("size", "factor", "wanted", "levels"),
    [
        (Vec3(512, 512, 64), PLANE, 3, 3),
        (Vec3(512, 512, 64), PLANE, 20, 9),
        (Vec3(513, 1, 1), PLANE, 20, 10),
        (Vec3(100_000, 64, 64), PLANE, 20, 17),  # a thin volume gets its pyramid
        (Vec3(2, 2, 1), PLANE, 5, 1),
        (Vec3(1, 1, 1), CUBE, 5, 0),
        (Vec3(1, 1, 1000), PLANE, 5, 0),
        (Vec3(1, 1, 1000), CUBE, 5, 5),
        (Vec3(3, 3, 3), Vec3(4, 4, 1), 5, 1),
        (Vec3(0, 0, 0), CUBE, 5, 0),
    ],
)
def test_mips_end_where_nothing_is_left_to_pool(size, factor, wanted, levels):
    assert count_levels(size, factor, wanted) == levels


@given(pyramids())
@settings(deadline=None)
def test_a_unit_is_the_smallest_block_that_fills_chunks_of_every_level(pyramid):
    for axis in range(3):
        spans = [c[axis] * pyramid.factor[axis] ** i for i, c in enumerate(pyramid.chunks) if i]
        fitting = (n for n in range(1, 10**6) if all(n % span == 0 for span in spans))
        assert pyramid.unit[axis] == next(fitting)


@given(pyramids())
@settings(deadline=None)
def test_tiles_cover_a_cell_once_and_start_on_windows_of_the_coarsest_level(pyramid):
    window = pyramid.factor**pyramid.levels
    assert pyramid.cell % pyramid.unit == Vec3.full(0)
    for cell in list(Grid(BoundingBox.at(Vec3.full(0), pyramid.size), pyramid.cell))[:4]:
        tiles = pyramid.tiles(cell)
        assert Counter(tiles) == Counter(Grid(cell, pyramid.tile))
        for tile in tiles:
            assert tile.min % window == Vec3.full(0)
            whole = tile.max % window
            assert all(
                part == 0 or end == last
                for part, end, last in zip(whole, tile.max, pyramid.size, strict=True)
            )


@pytest.mark.parametrize("factor", [PLANE, CUBE])
@pytest.mark.parametrize("size", [Vec3(512, 512, 256), Vec3(300, 299, 65)], ids=str)
def test_each_coarse_chunk_is_completed_before_the_next_is_begun(factor, size):
    pyramid = PyramidGeometry(size, factor, (Vec3.full(32),) * 4)
    for cell in Grid(BoundingBox.at(Vec3.full(0), size), pyramid.cell):
        tiles = pyramid.tiles(cell)
        for level in range(1, pyramid.levels + 1):
            span = pyramid.chunks[level] * factor**level
            chunks = [chunk for chunk, _ in groupby(tuple(tile.min // span) for tile in tiles)]
            assert len(chunks) == len(set(chunks))


@given(pyramids())
@settings(deadline=None)
def test_the_memory_of_a_task_covers_its_tile_and_the_chunks_that_are_open(pyramid):
    """Count the chunks that are begun and not completed while tiles pass in their order."""
    for cell in list(Grid(BoundingBox.at(Vec3.full(0), pyramid.size), pyramid.cell))[:2]:
        missing: dict[tuple[int, BoundingBox], int] = {}
        most = 0
        for tile in pyramid.tiles(cell):
            for level in range(1, pyramid.levels + 1):
                scale = Grid(
                    BoundingBox.at(Vec3.full(0), pyramid.size.ceil_div(pyramid.factor**level)),
                    pyramid.chunks[level],
                )
                part = tile.downsampled(pyramid.factor**level)
                for chunk in scale.overlapping(part):
                    left = missing.pop((level, chunk), chunk.voxels)
                    left -= chunk.intersection(part).voxels
                    if left:
                        missing[level, chunk] = left
            most = max(most, sum(chunk.voxels for _, chunk in missing))
        assert not missing
        assert pyramid.tile.product + most <= pyramid.voxels_in_memory


@given(sizes(300), st.sampled_from([PLANE, CUBE, Vec3(4, 4, 1)]), st.integers(0, 3))
@settings(deadline=None)
def test_more_levels_of_nested_chunks_never_need_less_memory(size, factor, doublings):
    pyramid = PyramidGeometry(size, factor, (Vec3.full(8), *[Vec3.full(2**doublings)] * 4))
    needed = [truncated(pyramid, levels).voxels_in_memory for levels in range(1, 5)]
    assert needed == sorted(needed)


@given(pyramids(), st.integers(1, 8))
@settings(deadline=None)
def test_the_levels_that_fit_are_as_many_as_possible(pyramid, voxel_bytes):
    needs = [
        truncated(pyramid, levels).voxels_in_memory * voxel_bytes
        for levels in range(1, pyramid.levels + 1)
    ]
    assert levels_that_fit(pyramid, voxel_bytes, needs[-1]) == pyramid.levels
    assert levels_that_fit(pyramid, voxel_bytes, min(needs) - 1) == 0
    for levels, need in enumerate(needs, start=1):
        assert levels_that_fit(pyramid, voxel_bytes, need) >= levels


@given(pyramids(), st.integers(1, 20), st.integers(1, 8), st.integers(1, 10**7))
@settings(deadline=None)
def test_as_much_is_under_way_as_memory_allows(pyramid, most, voxel_bytes, memory):
    width = pyramid.fitting_width(most, voxel_bytes, memory)
    assert 1 <= width <= most
    assert pyramid.voxels_with(1) == pyramid.voxels_in_memory
    fits = [pyramid.voxels_with(w) * voxel_bytes <= memory for w in range(1, most + 1)]
    assert fits == sorted(fits, reverse=True)
    assert width == max(1, sum(fits))


def test_the_memory_of_usual_work_is_moderate():
    image = PyramidGeometry(Vec3(10**5, 10**5, 10**4), PLANE, (Vec3.full(64),) * 6)
    assert image.cell == Vec3(2048, 2048, 64)
    assert image.voxels_in_memory < 20_000_000
    mixed = PyramidGeometry(
        Vec3(10**5, 10**5, 10**4), PLANE, (Vec3(512, 512, 16), *[Vec3.full(64)] * 5)
    )
    assert mixed.voxels_in_memory < 200_000_000
