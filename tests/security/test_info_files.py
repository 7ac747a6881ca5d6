"""Hostile and broken `info` files are refused by name, by every stage, before anything else."""

import json
import tracemalloc

import numpy as np
import pytest

from igneous_airflow.errors import InvalidInfo, InvalidLevels, InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages import registered_stages
from igneous_airflow.storage.consensus import Consensus
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import read_info
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.levels import LevelsFolder
from igneous_airflow.storage.meshes import MeshFolder
from igneous_airflow.storage.provenance import read_provenance
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.viewer.state import Shown, viewer_state

SCALE = {
    "key": "8_8_40",
    "size": [64, 32, 16],
    "voxel_offset": [0, 0, 0],
    "chunk_sizes": [[8, 8, 8]],
    "encoding": "raw",
    "resolution": [8, 8, 40],
}
INFO = {"data_type": "uint64", "num_channels": 1, "type": "segmentation", "scales": [SCALE]}
ABSURD_KEYS = [
    *[
        "",
        ".",
        "./",
        "/",
        "/8_8_40",
        "/etc",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "..\\x",
        "a\\..\\..\\x",
    ],
    *[
        "%2e%2e/x",
        "..%2fx",
        "%2Fetc",
        "a/%2E%2E/b",
        "a\0b",
        "a\nb",
        "a\x1bb",
        "\x7f",
        "\ud800",
        "a%00b",
    ],
    *[5, None, ["8_8_40"], {"a": 1}, True],
]
ABSURD_FOLDERS = ["..", "../names", "/etc", "mesh/../../x", "%2e%2e/x", "..\\x", "a\0b", "a\nb"]


def text_of(info=INFO, **scale):
    return json.dumps({**info, "scales": [{**SCALE, **scale}]})


def with_text(before, after):
    """The info with a number as no writer of JSON writes it."""
    text = text_of()
    assert before in text
    return text.replace(before, after, 1)


BROKEN = {
    "200,000 open brackets": ("[" * 200_000, "nested too deeply"),
    "200,000 open braces": ('{"a":' * 200_000, "nested too deeply"),
    "brackets inside": (
        text_of({**INFO, "x": 0}).replace('"x": 0', '"x": ' + "[" * 200_000),
        "nested too",
    ),
    "1e400": (with_text("[8, 8, 40]", "[8, 8, 1e400]"), "1e400 is too large a number"),
    "-1e400": (with_text("[0, 0, 0]", "[0, 0, -1e400]"), "-1e400 is too large a number"),
    "1e400 elsewhere": (text_of({**INFO, "x": 1}).replace('"x": 1', '"x": 1e999'), "1e999"),
    "NaN": (with_text("[8, 8, 40]", "[8, NaN, 40]"), "NaN is not a number of JSON"),
    "Infinity": (with_text("[64, 32, 16]", "[64, Infinity, 16]"), "Infinity is not a number"),
    "-Infinity": (with_text("[64, 32, 16]", "[64, -Infinity, 16]"), "-Infinity is not a number"),
    "5,000 digits": (with_text("[64", "[" + "9" * 5000), "digits"),
    "two types": (text_of().replace('"type"', '"type": "image", "type"'), "'type' comes twice"),
    "two sizes": (text_of().replace('"size"', '"size": [1, 1, 1], "size"'), "'size' comes twice"),
    "size of 2**63": (text_of(size=[1 << 63, 1, 1]), "voxel's number is larger than 9007199254"),
    "size of 1e30": (text_of(size=[10**30, 1, 1]), "voxel's number is larger"),
    "offset of -2**60": (text_of(voxel_offset=[0, -(1 << 60), 0]), "voxel's number is larger"),
    "chunks of 2**60": (text_of(chunk_sizes=[[1 << 60, 8, 8]]), "voxel's number is larger"),
    "1e-300 nm": (text_of(resolution=[1e-300, 1e300, 1]), "resolution .* is not between 1e-06 and"),
    "1e300 nm": (text_of(resolution=[8, 8, 1e300]), "resolution .* is not between 1e-06 and 1e"),
    "0 nm": (text_of(resolution=[8, 8, 0]), "resolution .* is not between"),
    "10**9 channels": (text_of({**INFO, "num_channels": 10**9}), "num_channels 1000000000 is not"),
    "true channels": (text_of({**INFO, "num_channels": True}), "num_channels True is not"),
    "quality": (text_of(encoding="jpeg", jpeg_quality=500), "jpeg_quality is 500, not between"),
    "quality in words": (text_of(encoding="jxl", jxl_quality="best"), "'best', not a number"),
    "level of lists": (text_of(encoding="png", png_level=[9]), r"png_level is \[9\], not a number"),
    "true dimensions": (text_of(encoding="zfpc", zfpc_correlated_dims=[1] * 4), "not four of true"),
    **{
        f"key {key!r}": (
            text_of(key=key),
            "of a scale is not the name of a folder inside",
        )
        for key in ABSURD_KEYS
    },
    **{
        f"{kind} {name!r}": (
            text_of({**INFO, kind: name}),
            f"given for {kind} is not the name of a folder inside",
        )
        for kind in ("mesh", "skeletons", "segment_properties")
        for name in ABSURD_FOLDERS
    },
}


