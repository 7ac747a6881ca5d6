"""The info file: extended without losing anything, and refused with its fault named."""

import json
import math
import subprocess
import sys
import uuid
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidInfo, LayerNotFound
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import (
    Info,
    Scale,
    add_scales,
    name_mesh_directory,
    read_info,
    remove_scales,
    resolution_key,
    write_info,
)
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

SCALE = {
    "key": "4_4_40",
    "resolution": [4, 4, 40],
    "size": [512, 512, 128],
    "voxel_offset": [3, 7, 11],
    "chunk_sizes": [[64, 64, 64]],
    "encoding": "raw",
}
INFO = {
    "@type": "neuroglancer_multiscale_volume",
    "data_type": "uint8",
    "num_channels": 1,
    "type": "image",
    "scales": [SCALE],
}
PLANE = Vec3(2, 2, 1)
ADD_SCALES = """
import sys
from dataclasses import replace
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.info import add_scales, read_info
folder, writer = open_folder(sys.argv[1]), int(sys.argv[2])
first = read_info(folder).scales[0]
for n in range(5):
    z = 1000 * writer + n + 1
    add_scales(folder, [replace(first, key=f"s{z}", resolution=(4.0, 4.0, float(z)))])
"""


@pytest.fixture(params=["file", "mem"])
def folder(request, tmp_path):
    places = {"file": f"file://{tmp_path}/layer", "mem": f"mem://{uuid.uuid4()}/layer"}
    folder = open_folder(places[request.param])
    write_info(folder, Info(INFO))
    return folder


def coarser(scale, levels):
    scales = []
    for _ in range(levels):
        scale = scale.downsampled(PLANE)
        scales.append(scale)
    return scales


def test_sizes_and_offsets_of_coarser_scales():
    scales = coarser(Scale.parse(SCALE), 3)
    assert [scale.size for scale in scales] == [
        Vec3(256, 256, 128),
        Vec3(128, 128, 128),
        Vec3(64, 64, 128),
    ]
    assert [scale.voxel_offset for scale in scales] == [
        Vec3(1, 3, 11),
        Vec3(0, 1, 11),
        Vec3(0, 0, 11),
    ]
    assert [scale.key for scale in scales] == ["8_8_40", "16_16_40", "32_32_40"]


def test_an_odd_size_is_rounded_up_and_a_negative_offset_down():
    scale = Scale.parse({**SCALE, "size": [513, 1, 5], "voxel_offset": [-3, -1, -5]})
    assert coarser(scale, 1)[0].size == Vec3(257, 1, 5)
    assert coarser(scale, 1)[0].voxel_offset == Vec3(-2, -1, -5)


@pytest.mark.parametrize(
    ("resolution", "key"),
    [
        ((4, 4, 40), "4_4_40"),
        ((4.0, 4.0, 40.0), "4_4_40"),
        ((9.2, 9.2, 45), "9.2_9.2_45"),
        ((0.1, 0.25, 1e-3), "0.1_0.25_0.001"),
    ],
)
def test_the_key_of_a_scale_is_its_resolution(resolution, key):
    assert resolution_key(resolution) == key


def test_resolutions_may_be_fractions():
    scale = Scale.parse({**SCALE, "resolution": [4.6, 4.6, 45]})
    finer_to_coarser = coarser(scale, 3)
    assert [s.key for s in finer_to_coarser] == ["9.2_9.2_45", "18.4_18.4_45", "36.8_36.8_45"]
    entry = json.loads(json.dumps(finer_to_coarser[2].entry()))
    assert entry["resolution"] == [36.8, 36.8, 45]
    assert Scale.parse(entry) == finer_to_coarser[2]


def test_an_entry_is_read_back_as_written():
    full = {
        **SCALE,
        "encoding": "compressed_segmentation",
        "compressed_segmentation_block_size": [8, 8, 4],
    }
    assert Scale.parse(full).entry() == full
    jpeg = {**SCALE, "encoding": "jpeg", "jpeg_quality": 70}
    assert Scale.parse(jpeg).entry() == jpeg
    assert coarser(Scale.parse(jpeg), 1)[0].tuning == (("jpeg_quality", 70),)


def test_adding_scales_keeps_foreign_keys_and_the_scales_of_others(folder):
    foreign = {
        **SCALE,
        "key": "elsewhere",
        "resolution": [1, 1, 1],
        "hidden": True,
        "sharding": {"x": 1},
    }
    theirs = {**INFO, "scales": [{**SCALE, "note": "mine"}, foreign], "mesh": "mesh", "x": [None]}
    write_info(folder, Info(theirs))
    added = coarser(read_info(folder).scales[0], 2)
    info = add_scales(folder, added)
    assert info == read_info(folder)
    assert info.data == {**theirs, "scales": [*theirs["scales"], *(s.entry() for s in added)]}


