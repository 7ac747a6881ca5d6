"""Mesh: its contract, and its surfaces as cloud-volume reads and trimesh judges them."""

import gzip
import json

import numpy as np
import pytest
import zmesh
from cloudvolume import CloudVolume
from cloudvolume.mesh import Mesh as Fragment
from trimesh import Trimesh

from igneous_airflow.errors import (
    AuditFailed,
    MissingChunk,
    StorageUnavailable,
    UnsupportedLayer,
)
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import StageTests, complete, snapshot
from igneous_airflow.testing.surfaces import blobs, distances, read_mesh

BIG, BIGGEST = 2**53 + 1, 2**64 - 1
SPEC = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(16, 16, 16))
MESHES = "mesh_mip_0_err_40"


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        spec = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(8, 8, 8))
        layer = write_layer(tmp_path / "layer", random_voxels(Vec3(33, 17, 9), "uint64"), spec)
        return Mesh(layer=layer, mip=-1, shape=(16, 16, 8), exclude_object_ids=["7"])


class TestContractOfAPart(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
        return Mesh(
            layer=layer,
            shape=(17, 13, 29),
            bounds="21-22_-7-20_12-13",
            closed_dataset_edges=False,
            spatial_index=False,
            simplification=False,
            dust_threshold=5,
            remap_table={1: BIG, BIG: BIG, BIGGEST: 1},
            compress="none",
        )


@pytest.fixture
def mesh(tmp_path):
    """Write a layer to `tmp_path/layer` and mesh it, manifests included."""

    def write_and_mesh(voxels, spec=SPEC, **wishes):
        layer = write_layer(tmp_path / "layer", voxels, spec)
        complete(Mesh(layer=layer, **wishes))
        return complete(MeshManifest(layer=layer))

    return write_and_mesh


def fragments(layer, directory=MESHES):
    """The fragments of a layer on disk, by label and cell."""
    found = {}
    for path in (layer / directory).iterdir():
        label, *rest = path.name.removesuffix(".gz").split(":")
        if len(rest) == 2:
            found[int(label), rest[1]] = Fragment.from_precomputed(
                gzip.decompress(path.read_bytes())
            )
    return found


def write_voxels(layer, voxels):
    """Write other voxels into a layer of one scale."""
    opened = Layer.open(layer)
    opened.write(opened.info.scales[0], voxels)


def a_box(*corners, size=(128, 64, 64), label=5):
    voxels = np.zeros((*size, 1), np.uint64, order="F")
    voxels[tuple(slice(low, high) for low, high in corners)] = label
    return voxels


@pytest.mark.parametrize("closed", [True, False])
def test_surfaces_lie_where_igneous_puts_them(tmp_path, closed):
    """In voxels: a side at the volume's end is at 0 when closed, in the middle of it if open."""
    voxels = a_box((10, 100), (10, 50), (0, 50))
    spec = LayerSpec("segmentation", (64, 64, 64), resolution=(16, 16, 40))
    layer = write_layer(tmp_path, voxels, spec)
    complete(
        Mesh(layer=layer, shape=(64, 64, 64), simplification=False, closed_dataset_edges=closed)
    )
    found = fragments(tmp_path)
    assert set(found) == {(5, "0-64_0-64_0-64"), (5, "64-128_0-64_0-64")}
    low = 0 if closed else 0.5
    for (_, cell), (start, stop) in zip(sorted(found), ((10, 64.5), (64.5, 100)), strict=True):
        vertices = found[5, cell].vertices / [16, 16, 40]
        np.testing.assert_array_equal(vertices.min(axis=0), [start, 10, low])
        np.testing.assert_array_equal(vertices.max(axis=0), [stop, 50, 50])


def test_without_closed_edges_surfaces_are_open_at_both_ends_of_the_volume(tmp_path):
    layer = write_layer(tmp_path, a_box((0, 8), (2, 6), (2, 6), size=(8, 8, 8)), SPEC)
    complete(Mesh(layer=layer, simplification=False, closed_dataset_edges=False))
    (fragment,) = fragments(tmp_path).values()
    vertices = fragment.vertices / [8, 8, 40] - SPEC.voxel_offset
    assert vertices[:, 0].min() == 0.5
    assert vertices[:, 0].max() == 7.5
    assert not Trimesh(fragment.vertices, fragment.faces).is_watertight


@pytest.mark.parametrize("shape", [(90, 80, 60), (32, 32, 32), (31, 79, 59), (89, 17, 13)], ids=str)
def test_a_volume_cut_into_many_tasks_has_surfaces_without_gaps(tmp_path, mesh, shape):
    spec = LayerSpec("segmentation", (32, 32, 32), (5, -9, 100), (16, 16, 40))
    voxels = blobs(Vec3(90, 80, 60))
    mesh(voxels, spec, shape=shape)
    for label in (1, BIG, BIGGEST):
        surface = read_mesh(tmp_path / "layer", label)
        assert surface.is_watertight
        assert surface.is_winding_consistent
        assert surface.body_count == 1
        volume = np.count_nonzero(voxels == label) * 16 * 16 * 40
        assert surface.volume == pytest.approx(volume, rel=0.02)
        corners = np.argwhere(voxels[..., 0] == label) + spec.voxel_offset
        low, high = corners.min(axis=0), corners.max(axis=0) + 1
        assert (np.abs(surface.bounds - [low * spec.resolution, high * spec.resolution]) < 40).all()


@pytest.mark.parametrize("size", [(1, 1, 1), (33, 1, 1), (17, 16, 1), (2, 33, 17)], ids=str)
def test_thin_volumes_have_surfaces(tmp_path, mesh, size):
    mesh(np.full((*size, 1), 3, np.uint8, order="F"), shape=(16, 16, 16))
    surface = read_mesh(tmp_path / "layer", 3)
    assert surface.is_watertight
    assert surface.volume > 0


def test_cells_without_labels_leave_an_empty_index_and_no_fragment(tmp_path, mesh):
    voxels = a_box((2, 9), (2, 9), (2, 9), size=(33, 16, 16))
    audit = mesh(voxels, shape=(16, 16, 16))
    assert audit.outputs == {MESHES: 1}
    assert len(fragments(tmp_path / "layer")) == 1
    indices = sorted((tmp_path / "layer" / MESHES).glob("*.spatial.gz"))
    assert [json.loads(gzip.decompress(path.read_bytes())) != {} for path in indices] == [
        False,
        True,
        False,
    ]


def test_a_volume_of_background_is_done_without_a_fragment(tmp_path, mesh):
    assert mesh(np.zeros((20, 20, 20, 1), np.uint64, order="F")).outputs == {MESHES: 0}


@pytest.mark.parametrize("resolution", [(8, 8, 40), (4.6, 4.6, 45), (0.5, 12.25, 1)], ids=str)
def test_cloud_volume_finds_labels_by_the_spatial_index(tmp_path, mesh, resolution):
    offset = (3, -7, 11) if resolution == (8, 8, 40) else (0, 0, 0)  # it asks in whole numbers
    spec = LayerSpec("segmentation", (16, 16, 16), offset, resolution)
    mesh(blobs(Vec3(40, 36, 30)), spec, shape=(16, 16, 16))
    volume = CloudVolume(f"file://{tmp_path}/layer", progress=False)
    assert volume.mesh.meta.info["@type"] == "neuroglancer_legacy_mesh"
    index = volume.mesh.spatial_index
    assert set(index.query(index.physical_bounds)) == {1, BIG, BIGGEST}
    for label in (1, BIG, BIGGEST):
        box = index.get_bbox(label)
        low, high = read_mesh(tmp_path / "layer", label).bounds
        np.testing.assert_array_equal([*box.minpt, *box.maxpt], [*np.floor(low), *np.ceil(high)])


def test_labels_beyond_53_bits_keep_every_digit(tmp_path, mesh):
    mesh(blobs(Vec3(40, 36, 30)), object_ids=[str(BIG), str(BIGGEST)], shape=(16, 16, 16))
    found = fragments(tmp_path / "layer")
    assert {label for label, _ in found} == {BIG, BIGGEST}
    (path,) = (tmp_path / "layer" / MESHES).glob(f"{BIG}:0")
    assert all(name.startswith(f"{BIG}:0:") for name in json.loads(path.read_text())["fragments"])


@pytest.mark.parametrize(
    ("wishes", "labels"),
    [
        ({"object_ids": "1,99"}, {1}),
        ({"exclude_object_ids": [1]}, {BIG, BIGGEST}),
        ({"remap_table": f"1:7,{BIG}:7"}, {7}),
        ({"remap_table": {1: 7, BIG: 8, BIGGEST: 9}, "object_ids": [7, 8, 1]}, {7, 8}),
        ({"remap_table": {1: 7, BIG: 8}, "exclude_object_ids": "8"}, {7}),
        ({"dust_threshold": 4_000}, {BIGGEST}),
        ({"object_ids": "99"}, set()),
    ],
    ids=str,
)
def test_only_the_chosen_labels_are_meshed(tmp_path, mesh, wishes, labels):
    voxels = blobs(Vec3(40, 36, 30))
    mesh(voxels, **wishes)
    assert {label for label, _ in fragments(tmp_path / "layer")} == labels
    if labels == {7} and "remap_table" in wishes and "exclude_object_ids" not in wishes:
        joined = np.count_nonzero((voxels == 1) | (voxels == BIG)) * 8 * 8 * 40
        assert read_mesh(tmp_path / "layer", 7).volume == pytest.approx(joined, rel=0.1)


def test_dust_leaves_no_hole_in_an_object_that_goes_on_next_door(tmp_path, mesh):
    voxels = a_box((2, 17), (2, 14), (2, 14), size=(32, 16, 16))  # 144 voxels of it next door
    voxels[20:22, 3:5, 3:5] = 6
    mesh(voxels, shape=(16, 16, 16), dust_threshold=200)
    assert {label for label, _ in fragments(tmp_path / "layer")} == {5}
    assert read_mesh(tmp_path / "layer", 5).is_watertight


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [
        *((dtype, "raw") for dtype in ("uint8", "uint16", "uint32", "uint64", "int32")),
        *((dtype, "compressed_segmentation") for dtype in ("uint32", "uint64")),
    ],
)
def test_labels_of_every_dtype_are_meshed(tmp_path, mesh, dtype, encoding):
    voxels = (blobs(Vec3(24, 22, 20)) > 0).astype(dtype) * 9
    mesh(voxels, LayerSpec("segmentation", (8, 8, 8), encoding=encoding), shape=(16, 16, 16))
    assert {label for label, _ in fragments(tmp_path / "layer")} == {9}


