"""Delete: its contract, and what is left of a layer after it."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import AuditFailed, InvalidParameter, LayerNotFound, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.info import Info
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)
from igneous_airflow.testing.stages import StageTests, complete, snapshot
from igneous_airflow.testing.strategies import sizes, vectors

SIZE = Vec3(65, 33, 9)


def layer_with_mips(path, size=SIZE, mips=2, **spec):
    url = write_layer(path, random_voxels(size), LayerSpec(**spec))
    if mips:
        complete(Downsample(layer=url, num_mips=mips))
    return url


def keys_of(path):
    return [scale["key"] for scale in json.loads((path / "info").read_text())["scales"]]


def files_of(path, key):
    folder = path / key
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def refusals_of(stage):
    refusals = stage.plan().refusals
    assert refusals
    return "\n".join(refusals)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        url = layer_with_mips(tmp_path / "layer", voxel_offset=(3, -7, 11))
        return Delete(layer=url, mip=0, num_mips=2, confirm=True)


class TestContractWithBounds(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        url = layer_with_mips(tmp_path / "layer", voxel_offset=(3, -7, 11))
        return Delete(layer=url, num_mips=2, bounds="19-68_-7-26_11-20", confirm=True)


@pytest.mark.parametrize(
    ("size", "chunk", "mips"),
    [
        (Vec3(300, 300, 64), (64, 64, 64), 2),
        (Vec3(1300, 1300, 1), (64, 64, 1), 1),
        (Vec3(65, 1, 129), (64, 64, 64), 3),
    ],
    ids=str,
)
def test_no_chunk_is_left_at_narrow_edges(tmp_path, size, chunk, mips):
    url = layer_with_mips(tmp_path, size, mips, chunk_size=chunk)
    keys = keys_of(tmp_path)
    audit = complete(Delete(layer=url, num_mips=mips + 1, confirm=True))
    assert audit.outputs == dict.fromkeys(keys, 0)
    assert [files_of(tmp_path, key) for key in keys] == [[]] * (mips + 1)


@given(sizes(40), sizes(9), vectors(-20, 20), st.integers(0, 2), st.data())
@settings(deadline=None, max_examples=30)
def test_what_is_not_selected_stays_byte_for_byte(tmp_path_factory, size, chunk, offset, mip, data):
    path = tmp_path_factory.mktemp("layer")
    url = layer_with_mips(path, size, mips=0, chunk_size=chunk, voxel_offset=offset)
    downsample = Downsample(layer=url, num_mips=2)
    if not downsample.plan().refusals:
        complete(downsample)
    keys = keys_of(path)
    before = snapshot(path)
    count = data.draw(st.integers(1, 3))
    wishes = {"mip": min(mip, len(keys) - 1), "num_mips": count, "confirm": True}
    stage = Delete(layer=url, **wishes, keep_deleted=False).resolved()
    gone = keys[stage.mip : stage.mip + count]
    for cell in data.draw(st.permutations(stage.cells())):
        stage.run(cell)
    stage.finish("tester")
    expected = {name for name in before if name.split("/")[0] not in gone}
    after = snapshot(path)
    assert after.keys() == expected | {"provenance"}
    assert all(after[name] == before[name] for name in expected - {"info", "provenance"})
    assert keys_of(path) == [key for key in keys if key not in gone]


def test_other_mips_can_still_be_read(tmp_path):
    url = layer_with_mips(tmp_path)
    expected = read_with_cloudvolume(tmp_path, 2)
    complete(Delete(layer=url, mip=0, num_mips=2, confirm=True))
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path, 0), expected)


def test_every_compression_of_a_chunk_goes(tmp_path):
    url = layer_with_mips(tmp_path, mips=0)
    (chunk, *_) = sorted((tmp_path / "8_8_40").iterdir())
    for suffix in (".gz", ".br", ".zstd"):
        shutil.copy(chunk, f"{chunk}{suffix}")
    complete(Delete(layer=url, confirm=True))
    assert files_of(tmp_path, "8_8_40") == []


def test_files_of_others_stay_and_chunks_of_an_earlier_chunk_size_go(tmp_path):
    url = layer_with_mips(tmp_path)
    (tmp_path / "mesh").mkdir()
    others = ["notes.txt", "00-8_0-8_0-8", "0-8_0-8_0-8.bak", "0-0_0-8_0-8", "7.shard"]
    for name in [*others, "0-64_0-64_0-64", "1000-1064_0-64_0-64.gz", "../mesh/0-8_0-8_0-8"]:
        (tmp_path / "8_8_40" / name).write_text("x")
    audit = complete(Delete(layer=url, confirm=True))
    assert files_of(tmp_path, "8_8_40") == sorted(others)
    assert files_of(tmp_path, "mesh") == ["0-8_0-8_0-8"]
    assert audit.outputs == {"8_8_40": 0}


def test_scales_that_are_gone_leave_the_info_and_all_else_in_it_stays(tmp_path):
    url = layer_with_mips(tmp_path)
    data = json.loads((tmp_path / "info").read_text()) | {"mesh": "mesh", "extra": [1]}
    (tmp_path / "info").write_text(json.dumps(data))
    complete(Delete(layer=url, mip=1, num_mips=1, confirm=True))
    left = json.loads((tmp_path / "info").read_text())
    assert left == data | {"scales": [data["scales"][0], data["scales"][2]]}


def test_after_all_mips_are_deleted_the_info_names_none(tmp_path):
    url = layer_with_mips(tmp_path)
    stage = Delete(layer=url, num_mips=20, confirm=True)
    notes = "\n".join(stage.plan().notes)
    assert "3 of 20 mips" in notes
    assert "no mip is left" in notes
    complete(stage)
    assert keys_of(tmp_path) == []
    assert "has no scales" in refusals_of(Delete(layer=url, confirm=True))


def test_a_message_that_comes_again_after_the_end_deletes_nothing(tmp_path):
    """What was mip 1 is mip 0 then."""
    url = layer_with_mips(tmp_path)
    stage = Delete(layer=url, confirm=True).resolved()
    cells = list(stage.cells())
    complete(stage)
    before = snapshot(tmp_path)
    with pytest.raises(InvalidParameter, match="deleted already"):
        stage.cells()
    for cell in cells:
        stage.run(cell)
    assert snapshot(tmp_path) == before
    assert stage.finish("tester").outputs == {"8_8_40": 0}
    assert keys_of(tmp_path) == ["16_16_40", "32_32_40"]


def test_tasks_work_only_on_what_resolved_has_named(tmp_path):
    url = layer_with_mips(tmp_path)
    stage = Delete(layer=url, mip=-1, confirm=True)
    assert stage.resolved().scales == "32_32_40"
    for call in (stage.prepare, lambda: stage.run(stage.cells()[0]), lambda: stage.finish("x")):
        with pytest.raises(InvalidParameter, match="resolved"):
            call()


def test_a_chunk_written_after_its_task_is_named(tmp_path):
    url = layer_with_mips(tmp_path, mips=0)
    chunk = sorted((tmp_path / "8_8_40").iterdir())[0]
    content = chunk.read_bytes()
    stage = Delete(layer=url, confirm=True).resolved()
    for cell in stage.cells():
        stage.run(cell)
    chunk.write_bytes(content)
    with pytest.raises(AuditFailed, match=rf"1 chunks .* 8_8_40/{chunk.name}\."):
        stage.finish("tester")
    assert keys_of(tmp_path) == ["8_8_40"]


def test_nothing_goes_before_it_is_confirmed(tmp_path):
    url = layer_with_mips(tmp_path)
    before = snapshot(tmp_path)
    stage = Delete(layer=url, num_mips=3).resolved()
    plan = stage.plan()
    assert plan.refusals == ()
    with pytest.raises(
        PlanRefused, match=r"confirm: .* chunk files, .* moved to the layer's trash \(8_8_40"
    ):
        plan.require_accepted()
    block = stage.model_copy().accepted().cells()[0]
    for call in (stage.prepare, stage.cells, lambda: stage.run(block), lambda: stage.finish("x")):
        with pytest.raises((PlanRefused, InvalidParameter), match="confirm"):
            call()
    assert snapshot(tmp_path) == before


def test_a_plan_lists_what_would_go_with_counts_and_bytes(tmp_path):
    url = layer_with_mips(tmp_path)
    plan = Delete(layer=url, num_mips=2).plan()
    stored = sum(file.stat().st_size for file in (tmp_path / "8_8_40").iterdir())
    assert plan.deletions[0] == f"8_8_40: 90 chunk files, {stored / 1000:.3g} kB"
    assert plan.deletions[1].startswith("16_16_40: 30 chunk files, ")
    assert "deletes 8_8_40: 90 chunk files" in plan.describe()
    assert "UNCONFIRMED: confirm: 120 chunk files" in plan.describe()
    assert "uncompressed" not in plan.describe()


def test_with_bounds_only_chunks_wholly_inside_go(tmp_path):
    url = layer_with_mips(tmp_path, Vec3(64, 64, 16), voxel_offset=(8, -8, 4))
    before = snapshot(tmp_path)
    bounds = "40-72_-8-24_4-12"
    complete(Delete(layer=url, num_mips=3, bounds=bounds, confirm=True))
    scales = Info.parse((tmp_path / "info").read_bytes(), "").scales
    assert [scale.key for scale in scales] == ["8_8_40", "16_16_40", "32_32_40"]
    gone = before.keys() - snapshot(tmp_path).keys()
    box = BoundingBox.parse(bounds).translated(Vec3(-8, 8, -4))
    for mip, scale in enumerate(scales):
        part = box.downsampled(Vec3(2**mip, 2**mip, 1)).translated(scale.voxel_offset)
        inside = {f"{scale.key}/{chunk}" for chunk in scale.chunks if part.contains(chunk)}
        assert {name.removesuffix(".gz") for name in gone if scale.key + "/" in name} == inside
        assert inside


@pytest.mark.parametrize(
    ("bounds", "count", "named"),
    [
        ("0-9_0-8_0-8", 1, "use 0-16_0-8_0-8"),
        ("0-8_0-8_0-8", 2, "use 0-16_0-16_0-8"),
        ("60-65_0-33_0-9", 1, "use 56-65_0-33_0-9"),
        ("0-66_0-8_0-8", 1, "reaches out of the volume, which is 0-65_0-33_0-9"),
    ],
)
def test_bounds_that_cut_chunks_are_refused_with_those_that_do_not(tmp_path, bounds, count, named):
    url = layer_with_mips(tmp_path)
    stage = Delete(layer=url, num_mips=count, bounds=bounds, confirm=True)
    assert named in refusals_of(stage)


def test_bounds_of_everything_mean_all(tmp_path):
    url = layer_with_mips(tmp_path)
    complete(Delete(layer=url, num_mips=3, bounds="0-65_0-33_0-9", confirm=True))
    assert keys_of(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sharding": {"@type": "x"}}, "is sharded"),
        ({"key": "../other/8_8_40"}, "inside the layer"),
        ({"key": "/8_8_40"}, "inside the layer"),
        ({"key": "."}, "inside the layer"),
    ],
    ids=str,
)
def test_what_cannot_be_deleted_safely_is_refused(tmp_path, changes, named):
    url = layer_with_mips(tmp_path, mips=0)
    data = json.loads((tmp_path / "info").read_text())
    data["scales"][0] |= changes
    (tmp_path / "info").write_text(json.dumps(data))
    assert named in refusals_of(Delete(layer=url, confirm=True))


def test_what_is_not_there_is_refused(tmp_path):
    url = layer_with_mips(tmp_path / "layer")
    assert "no layer at" in refusals_of(Delete(layer=str(tmp_path / "no"), confirm=True))
    assert "mips 0 to 2" in refusals_of(Delete(layer=url, mip=3, confirm=True))
    assert "no scale 1_1_1" in refusals_of(Delete(layer=url, scales="1_1_1", confirm=True))
    with pytest.raises(ValidationError, match="inside the layer"):
        Delete(layer=url, scales="8_8_40,../8_8_40")
    with pytest.raises(LayerNotFound):
        Delete(layer=str(tmp_path / "no")).resolved()


def test_what_was_done_is_recorded_with_every_parameter(tmp_path):
    url = layer_with_mips(tmp_path, mips=0)
    stage = Delete(layer=url, confirm=True).resolved()
    complete(stage)
    (entry,) = json.loads((tmp_path / "provenance").read_text())["processing"]
    assert entry["method"] == {"task": "DeleteTask", **stage.parameters()}


def test_layers_in_a_bucket_are_deleted_too(tmp_path):
    from igneous_airflow.storage.files import StoredFile, open_folder

    layer_with_mips(tmp_path)
    bucket = open_folder(f"mem://{tmp_path.name}/layer")
    for name, content in snapshot(tmp_path).items():
        compressed = name.endswith(".gz")
        bucket.write(name.removesuffix(".gz"), StoredFile(content, "gzip" if compressed else ""))

    class Wide(Layer):
        overlap_width = 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igneous_airflow.storage.layer.Layer", Wide)
        stage = Delete(layer=bucket.url, num_mips=2, confirm=True)
        assert "90 chunk files" in stage.plan().deletions[0]
        complete(stage)
    assert [len(list(bucket.names(key))) for key in ("8_8_40", "16_16_40", "32_32_40")] == [
        0,
        0,
        12,
    ]


def test_a_run_killed_before_its_record_said_so_can_be_prepared_and_finished_again(
    tmp_path,
):
    layer = write_layer(tmp_path / "layer", random_voxels(Vec3(32, 16, 8)))
    complete(Downsample(layer=layer, num_mips=1))
    stage = Delete(layer=layer, mip=1, confirm=True).resolved()
    complete(stage)
    stage.accepted().prepare()  # as in a run, which was accepted when it was launched
    assert stage.finish("tester").outputs
