"""The info of a mesh directory: read, extended, and refused with its fault named."""

import json

import pytest
from cloudvolume.lib import Bbox, Vec, getprecision
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.mesh_info import (
    MeshInfo,
    read_object,
    spatial_index_entry,
    spatial_index_name,
)
from igneous_airflow.testing.strategies import boxes

LOW, HIGH = BoundingBox.parse("0-64_0-64_0-64"), BoundingBox.parse("64-128_0-64_0-64")
BOTH = BoundingBox.parse("0-128_0-64_0-64")


def scale_of(resolution):
    size, chunk = Vec3(100, 100, 100), Vec3.full(64)
    return Scale("key", tuple(map(float, resolution)), size, Vec3.full(0), chunk, "raw")


def parse(text):
    return MeshInfo.of(read_object(text, "place"), "place")


def test_an_info_is_read_back_as_written_with_the_keys_of_others():
    info = MeshInfo(2, Vec3(64, 32, 16), (LOW, HIGH), {"transform": [1], "spatial_index": None})
    index = {"resolution": [4, 4, 40], "chunk_size": [256, 128, 640]}
    data = info.data(index)
    assert data["@type"] == "neuroglancer_legacy_mesh"
    assert (data["mip"], data["chunk_size"], data["transform"]) == (2, [64, 32, 16], [1])
    assert data["spatial_index"] == index
    again = parse(json.dumps(data).encode())
    assert (again.mip, again.cell, again.parts) == (info.mip, info.cell, info.parts)
    assert again.data(None) == data


def test_parts_are_added_without_repeating_any():
    info = MeshInfo(0, Vec3.full(64))
    assert info.with_part(LOW).with_part(LOW).parts == (LOW,)
    assert info.with_part(LOW).with_part(HIGH).parts == (LOW, HIGH)
    assert info.with_part(LOW).with_part(BOTH).parts == (BOTH,)
    assert info.with_part(BOTH).with_part(HIGH).parts == (BOTH,)


def test_the_keys_of_others_stay_whatever_the_grid():
    theirs = {"segment_properties": "properties", "transform": [1]}
    info = MeshInfo(0, Vec3.full(64), (LOW,))
    index = {"resolution": [4, 4, 40], "chunk_size": [256, 256, 2560]}
    first = info.added_to(theirs, "place", index)
    assert first == {**info.data(index), **theirs}
    assert info.added_to(first, "place", index) == first
    other_grid = MeshInfo(1, Vec3.full(64), (HIGH,))
    assert other_grid.added_to(first, "place", None) == {**other_grid.data(None), **theirs}


def test_the_spatial_index_is_told_of_while_a_part_may_have_one():
    first = MeshInfo(0, Vec3.full(64), (LOW,)).added_to({}, "place", {"chunk_size": [1, 1, 1]})
    both = MeshInfo(0, Vec3.full(64), (HIGH,)).added_to(first, "place", None)
    assert both["parts"] == [str(LOW), str(HIGH)]
    assert both["spatial_index"] == {"chunk_size": [1, 1, 1]}
    whole = MeshInfo(0, Vec3.full(64), (BOTH,)).added_to(both, "place", None)
    assert whole["parts"] == [str(BOTH)]
    assert "spatial_index" not in whole


def test_an_info_of_igneous_is_understood():
    text = b'{"@type":"neuroglancer_legacy_mesh","mip":3,"chunk_size":[448,448,448]}'
    info = parse(text)
    assert info == MeshInfo(3, Vec3.full(448), (), json.loads(text))
    assert info.has_grid_of(MeshInfo(3, Vec3.full(448), (LOW,)))
    assert not info.has_grid_of(MeshInfo(2, Vec3.full(448)))
    assert not info.has_grid_of(MeshInfo(3, Vec3.full(512)))


@pytest.mark.parametrize("text", [b"{}", b'{"@type": "neuroglancer_legacy_mesh"}', b'{"mip": 1}'])
def test_an_info_that_tells_of_no_grid_is_none(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"{", "place/info is no info of meshes"),
        (b"[]", "place/info is no info"),
        (b'{"mip": "x", "chunk_size": [1, 1, 1]}', "'x'"),
        (b'{"mip": 0, "chunk_size": [1, 1]}', "three integers"),
        (b'{"mip": 0, "chunk_size": [0, 1, 1]}', "chunk_size 0,1,1"),
        (b'{"mip": 0, "chunk_size": [1, 1, 1], "parts": ["x"]}', "'x' is not a box"),
        (b'{"@type": "neuroglancer_multilod_draco"}', "another format, neuroglancer_multilod"),
    ],
)
def test_a_broken_info_is_refused_with_its_fault(text, named):
    with pytest.raises(InvalidInfo, match=named):
        parse(text)


@given(
    boxes(),
    st.sampled_from([(8, 8, 40), (4.6, 4.6, 45), (0.5, 12.25, 1), (1, 1, 1.125), (3.3, 7, 30)]),
)
def test_a_spatial_index_is_named_as_cloud_volume_looks_for_it(box, resolution):
    precision = max(map(getprecision, resolution))
    vector = Vec(*resolution, dtype=float if precision else int)
    theirs = Bbox(list(box.min), list(box.max)).astype(vector.dtype) * vector
    name = f"{theirs.to_filename(precision)}.spatial"
    assert spatial_index_name(box, scale_of(resolution)) == name


def test_the_entry_of_the_spatial_index_keeps_whole_numbers_whole():
    entry = spatial_index_entry(scale_of((4.6, 4.6, 45)), Vec3(64, 64, 64))
    assert entry["resolution"] == [4.6, 4.6, 45]
    assert [type(number) for number in entry["resolution"]] == [float, float, int]
    assert entry["chunk_size"] == pytest.approx([294.4, 294.4, 2880])
