"""Which paths are files of a layer's format: everything else is never opened."""

from contextlib import suppress

import pytest

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.storage.info import INFO_BYTES, Info
from igneous_airflow.viewer.served import LARGEST, folder_inside, served_file

SCALE = {
    "key": "8_8_40",
    "resolution": [8, 8, 40],
    "size": [100, 60, 20],
    "voxel_offset": [10, -20, 0],
    "chunk_sizes": [[64, 64, 16], [100, 60, 1]],
    "encoding": "raw",
}
SHARDED = {
    **SCALE,
    "key": "16_16_40",
    "resolution": [16, 16, 40],
    "size": [50, 30, 20],
    "voxel_offset": [5, -10, 0],
    "sharding": {"@type": "neuroglancer_uint64_sharded_v1"},
}
INFO = {
    "type": "segmentation",
    "data_type": "uint64",
    "num_channels": 1,
    "scales": [SCALE, SHARDED],
    "mesh": "mesh_mip_0",
    "skeletons": "deep/skeletons",
    "segment_properties": "names",
}


def info(**changes):
    return Info({**INFO, **changes})


def with_key(key):
    return info(scales=[{**SCALE, "key": key}])


SERVED = [
    "info",
    "8_8_40/10-74_-20-40_0-16",
    "8_8_40/74-110_-20-40_16-20",
    "8_8_40/10-110_-20-40_7-8",  # of the second chunk size
    "16_16_40/0f.shard",
    "16_16_40/0123456789abcdef.shard",
    "mesh_mip_0/info",
    "mesh_mip_0/18446744073709551615:0",
    "mesh_mip_0/7:0:0-64_0-64_0-64",
    "mesh_mip_0/7:0:-64-0_-64-0_0-64",
    "mesh_mip_0/7",
    "mesh_mip_0/7.index",
    "mesh_mip_0/0a.shard",
    "deep/skeletons/info",
    "deep/skeletons/7",
    "deep/skeletons/0a.shard",
    "names/info",
]


@pytest.mark.parametrize("path", SERVED)
def test_what_neuroglancer_asks_for_is_served(path):
    file = served_file(info(), path)
    assert file is not None
    assert file.name == path
    assert 0 < file.most <= LARGEST


OTHERS = [
    "",
    "/",
    ".",
    "..",
    "provenance",
    "airflow.cfg",
    "passwords.json",
    "airflow.db",
    "info.gz",
    "info/",
    "/info",
    "./info",
    "INFO",
    "info\n",
    "info\0",
    "other/info",
    "8_8_40/info",
    "8_8_40",
    "8_8_40/",
    "8_8_40/.igneous",
    "8_8_40/11-75_-20-40_0-16",  # on no grid
    "8_8_40/10-75_-20-40_0-16",
    "8_8_40/74-138_-20-40_0-16",  # not clipped
    "8_8_40/110-174_-20-40_0-16",  # outside
    "8_8_40/10-10_-20-40_0-16",  # empty
    "8_8_40/010-74_-20-40_0-16",
    "8_8_40/+10-74_-20-40_0-16",
    "8_8_40/10-74_-20-40_0-16.gz",
    "8_8_40/10-74_-20-40_0-16\n",
    "8_8_40/10-74_-20-40_-0-16",
    "8_8_40/\u0661\u0660-74_-20-40_0-16",
    "8_8_40/../8_8_40/10-74_-20-40_0-16",
    "8_8_40//10-74_-20-40_0-16",
    "8_8_40/0f.shard",  # of a scale that is not sharded
    "16_16_40/5-50_-10-20_0-16",  # of one that is
    "16_16_40/0F.shard",
    "16_16_40/.shard",
    "16_16_40/0f.shard.gz",
    "16_16_40/0f.index",
    "16_16_40/0123456789abcdef0.shard",
    "16_16_40/x.shard",
    "mesh_mip_0",
    "mesh_mip_0/",
    "mesh_mip_0/cells/0-64_0-64_0-64",
    "mesh_mip_0/0-64_0-64_0-64.spatial",
    "mesh_mip_0/07:0",
    "mesh_mip_0/-7:0",
    "mesh_mip_0/7:0:",
    "mesh_mip_0/7:0:../../../etc/passwd",
    "mesh_mip_0/7:0:a/b",
    "mesh_mip_0/7:0:a%2fb",
    "mesh_mip_0/7:0:a\\b",
    "mesh_mip_0/7:0:" + "a" * 300,
    "mesh_mip_0/999999999999999999999",
    "mesh_mip_0/id_rsa",
    "mesh_mip_0/passwords.json",
    "mesh_mip_0/../8_8_40/10-74_-20-40_0-16",
    "deep/info",
    "deep/skeletons/7:0",
    "skeletons/info",
    "names/7",
    "names/labels.json",
    "8_8_40/" + "1" * 5000 + "-74_-20-40_0-16",
]


