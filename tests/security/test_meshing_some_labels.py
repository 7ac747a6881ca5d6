"""Meshing some labels or a part leaves other meshes as they are, and their manifests right."""

import gzip
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import PlanRefused, StorageUnavailable
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.storage.meshes import MeshFolder
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.stages import complete, snapshot
from igneous_airflow.testing.strategies import vectors

BIG, BIGGEST = 2**53 + 1, 2**64 - 1
LABELS = (1, 2, 3, BIG, BIGGEST)
MESHES = "mesh_mip_0_err_40"
SPEC = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(16, 16, 16))
SHAPE = (16, 16, 16)


def rods(labels=LABELS, length=40):
    """Each label a rod along x, through several tasks' blocks."""
    voxels = np.zeros((length, 4 * len(labels), 5, 1), np.uint64, order="F")
    for place, label in enumerate(labels):
        voxels[1:-1, 4 * place + 1 : 4 * place + 3, 1:4] = label
    return voxels


@pytest.fixture
def layer(tmp_path):
    """Return a layer of five rods in six blocks, meshed, with manifests."""
    layer = write_layer(tmp_path / "layer", rods(), SPEC)
    complete(Mesh(layer=layer, shape=SHAPE))
    complete(MeshManifest(layer=layer))
    return layer


def path_of(layer):
    return Path(layer.removeprefix("file://"))


def write_voxels(layer, voxels):
    opened = Layer.open(layer)
    opened.write(opened.info.scales[0], voxels)


def fragments_of(layer, directory=MESHES):
    """The bytes of each fragment, by label and name."""
    found = {}
    for path in (path_of(layer) / directory).glob("*:0:*"):
        name = path.name.removesuffix(".gz")
        found.setdefault(int(name.partition(":")[0]), {})[name] = path.read_bytes()
    return found


def manifests_of(layer, directory=MESHES):
    return {
        int(path.name.partition(":")[0]): json.loads(path.read_text())["fragments"]
        for path in (path_of(layer) / directory).glob("*:0")
    }


def assert_manifests_are_right(layer):
    """Each label's manifest names its fragments and nothing else."""
    fragments = fragments_of(layer)
    assert {label: set(names) for label, names in manifests_of(layer).items()} == {
        label: set(found) for label, found in fragments.items()
    }


def assert_manifests_name_what_is_there(layer):
    fragments = fragments_of(layer)
    for label, names in manifests_of(layer).items():
        assert set(names) <= set(fragments.get(label, ())), label


def records_of(layer):
    folder = MeshFolder(open_folder(layer), MESHES)
    return {cell: folder.read_record(BoundingBox.parse(cell)) for cell in folder.recorded()}


def assert_records_are_true(layer):
    """They name the labels that have fragments in their cells, each once."""
    there = {}
    for label, names in fragments_of(layer).items():
        for name in names:
            there.setdefault(name.split(":")[2], set()).add(label)
    for cell, record in records_of(layer).items():
        named = [*record.labels, *(label for labels in record.others.values() for label in labels)]
        assert sorted(named) == sorted(there.get(cell, ())), cell


@pytest.mark.parametrize(
    "wishes",
    [
        {"object_ids": [3]},
        {"object_ids": [str(BIGGEST)], "max_simplification_error": 9},
        {"exclude_object_ids": [1, 2, str(BIG), str(BIGGEST)]},
        {"remap_table": {3: 3}},
        {"object_ids": [3], "spatial_index": False},
        {"object_ids": [99]},
        {"object_ids": [3], "exclude_object_ids": [3]},
        {"dust_threshold": 10**6},
    ],
    ids=str,
)
def test_what_is_not_named_stays_byte_for_byte(layer, wishes):
    before, records = fragments_of(layer), records_of(layer)
    named = set(wishes.get("object_ids", ())) - set(wishes.get("exclude_object_ids", ()))
    named = {int(label) for label in named} or {3}
    complete(Mesh(layer=layer, **wishes))
    after = fragments_of(layer)
    assert {label: after.get(label) for label in before.keys() - named} == {
        label: before[label] for label in before.keys() - named
    }
    assert after.keys() == before.keys()
    assert_manifests_are_right(layer)
    assert_records_are_true(layer)
    assert records_of(layer).keys() == records.keys()
    complete(MeshManifest(layer=layer))
    assert_manifests_are_right(layer)