@pytest.fixture
def folder(tmp_path):
    write_layer(tmp_path / "layer", random_voxels(Vec3(64, 32, 16), "uint64"), LayerSpec())
    return open_folder(f"file://{tmp_path}/layer")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_info_is_refused_with_its_place_and_what_is_wrong(folder, name):
    text, named = BROKEN[name]
    folder.write("info", StoredFile(text.encode()))
    with pytest.raises(InvalidInfo, match=named) as caught:
        read_info(folder)
    assert str(caught.value).startswith(f"{folder.url}/info")
    assert len(str(caught.value)) < 1000


def readers():
    """Each stage that reads a layer, by its field for it."""
    fields = {
        name: next(iter({"layer", "src"} & cls.model_fields.keys()), None)
        for name, cls in registered_stages().items()
        if name != "hypersquare_ingest"  # whose source is not a layer
    }
    return [(name, field) for name, field in fields.items() if field is not None]


WISHES = {
    "delete": {"confirm": True},
    "hypersquare_consensus": {
        "volume_map_path": "{tmp}/volumes",
        "consensus_map_path": "{tmp}/consensus",
    },
    "watershed_remap": {"map_path": "{tmp}/map.npy"},
}


def stage_on(name, field, url, tmp_path):
    cls = registered_stages()[name]
    (tmp_path / "volumes").write_text('{"0-64_0-32_0-16": 1}')
    (tmp_path / "consensus").write_text('{"1": {"1": [7]}}')
    np.save(tmp_path / "map.npy", np.arange(9, dtype=np.uint64))
    wishes = {
        key: value and str(value).replace("{tmp}", str(tmp_path))
        for key, value in WISHES.get(name, {}).items()
    }
    dest = {"dest": f"{tmp_path}/dest"} if "dest" in cls.model_fields else {}
    return cls(**{field: url}, **dest, **wishes)


