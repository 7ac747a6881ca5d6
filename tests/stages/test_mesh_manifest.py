"""Mesh manifest: its contract, and which fragments it puts together."""

import json
import os
import uuid
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.errors import (
    AuditFailed,
    InvalidParameter,
    PlanRefused,
    StorageUnavailable,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.stages import StageTests, changes_untold, complete, snapshot
from igneous_airflow.testing.surfaces import blobs, read_mesh

BIG, BIGGEST = 2**53 + 1, 2**64 - 1
SPEC = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(16, 16, 16))
MESHES = "mesh_mip_0_err_40"


def many_labels(first=1):
    """64 labels in cubes of 3 voxels."""
    cubes = np.arange(first, first + 64, dtype=np.uint64).reshape(4, 4, 4, 1)
    return np.asfortranarray(cubes.repeat(3, 0).repeat(3, 1).repeat(3, 2))


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        layer = write_layer(tmp_path / "layer", many_labels(), LayerSpec("segmentation"))
        complete(Mesh(layer=layer, shape=(8, 8, 8)))
        return MeshManifest(layer=layer, magnitude=1)


@pytest.fixture
def layer(tmp_path):
    """Return a layer with three objects, meshed in 3 x 3 x 2 cells."""
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    complete(Mesh(layer=layer, shape=(16, 16, 16)))
    return layer


def meshes_of(layer):
    return Path(layer.removeprefix("file://")) / MESHES


def manifests_of(layer):
    """The fragments that each manifest names."""
    return {
        int(path.name.partition(":")[0]): json.loads(path.read_text())["fragments"]
        for path in meshes_of(layer).glob("*:0")
    }


def fragments_of(layer):
    """The fragments that there are, by label."""
    found = {}
    for path in meshes_of(layer).glob("*:0:*"):
        name = path.name.removesuffix(".gz")
        found.setdefault(int(name.partition(":")[0]), set()).add(name)
    return found


@pytest.mark.parametrize("magnitude", [1, 2, 3])
def test_every_label_gets_one_manifest_of_all_its_fragments_in_the_order_of_cells(
    layer, magnitude, monkeypatch
):
    written = []
    write = LocalFolder.write
    monkeypatch.setattr(
        LocalFolder, "write", lambda *a, **k: (written.append(a[1]), write(*a, **k))[1]
    )
    audit = complete(MeshManifest(layer=layer, magnitude=magnitude))
    assert audit.outputs == {MESHES: 3}
    assert sorted(name for name in written if ":0" in name) == sorted(
        f"{MESHES}/{label}:0" for label in (1, BIG, BIGGEST)
    )
    manifests = manifests_of(layer)
    assert {label: set(names) for label, names in manifests.items()} == fragments_of(layer)
    for names in manifests.values():
        cells = [BoundingBox.parse(name.split(":")[2]).min for name in names]
        assert cells == sorted(cells, key=lambda corner: (corner.z, corner.y, corner.x))


def test_labels_of_every_length_get_their_manifest(tmp_path):
    lengths = [10**n for n in range(20)] + [10**n - 1 for n in range(1, 20)] + [BIG, BIGGEST]
    voxels = np.zeros((4 * len(set(lengths)), 4, 4, 1), np.uint64, order="F")
    for place, label in enumerate(sorted(set(lengths))):
        voxels[4 * place + 1 : 4 * place + 3, 1:3, 1:3] = label
    layer = write_layer(tmp_path / "layer", voxels, LayerSpec("segmentation", (64, 8, 8)))
    complete(Mesh(layer=layer, shape=(32, 8, 8)))
    for magnitude in (1, 2, 3):
        complete(MeshManifest(layer=layer, magnitude=magnitude))
        assert manifests_of(layer).keys() == set(lengths)
        for path in meshes_of(layer).glob("*:0"):
            path.unlink()


