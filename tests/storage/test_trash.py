"""The trash of a layer: what is moved there comes back as it was, whenever it is stopped."""

import json
import os
import shutil
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import (
    AuditFailed,
    InvalidInfo,
    InvalidParameter,
    PlanRefused,
    StorageUnavailable,
)
from igneous_airflow.fields import folder_in_layer
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.storage.rehearsal import rehearsal
from igneous_airflow.storage.restoring import require_disk, restore, was_restored
from igneous_airflow.storage.trash import Trash, entries_of, new_entry_name, time_of
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)
from igneous_airflow.testing.stages import complete, snapshot
from igneous_airflow.testing.strategies import sizes, vectors
from igneous_airflow.testing.surfaces import blobs

ENTRY = "20250102T030405Z-abcdef"
SEGMENTATION = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(16, 16, 16))
MESHES = "mesh_mip_0_err_40"


SIZE = Vec3(65, 33, 9)


def a_layer(path, size=SIZE, mips=2, **spec):
    url = write_layer(path, random_voxels(size), LayerSpec(**spec))
    downsample = Downsample(layer=url, num_mips=mips)
    if not downsample.plan().refusals:
        complete(downsample)
    return url


def without_notes(path):
    """Every file of a layer but its provenance, and the info as data."""
    files = {name: content for name, content in snapshot(path).items() if name != "provenance"}
    return files | {"info": json.loads(files["info"])}


def the_entry(url):
    (trash,) = entries_of(open_folder(url))
    return trash


def deleted(url, **wishes):
    complete(Delete(layer=url, confirm=True, trash_entry=ENTRY, **wishes))
    return open_folder(url)


@given(sizes(40), sizes(9), vectors(-20, 20), st.data())
@settings(deadline=None, max_examples=15)
def test_what_was_deleted_comes_back_byte_for_byte(tmp_path_factory, size, chunk, offset, data):
    path = tmp_path_factory.mktemp("layer")
    url = a_layer(path, size, chunk_size=chunk, voxel_offset=offset)
    keys = [scale["key"] for scale in json.loads((path / "info").read_text())["scales"]]
    before = without_notes(path)
    mip = data.draw(st.integers(0, len(keys) - 1))
    count = data.draw(st.integers(1, 3))
    layer = deleted(url, mip=mip, num_mips=count)
    gone = keys[mip : mip + count]
    assert not [name for name in snapshot(path) if name.split("/")[0] in gone]
    restore(layer, ENTRY, "me")
    assert without_notes(path) == before
    assert list(layer.folders(".trash")) == []


def test_scales_come_back_to_their_places_among_those_that_were_made_since(tmp_path):
    url = a_layer(tmp_path, mips=3)
    keys = [scale["key"] for scale in json.loads((tmp_path / "info").read_text())["scales"]]
    layer = deleted(url, mip=1, num_mips=2)
    complete(Downsample(layer=url, num_mips=1, factor=(16, 16, 1)))
    restore(layer, ENTRY, "me")
    after = [scale["key"] for scale in json.loads((tmp_path / "info").read_text())["scales"]]
    assert [key for key in after if key in keys] == keys
    volumes = [np.prod([float(edge) for edge in key.split("_")]) for key in after]
    assert volumes == sorted(volumes)
    for mip in range(len(after)):
        read_with_cloudvolume(tmp_path, mip)


def test_a_part_comes_back_and_the_info_stays(tmp_path):
    url = a_layer(tmp_path, Vec3(64, 64, 16), voxel_offset=(8, -8, 4))
    before = without_notes(tmp_path)
    layer = deleted(url, num_mips=3, bounds="40-72_-8-24_4-12")
    assert the_entry(url).read().scales == ()
    assert restore(layer, ENTRY, "me").files > 0
    assert without_notes(tmp_path) == before