def test_a_label_that_is_renamed_is_not_named_by_its_old_name(layer):
    before = fragments_of(layer)
    complete(Mesh(layer=layer, remap_table={3: 3, 1: 7}, object_ids=[1, 3]))
    assert fragments_of(layer) == before
    complete(Mesh(layer=layer, remap_table={3: 3, 1: 7}, exclude_object_ids=[3]))
    after = fragments_of(layer)
    assert {label: after[label] for label in before} == before
    assert after.keys() == {*before, 7}


def test_a_label_that_vanished_where_it_was_meshed_again_leaves_its_manifest_first(layer):
    voxels = rods()
    voxels[voxels == 3] = 0
    voxels[1:10, 9:11, 1:4] = 3  # what is left of it
    voxels[voxels == BIG] = 0
    write_voxels(layer, voxels)
    before = fragments_of(layer)
    complete(Mesh(layer=layer, object_ids=[3]))
    after = fragments_of(layer)
    assert len(after[3]) == len(before[3]) / 3
    assert after[BIG] == before[BIG]
    assert_manifests_are_right(layer)
    complete(Mesh(layer=layer, object_ids=[3, str(BIG)]))
    assert BIG not in fragments_of(layer)
    assert BIG not in manifests_of(layer)
    assert_manifests_are_right(layer)
    assert_records_are_true(layer)


def test_labels_that_became_dust_keep_their_fragments_and_those_that_vanished_do_not(layer):
    voxels = rods()
    voxels[voxels == 3] = 0
    voxels[4:6, 9:11, 1:3] = 3  # 8 voxels inside of the first block
    voxels[voxels == 2] = 0
    write_voxels(layer, voxels)
    before = fragments_of(layer)
    complete(Mesh(layer=layer, dust_threshold=20))
    after = fragments_of(layer)
    assert 2 not in after
    first = [name for name in before[3] if ":3-19_" in name]
    assert after[3] == {name: before[3][name] for name in first}
    assert_manifests_are_right(layer)
    assert_records_are_true(layer)
    left_out = {cell: record.left_out for cell, record in records_of(layer).items()}
    assert {labels for labels in left_out.values() if labels} == {(3,)}


def test_a_part_that_is_meshed_again_leaves_the_other_blocks_as_they_are(layer):
    before = fragments_of(layer)
    complete(Mesh(layer=layer, bounds="3-4_-7-13_11-16", max_simplification_error=9))
    after = fragments_of(layer)
    assert after.keys() == before.keys()
    for label, names in before.items():
        for name, content in names.items():
            if ":3-19_" not in name:
                assert after[label][name] == content
    assert_manifests_are_right(layer)


def test_the_spatial_index_keeps_the_labels_that_are_not_named(layer):
    def indices():
        found = {}
        for path in sorted((path_of(layer) / MESHES).glob("*.spatial.gz")):
            found[path.name] = json.loads(gzip.decompress(path.read_bytes()))
        return found

    before = indices()
    for wishes in ({"object_ids": [3]}, {"dust_threshold": 10**6}):
        complete(Mesh(layer=layer, **wishes))
        assert indices() == before
    complete(Mesh(layer=layer, object_ids=[3], spatial_index=False))
    assert indices() == before
    assert "spatial_index" in json.loads((path_of(layer) / MESHES / "info").read_text())


def test_index_files_that_the_info_does_not_tell_of_are_left_to_their_owner(layer):
    info = path_of(layer) / MESHES / "info"
    data = json.loads(info.read_text())
    del data["spatial_index"]
    info.write_text(json.dumps(data))
    before = {path.name for path in (path_of(layer) / MESHES).glob("*.spatial.gz")}
    complete(Mesh(layer=layer, object_ids=[3]))
    assert {path.name for path in (path_of(layer) / MESHES).glob("*.spatial.gz")} == before
    assert "spatial_index" not in json.loads(info.read_text())