def test_on_a_disk_the_directory_is_read_once_a_task_and_tasks_are_few(layer, monkeypatch):
    stage = MeshManifest(layer=layer)
    cells = stage.cells()
    assert len(cells) == 8
    assert sum(len(cell.starts) for cell in cells) == 999
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    stage.run(cells[0])
    assert listed == [meshes_of(layer)]


@pytest.fixture
def bucket():
    """Return a layer in a bucket, and its address."""
    voxels = blobs(Vec3(40, 36, 30))
    scale = Scale("8_8_40", (8.0, 8.0, 40.0), Vec3(40, 36, 30), Vec3(0, 0, 0), Vec3.full(16), "raw")
    info = Info.new(data_type="uint64", layer_type="segmentation", scale=scale)
    url = f"mem://{uuid.uuid4()}/layer"
    Layer.create(url, info).write(scale, voxels)
    return url


def test_in_a_bucket_each_task_lists_one_beginning(bucket, monkeypatch):
    assert complete(Mesh(layer=bucket, shape=(16, 16, 16))).outputs[MESHES] > 10
    stage = MeshManifest(layer=bucket, magnitude=2)
    assert [cell.starts for cell in stage.cells()][:10] == [
        *((f"{n}:",) for n in range(1, 10)),
        ("10",),
    ]
    assert len(stage.cells()) == 99
    assert complete(stage).outputs == {MESHES: 3}
    folder = open_folder(bucket)
    for label in (1, BIG, BIGGEST):
        manifest = json.loads(bytes(folder.read(f"{MESHES}/{label}:0").content))
        fragment = folder.read(f"{MESHES}/{manifest['fragments'][0]}")
        assert fragment.compression == "gzip"
        assert len(decompress_bytes(fragment, 1 << 20)) > 100


def test_the_directory_that_the_info_names_is_used(tmp_path):
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    complete(Mesh(layer=layer, mesh_dir="deep/meshes"))
    assert complete(MeshManifest(layer=layer)).outputs == {"deep/meshes": 3}
    assert read_mesh(tmp_path / "layer", BIG).is_watertight


def refusals_of(stage):
    """The reasons of a plan; nothing has been written."""
    before = snapshot(Path(stage.layer.removeprefix("file://")))
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    assert snapshot(Path(stage.layer.removeprefix("file://"))) == before
    return "\n".join(refusals)


def test_a_plan_counts_labels_and_fragments(layer):
    count = sum(map(len, fragments_of(layer).values()))
    plan = MeshManifest(layer=layer).plan()
    assert plan.outputs == (f"{MESHES}: manifests of 3 labels with {count} fragments",)
    assert plan.notes == ()
    assert "reads" not in plan.describe()


def test_a_plan_of_very_many_fragments_looks_at_some_of_them(layer, monkeypatch):
    monkeypatch.setattr("igneous_airflow.stages.mesh_manifest._LOOKED_AT", 5)
    assert "of at least " in MeshManifest(layer=layer).plan().outputs[0]


def test_unfinished_meshes_are_refused_with_the_missing_cells(tmp_path):
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    stage = Mesh(layer=layer, shape=(20, 20, 30)).resolved()
    assert "names no mesh directory: run mesh first" in refusals_of(MeshManifest(layer=layer))
    stage.prepare()
    assert "4 of 4 blocks have not been meshed" in refusals_of(MeshManifest(layer=layer))
    *cells, last = stage.cells()
    for cell in cells:
        stage.run(cell)
    text = refusals_of(MeshManifest(layer=layer))
    assert f"1 of 4 blocks has not been meshed: {last}. Finish mesh first" in text
    assert MeshManifest(layer=layer, allow_incomplete=True).plan().refusals == ()
    stage.run(last)
    assert MeshManifest(layer=layer).plan().refusals == ()


def test_only_the_parts_that_were_to_be_meshed_must_be(tmp_path):
    layer = write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)
    complete(Mesh(layer=layer, shape=(16, 16, 16), bounds="3-4_-7-29_11-12"))
    complete(MeshManifest(layer=layer))
    assert manifests_of(layer)


