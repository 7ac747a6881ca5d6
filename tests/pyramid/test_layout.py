"""Pyramids: boxes of one level in voxels of another, and scales that are in the way."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.pyramid.layout import Pyramid, ScaleWishes, coarser_scales
from igneous_airflow.storage.info import Info
from igneous_airflow.testing.strategies import factors, sizes, vectors

PLANE = Vec3(2, 2, 1)
SCALE = {
    "key": "4_4_40",
    "resolution": [4, 4, 40],
    "size": [100, 90, 20],
    "voxel_offset": [3, -7, 11],
    "chunk_sizes": [[64, 32, 16]],
    "encoding": "raw",
}


def info_with(*scales, **changes):
    data = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    return Info.parse(json.dumps({**data, "scales": [SCALE | changes, *scales]}).encode(), "place")


def made(info, wishes=None, count=2, factor=PLANE):
    return coarser_scales(info, info.scales[0], factor, count, wishes or ScaleWishes())


@given(sizes(60), vectors(-20, 20), factors(), st.integers(1, 3), st.data())
@settings(deadline=None)
def test_cells_and_tiles_become_disjoint_boxes_that_cover_each_level(
    size, offset, factor, levels, data
):
    chunk = list(data.draw(sizes(9)))
    info = info_with(size=list(size), voxel_offset=list(offset), chunk_sizes=[chunk])
    source = info.scales[0]
    scales, _ = made(info, count=levels, factor=factor)
    pyramid = Pyramid(source, scales, factor)
    tiles = pyramid.tiles(source.bounds)
    assert sum(tile.voxels for tile in tiles) == source.bounds.voxels
    for level, scale in enumerate(scales, start=1):
        boxes = [pyramid.level_box(level, tile) for tile in tiles]
        assert sum(box.voxels for box in boxes) == scale.bounds.voxels
        assert all(scale.bounds.contains(box) for box in boxes)
        assert len(set(boxes)) == len(boxes)
        assert pyramid.level_box(level, source.bounds) == scale.bounds


def test_the_region_is_the_bounds_or_everything():
    info = info_with()
    pyramid = Pyramid(info.scales[0], made(info)[0], PLANE)
    assert pyramid.region(None) == BoundingBox.parse("3-103_-7-83_11-31")
    assert pyramid.region("3-7_-7-1_11-12") == BoundingBox.parse("3-7_-7-1_11-12")


def test_new_scales_are_stored_as_the_one_that_is_read():
    scales, conflicts = made(info_with(encoding="jpeg", jpeg_quality=70))
    assert conflicts == []
    assert [scale.key for scale in scales] == ["8_8_40", "16_16_40"]
    for scale in scales:
        assert (scale.chunk_size, scale.encoding, scale.tuning) == (
            Vec3(64, 32, 16),
            "jpeg",
            (("jpeg_quality", 70),),
        )


def test_wishes_decide_how_new_scales_are_stored():
    wishes = ScaleWishes(encoding="compressed_segmentation", default_chunk_size=Vec3(8, 8, 8))
    for scale in made(info_with(data_type="uint32"), wishes)[0]:
        assert (scale.chunk_size, scale.encoding) == (Vec3(8, 8, 8), "compressed_segmentation")
        assert scale.block_size == Vec3(8, 8, 8)
    wishes = replace(wishes, chunk_size=Vec3(4, 4, 4))
    assert made(info_with(), wishes)[0][0].chunk_size == Vec3(4, 4, 4)


def existing(**changes):
    scale = made(info_with())[0][0]
    return {**scale.entry(), **changes}


def test_a_scale_that_exists_is_kept_and_the_next_one_made_from_the_source():
    info = info_with(existing(chunk_sizes=[[8, 8, 8]], encoding="png"))
    scales, conflicts = made(info)
    assert conflicts == []
    assert scales[0] == info.scales[1]
    assert (scales[1].chunk_size, scales[1].encoding) == (Vec3(64, 32, 16), "raw")
    assert scales[1].size == Vec3(25, 23, 20)


@pytest.mark.parametrize(
    ("changes", "wishes", "named"),
    [
        ({"size": [49, 45, 20]}, {}, "size 49,45,20"),
        ({"voxel_offset": [0, 0, 0]}, {}, "offset 0,0,0"),
        ({"sharding": {"@type": "x"}}, {}, "is sharded"),
        ({}, {"chunk_size": Vec3(8, 8, 8)}, "chunk_size: 8,8,8, but"),
        ({}, {"encoding": "png"}, "encoding: png, but"),
    ],
    ids=str,
)
def test_a_scale_in_the_way_is_a_conflict(changes, wishes, named):
    _, conflicts = made(info_with(existing(**changes)), ScaleWishes(**wishes))
    assert named in "\n".join(conflicts)
    assert "8_8_40" in conflicts[0]


def test_wishes_that_are_fulfilled_already_are_no_conflict():
    wishes = ScaleWishes(chunk_size=Vec3(64, 32, 16), encoding="raw")
    assert made(info_with(existing()), wishes)[1] == []