@pytest.mark.parametrize(("name", "field"), readers())
@pytest.mark.parametrize("broken", ["200,000 open brackets", "key '../x'", "mesh '../names'"])
def test_every_stage_refuses_a_broken_info(folder, tmp_path, name, field, broken):
    folder.write("info", StoredFile(BROKEN[broken][0].encode()))
    stage = stage_on(name, field, folder.url, tmp_path)
    before = set(tmp_path.rglob("*"))
    plan = stage.plan()
    assert [refusal for refusal in plan.refusals if f"{folder.url}/info" in refusal]
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "key",
    [
        "4_4_40",
        "s0",
        "a/b",
        "4.6_4.6_45",
        "8 nm",
        "größe",
        "日本",
        "a%20b",
        "50%",
        "...",
        "a.b",
        "-",
    ],
)
def test_keys_as_layers_in_the_wild_have_them_are_read(tmp_path, key):
    write_layer(tmp_path, random_voxels(Vec3(16, 16, 8), "uint64"))
    (tmp_path / key).parent.mkdir(exist_ok=True)
    (tmp_path / "8_8_40").rename(tmp_path / key)
    info = json.loads((tmp_path / "info").read_text())
    info["scales"][0]["key"] = key
    info["mesh"] = f"meshes of {key}"
    (tmp_path / "info").write_text(json.dumps(info))
    layer = Layer.open(f"file://{tmp_path}")
    scale = layer.scale(0)
    assert scale.key == key
    np.testing.assert_array_equal(
        layer.read(scale, scale.bounds), random_voxels(Vec3(16, 16, 8), "uint64")
    )


@pytest.mark.parametrize(
    "oddity",
    [
        {"mesh": None, "skeletons": None, "segment_properties": None, "@type": 5},
        {"mesh": "", "skeletons": "", "comment": {"deep": [[[[{}]]]]}, "data_type": "UINT64"},
        {"scales": [{**SCALE, "jpeg_quality": None, "hidden": True, "sharding": None}]},
        {"scales": [{**SCALE, "jpeg_quality": "of another encoding"}]},
        {"scales": [{**SCALE, "encoding": "jxl", "jxl_quality": 90.0, "jxl_effort": 3}]},
        {"scales": [{**SCALE, "resolution": [0.001, 1e6, 40.5]}]},
        {"scales": [{**SCALE, "chunk_sizes": [[8, 8, 8], [64, 64, 64]]}]},
        {"num_channels": 65536, "scales": []},
    ],
    ids=str,
)
def test_harmless_oddities_are_read(folder, oddity):
    folder.write("info", StoredFile(json.dumps(INFO | oddity).encode()))
    assert read_info(folder).data == INFO | oddity


@pytest.mark.parametrize("resolution", [[1e-6, 1e15, 1], [0.3, 1e6, 40]])
def test_the_viewer_shows_any_layer_that_can_be_opened(folder, resolution):
    folder.write("info", StoredFile(text_of(resolution=resolution).encode()))
    state = viewer_state([Shown.of("a", "data/run/a", Layer.open(folder.url))])
    json.dumps(state, allow_nan=False)


def test_a_long_info_is_refused_without_being_parsed(folder):
    text = json.dumps({**INFO, "x": "y" * (9 << 20)}).encode()
    folder.write("info", StoredFile(text))
    tracemalloc.start()
    with pytest.raises(
        InvalidInfo, match=r"info cannot be read: .* is larger than the 8,388,608 bytes"
    ):
        read_info(folder)
    assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    tracemalloc.stop()


CELL = BoundingBox.parse("0-1_0-1_0-1")
DEEP = StoredFile(b"[" * 200_000)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("provenance", read_provenance, InvalidInfo),
        ("mesh/info", lambda folder: MeshFolder(folder, "mesh").read_info(), InvalidInfo),
        ("mesh/7:0", lambda folder: MeshFolder(folder, "mesh").read_mesh(7), InvalidInfo),
        (
            "mesh/cells/0-1_0-1_0-1",
            lambda folder: MeshFolder(folder, "mesh").read_record(CELL),
            InvalidInfo,
        ),
        ("levels/0/3", lambda folder: LevelsFolder(folder.url, 0, "uint8").read(3), InvalidLevels),
        ("run.json", lambda folder: Run.load(folder.url), InvalidParameter),
        (
            "volumes",
            lambda folder: Consensus.open(f"{folder.url}/volumes", "mem://x/y"),
            InvalidParameter,
        ),
    ],
)
def test_other_files_of_many_brackets_are_refused_by_name(folder, name, read, error):
    folder.write(name, DEEP)
    with pytest.raises(error, match=name) as caught:
        read(folder)
    assert len(str(caught.value)) < 1000