def test_adding_scales_twice_is_adding_them_once(folder):
    scales = coarser(read_info(folder).scales[0], 2)
    once = add_scales(folder, scales)
    assert add_scales(folder, scales) == once
    assert len(once.scales) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"size": Vec3(255, 256, 128)},
        {"voxel_offset": Vec3(0, 0, 0)},
        {"chunk_size": Vec3(32, 32, 32)},
        {"encoding": "png"},
        {"encoding": "compressed_segmentation", "block_size": Vec3(8, 8, 8)},
    ],
    ids=str,
)
def test_a_scale_that_would_orphan_files_is_refused_and_nothing_changes(folder, change):
    (scale,) = coarser(read_info(folder).scales[0], 1)
    before = add_scales(folder, [scale])
    with pytest.raises(InvalidInfo, match="8_8_40"):
        add_scales(folder, [replace(scale, **change)])
    assert read_info(folder) == before


def test_scales_added_by_several_processes_at_once_are_all_there(tmp_path):
    folder = open_folder(f"file://{tmp_path}")
    write_info(folder, Info(INFO))
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD_SCALES, folder.url, str(writer)])
        for writer in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    expected = {f"s{1000 * writer + n + 1}" for writer in range(4) for n in range(5)}
    assert {scale.key for scale in read_info(folder).scales[1:]} == expected


def test_a_scale_that_somebody_overwrites_meanwhile_is_added_again():
    folder = open_folder(f"mem://{uuid.uuid4()}/layer")
    write_info(folder, Info(INFO))
    (scale,) = coarser(read_info(folder).scales[0], 1)
    write, overwritten = folder.write, []

    def write_and_be_overwritten(name, file, **options):
        write(name, file, **options)
        if not overwritten:
            overwritten.append(name)
            write(name, StoredFile(json.dumps({**INFO, "mesh": "theirs"}).encode()))

    folder.write = write_and_be_overwritten
    info = add_scales(folder, [scale])
    assert overwritten == ["info"]
    assert read_info(folder) == info
    assert (info.data["mesh"], info.scales[1]) == ("theirs", scale)


@pytest.mark.parametrize("url", ["file", "mem"])
def test_a_layer_that_is_not_there_is_named(url, tmp_path):
    folder = open_folder({"file": f"file://{tmp_path}/no", "mem": f"mem://{uuid.uuid4()}/no"}[url])
    for action in (read_info, lambda folder: add_scales(folder, [])):
        with pytest.raises(LayerNotFound, match=f"{folder.url}/info is missing"):
            action(folder)
    assert not (tmp_path / "no").exists()


def broken(**changes):
    return {**INFO, **changes}


def broken_scale(**changes):
    return {**INFO, "scales": [{**SCALE, **changes}]}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "lacks data_type, num_channels, scales, type"),
        (None, "lacks"),
        ({"type": "image"}, "lacks data_type, num_channels, scales"),
        (broken(data_type="object"), "object"),
        (broken(data_type=None), "data_type None"),
        (broken(num_channels=0), "num_channels 0"),
        (broken(num_channels="x"), "num_channels 'x'"),
        (broken(num_channels=None), "num_channels None"),
        (broken(scales=None), "scales"),
        (broken(scales={"a": 1}), "scales"),
        (broken(scales=[5]), "5"),
        (broken(scales=["scale"]), "scale"),
        (broken(scales=[{}]), "encoding"),
        (broken_scale(chunk_sizes=[[0, 64, 64]]), "chunk size 0,64,64"),
        (broken_scale(chunk_sizes=[[64, 64]]), "three integers"),
        (broken_scale(chunk_sizes=[]), "index out of range"),
        (broken_scale(chunk_sizes=None), "NoneType"),
        (broken_scale(size=[-1, 64, 64]), "size -1,64,64"),
        (broken_scale(size=[64.5, 64, 64]), "64.5"),
        (broken_scale(size="123"), "three integers"),
        (broken_scale(size=[math.inf, 64, 64]), "Infinity"),
        (broken_scale(voxel_offset=[math.nan, 0, 0]), "NaN"),
        (broken_scale(resolution=[4, 4]), "not enough values"),
        (broken_scale(resolution=[4, 4, 40, 1]), "too many values"),
        (broken_scale(resolution=[4, 4, math.nan]), "NaN"),
        (broken_scale(resolution=[0, 4, 40]), "resolution"),
        (broken_scale(resolution=[10**400, 4, 40]), "too large"),
        (
            broken_scale(
                encoding="compressed_segmentation", compressed_segmentation_block_size=[0, 8, 8]
            ),
            "block size 0,8,8",
        ),
    ],
)
def test_a_broken_info_file_is_refused_with_its_fault_and_place(folder, data, named):
    folder.write("info", StoredFile(json.dumps(data).encode()))
    with pytest.raises(InvalidInfo, match=named) as caught:
        read_info(folder)
    assert f"{folder.url}/info" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"not JSON", b"\xff\xfe\x00", b"<html>404</html>"], ids=repr
)
def test_a_file_that_is_not_json_is_refused(folder, content):
    folder.write("info", StoredFile(content))
    with pytest.raises(InvalidInfo, match="is not JSON"):
        read_info(folder)