def test_files_in_every_compression_and_off_the_grid_come_back(tmp_path):
    url = a_layer(tmp_path, mips=1)
    (chunk, *_) = sorted((tmp_path / "8_8_40").iterdir())
    for suffix in (".br", ".zstd"):
        shutil.copy(chunk, f"{chunk}{suffix}")
    (tmp_path / "8_8_40" / "1000-1064_0-64_0-64.gz").write_text("x")
    (tmp_path / "8_8_40" / "notes.txt").write_text("theirs")
    before = without_notes(tmp_path)
    layer = deleted(url)
    assert [path.name for path in (tmp_path / "8_8_40").iterdir()] == ["notes.txt"]
    restore(layer, ENTRY, "me")
    assert without_notes(tmp_path) == before


def test_the_entry_says_what_went_when_and_by_whom_and_the_audit_says_where(tmp_path):
    url = a_layer(tmp_path)
    audit = complete(Delete(layer=url, mip=1, num_mips=1, confirm=True, trash_entry=ENTRY))
    entry = the_entry(url).read()
    assert (entry.version, entry.name, entry.stage, entry.by) == (1, ENTRY, "delete", "tester")
    assert (entry.what, entry.folders, entry.complete) == (
        "chunks of 16_16_40",
        ("16_16_40",),
        True,
    )
    assert entry.when == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert audit.outputs == {"16_16_40": 0}
    assert audit.moved.startswith("30 files, ")
    assert audit.moved.endswith(f", as {ENTRY}")
    (_, recorded) = json.loads((tmp_path / "provenance").read_text())["processing"]
    assert recorded["method"]["trash_entry"] == ENTRY
    restore(open_folder(url), ENTRY, "someone")
    (*_, recorded) = json.loads((tmp_path / "provenance").read_text())["processing"]
    assert recorded["by"] == "someone"
    assert recorded["method"] == {
        "task": "RestoreTask",
        "entry": ENTRY,
        "what": "chunks of 16_16_40",
    }
    assert was_restored(open_folder(url), ENTRY)
    assert not was_restored(open_folder(url), new_entry_name())


def test_the_scale_folder_is_proved_empty_also_when_files_are_kept(tmp_path):
    url = a_layer(tmp_path)
    chunk = sorted((tmp_path / "8_8_40").iterdir())[0]
    content = chunk.read_bytes()
    stage = Delete(layer=url, confirm=True).resolved()
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    chunk.write_bytes(content)
    with pytest.raises(AuditFailed, match="1 chunks"):
        stage.finish("x")
    assert the_entry(url).read().complete is False


def stopping_after(monkeypatch, steps):
    """Let the disk fail after some changes; returns what makes it well again."""
    left = iter(range(steps))
    names = ("write", "rename", "delete", "delete_folder", "remove_empty_folders")
    real = {name: getattr(LocalFolder, name) for name in names}

    def stopped(call):
        def act(*args, **kwargs):
            if next(left, None) is None:
                raise StorageUnavailable("the disk is gone")
            return call(*args, **kwargs)

        return act

    for name, call in real.items():
        monkeypatch.setattr(LocalFolder, name, stopped(call))

    def mend():
        for name, call in real.items():
            monkeypatch.setattr(LocalFolder, name, call)

    return mend


def until_it_ends(path, before, action, monkeypatch):
    """Stop an action after each of its changes, and do it again; gives the states that it left."""
    steps = 0
    while True:
        shutil.rmtree(path)
        shutil.copytree(before, path)
        mend = stopping_after(monkeypatch, steps)
        try:
            action()
            ended = True
        except StorageUnavailable:
            ended = False
        mend()
        if ended:
            assert steps > 5
            return
        action()
        yield without_notes(path)
        steps += 1