def test_stale_fragments_of_another_grid_are_named_and_never_merged(layer):
    old = fragments_of(layer)
    complete(Mesh(layer=layer, shape=(20, 20, 30), new_grid=True, keep_deleted=False))
    stage = MeshManifest(layer=layer)
    text = refusals_of(stage)
    stale = sum(map(len, old.values()))
    assert f"{stale} files in {layer}/{MESHES} do not belong to its meshes of mip 0 in" in text
    assert "cells of 20,20,30" in text
    assert any(name in text for name in old[1] | old[BIG] | old[BIGGEST])
    assert "remove_stale" in text
    stage.accepted()  # as in a run that was planned before the fragments were stale
    (group,) = (cell for cell in stage.cells() if "900" in cell.starts)
    with pytest.raises(InvalidParameter, match=f"{BIG}:0:.*remove_stale"):
        stage.run(group)
    assert manifests_of(layer) == {}


def test_stale_fragments_are_removed_on_request_when_no_manifest_names_them_any_more(layer):
    complete(MeshManifest(layer=layer))
    old = fragments_of(layer)
    wishes = {"new_grid": True, "keep_deleted": False}
    complete(Mesh(layer=layer, shape=(20, 20, 30), object_ids=[1, BIG], **wishes))
    stage = MeshManifest(layer=layer, remove_stale=True, confirm=True)
    assert "stale files are deleted" in stage.plan().notes[0]
    assert complete(stage).outputs == {MESHES: 2}
    left = fragments_of(layer)
    assert left.keys() == {1, BIG}
    assert {label: set(names) for label, names in manifests_of(layer).items()} == left
    assert not set().union(*old.values()) & set().union(*left.values())
    surface = read_mesh(Path(layer.removeprefix("file://")), BIG)
    assert surface.is_watertight
    assert surface.body_count == 1


def test_a_removal_that_was_stopped_at_any_moment_never_leaves_a_manifest_of_missing_fragments(
    layer, monkeypatch
):
    complete(MeshManifest(layer=layer, magnitude=1))
    complete(Mesh(layer=layer, shape=(20, 20, 30), new_grid=True, keep_deleted=False))
    stage = MeshManifest(layer=layer, magnitude=1, remove_stale=True, confirm=True)
    (group,) = (cell for cell in stage.cells() if "9" in cell.starts)
    unlink = os.unlink
    for deletions in range(3):
        left = iter(range(deletions))

        def unlink_some(path, left=left):
            if str(path).endswith(".gz") and next(left, None) is None:
                raise OSError(5, "the disk is broken")
            unlink(path)

        monkeypatch.setattr(os, "unlink", unlink_some)
        with pytest.raises(StorageUnavailable):
            stage.run(group)
        monkeypatch.setattr(os, "unlink", unlink)
        there = fragments_of(layer)[BIG]
        assert set(manifests_of(layer)[BIG]) < there
    complete(stage)
    assert {label: set(names) for label, names in manifests_of(layer).items()} == fragments_of(
        layer
    )


@pytest.fixture
def beam(tmp_path):
    """Return a layer with two mips, of an object 5 that is 28 voxels long."""
    voxels = np.zeros((32, 16, 16, 1), np.uint64, order="F")
    voxels[2:30, 3:13, 3:13] = 5
    layer = write_layer(tmp_path / "layer", voxels, LayerSpec("segmentation"))
    complete(Downsample(layer=layer, num_mips=1, factor=(2, 2, 2)))
    return layer


