"""Plans of Transfer: what they count, where voxels go, and what they refuse with a way out."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from igneous_airflow.errors import InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import complete, snapshot

SIZE, OFFSET = Vec3(100, 70, 20), Vec3(5, -6, 7)
SPEC = LayerSpec(voxel_offset=OFFSET)
VOXELS = random_voxels(SIZE)


@pytest.fixture
def transfer(tmp_path):
    """Make transfers of one source to one destination."""
    src = write_layer(tmp_path / "src", VOXELS, SPEC)

    def make(**wishes):
        return Transfer(src=src, dest=f"{tmp_path}/dest", **wishes)

    return make


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    with pytest.raises((InvalidParameter, OSError)):
        stage.prepare()
    return "\n".join(refusals)


def info_of(tmp_path, name="dest"):
    return json.loads((tmp_path / name / "info").read_text())


def change_info(path, scale=None, **changes):
    data = json.loads((path / "info").read_text())
    data["scales"][0] |= scale or {}
    (path / "info").write_text(json.dumps(data | changes))


def mip0(tmp_path):
    return read_with_tensorstore(tmp_path / "dest", 0)


def test_a_plan_counts_what_is_done(transfer):
    stage = transfer(max_mips=2, shape=(32, 32, 8))
    plan = stage.plan()
    assert plan.tasks == len(stage.cells()) == 4 * 3 * 3
    assert plan.voxels == plan.bytes_read == SIZE.product
    assert plan.bytes_written == SIZE.product + 50 * 35 * 20 + 25 * 18 * 20
    assert [output.split(":")[0] for output in plan.outputs] == ["8_8_40", "16_16_40", "32_32_40"]
    stage.prepare()
    works = [stage.run(cell) for cell in stage.cells()]
    assert sum(work.chunks_written for work in works) == sum(stage.finish("x").outputs.values())


def test_a_plan_says_how_many_times_chunks_are_read(transfer):
    bounds = "9-105_-6-64_7-27"
    notes = transfer(bounds=bounds, cutout=True, shape=(8, 8, 8), max_mips=0).plan().notes
    assert any("is decoded" in note and "times" in note for note in notes)
    assert not any("is decoded" in note for note in transfer(chunk_size=(16, 16, 16)).plan().notes)


@pytest.mark.parametrize("wishes", [{"translate": (3, -4, 5)}, {"dest_voxel_offset": (8, -10, 12)}])
def test_a_new_destination_is_moved(tmp_path, transfer, wishes):
    """Igneous' command line writes black when it is told a voxel offset only."""
    stage = transfer(max_mips=1, compress="none", **wishes)
    assert any("voxels move by 3,-4,5" in note for note in stage.plan().notes)
    complete(stage)
    assert [s["voxel_offset"] for s in info_of(tmp_path)["scales"]] == [[8, -10, 12], [4, -5, 12]]
    np.testing.assert_array_equal(mip0(tmp_path), VOXELS)


def test_a_destination_made_beforehand_at_another_offset_takes_the_voxels(tmp_path, transfer):
    write_layer(tmp_path / "dest", np.zeros_like(VOXELS), LayerSpec(voxel_offset=(0, 0, 0)))
    complete(transfer(max_mips=0, compress="none"))
    np.testing.assert_array_equal(mip0(tmp_path), VOXELS)


def test_the_chosen_mip_is_read_and_voxels_move_by_voxels_of_mip_0(tmp_path, transfer):
    complete(Downsample(layer=f"{tmp_path}/src", num_mips=2, compress="none"))
    stage = transfer(mip=1, translate=(4, 8, 1), max_mips=1, compress="none")
    assert any("finer than 1" in note for note in stage.plan().notes)
    complete(stage)
    scales = info_of(tmp_path)["scales"]
    assert [scale["key"] for scale in scales] == ["8_8_40", "16_16_40", "32_32_40"]
    assert [scale["voxel_offset"] for scale in scales] == [[9, 2, 8], [4, 1, 8], [2, 0, 8]]
    expected = read_with_tensorstore(tmp_path / "src", 1)
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 1), expected)
    assert not (tmp_path / "dest/8_8_40").exists()
    stage = Transfer(src=f"{tmp_path}/src", dest=f"{tmp_path}/other", mip=1, translate=(1, 0, 0))
    assert "move by multiples of 2,2,1" in refusals_of(stage)