def test_a_delete_that_was_stopped_anywhere_is_resumed_to_the_same_end(tmp_path, monkeypatch):
    path = tmp_path / "layer"
    url = a_layer(path, Vec3(17, 9, 4), mips=1)
    whole = without_notes(path)
    shutil.copytree(path, tmp_path / "before")

    def action():
        stage = Delete(layer=url, num_mips=1, confirm=True, trash_entry=ENTRY, scales="8_8_40")
        if any(s["key"] == "8_8_40" for s in json.loads((path / "info").read_text())["scales"]):
            stage.prepare()
            for cell in stage.cells():
                stage.run(cell)
        stage.finish("tester")

    action()
    expected = without_notes(path)
    assert any(name.startswith(".trash/") for name in expected)
    for state in until_it_ends(path, tmp_path / "before", action, monkeypatch):
        assert state == expected
    restore(open_folder(url), ENTRY, "me")
    assert without_notes(path) == whole


def test_a_restore_that_was_stopped_anywhere_ends_the_same_when_started_again(
    tmp_path, monkeypatch
):
    path = tmp_path / "layer"
    url = a_layer(path, Vec3(17, 9, 4), mips=1)
    whole = without_notes(path)
    layer = deleted(url)
    shutil.copytree(path, tmp_path / "before")

    def action():
        if the_entry_is_there(layer):
            restore(layer, ENTRY, "me")
        assert was_restored(layer, ENTRY)

    for state in until_it_ends(path, tmp_path / "before", action, monkeypatch):
        assert state == whole
    processing = json.loads((path / "provenance").read_text())["processing"]
    assert [entry["method"]["task"] for entry in processing].count("RestoreTask") == 1


def the_entry_is_there(layer):
    return Trash(layer, ENTRY).read() is not None


def test_what_was_written_since_is_named_and_replaced_only_on_request(tmp_path):
    url = a_layer(tmp_path)
    whole = without_notes(tmp_path)
    layer = deleted(url, mip=1, num_mips=1)
    complete(Downsample(layer=url, num_mips=1, method="min"))
    between = snapshot(tmp_path)
    with pytest.raises(PlanRefused, match=r"16_16_40/.*, .* and others were written since: set --"):
        restore(layer, ENTRY, "me")
    assert snapshot(tmp_path) == between
    restore(layer, ENTRY, "me", replace=True)
    after = without_notes(tmp_path)
    assert {n: c for n, c in after.items() if not n.startswith(".trash/")} == whole
    aside = the_entry(url)  # nothing is lost
    kept = {
        n: (tmp_path / ".trash" / aside.name / "files" / n).read_bytes() for n, _ in aside.files()
    }
    assert kept == {n: c for n, c in between.items() if n.startswith("16_16_40/")}


def test_a_scale_of_another_layout_is_not_mixed_with_what_comes_back(tmp_path):
    url = a_layer(tmp_path)
    layer = deleted(url, mip=1, num_mips=1)
    complete(Downsample(layer=url, num_mips=1, chunk_size=(16, 16, 8)))
    before = snapshot(tmp_path)
    for replace in (False, True):
        with pytest.raises(InvalidInfo, match=r"16_16_40 cannot come back.*delete that one first"):
            restore(layer, ENTRY, "me", replace=replace)
    assert snapshot(tmp_path) == before


# Meshes


@pytest.fixture
def labels(tmp_path):
    url = write_layer(tmp_path / "labels", blobs(Vec3(40, 36, 30)), SEGMENTATION)
    complete(Mesh(layer=url, shape=(20, 36, 30)))
    complete(MeshManifest(layer=url))
    info = tmp_path / "labels" / MESHES / "info"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"transform": [1, 2]}))
    return url


def meshes_of(url):
    return snapshot(Path(url.removeprefix("file://")) / MESHES)