@pytest.mark.parametrize("first", ["8-16_0-8_0-8", None])
def test_fragments_beyond_the_parts_of_another_mip_are_stale_though_they_lie_on_its_grid(
    beam, first
):
    wishes = {"layer": beam, "mesh_dir": MESHES, "shape": (8, 8, 8)}
    complete(Mesh(**wishes, bounds=first))
    complete(MeshManifest(layer=beam))
    part = "0-8_0-8_0-8"
    complete(Mesh(**wishes, mip=1, new_grid=True, keep_deleted=False, bounds=part))
    assert "5:0:8-16_0-8_0-8" in fragments_of(beam)[5]  # the first mip's
    text = refusals_of(MeshManifest(layer=beam))
    assert "of the parts that its info names: 5:0:" in text
    assert "mesh the rest as well" in text
    complete(MeshManifest(layer=beam, remove_stale=True, confirm=True))
    assert manifests_of(beam) == {5: [f"5:0:{part}"]}
    assert fragments_of(beam) == {5: {f"5:0:{part}"}}
    complete(Mesh(**wishes, mip=1))
    complete(MeshManifest(layer=beam))
    assert read_mesh(Path(beam.removeprefix("file://")), 5).is_watertight


def test_meshes_made_again_are_unfinished_until_every_cell_has_the_new_parameters(beam):
    wishes = {"layer": beam, "shape": (16, 16, 16), "keep_deleted": False}
    complete(Mesh(**wishes))
    complete(MeshManifest(layer=beam))
    stage = Mesh(**wishes, simplification=False, confirm=True).resolved()
    stage.prepare()
    one, other = stage.cells()
    stage.run(one)
    text = refusals_of(MeshManifest(layer=beam))
    assert f"1 of 2 blocks has not been meshed: {other}. Finish mesh first" in text
    stage.prepare()  # as a resumed run does
    assert f"1 of 2 blocks has not been meshed: {other}. " in refusals_of(MeshManifest(layer=beam))
    incomplete = MeshManifest(layer=beam, allow_incomplete=True)
    assert incomplete.plan().notes == (
        "1 of 2 blocks has not been meshed: what is there of them is left out",
    )
    complete(incomplete)
    assert manifests_of(beam)[5] == [f"5:0:{one}"]
    stage.run(other)
    stage.finish("tester")
    complete(MeshManifest(layer=beam))
    assert manifests_of(beam) == {5: [f"5:0:{one}", f"5:0:{other}"]}


def test_manifests_of_labels_without_fragments_are_stale(layer):
    complete(MeshManifest(layer=layer))
    for path in meshes_of(layer).glob(f"{BIG}:0:*"):
        path.unlink()
    assert f"{BIG}:0" in refusals_of(MeshManifest(layer=layer))
    complete(MeshManifest(layer=layer, remove_stale=True, confirm=True))
    assert manifests_of(layer).keys() == {1, BIGGEST}


@pytest.fixture
def stray(layer, monkeypatch):
    """A stray fragment that a plan does not see, behind manifests whose fragments it does not."""
    complete(MeshManifest(layer=layer))
    name = "77:0:0-8_0-8_0-8"
    (meshes_of(layer) / name).write_bytes(b"precious")
    sizes = LocalFolder.sizes

    def in_order(folder, prefix):
        def rank(entry):
            return ":0:" in entry[0], entry[0] == name

        return sorted(sizes(folder, prefix), key=rank)

    monkeypatch.setattr(LocalFolder, "sizes", in_order)
    monkeypatch.setattr("igneous_airflow.stages.mesh_manifest._LOOKED_AT", 20)
    return meshes_of(layer) / name


def test_in_a_large_folder_what_is_stale_is_always_confirmed(layer, stray):
    assert MeshManifest(layer=layer).plan().refusals == ()
    plan = MeshManifest(layer=layer, remove_stale=True).plan()
    going = "an unknown number of stale fragments, and manifests of labels without fragments, of "
    assert plan.unconfirmed.startswith(f"confirm: {going}{layer}/{MESHES} would be deleted")
    confirmed = MeshManifest(layer=layer, remove_stale=True, confirm=True)
    assert confirmed.plan().unconfirmed == ""
    assert confirmed.plan().deletions == (f"{going}{layer}/{MESHES}",)
    complete(confirmed)
    assert not stray.exists()
    assert {label: set(n) for label, n in manifests_of(layer).items()} == fragments_of(layer)