def test_mips_of_the_destination_that_keep_their_old_voxels_are_named(transfer):
    assert not any("keep" in note for note in transfer(max_mips=2).plan().notes)
    complete(transfer(max_mips=2))
    assert not any("keep" in note for note in transfer(max_mips=2).plan().notes)
    (note,) = [note for note in transfer(skip_downsamples=True).plan().notes if "keep" in note]
    assert ": 1 (16_16_40), 2 (32_32_40); where the finer ones change" in note


def test_a_cutout_is_as_large_as_the_bounds(tmp_path, transfer):
    complete(Downsample(layer=f"{tmp_path}/src", num_mips=1))
    wishes = {"bounds": "10-31_0-17_9-14", "cutout": True, "compress": "none"}
    complete(transfer(mip=1, max_mips=0, **wishes))
    scales = info_of(tmp_path)["scales"]
    assert [(scale["size"], scale["voxel_offset"]) for scale in scales] == [
        ([42, 34, 5], [20, 0, 9]),
        ([21, 17, 5], [10, 0, 9]),
    ]
    complete(transfer(mip=1, max_mips=0, **wishes))  # again, into what is there


@pytest.mark.parametrize("clean", [False, True])
def test_a_clean_info_is_about_voxels_only(tmp_path, transfer, clean):
    change_info(tmp_path / "src", mesh="mesh", extra=1)
    stage = transfer(clean_info=clean)
    assert any("names mesh, whose files" in note for note in stage.plan().notes) != clean
    complete(stage)
    assert ({"mesh", "extra"} <= info_of(tmp_path).keys()) != clean


@pytest.mark.parametrize(
    ("spec", "voxels", "wishes", "named"),
    [
        ({"chunk_size": (16, 16, 16)}, VOXELS, {"chunk_size": (8, 8, 8)}, "chunk_size: 8,8,8, but"),
        ({}, VOXELS, {"encoding": "png"}, "encoding: png, but"),
        ({}, VOXELS.astype("uint16"), {}, "holds uint16 in 1 channel(s), but would get uint8 in 1"),
        ({}, VOXELS.repeat(3, 3), {}, "holds uint8 in 3 channel(s), but would get uint8 in 1"),
        ({}, VOXELS[:50], {}, "set bounds to 5-55_-6-64_7-27, or translate"),
        ({"voxel_offset": (900, 0, 0)}, VOXELS[:50], {}, "set translate to move it elsewhere"),
        ({"resolution": (9, 9, 40)}, VOXELS, {}, "finer ones must come before coarser ones"),
    ],
)
def test_a_destination_that_exists_is_never_changed_to_fit(
    tmp_path, transfer, spec, voxels, wishes, named
):
    write_layer(tmp_path / "dest", voxels, LayerSpec(**({"voxel_offset": OFFSET} | spec)))
    before = snapshot(tmp_path)
    assert named in refusals_of(transfer(**wishes))
    assert snapshot(tmp_path) == before


def test_a_destination_that_exists_keeps_its_chunks_and_all_else_in_its_info(tmp_path, transfer):
    write_layer(tmp_path / "dest", np.zeros_like(VOXELS), LayerSpec("other", (16, 8, 4), OFFSET))
    change_info(tmp_path / "dest", extra=1)
    before = info_of(tmp_path)
    complete(transfer(max_mips=1, compress="none"))
    after = info_of(tmp_path)
    assert after | {"scales": after["scales"][:1]} == before
    assert after["scales"][1]["chunk_sizes"] == [[16, 8, 4]]
    np.testing.assert_array_equal(mip0(tmp_path), VOXELS)


def test_bounds_that_fill_parts_of_chunks_are_refused_with_those_that_do_not(transfer):
    assert "set bounds to 5-21_-6-10_7-15" in refusals_of(
        transfer(bounds="5-20_-6-9_7-15", max_mips=1)
    )
    few = transfer(bounds="5-20_-6-9_7-15", max_mips=0)
    assert "set bounds to 5-21_-6-10_7-15" in refusals_of(few)
    moved = transfer(bounds="5-20_-6-9_7-15", max_mips=0, translate=(1000, 0, 0))
    assert "set bounds to 5-21_-6-10_7-15" in refusals_of(moved)
    assert transfer(bounds="5-21_-6-10_7-15", max_mips=1).plan().refusals == ()


