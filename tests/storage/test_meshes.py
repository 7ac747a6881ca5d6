"""Mesh directories: names and bytes, as cloud-volume reads them."""

import json
import uuid

import numpy as np
import pytest
from cloudvolume.mesh import Mesh
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.mesh_info import MeshInfo
from igneous_airflow.storage.mesh_record import Record
from igneous_airflow.storage.meshes import (
    MeshFolder,
    decode_fragment,
    encode_fragment,
    read_name,
)

CELL = BoundingBox.parse("0-64_-64-0_7-71")
BIG = 2**64 - 1
VERTICES = np.array([[0, 0, 0.5], [1, 0, 0], [0, 1e6, 0]], np.float32)
FACES = np.array([[0, 1, 2], [2, 1, 0]], np.uint32)


@pytest.fixture(params=["file", "mem"])
def folder(request, tmp_path):
    places = {"file": f"file://{tmp_path}/layer", "mem": f"mem://{uuid.uuid4()}/layer"}
    return MeshFolder(open_folder(places[request.param]), "mesh")


def content(folder, name):
    return bytes(decompress_bytes(folder.layer.read(f"mesh/{name}"), 1 << 20))


def test_a_fragment_is_one_that_cloud_volume_reads():
    mesh = Mesh.from_precomputed(encode_fragment(VERTICES, FACES))
    np.testing.assert_array_equal(mesh.vertices, VERTICES)
    np.testing.assert_array_equal(mesh.faces, FACES)


@pytest.mark.parametrize(
    ("compress", "compression"),
    [("auto", "gzip"), ("gzip", "gzip"), ("none", ""), ("br", "br"), ("zstd", "zstd")],
)
def test_a_fragment_is_named_by_label_and_cell(folder, compress, compression):
    fragment = encode_fragment(VERTICES, FACES)
    size = folder.write_fragment(BIG, CELL, fragment, compress)
    (name,) = folder.names()
    assert name == "18446744073709551615:0:0-64_-64-0_7-71"
    stored = folder.layer.read(f"mesh/{name}")
    assert (stored.compression, len(stored.content)) == (compression, size)
    assert content(folder, name) == fragment


def test_a_manifest_lists_its_fragments_in_order_uncompressed(folder):
    size = folder.write_manifest(BIG, ["b", "a"])
    stored = folder.layer.read(f"mesh/{BIG}:0")
    assert (stored.compression, len(stored.content)) == ("", size)
    assert json.loads(bytes(stored.content)) == {"fragments": [f"{BIG}:0:b", f"{BIG}:0:a"]}


def test_a_spatial_index_has_labels_as_text(folder):
    folder.write_spatial_index("0-1_0-1_0-1.spatial", {BIG: [0, 1, 2, 3, 4, 5]}, "auto")
    folder.write_spatial_index("1-2_0-1_0-1.spatial", {}, "none")
    assert json.loads(content(folder, "0-1_0-1_0-1.spatial")) == {str(BIG): [0, 1, 2, 3, 4, 5]}
    assert content(folder, "1-2_0-1_0-1.spatial") == b"{}"


def test_a_record_is_read_back_and_found_by_its_cell(folder):
    assert folder.read_record(CELL) is None
    assert folder.recorded() == set()
    record = Record("fingerprint", (1, BIG))
    folder.write_record(CELL, record)
    assert folder.read_record(CELL) == record
    assert folder.recorded() == {str(CELL)}
    assert list(folder.names()) == []


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"parameters": "x"}', b'{"labels": ["y"]}'])
def test_a_broken_record_is_refused_with_its_place(folder, text):
    folder.layer.write(f"mesh/cells/{CELL}", StoredFile(text))
    with pytest.raises(InvalidInfo, match=f"cells/{CELL}"):
        folder.read_record(CELL)


def test_a_damaged_file_is_refused_with_its_place(folder):
    folder.layer.write("mesh/info", StoredFile(b"no gzip", "gzip"))
    with pytest.raises(InvalidInfo, match="mesh/info cannot be read"):
        folder.read_info()


@given(st.integers(1, BIG), st.text(min_size=1, max_size=20))
def test_the_names_of_fragments_and_manifests_are_read_back(label, cell):
    assert read_name(f"{label}:0:{cell}") == (label, cell)
    assert read_name(f"{label}:0") == (label, "")


@pytest.mark.parametrize(
    "name",
    ["info", "0:0", "0:0:a", "01:0", "1:1", "1:1:a", "1:0:", "1:00", "-1:0", "a:0", "0-1_0-1_0-1"],
)
def test_other_files_are_of_no_label(name):
    assert read_name(name) == (0, "")


def test_labels_are_listed_by_their_first_digits(folder):
    for label in (1, 10, 12, 123, 2):
        folder.write_manifest(label, [])
    folder.write_record(CELL, Record("", ()))
    assert sorted(folder.names_starting(["1:", "12"])) == ["123:0", "12:0", "1:0"]
    assert list(folder.names_starting(["9"])) == []