@pytest.mark.parametrize("path", OTHERS)
def test_what_else_lies_in_a_layer_is_not(path):
    assert served_file(info(), path) is None


#: Keys that name no folder plainly inside of the layer.
OUTSIDE = [
    "",
    ".",
    "./",
    "..",
    "../names",
    "a/../../names",
    "a/..",
    "/etc",
    "//host/share",
    "file:///etc",
    "s3://bucket/x",
    "C:\\secret",
    "..\\names",
    "a\\b",
    "%2e%2e/names",
    "a%2fb",
    "a?b",
    "a#b",
    "a\nb",
    "a\0b",
    "a\ud800b",
    "a\u202eb",
    7,
    None,
    True,
    [],
    ["mesh"],
    {"mesh": "x"},
]


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_key_that_may_lead_out_of_the_layer_names_no_folder(key):
    assert folder_inside(key) is None


@pytest.mark.parametrize("key", [key for key in OUTSIDE if isinstance(key, str)])
@pytest.mark.parametrize("field", ["mesh", "skeletons", "segment_properties"])
def test_nothing_is_served_through_such_a_key(field, key):
    hostile = info(**{field: key})
    paths = [f"{key}/info", f"{key}/7", f"{key}/7:0", f"{key}/0a.shard", "names/info", "etc/info"]
    served = {path for path in paths if served_file(hostile, path)}
    assert served <= ({"names/info"} if field != "segment_properties" else set())


@pytest.mark.parametrize("key", ["../8_8_40", "/data/8_8_40", "a/../../8_8_40", "..\\8_8_40"])
def test_nothing_is_served_of_a_scale_whose_key_leads_out(key):
    for folder in (key, "8_8_40", key.replace("\\", "/"), key.lstrip("/")):
        with suppress(InvalidInfo):  # the info of such a layer may be refused as a whole
            assert served_file(with_key(key), f"{folder}/10-74_-20-40_0-16") is None


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        ("8_8_40", "8_8_40"),
        ("8.5_8.5_40", "8.5_8.5_40"),
        ("./8_8_40", "8_8_40"),
        ("8_8_40/", "8_8_40"),
        ("mips/8 nm", "mips/8 nm"),
        ("größe_1", "größe_1"),
        ("...", "..."),
        (".hidden", ".hidden"),
    ],
)
def test_a_key_of_another_spelling_names_a_folder_inside(key, folder):
    assert folder_inside(key) == folder
    assert served_file(with_key(key), f"{folder}/10-74_-20-40_0-16") is not None


@pytest.mark.parametrize(
    "sizes",
    [[[64, 64, 16], "x"], [[64, 64, 16], [0, 1, 1]], [[64, 64, 16], [1, 1]], [[64, 64, 16], None]],
)
def test_a_broken_second_chunk_size_serves_nothing_new(sizes):
    layer = info(scales=[{**SCALE, "chunk_sizes": sizes}])
    assert served_file(layer, "8_8_40/10-110_-20-40_7-8") is None


def test_a_chunk_may_have_the_bytes_of_its_voxels():
    """64 x 60 x 16 voxels of 8 bytes, and room for the headers of a compression."""
    voxels = 64 * 60 * 16
    raw = served_file(info(), "8_8_40/10-74_-20-40_0-16")
    assert 8 * voxels <= raw.most <= 8 * voxels + (1 << 16)
    encoded = info(scales=[{**SCALE, "encoding": "compressed_segmentation"}])
    most = served_file(encoded, "8_8_40/10-74_-20-40_0-16").most
    assert 2 * 8 * voxels <= most <= 3 * 8 * voxels + (1 << 16)


def test_an_edge_chunk_is_bounded_by_its_own_voxels():
    whole = served_file(info(), "8_8_40/10-74_-20-40_0-16").most
    edge = served_file(info(), "8_8_40/74-110_-20-40_16-20").most
    assert edge < whole


def test_no_chunk_size_lets_a_file_be_larger_than_is_served():
    size = 10**6
    scale = {**SCALE, "size": [size] * 3, "voxel_offset": [0] * 3, "chunk_sizes": [[size] * 3]}
    file = served_file(info(scales=[scale]), f"8_8_40/0-{size}_0-{size}_0-{size}")
    assert file.most == LARGEST


def test_an_info_file_has_the_bound_that_every_info_has():
    assert served_file(info(), "info").most == INFO_BYTES
    assert served_file(info(), "mesh_mip_0/info").most == INFO_BYTES