@given(st.data(), vectors(-20, 20))
@settings(deadline=None, max_examples=12)
def test_parts_one_after_the_other_equal_the_whole_when_they_cover_it(
    tmp_path_factory, data, offset
):
    folder = tmp_path_factory.mktemp("layers")
    spec = LayerSpec("segmentation", voxel_offset=offset, chunk_size=(16, 16, 16))
    whole = write_layer(folder / "whole", rods(), spec)
    parts = write_layer(folder / "parts", rods(), spec)
    complete(Mesh(layer=whole, shape=SHAPE))
    first = data.draw(st.sets(st.sampled_from(LABELS), min_size=1))
    steps = [{"object_ids": sorted(first)}, {"exclude_object_ids": sorted(first)}]
    for wishes in data.draw(st.permutations(steps)):
        complete(Mesh(layer=parts, shape=SHAPE, **wishes))
    for layer in (whole, parts):
        complete(MeshManifest(layer=layer))
        assert_records_are_true(layer)
    assert {n: c for n, c in snapshot(path_of(whole) / MESHES).items() if "cells" not in n} == {
        n: c for n, c in snapshot(path_of(parts) / MESHES).items() if "cells" not in n
    }


def files_of(layer):
    return {n: c for n, c in snapshot(path_of(layer)).items() if n != "provenance"}


def put_back(layer, files):
    for name in snapshot(path_of(layer)):
        (path_of(layer) / name).unlink()
    for name, content in files.items():
        (path_of(layer) / name).write_bytes(content)


def is_done_within(steps, stage, monkeypatch):
    """Do a stage on a disk that fails after some writes and deletions; whether that was enough."""
    left = iter(range(steps))

    def stopping(call):
        def stopped(*args, **kwargs):
            if next(left, None) is None:
                raise StorageUnavailable("the disk is full")
            return call(*args, **kwargs)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", stopping(LocalFolder.write))
        patch.setattr(LocalFolder, "delete", stopping(LocalFolder.delete))
        try:
            complete(stage)
        except StorageUnavailable:
            return False
    return True


def test_a_run_of_some_labels_that_was_stopped_at_any_write_ends_like_one_that_was_not(
    layer, monkeypatch
):
    voxels = rods()
    voxels[15:34, 9:11] = 0
    write_voxels(layer, voxels)
    before = snapshot(path_of(layer))
    stage = Mesh(layer=layer, object_ids=[3], trash_entry="20250101T000000Z-abcdef")
    complete(stage)
    expected, steps = files_of(layer), 0
    put_back(layer, before)
    while not is_done_within(steps, stage, monkeypatch):
        assert_manifests_name_what_is_there(layer)
        complete(stage)
        assert files_of(layer) == expected
        put_back(layer, before)
        steps += 1
    assert steps > 15
    assert files_of(layer) == expected


def test_manifests_wait_for_a_run_of_some_labels_that_has_begun(layer):
    stage = Mesh(layer=layer, object_ids=[3], max_simplification_error=9, confirm=True).resolved()
    stage.prepare()
    first, *rest = stage.cells()
    stage.run(first)
    (refusal,) = MeshManifest(layer=layer).plan().refusals
    assert f"{len(rest)} of {len(rest) + 1} blocks have not been meshed" in refusal
    assert "Finish mesh first" in refusal
    incomplete = MeshManifest(layer=layer, allow_incomplete=True)
    assert "fragments of earlier runs" in incomplete.plan().notes[0]
    complete(incomplete)
    assert_manifests_are_right(layer)
    for cell in rest:
        stage.run(cell)
    stage.finish("tester")
    assert MeshManifest(layer=layer).plan().refusals == ()
    assert "unfinished" not in json.loads((path_of(layer) / MESHES / "info").read_text())


def test_some_labels_do_not_stand_for_all_where_a_whole_run_was_given_up(tmp_path):
    layer = write_layer(tmp_path / "layer", rods(), SPEC)
    given_up = Mesh(layer=layer, shape=SHAPE).resolved()
    given_up.prepare()
    given_up.run(given_up.cells()[0])
    complete(Mesh(layer=layer, object_ids=[3]))
    (refusal,) = MeshManifest(layer=layer).plan().refusals
    assert "Finish mesh first" in refusal
    complete(Mesh(layer=layer, max_simplification_error=9))  # of everything: it takes its place
    complete(MeshManifest(layer=layer))
    assert_manifests_are_right(layer)