def test_parts_are_added_to_the_info_of_the_same_grid(folder):
    first = MeshInfo(0, Vec3.full(64), (CELL,))
    folder.layer.write("info", StoredFile(b"{}"))
    folder.add_part(first, {"chunk_size": [1, 1, 1]})
    folder.write_record(CELL, Record("", ()))
    other = BoundingBox.parse("64-128_0-64_0-64")
    folder.add_part(MeshInfo(0, Vec3.full(64), (other,)), None)
    info = folder.read_info()
    assert info.parts == (CELL, other)
    assert info.others["spatial_index"] == {"chunk_size": [1, 1, 1]}
    assert folder.recorded() == {str(CELL)}


def test_a_part_that_somebody_overwrites_meanwhile_is_added_again():
    folder = MeshFolder(open_folder(f"mem://{uuid.uuid4()}/layer"), "mesh")
    other = BoundingBox.parse("64-128_0-64_0-64")
    theirs = MeshInfo(0, Vec3.full(64), (other,)).data(None) | {"segment_properties": "theirs"}
    write, overwritten = folder.layer.write, []

    def write_and_be_overwritten(name, file, **options):
        write(name, file, **options)
        if not overwritten:
            overwritten.append(name)
            write(name, StoredFile(json.dumps(theirs).encode()))

    folder.layer.write = write_and_be_overwritten
    folder.add_part(MeshInfo(0, Vec3.full(64), (CELL,)), None)
    assert overwritten == ["mesh/info"]
    info = folder.read_info()
    assert info.parts == (other, CELL)
    assert info.others["segment_properties"] == "theirs"


def test_the_info_of_another_grid_takes_the_records_with_it(folder):
    folder.layer.write("info", StoredFile(b"{}"))
    folder.add_part(MeshInfo(0, Vec3.full(64), (CELL,)), None)
    folder.write_record(CELL, Record("", ()))
    folder.write_fragment(1, CELL, b"", "auto")
    folder.add_part(MeshInfo(1, Vec3.full(64), (CELL,)), None)
    assert folder.read_info().mip == 1
    assert folder.recorded() == set()
    assert list(folder.names()) != []


def test_files_are_deleted_by_name_whatever_their_compression(folder):
    folder.write_fragment(1, CELL, b"x", "gzip")
    folder.write_fragment(2, CELL, b"x", "none")
    folder.delete([f"1:0:{CELL}", f"2:0:{CELL}", "absent"])
    assert list(folder.names()) == []
    assert folder.url.endswith("layer/mesh")


def test_fragments_come_back_from_their_bytes():
    vertices, faces = decode_fragment(encode_fragment(VERTICES, FACES))
    np.testing.assert_array_equal(vertices, VERTICES)
    np.testing.assert_array_equal(faces, FACES)
    vertices, faces = decode_fragment(encode_fragment(VERTICES[:0], FACES[:0]))
    assert (vertices.shape, faces.shape) == ((0, 3), (0, 3))


def test_a_mesh_is_read_as_its_manifest_says(folder):
    for cell, shift in (("a", 0), ("b", 100)):
        content = encode_fragment(VERTICES + np.float32(shift), FACES)
        folder._write(f"{BIG}:0:{cell}", content, "model/mesh", "gzip")
    assert folder.read_mesh(BIG) is None
    folder.write_manifest(BIG, ["b", "a"])
    vertices, faces = folder.read_mesh(BIG)
    np.testing.assert_array_equal(vertices, np.concatenate([VERTICES + np.float32(100), VERTICES]))
    np.testing.assert_array_equal(faces, np.concatenate([FACES, FACES + 3]))


@pytest.mark.parametrize("cut", [0, 3, 10, -4, None], ids=str)
def test_a_fragment_that_is_missing_or_cut_short_is_named(folder, cut):
    if cut is not None:
        content = encode_fragment(VERTICES, FACES)[:cut]
        folder._write("3:0:a", content, "model/mesh", "none")
    folder.write_manifest(3, ["a"])
    with pytest.raises(InvalidInfo, match="mesh/3:0:a is missing or broken"):
        folder.read_mesh(3)


def test_a_face_without_its_vertex_is_noticed(folder):
    folder._write("3:0:a", encode_fragment(VERTICES[:2], FACES), "model/mesh", "none")
    folder.write_manifest(3, ["a"])
    with pytest.raises(InvalidInfo, match="a face has vertex 2 of 2"):
        folder.read_mesh(3)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"fragments": 3}', '{"fragments": [3]}'])
def test_a_broken_manifest_is_named(folder, text):
    folder.layer.write("mesh/3:0", StoredFile(text.encode()), content_type="application/json")
    with pytest.raises(InvalidInfo, match="mesh/3"):
        folder.read_mesh(3)


def test_the_bytes_of_a_label_are_those_of_its_fragments(folder):
    sizes = [folder.write_fragment(3, CELL, encode_fragment(VERTICES, FACES), "none")]
    sizes.append(folder._write("3:0:elsewhere", b"1234", "model/mesh", "none"))
    folder.write_manifest(3, ["elsewhere"])
    folder.write_manifest(4, [])
    assert folder.stored_bytes() == {3: sum(sizes)}
