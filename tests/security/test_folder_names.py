"""Names of folders in a layer: what a form may write, and what is read, by one rule."""

import json
from pathlib import Path

import pytest

from igneous_airflow.errors import InvalidInfo, InvalidParameter, UnreadableSource
from igneous_airflow.fields import folder_in_layer
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.sources.reach import companion_name
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.storage.files import FileEntry, open_folder
from igneous_airflow.storage.folder_names import folder_problem
from igneous_airflow.storage.info import Info, read_info
from igneous_airflow.storage.info_names import check_key
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.parts import FileInParts
from igneous_airflow.storage.place import Place
from igneous_airflow.storage.trash import Entry
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot
from igneous_airflow.viewer.served import folder_inside

ENTRY = "20250102T030405Z-abcdef"
OUTSIDE = "is not the name of a folder inside the layer"
#: Names, and why they are none; empty for those that may be read.
NAMES = {
    **dict.fromkeys(("8_8_40", "a/b", "8_8_40/", "./a", "a.b", " a", "...", "a b", "ü"), ""),
    **dict.fromkeys(("a?b", "a#b", "a:b", "a%20b", "a|b"), ""),  # read by storages, not by viewers
    **dict.fromkeys(("", ".", "./", "/", "/a", "..", "../x", "a/..", "a/../../x"), OUTSIDE),
    **dict.fromkeys(("%2e%2e/x", "%252e%252e/x", "%25252e%25252e/x", "a%2f..%2fb"), OUTSIDE),
    **dict.fromkeys(("%" + "25" * 20 + "2e", "%5c..%5cx", "..\\x", "\\x", "a/ .. /b"), OUTSIDE),
    **dict.fromkeys(("\u2025/x", "\u2024\u2024/x", "..\uff0fx", "\uff0fetc"), OUTSIDE),
    **dict.fromkeys(("a\0b", "a%00b", "a\nb", "\x7f", "\ud800"), OUTSIDE),
    **dict.fromkeys(("a//b", "a%2f%2fb"), "has two slashes in a row"),
    **dict.fromkeys((".trash", ".trash/x", "./.trash/x", "%2etrash/x", ".TRASH"), "is the trash"),
    **dict.fromkeys(("info", "info/x", "./info", "provenance", "%69nfo"), "takes the place of the"),
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_what_is_read_and_what_is_written_go_by_the_same_rule(name: str) -> None:
    why = NAMES[name]
    assert folder_problem(name).startswith(why)
    assert bool(folder_problem(name)) == bool(why)
    if not why:
        assert check_key(name) == name
        assert Entry(name=ENTRY, what="", stage="", folders=(name,)).folders == (name,)
        return
    with pytest.raises(InvalidInfo, match=why):
        check_key(name)
    with pytest.raises(ValueError, match=why):
        Entry(name=ENTRY, what="", stage="", folders=(name,))
    if "//" not in name:  # which is tidied
        with pytest.raises(ValueError, match=r"(?i)folder|contain|trash|place|slashes"):
            folder_in_layer(name)


@pytest.mark.parametrize("name", [*NAMES, ".x", "a/.x", "info/x", "cells", "levels"], ids=ascii)
def test_what_a_form_writes_is_read(name: str) -> None:
    try:
        written = folder_in_layer(name)
    except ValueError:
        return
    assert folder_problem(written) == ""
    assert folder_inside(written) == written


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_viewer_serves_no_folder_that_is_refused(name: str) -> None:
    assert folder_inside(name) is None or not NAMES[name]


CLIMBING = ["..", "../x", "a/../../x", "%2e%2e/x", "%252e%252e/x", "..\\x", "\u2025/x", "..%2fx"]


@pytest.mark.parametrize("name", [*CLIMBING, "%" + "25" * 20 + "2e"], ids=ascii)
def test_addresses_and_names_in_sources_go_by_the_same_readings(name: str) -> None:
    with pytest.raises(InvalidParameter, match="may lead to another folder"):
        Place.parse(f"s3://bucket/{name.replace(chr(92), '%5c')}/x")
    folder = open_folder("mem://bucket/source")
    index = FileInParts(folder, FileEntry("index", 1))
    with pytest.raises(UnreadableSource, match="lies outside of"):
        companion_name(index, name, "index")


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    write_layer(tmp_path / "layer", random_voxels(Vec3(16, 16, 16), "uint64"), LayerSpec())
    return tmp_path / "layer"


def change(layer: Path, **changes: object) -> None:
    data = json.loads((layer / "info").read_text())
    (layer / "info").write_text(json.dumps(data | changes))


def scale(layer: Path, key: str, edge: int = 8) -> dict[str, object]:
    (first,) = json.loads((layer / "info").read_text())["scales"]
    return {**first, "key": key, "resolution": [edge, edge, 40]}


@pytest.mark.parametrize("key", [f".trash/{ENTRY}/files/8_8_40", "provenance", "info", "a//b"])
def test_a_scale_where_the_trash_or_a_file_of_the_layer_lies_is_refused_by_every_plan(
    layer: Path, key: str
) -> None:
    change(layer, scales=[scale(layer, key)])
    kept = layer / ".trash" / ENTRY / "files/8_8_40/0-8_0-8_0-8"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    before = snapshot(layer)
    for keep in (True, False):
        plan = Delete(layer=str(layer), confirm=True, keep_deleted=keep).plan()
        assert f"the key {key!r} of a scale" in plan.refusals[0]
    assert snapshot(layer) == before


@pytest.mark.parametrize("other", ["8_8_40", "./8_8_40", "8_8_40/", "8_8_40/x"])
def test_scales_that_share_files_are_refused(layer: Path, other: str) -> None:
    for keys in (("8_8_40", other), (other, "8_8_40")):
        scales = [scale(layer, key, edge) for key, edge in zip(keys, (8, 16), strict=True)]
        data = json.loads((layer / "info").read_text()) | {"scales": scales}
        with pytest.raises(InvalidInfo, match=r"the folder of scale .* is that of scale"):
            Info.parse(json.dumps(data).encode(), str(layer))


@pytest.mark.parametrize("kind", ["mesh", "skeletons", "segment_properties"])
@pytest.mark.parametrize("folder", ["8_8_40", "8_8_40/x", "./8_8_40"])
def test_a_scale_that_shares_files_with_meshes_is_refused(
    layer: Path, kind: str, folder: str
) -> None:
    change(layer, **{kind: folder})
    with pytest.raises(InvalidInfo, match=f"scale 8_8_40 is that of {kind}, {folder}, or one"):
        Layer.open(f"file://{layer}")


def test_a_scale_is_not_added_where_the_meshes_are(layer: Path) -> None:
    change(layer, mesh="16_16_40")
    info = read_info(Layer.open(f"file://{layer}").folder)
    coarser = info.scales[0].downsampled(Vec3(2, 2, 1))
    with pytest.raises(InvalidInfo, match="scale 16_16_40 is that of mesh"):
        info.with_scales([coarser])


def test_a_mesh_directory_that_a_server_reads_otherwise_is_not_taken(layer: Path) -> None:
    for name in ("%2e%2e/m", "a?b", "a#b"):
        with pytest.raises(ValueError, match=r"folder inside the layer|may contain"):
            Mesh(layer=str(layer), mesh_dir=name)