@pytest.mark.parametrize(
    "wishes", [{"shape": (16, 16, 16), "new_grid": True}, {"max_simplification_error": 9}], ids=str
)
def test_meshes_that_are_replaced_together_are_kept_and_come_back(labels, wishes):
    before = meshes_of(labels)
    stage = Mesh(layer=labels, trash_entry=ENTRY, **wishes)
    assert "go to the trash of the layer" in stage.plan().notes[-1]
    audit = complete(stage)
    assert audit.moved == f"{len(before)} files, {audit.moved.split(', ')[1]}, as {ENTRY}"
    complete(MeshManifest(layer=labels))  # nothing is stale
    new = meshes_of(labels)
    assert json.loads(new["info"])["transform"] == [1, 2]
    layer = open_folder(labels)
    with pytest.raises(PlanRefused, match=f"the meshes in {MESHES} were written since"):
        restore(layer, ENTRY, "me")
    assert meshes_of(labels) == new
    restore(layer, ENTRY, "me", replace=True)
    assert meshes_of(labels) == before
    restore(layer, the_entry(labels).name, "me", replace=True)
    assert meshes_of(labels) == new


def test_meshes_are_moved_once_whenever_their_run_is_stopped(labels, monkeypatch):
    path = Path(labels.removeprefix("file://"))
    before = meshes_of(labels)
    shutil.copytree(path, path.with_name("before"))
    wishes = {"shape": (40, 20, 30), "new_grid": True, "confirm": True}
    stage = Mesh(layer=labels, trash_entry=ENTRY, **wishes).resolved()

    def action():
        stage.prepare()
        for cell in stage.cells():
            stage.run(cell)
        stage.finish("tester")

    action()
    expected = without_notes(path)
    for state in until_it_ends(path, path.with_name("before"), action, monkeypatch):
        assert state == expected
    kept = snapshot(path / ".trash" / ENTRY / "files" / MESHES)
    assert kept == before


def test_meshes_of_the_same_parameters_or_of_some_labels_are_not_moved(labels):
    for wishes in ({"shape": (20, 36, 30)}, {"object_ids": [1]}, {"bounds": "3-4_-7-29_11-12"}):
        complete(Mesh(layer=labels, **wishes))
        assert entries_of(open_folder(labels)) == []


def test_meshes_come_back_where_the_info_names_none_but_not_where_it_names_others(labels):
    path = Path(labels.removeprefix("file://"))
    complete(Mesh(layer=labels, trash_entry=ENTRY, shape=(16, 16, 16), new_grid=True))
    shutil.rmtree(path / MESHES)
    info = json.loads((path / "info").read_text())
    (path / "info").write_text(json.dumps(info | {"mesh": "others"}))
    with pytest.raises(InvalidInfo, match="the meshes of the layer are in others"):
        restore(open_folder(labels), ENTRY, "me")
    del info["mesh"]
    (path / "info").write_text(json.dumps(info))
    restore(open_folder(labels), ENTRY, "me")
    assert json.loads((path / "info").read_text())["mesh"] == MESHES


# Entries


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "20250102T030405Z", f"{ENTRY}/..", "20259902T030405Z-abcdef", "x"]
)
def test_a_name_that_is_none_of_ours_is_refused(tmp_path, name):
    with pytest.raises(InvalidParameter, match="is not the name of an entry"):
        Trash(open_folder(f"file://{tmp_path}"), name)


def test_names_tell_the_time_and_differ():
    name = new_entry_name()
    assert abs(time_of(name) - datetime.now(UTC)) < timedelta(minutes=1)
    assert new_entry_name() != name


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"folders": ["../elsewhere"]},
        {"folders": ["/etc"]},
        {"folders": [".trash/x"]},
        {"mesh": "../elsewhere"},
        {"mesh": ".trash"},
        {"name": "20250102T030405Z-000000"},
        {"scales": [{"key": "x"}]},
        {"scales": [{"key": "other"}]},
        {"stage": 5},
    ],
    ids=str,
)
def test_an_entry_that_says_something_else_is_refused_and_left_alone(tmp_path, changes):
    url = a_layer(tmp_path)
    layer = deleted(url)
    path = tmp_path / ".trash" / ENTRY / "entry.json"
    data = json.loads(path.read_text())
    if changes.get("scales") == [{"key": "other"}]:
        changes = {"scales": [data["scales"][0] | {"key": "other"}]}
    path.write_text(json.dumps(data | changes))
    before = snapshot(tmp_path)
    with pytest.raises(InvalidParameter):
        restore(layer, ENTRY, "me", replace=True)
    assert snapshot(tmp_path) == before