def test_meshes_of_other_programs_belong_to_the_meshes_when_some_labels_are_added(layer):
    info = path_of(layer) / MESHES / "info"
    data = json.loads(info.read_text())
    del data["parts"]
    info.write_text(json.dumps(data))
    for record in (path_of(layer) / MESHES / "cells").iterdir():
        record.unlink()
    before = fragments_of(layer)
    complete(Mesh(layer=layer, object_ids=[3], bounds="3-4_-7-13_11-16"))
    assert MeshManifest(layer=layer).plan().refusals == ()
    complete(MeshManifest(layer=layer))
    assert fragments_of(layer) == before
    assert_manifests_are_right(layer)


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"[1]"), None],
    ids=["empty", "no gzip", "another form", "missing"],
)
def test_damaged_records_lose_no_fragment(layer, damage):
    before = fragments_of(layer)
    for record in (path_of(layer) / MESHES / "cells").iterdir():
        record.unlink() if damage is None else record.write_bytes(damage)
    complete(Mesh(layer=layer, object_ids=[3], max_simplification_error=9))
    after = fragments_of(layer)
    assert {label: after[label] for label in LABELS if label != 3} == {
        label: before[label] for label in LABELS if label != 3
    }
    assert_manifests_are_right(layer)


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"fragments": 5}', '{"fragments": ["a"]}'])
def test_manifests_that_are_missing_or_damaged_stop_nothing(layer, manifest):
    path = path_of(layer) / MESHES / "3:0"
    path.unlink() if manifest is None else path.write_text(manifest)
    voxels = rods()
    voxels[voxels == 3] = 0
    write_voxels(layer, voxels)
    complete(Mesh(layer=layer, object_ids=[3]))
    assert 3 not in fragments_of(layer)
    complete(MeshManifest(layer=layer, remove_stale=True, confirm=True))
    assert_manifests_are_right(layer)


# What is replaced must be confirmed


def question_of(stage):
    with pytest.raises(PlanRefused) as refused:
        stage.resolved().plan().require_accepted()
    (question,) = refused.value.refusals
    return question


def test_fragments_that_are_replaced_are_counted_and_must_be_confirmed(layer):
    fragments = fragments_of(layer)[3]
    stored = sum(map(len, fragments.values()))
    question = question_of(Mesh(layer=layer, object_ids=[3]))
    assert question.startswith(
        f"confirm: meshes in {layer}/{MESHES} would be replaced: 3 fragments"
    )
    assert f"{stored / 1000:.3g} kB" in question or f"{stored} B" in question
    assert "made by MeshTask" in question
    assert "Set `confirm`" in question
    plan = Mesh(layer=layer, object_ids=[3], confirm=True).resolved().plan().require_accepted()
    assert plan.replaces[0].startswith(f"{MESHES}: 3 fragments, ")
    every = question_of(Mesh(layer=layer, max_simplification_error=9))
    assert ": 15 fragments" in every


def test_labels_and_parts_without_meshes_and_runs_of_the_same_parameters_ask_nothing(layer):
    for wishes in ({}, {"object_ids": [99]}):
        assert Mesh(layer=layer, shape=SHAPE, **wishes).resolved().plan().unconfirmed == ""
    some = Mesh(layer=layer, object_ids=[3], confirm=True)
    complete(some)
    assert Mesh(layer=layer, object_ids=[3]).resolved().plan().unconfirmed == ""
    assert Mesh(layer=layer, shape=SHAPE).resolved().plan().unconfirmed  # others' now, in part


def test_a_new_grid_tells_that_it_replaces_the_meshes_of_all_labels(layer):
    wishes = {"shape": (20, 20, 20), "new_grid": True, "object_ids": [3]}
    plan = Mesh(layer=layer, **wishes, keep_deleted=False).resolved().plan()
    assert "15 fragments and 5 manifests" in plan.unconfirmed
    assert "meshes of labels that this run does not make go too" in plan.notes[-1]
    kept = Mesh(layer=layer, **wishes).resolved().plan()
    assert "go to the trash of the layer" in kept.notes[-2]
    assert kept.notes[-1] == plan.notes[-1]
    assert "until `mesh_manifest` deletes them" in plan.notes[-2]
    refused = Mesh(layer=layer, shape=(20, 20, 20), object_ids=[3], confirm=True).plan().refusals
    assert "set new_grid to replace them" in refused[0]