def test_a_damaged_compressed_info_file_is_refused_with_its_place(folder):
    folder.write("info", StoredFile(b"\x1f\x8b damaged", "gzip"))
    with pytest.raises(InvalidInfo, match=f"{folder.url}/info cannot be read"):
        read_info(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(INFO)), st.sampled_from(sorted(SCALE)), json_values, st.booleans())
@settings(deadline=None)
def test_an_info_file_with_any_value_anywhere_is_read_or_refused(key, scale_key, value, in_scale):
    data = broken_scale(**{scale_key: value}) if in_scale else broken(**{key: value})
    try:
        info = Info.parse(json.dumps(data).encode(), "place")
    except InvalidInfo:
        return
    for scale in info.scales:
        assert Scale.parse(json.loads(json.dumps(scale.entry()))) == scale


def test_an_info_file_of_tensorstore_is_understood(tmp_path):
    spec = LayerSpec(voxel_offset=(-3, 0, 2), resolution=(4.6, 4.6, 45), chunk_size=(16, 8, 4))
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(20, 10, 5), "uint16"), spec)
    info = read_info(open_folder(url))
    assert (info.data_type, info.channels, info.layer_type) == ("uint16", 1, "image")
    (scale,) = info.scales
    assert scale.bounds.min == Vec3(-3, 0, 2)
    assert scale.size == Vec3(20, 10, 5)
    assert scale.chunk_size == Vec3(16, 8, 4)
    assert scale.key == "4.6_4.6_45"
    assert not scale.sharded


def test_scales_are_removed_and_the_rest_stays(tmp_path):
    folder = open_folder(f"file://{tmp_path}")
    entries = [{**SCALE, "key": key, "resolution": [r, r, 40]} for key, r in [("a", 4), ("b", 8)]]
    data = {"data_type": "uint8", "num_channels": 1, "type": "image", "scales": entries, "x": 1}
    write_info(folder, Info(data))
    for _ in range(2):
        left = remove_scales(folder, ["a", "none"])
        assert left.data == read_info(folder).data == {**data, "scales": entries[1:]}


def test_the_ratio_of_scales_is_whole_or_none():
    fine, coarse, odd = (
        Scale.parse({**SCALE, "resolution": resolution})
        for resolution in ([4.6, 4.6, 45], [9.2, 18.4, 45], [6, 6, 45])
    )
    assert coarse.ratio_to(fine) == Vec3(2, 4, 1)
    assert fine.ratio_to(fine) == Vec3(1, 1, 1)
    assert odd.ratio_to(fine) is None
    assert fine.ratio_to(coarse) is None


@pytest.mark.parametrize("key", ["", ".", "/etc", "a/.."])
def test_a_scale_whose_key_is_no_folder_is_refused(key: str) -> None:
    entry = {"size": [1, 1, 1], "resolution": [1, 1, 1], "chunk_sizes": [[1, 1, 1]]}
    with pytest.raises(InvalidInfo, match="not the name of a folder inside the layer"):
        Scale.parse({**entry, "encoding": "raw", "key": key})


def test_the_mesh_directory_is_named_once_and_for_all(folder):
    write_info(folder, Info(INFO | {"foreign": 1}))
    assert read_info(folder).mesh_directory is None
    name_mesh_directory(folder, "mesh_mip_0_err_40")
    assert name_mesh_directory(folder, "mesh_mip_0_err_40").data == read_info(folder).data
    assert read_info(folder).data == INFO | {"foreign": 1, "mesh": "mesh_mip_0_err_40"}
    with pytest.raises(InvalidInfo, match="in mesh_mip_0_err_40, not in other"):
        name_mesh_directory(folder, "other")


@pytest.mark.parametrize("name", ["../mesh", "/mesh", "gs://bucket/mesh", ".", 5, ["mesh"]])
def test_a_mesh_directory_outside_of_the_layer_is_refused(name):
    with pytest.raises(InvalidInfo, match="not inside the layer"):
        _ = Info(INFO | {"mesh": name}).mesh_directory


def test_a_mesh_directory_is_tidied():
    assert Info(INFO | {"mesh": "mesh/"}).mesh_directory == "mesh"
    assert Info(INFO | {"mesh": ""}).mesh_directory is None