def test_an_entry_that_was_begun_before_stays_as_it_is(tmp_path):
    url = a_layer(tmp_path)
    layer = deleted(url)
    entry = the_entry(url).read()
    assert entry.complete
    Trash(layer, ENTRY).begin(entry.model_copy(update={"by": "", "complete": False}))
    assert the_entry(url).read() == entry


def test_an_entry_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    url = a_layer(tmp_path)
    with pytest.raises(InvalidParameter, match="its trash, which holds: nothing"):
        restore(open_folder(url), ENTRY, "me")
    layer = deleted(url)
    with pytest.raises(InvalidParameter, match=f"which holds: {ENTRY}"):
        restore(layer, "20250102T030405Z-000000", "me")


def test_an_entry_is_removed_again_when_that_was_stopped(tmp_path, monkeypatch):
    url = a_layer(tmp_path)
    layer = deleted(url)
    for steps in range(3):
        mend = stopping_after(monkeypatch, steps)
        with pytest.raises(StorageUnavailable):
            the_entry(url).remove()
        mend()
        if not entries_of(layer):
            break
    Trash(layer, ENTRY).remove()
    assert entries_of(layer) == []
    assert not (tmp_path / ".trash" / ENTRY).exists()


def test_no_stage_takes_the_trash_for_a_place_of_its_own():
    for name in (".trash", ".trash/meshes"):
        with pytest.raises(ValueError, match="trash"):
            folder_in_layer(name)
    with pytest.raises(ValidationError):
        Delete(layer="/layer", trash_entry="../x")


# Where there is no trash


def test_buckets_have_none_and_the_plan_and_the_commands_say_so(tmp_path):
    a_layer(tmp_path)
    bucket = open_folder(f"mem://{uuid.uuid4()}/layer")
    for name, content in snapshot(tmp_path).items():
        compressed = name.endswith(".gz")
        bucket.write(name.removesuffix(".gz"), StoredFile(content, "gzip" if compressed else ""))
    stage = Delete(layer=bucket.url)
    assert "would be deleted for good" in stage.resolved().plan().unconfirmed
    assert "a bucket has no trash" in stage.resolved().plan().notes[0]
    audit = complete(stage.model_copy(update={"confirm": True}))
    assert audit.moved == ""
    assert not any(True for _ in bucket.names("8_8_40"))
    with pytest.raises(InvalidParameter, match="unless the bucket keeps versions"):
        require_disk(bucket)
    with pytest.raises(InvalidParameter, match="cannot be moved"):
        bucket.rename("a", "b")


def test_without_keeping_files_are_deleted_for_good(tmp_path):
    url = a_layer(tmp_path)
    stage = Delete(layer=url, keep_deleted=False)
    assert "deleted for good" in stage.resolved().plan().unconfirmed
    complete(stage.model_copy(update={"confirm": True}))
    assert not (tmp_path / ".trash").exists()


def test_a_rehearsal_moves_nothing(tmp_path):
    url = a_layer(tmp_path)
    before = snapshot(tmp_path)
    with rehearsal():
        folder = open_folder(url)
        assert folder.renames
        assert folder.rename("8_8_40", "elsewhere")
        assert not any(True for _ in folder.names("8_8_40"))
    assert snapshot(tmp_path) == before


def test_a_file_on_another_disk_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")

    def other_disk(source, target, **_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(InvalidParameter, match=r"another disk.*set keep_deleted to false"):
        open_folder(f"file://{tmp_path}").rename("file", "other")