def test_tasks_delete_nothing_that_was_not_confirmed(layer, stray):
    with pytest.raises(InvalidParameter, match="Set remove_stale to delete them"):
        complete(MeshManifest(layer=layer))
    stage = MeshManifest(layer=layer, remove_stale=True).accepted()
    (group,) = (cell for cell in stage.cells() if stray.name.startswith(tuple(cell.starts)))
    with pytest.raises(InvalidParameter, match=r"confirm: 1 stale fragment, of .* new run with"):
        stage.run(group)
    assert stray.read_bytes() == b"precious"


def test_a_task_that_only_deletes_tells_of_the_folder(layer, stray):
    stage = MeshManifest(layer=layer, remove_stale=True, confirm=True)
    (group,) = (cell for cell in stage.cells() if stray.name.startswith(tuple(cell.starts)))
    for path in meshes_of(layer).glob("*:0*"):
        if path.name.startswith(tuple(group.starts)) and path != stray:
            path.unlink()
    assert changes_untold(stage, group) == (set(), set())
    assert not stray.exists()


@pytest.mark.parametrize(
    ("strays", "lone", "words"),
    [
        (1, 0, "1 stale fragment, 9 B"),
        (2, 1, "2 stale fragments and 1 manifest of labels without fragments, 27 B"),
        (0, 2, "2 manifests of labels without fragments, 18 B"),
    ],
)
def test_stale_files_are_counted_in_plain_words(layer, strays, lone, words):
    for number in range(strays):
        (meshes_of(layer) / f"{77 + number}:0:0-8_0-8_0-8").write_bytes(b"precious!")
    for number in range(lone):
        (meshes_of(layer) / f"{770 + number}:0").write_bytes(b"precious!")
    plan = MeshManifest(layer=layer, remove_stale=True).plan()
    assert plan.deletions == (f"{words}, of {layer}/{MESHES}",)


def test_meshes_of_igneous_get_their_manifests_with_a_note(layer):
    info = meshes_of(layer) / "info"
    data = json.loads(info.read_text())
    del data["parts"]
    info.write_text(json.dumps(data))
    (note,) = MeshManifest(layer=layer).plan().notes
    assert "cannot be told" in note
    assert complete(MeshManifest(layer=layer)).outputs == {MESHES: 3}


def test_meshes_without_a_grid_are_refused(layer):
    (meshes_of(layer) / "info").unlink()
    text = refusals_of(MeshManifest(layer=layer))
    assert "says neither mip nor chunk_size of the meshes" in text


def test_a_lost_manifest_is_noticed_and_comes_back_the_same(layer):
    stage = MeshManifest(layer=layer)
    complete(stage)
    before = snapshot(meshes_of(layer))
    (meshes_of(layer) / f"{BIG}:0").unlink()
    with pytest.raises(AuditFailed, match=f"1 file missing.*{BIG}:0"):
        stage.finish("tester")
    for cell in stage.cells():
        stage.run(cell)
    assert snapshot(meshes_of(layer)) == before
    open_folder(layer).write(f"{MESHES}/1:0:0-1_0-1_0-1", StoredFile(b""))
    with pytest.raises(AuditFailed, match=r"stale.*1:0:0-1_0-1_0-1"):
        stage.finish("tester")


def test_the_work_is_in_the_provenance(layer):
    stage = MeshManifest(layer=layer)
    complete(stage)
    provenance = json.loads(Path(layer.removeprefix("file://"), "provenance").read_text())
    assert [entry["method"]["task"] for entry in provenance["processing"]] == [
        "MeshTask",
        "MeshManifestTask",
    ]
    assert provenance["processing"][1]["method"] == {
        "task": "MeshManifestTask",
        **stage.parameters(),
    }
