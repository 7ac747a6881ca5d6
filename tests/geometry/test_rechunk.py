"""How the work of a transfer is cut: aligned writes, chunks read once, memory as named."""

from collections import Counter
from dataclasses import replace
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.rechunk import RechunkGeometry
from igneous_airflow.testing.strategies import factors, sizes

PLANE, CUBE, NONE = Vec3(2, 2, 1), Vec3(2, 2, 2), Vec3(0, 0, 0)
PLENTY = 10**12


@st.composite
def geometries(draw):
    read = draw(sizes(12))
    return RechunkGeometry(
        size=draw(sizes(60)),
        factor=draw(factors()),
        chunks=tuple(draw(st.lists(sizes(9), min_size=1, max_size=3))),
        read=read,
        phase=draw(st.just(NONE) | st.builds(Vec3, *(st.integers(0, edge - 1) for edge in read))),
        voxel_bytes=draw(st.integers(1, 8)),
        read_voxel_bytes=draw(st.integers(1, 8)),
        keeps_both=draw(st.booleans()),
        memory=draw(st.sampled_from([1, 10_000, PLENTY])),
    )


def cells_of(geometry):
    return Grid(BoundingBox.at(NONE, geometry.size), geometry.cell)


@given(geometries())
@settings(deadline=None)
def test_tiles_cover_a_cell_once_with_whole_chunks_and_windows(geometry):
    assert geometry.cell % geometry.unit == NONE
    for step in (geometry.chunks[0], geometry.factor**geometry.levels):
        assert geometry.tile % step == NONE
    for cell in list(cells_of(geometry))[:2]:
        assert Counter(geometry.tiles(cell)) == Counter(Grid(cell, geometry.tile))


@given(geometries())
@settings(deadline=None)
def test_the_memory_of_a_task_covers_its_tile_and_the_chunks_that_are_open(geometry):
    """Count the chunks that are begun and not completed while tiles pass in their order."""
    for cell in list(cells_of(geometry))[:2]:
        missing: dict[tuple[int, BoundingBox], int] = {}
        most = 0
        for tile in geometry.tiles(cell):
            for level in range(1, geometry.levels + 1):
                window = geometry.factor**level
                whole = BoundingBox.at(NONE, geometry.size.ceil_div(window))
                part = tile.downsampled(window)
                for chunk in Grid(whole, geometry.chunks[level]).overlapping(part):
                    left = missing.pop((level, chunk), chunk.voxels)
                    left -= chunk.intersection(part).voxels
                    if left:
                        missing[level, chunk] = left
            most = max(most, sum(chunk.voxels for _, chunk in missing))
        assert not missing
        tile = geometry.tile.minimum(geometry.size).product
        assert geometry.voxel_bytes * (tile + most) <= geometry.bytes_in_memory


@given(geometries())
@settings(deadline=None)
def test_chunks_are_read_as_often_as_is_said(geometry):
    volume = BoundingBox.at(NONE, geometry.size)
    grid = Grid(volume.expanded_to_grid(geometry.read, geometry.phase * -1), geometry.read)
    decoded = sum(
        chunk.intersection(volume).voxels
        for cell in cells_of(geometry)
        for tile in Grid(cell, geometry.tile)
        for chunk in grid.overlapping(tile)
    )
    assert abs(decoded - geometry.times_read * volume.voxels) < 1e-6 * decoded


@given(geometries(), st.integers(1, 16))
@settings(deadline=None)
def test_what_is_under_way_is_neither_refused_nor_paid_with_reading_twice(geometry, width):
    alone = replace(geometry, width=1)
    fitting = replace(geometry, width=width).fitting()
    assert 1 <= fitting.width <= width
    assert fitting.cell == alone.cell
    assert fitting.times_read <= alone.times_read
    assert fitting.bytes_in_memory <= max(geometry.memory, alone.bytes_in_memory)
    if geometry.memory == PLENTY:
        assert fitting.width == width


def test_huge_sections_are_read_from_a_bucket_few_at_a_time():
    sections = replace(geometry_of(64, Vec3(16_384, 16_384, 1), 0), width=16)
    assert sections.bytes_in_memory > sections.memory
    fitting = sections.fitting()
    assert fitting.bytes_in_memory <= fitting.memory
    assert fitting.times_read == replace(sections, width=1).times_read


def geometry_of(chunk, read, levels, voxel_bytes=1, factor=PLANE, memory=3_500_000_000):
    chunks = (Vec3.full(chunk),) * (levels + 1)
    size = Vec3(100_000, 80_000, 10_000)
    return RechunkGeometry(size, factor, chunks, read, NONE, voxel_bytes, voxel_bytes, memory)


def test_sections_are_read_once_within_moderate_memory():
    sections = geometry_of(64, Vec3(1024, 1024, 1), 4)
    assert sections.tile == Vec3(1024, 1024, 64)
    assert sections.times_read == 1
    assert sections.bytes_in_memory < 400_000_000
    large = geometry_of(64, Vec3(16_384, 16_384, 1), 0)
    assert large.tile.z == 64
    assert large.bytes_in_memory <= 3_500_000_000
    assert large.times_read < 30


def test_it_takes_no_time_to_say_how_often_the_chunks_of_a_huge_volume_are_read():
    huge = replace(geometry_of(64, Vec3(100, 100, 1), 0), size=Vec3.full(10**15))
    assert 1 < huge.times_read < 30


def test_tasks_are_neither_tiny_nor_huge():
    for geometry in (
        geometry_of(64, Vec3.full(64), 0),
        geometry_of(64, Vec3.full(64), 5),
        geometry_of(64, Vec3(128, 128, 32), 2, voxel_bytes=8),
        geometry_of(64, Vec3(100, 100, 100), 0),
    ):
        size = prod(geometry.cell) * geometry.voxel_bytes
        assert 100_000_000 <= size <= 600_000_000
        assert geometry.bytes_in_memory <= geometry.memory