def test_negative_labels_are_an_error_that_names_one(tmp_path):
    layer = write_layer(tmp_path, np.full((4, 4, 4, 1), -5, np.int32, order="F"), SPEC)
    with pytest.raises(UnsupportedLayer, match="-5"):
        complete(Mesh(layer=layer))


def test_a_missing_chunk_is_named_unless_it_is_to_be_filled(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    (tmp_path / "8_8_40" / "3-19_-7-9_11-27").unlink()
    with pytest.raises(MissingChunk, match="3-19_-7-9_11-27"):
        complete(Mesh(layer=layer))
    complete(Mesh(layer=layer, fill_missing=True))
    complete(MeshManifest(layer=layer))
    assert read_mesh(tmp_path, 1).is_watertight


def test_a_task_may_run_before_anything_was_prepared(tmp_path):
    """Tasks need no state that another process has left."""
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    stage = Mesh(layer=layer, shape=(20, 36, 30)).resolved()
    for cell in stage.cells():
        stage.run(cell)
    before = {name: text for name, text in snapshot(tmp_path).items() if ":0:" in name}
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    stage.finish("tester")
    after = {name: text for name, text in snapshot(tmp_path).items() if ":0:" in name}
    assert before == after != {}


def test_a_lost_fragment_or_index_or_record_is_noticed_and_comes_back_the_same(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    stage = Mesh(layer=layer, shape=(20, 36, 30)).resolved()
    complete(stage)
    before = snapshot(tmp_path)
    lost = [
        f"{BIG}:0:23-43_-7-29_11-41",
        "24-184_-56-232_440-1640.spatial",
        "cells/23-43_-7-29_11-41",
    ]
    for name in lost:
        (tmp_path / MESHES / f"{name}.gz").unlink()
        with pytest.raises(AuditFailed, match=name.rpartition("/")[2]):
            stage.finish("tester")
        for cell in stage.cells():
            stage.run(cell)
        assert snapshot(tmp_path) == before


def test_a_task_that_was_stopped_at_any_write_is_done_again_with_the_same_bytes(
    tmp_path, monkeypatch
):
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    stage = Mesh(layer=layer, shape=(40, 20, 30)).resolved()
    stage.prepare()
    cells = stage.cells()
    stage.run(cells[1])
    before = snapshot(tmp_path)
    stage.run(cells[0])
    complete_state = snapshot(tmp_path)
    writes = len(complete_state) - len(before)
    assert writes == 3 + 2
    write = LocalFolder.write
    for last in range(writes):
        for name in complete_state.keys() - before.keys():
            (tmp_path / name).unlink()
        left = iter(range(last))

        def write_some(folder, name, file, *, content_type="", left=left):
            if next(left, None) is None:
                raise StorageUnavailable("the disk is full")
            write(folder, name, file, content_type=content_type)

        monkeypatch.setattr(LocalFolder, "write", write_some)
        with pytest.raises(StorageUnavailable):
            stage.run(cells[0])
        assert len(snapshot(tmp_path)) == len(before) + last
        monkeypatch.setattr(LocalFolder, "write", write)
        with pytest.raises(AuditFailed, match=str(cells[0])):
            stage.finish("tester")
        stage.run(cells[0])
        assert snapshot(tmp_path) == complete_state


def test_fragments_of_labels_that_are_not_there_any_more_are_removed(tmp_path):
    voxels = blobs(Vec3(40, 36, 30))
    voxels[0, 0, 0] = 6
    layer = write_layer(tmp_path, voxels, SPEC)
    complete(Mesh(layer=layer, shape=(20, 36, 30)))
    assert {label for label, _ in fragments(tmp_path)} == {1, BIG, BIGGEST, 6}
    voxels[0, 0, 0] = 0
    write_voxels(layer, voxels)
    second = Mesh(
        layer=layer,
        shape=(20, 36, 30),
        max_simplification_error=9,
        keep_deleted=False,
        confirm=True,
    ).resolved()
    second.prepare()
    one, other = second.cells()
    second.run(one)
    with pytest.raises(AuditFailed, match=f"not been meshed with these parameters.*{other}"):
        second.finish("tester")
    second.run(other)
    second.finish("tester")
    assert {label for label, _ in fragments(tmp_path)} == {1, BIG, BIGGEST}


def test_preparing_forgets_only_cells_of_its_region_that_other_parameters_made(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    records = tmp_path / MESHES / "cells"

    def recorded():
        return {path.name for path in records.iterdir()}

    whole = Mesh(layer=layer, shape=(20, 36, 30)).resolved()
    complete(whole)
    whole.prepare()
    assert recorded() == {"3-23_-7-29_11-41.gz", "23-43_-7-29_11-41.gz"}
    for part, left in (
        ("3-4_-7-29_11-41", {"23-43_-7-29_11-41.gz"}),
        ("30-31_-7-29_11-41", {"3-23_-7-29_11-41.gz"}),
    ):
        complete(whole)
        stage = Mesh(
            layer=layer, shape=(20, 36, 30), bounds=part, max_simplification_error=9, confirm=True
        ).resolved()
        stage.prepare()
        assert recorded() == left
        (cell,) = stage.cells()
        stage.run(cell)
        stage.prepare()
        assert len(recorded()) == 2
    next(records.iterdir()).write_bytes(b"broken")
    whole.prepare()
    assert recorded() == set()


def indices(layer):
    return {path.name.removesuffix(".gz") for path in (layer / MESHES).glob("*.spatial*")}


def test_meshing_without_a_spatial_index_leaves_none_of_an_earlier_one(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    wishes = {"layer": layer, "shape": (20, 36, 30)}
    complete(Mesh(**wishes))
    first, second = sorted(indices(tmp_path))
    assert second == "24-184_-56-232_440-1640.spatial"
    complete(Mesh(**wishes, spatial_index=False, bounds="3-4_-7-29_11-41"))
    assert indices(tmp_path) == {first}
    info = tmp_path / MESHES / "info"
    assert "spatial_index" in json.loads(info.read_text())
    complete(Mesh(**wishes, spatial_index=False))
    assert indices(tmp_path) == set()
    assert "spatial_index" not in json.loads(info.read_text())


def test_the_spatial_index_of_an_old_grid_is_removed_but_not_that_of_other_parts(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    complete(Mesh(layer=layer, shape=(13, 36, 30)))
    old = indices(tmp_path)
    wishes = {"layer": layer, "shape": (20, 36, 30), "new_grid": True, "keep_deleted": False}
    complete(Mesh(**wishes, bounds="3-4_-7-29_11-41"))
    left = indices(tmp_path)
    assert len(left) == 1
    assert not left & old
    complete(Mesh(**wishes, bounds="30-31_-7-29_11-41"))
    assert len(indices(tmp_path)) == 2
    assert indices(tmp_path) > left


def test_parts_are_meshed_one_by_one_on_one_grid(tmp_path):
    layer = write_layer(tmp_path / "parts", blobs(Vec3(40, 36, 30)), SPEC)
    whole = write_layer(tmp_path / "whole", blobs(Vec3(40, 36, 30)), SPEC)
    complete(Mesh(layer=whole, shape=(16, 16, 16)))
    for bounds in ("3-4_-7-29_11-41", "20-43_-7-29_11-12", "20-43_-7-29_30-41"):
        complete(Mesh(layer=layer, shape=(16, 16, 16), bounds=bounds))
    parts, every = (snapshot(tmp_path / name / MESHES) for name in ("parts", "whole"))
    assert parts.pop("info") != every.pop("info")
    assert parts == every


def test_the_directory_is_named_in_the_info_and_the_work_in_the_provenance(tmp_path):
    layer = write_layer(tmp_path, blobs(Vec3(40, 36, 30)), SPEC)
    stage = Mesh(layer=layer, max_simplification_error=12.0).resolved()
    complete(stage)
    assert json.loads((tmp_path / "info").read_text())["mesh"] == "mesh_mip_0_err_12"
    info = json.loads((tmp_path / "mesh_mip_0_err_12" / "info").read_text())
    assert (info["mip"], info["chunk_size"]) == (0, [512, 512, 256])
    assert info["spatial_index"] == {
        "resolution": [8, 8, 40],
        "chunk_size": [512 * 8, 512 * 8, 256 * 40],
    }
    (entry,) = json.loads((tmp_path / "provenance").read_text())["processing"]
    assert entry["method"] == {"task": "MeshTask", **stage.parameters()}


@pytest.mark.parametrize("name", ["mesh_mip_0_err_40.0", "meshes", "deep/meshes"])
def test_the_directory_that_the_info_names_is_used(tmp_path, mesh, name):
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    info = json.loads((tmp_path / "layer/info").read_text())
    (tmp_path / "layer/info").write_text(json.dumps(info | {"mesh": name}))
    complete(Mesh(layer=layer))
    complete(MeshManifest(layer=layer))
    assert len(fragments(tmp_path / "layer", name)) == 3
    assert read_mesh(tmp_path / "layer", BIG).is_watertight


def test_a_coarser_mip_is_meshed_where_it_lies(tmp_path, mesh):
    from igneous_airflow.stages.downsample import Downsample

    voxels = blobs(Vec3(80, 72, 30))
    spec = LayerSpec("segmentation", (16, 16, 16), (4, -8, 11))
    layer = write_layer(tmp_path, voxels, spec)
    complete(Downsample(layer=layer, num_mips=1))
    complete(Mesh(layer=layer, mip=-1, shape=(16, 16, 16)))
    complete(MeshManifest(layer=layer))
    assert (tmp_path / "mesh_mip_1_err_40").is_dir()
    surface = read_mesh(tmp_path, 1)
    corners = np.argwhere(voxels[..., 0] == 1) + spec.voxel_offset
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    assert (np.abs(surface.bounds - np.array([low, high]) * [8, 8, 40]) < 40).all()


@pytest.mark.real_data
def test_neurons_cut_into_tasks_are_as_good_as_those_of_zmesh(tmp_path, mesh, neurons):
    labels = np.asfortranarray(neurons[256:352, 256:352, 300:396].reshape(96, 96, 96, 1))
    spec = LayerSpec("segmentation", (32, 32, 32), (0, 0, 0), (16, 16, 40))
    mesh(labels, spec, shape=(48, 48, 48))
    mesher, raw_mesher = zmesh.Mesher((16, 16, 40)), zmesh.Mesher((16, 16, 40))
    mesher.mesh(np.pad(labels[..., 0], 1))
    raw_mesher.mesh(np.pad(labels[..., 0], 1))
    raw, theirs, ours = [], [], []
    for label in mesher.ids():
        simple = mesher.get(label, reduction_factor=100, max_error=40, voxel_centered=True)
        exact = raw_mesher.get(label, voxel_centered=True)
        theirs.append(Trimesh(simple.vertices - (16, 16, 40), simple.faces))
        raw.append(Trimesh(exact.vertices - (16, 16, 40), exact.faces))
        ours.append(read_mesh(tmp_path / "layer", int(label)))
        assert ours[-1].is_watertight
        assert ours[-1].is_winding_consistent
    assert len(ours) > 20
    assert {label for label, _ in fragments(tmp_path / "layer")} == set(map(int, mesher.ids()))
    for one, other in ((raw, ours), (ours, raw)):
        mine = distances(list(zip(one, other, strict=True)), 10_000)
        peer = [theirs if side is ours else side for side in (one, other)]
        of_zmesh = distances(list(zip(*peer, strict=True)), 10_000)
        assert mine.mean <= of_zmesh.mean
        assert mine.percentile_99 <= of_zmesh.percentile_99
        assert mine.percentile_99_9 <= 40  # the error: less than a point in a thousand is beyond
        assert mine.largest <= 80