def test_fragments_of_an_unknown_grid_are_not_mixed_with_others(layer):
    info = path_of(layer) / MESHES / "info"
    info.write_text('{"@type": "neuroglancer_legacy_mesh"}')
    (refusal,) = Mesh(layer=layer, shape=(20, 20, 20)).plan().refusals
    assert "a grid that its info does not tell" in refusal
    assert "15 fragments" in question_of(Mesh(layer=layer, shape=(20, 20, 20), new_grid=True))


def test_stale_files_are_counted_and_must_be_confirmed(layer):
    complete(Mesh(layer=layer, shape=(20, 20, 20), new_grid=True, keep_deleted=False))
    stage = MeshManifest(layer=layer, remove_stale=True)
    stale = sum(len(names) for names in fragments_of(layer).values()) - 10
    question = question_of(stage)
    assert question.startswith(f"confirm: {stale} stale fragments, ")
    assert "deleted for good" in question
    assert MeshManifest(layer=layer, remove_stale=True, confirm=True).plan().unconfirmed == ""
    assert stage.plan().deletions[0].startswith(f"{stale} stale fragments")


def test_blocks_are_as_large_as_those_of_the_meshes_that_are_there(layer):
    assert tuple(Mesh(layer=layer, object_ids=[3]).resolved().shape) == tuple(Vec3(*SHAPE))


def test_a_run_that_was_given_up_has_not_made_what_others_made_later(layer):
    given_up = Mesh(layer=layer, object_ids=[3], max_simplification_error=10, confirm=True)
    given_up.resolved().prepare()
    again = given_up.model_copy(update={"confirm": False})
    assert again.resolved().plan().unconfirmed == ""  # it goes on
    complete(Mesh(layer=layer, object_ids=[3], simplification=False))
    assert "3 fragments" in question_of(again)
    complete(given_up)
    assert again.resolved().plan().unconfirmed == ""


def test_what_others_made_elsewhere_leaves_a_run_that_began_the_maker(layer):
    run = Mesh(layer=layer, max_simplification_error=10, bounds="3-4_-7-13_11-16", confirm=True)
    run.resolved().prepare()
    complete(Mesh(layer=layer, simplification=False, bounds="40-41_-7-13_11-16"))
    assert run.model_copy(update={"confirm": False}).resolved().plan().unconfirmed == ""


def test_a_run_that_an_older_version_began_counts_its_entries_from_the_first(layer):
    stage = Mesh(layer=layer, object_ids=[3], max_simplification_error=10, confirm=True)
    stage.resolved().prepare()
    info = path_of(layer) / MESHES / "info"
    data = json.loads(info.read_text())
    assert data["unfinished"][0].pop("entries") == 2
    info.write_text(json.dumps(data))
    assert "3 fragments" in question_of(stage.model_copy(update={"confirm": False}))


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({}, "go to the trash of the layer"),
        ({"keep_deleted": False}, "are replaced in place, and not kept"),
        ({"object_ids": [3]}, "not kept: only a mesh directory as a whole goes to the trash"),
        ({"shape": (20, 20, 20), "new_grid": True}, "go to the trash of the layer"),
        (
            {"shape": (20, 20, 20), "new_grid": True, "keep_deleted": False},
            "their fragments stay until `mesh_manifest` deletes them with `remove_stale`",
        ),
    ],
    ids=str,
)
def test_a_plan_says_what_becomes_of_the_old_meshes(layer, wishes, words):
    stage = Mesh(layer=layer, max_simplification_error=10, **wishes)
    notes = [note for note in stage.resolved().plan().notes if "the meshes that are there" in note]
    assert len(notes) == 1
    assert words in notes[0]


def test_a_plan_says_what_becomes_of_the_old_meshes_in_a_bucket(layer):
    bucket = f"mem://{uuid.uuid4()}/layer"
    complete(Transfer(src=layer, dest=bucket, max_mips=0))
    nothing = Mesh(layer=bucket, shape=SHAPE).plan().notes
    assert not any("the meshes that are there" in note for note in nothing)
    complete(Mesh(layer=bucket, shape=SHAPE))
    notes = Mesh(layer=bucket, max_simplification_error=10).resolved().plan().notes
    assert "replaced in place: a bucket has no trash, so that only its versions keep" in notes[-1]
    some = Mesh(layer=bucket, shape=(20, 20, 20), new_grid=True, object_ids=[3]).plan().notes
    assert "until `mesh_manifest` deletes them" in some[-2]
    assert "labels that this run does not make go too" in some[-1]