def test_a_source_that_fills_only_parts_of_the_destinations_chunks_is_refused(tmp_path, transfer):
    write_layer(tmp_path / "dest", random_voxels(Vec3(200, 200, 200)), LayerSpec())
    stage = transfer(translate=(1, 7, 1), max_mips=0)
    assert "set bounds to 7-103_1-57_7-23" in refusals_of(stage)
    complete(transfer(translate=(1, 7, 1), max_mips=0, bounds="7-103_1-57_7-23", compress="none"))
    part = VOXELS[2:98, 7:63, :16]
    np.testing.assert_array_equal(mip0(tmp_path)[8:104, 8:64, 8:24], part)


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"shape": (32, 32, 12)}, "use 256,256,16, or fewer mips"),
        ({"shape": (8, 8, 8), "max_mips": 1}, "use 16,16,8, or fewer mips"),
        ({"bounds": "0-100_0-64_7-27"}, "reaches out of the source, which is 5-105_-6-64_7-27"),
        ({"mip": 1}, "mips 0 to 0"),
        ({"encoding": "compressed_segmentation"}, "holds uint32, uint64, not uint8"),
        ({"background_color": 300}, "300 is not a value of uint8"),
        ({"chunk_size": (4096, 4096, 64), "memory_target": 1_000_000}, None),
        ({"chunk_size": (128, 128, 64), "memory_target": 1_000_000, "max_mips": 0}, None),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(transfer, wishes, named):
    if named is None:
        assert transfer(**wishes).plan().memory <= 1_000_000
    else:
        assert named in refusals_of(transfer(**wishes))


@pytest.mark.parametrize(
    ("source", "wishes"), [({}, {"encoding": "jxl"}), ({"encoding": "jxl"}, {"encoding": "raw"})]
)
def test_colours_are_neither_written_as_jxl_nor_read_from_it(tmp_path, source, wishes):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(16, 16, 8), channels=3))
    change_info(tmp_path / "src", scale=source)
    refused = refusals_of(Transfer(src=src, dest=f"{tmp_path}/dest", **wishes))
    assert "encoding jxl holds 1 channel(s), not 3: choose raw" in refused


def test_too_little_memory_for_a_chunk_is_refused(tmp_path):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(256, 256, 16)))
    stage = Transfer(
        src=src, dest=f"{tmp_path}/dest", chunk_size=(256, 256, 16), memory_target=1_000_000
    )
    assert "memory_target: 1,000,000 bytes are too few" in refusals_of(stage)


def test_fewer_mips_are_made_where_memory_allows_no_more(tmp_path):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(256, 256, 16)))
    wishes = {"chunk_size": (64, 64, 16), "max_mips": 3}
    for target in (1_000_000, 2_000_000, 8_000_000):
        plan = Transfer(src=src, dest=f"{tmp_path}/d", memory_target=target, **wishes).plan()
        assert plan.refusals == ()
        assert plan.memory <= target
        cut = any("more do not fit in memory" in note for note in plan.notes)
        assert cut == (len(plan.outputs) < 4)


def test_a_sharded_source_is_refused(tmp_path, transfer):
    change_info(tmp_path / "src", scale={"sharding": {"@type": "x"}})
    assert "is sharded" in refusals_of(transfer())


def test_a_source_with_a_scale_outside_of_it_is_not_read(tmp_path, transfer):
    (tmp_path / "src/8_8_40").rename(tmp_path / "elsewhere")
    change_info(tmp_path / "src", scale={"key": "../elsewhere"})
    assert "'../elsewhere' of a scale is not the name of a folder" in refusals_of(transfer())


def test_source_and_destination_must_be_two_layers(tmp_path, transfer):
    transfer()
    (tmp_path / "dest").symlink_to(tmp_path / "src")
    assert "same layer" in refusals_of(transfer())
    src = f"{tmp_path}/src"
    before = snapshot(tmp_path)
    assert "same layer" in refusals_of(Transfer(src=src, dest=f"file://{src}/"))
    assert snapshot(tmp_path) == before
    with pytest.raises(ValidationError, match="leave one empty"):
        transfer(translate=(0, 0, 0), dest_voxel_offset=(1, 2, 3))
    with pytest.raises(ValidationError, match="set bounds as well"):
        transfer(cutout=True)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    stage = Transfer(src=f"{tmp_path}/no", dest=f"{tmp_path}/dest")
    assert "no layer at" in refusals_of(stage)
    assert not (tmp_path / "dest").exists()
