"""Luminance levels: the contract, and every count as numpy makes it of the whole volume."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import AuditFailed, InvalidParameter, MissingChunk, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.stages import luminance_levels
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import StageTests, complete, peak_memory, snapshot
from igneous_airflow.testing.strategies import sizes, vectors

SIZE, OFFSET = Vec3(65, 33, 20), Vec3(3, -7, 11)
SPEC = LayerSpec(voxel_offset=OFFSET)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        layer = write_layer(tmp_path / "layer", random_voxels(SIZE), SPEC)
        return LuminanceLevels(layer=layer, mip=-1, bounds="3-68_-7-26_12-31", shape=(60, 40, 8))


class TestContractOfLevelsElsewhere(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        layer = write_layer(tmp_path / "layer", random_voxels(SIZE, "uint16"), SPEC)
        elsewhere = f"{tmp_path}/elsewhere"
        return LuminanceLevels(layer=layer, levels_path=elsewhere, shape=(99, 99, 3))


def files(folder, mip=0):
    """Every levels file of a mip, by section."""
    found = Path(folder, "levels", str(mip)).iterdir()
    return {int(file.name): json.loads(file.read_text()) for file in found}


def histograms(voxels, first=0):
    """What numpy counts in the whole sections of a volume."""
    bins = np.iinfo(voxels.dtype).max + 1
    return {
        first + z: np.bincount(voxels[:, :, z].ravel(), minlength=bins).tolist()
        for z in range(voxels.shape[2])
    }


def levels_of(folder, mip=0):
    return {z: file["levels"] for z, file in files(folder, mip).items()}


@pytest.fixture
def small_patches(monkeypatch):
    """Let patches be of 16 voxels, so that small layers have many."""
    monkeypatch.setattr(luminance_levels, "_PATCH_EDGE", 16)


@pytest.fixture
def reads(monkeypatch):
    """Collect the boxes of the chunks that are read."""
    boxes = []
    read_chunk = Layer.read_chunk
    monkeypatch.setattr(
        Layer,
        "read_chunk",
        lambda self, scale, box, *more: (boxes.append(box), read_chunk(self, scale, box, *more))[1],
    )
    return boxes


# What is counted


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("size", [(1, 1, 1), (65, 33, 20), (7, 300, 9)], ids=str)
@pytest.mark.parametrize("chunk_size", [(8, 8, 8), (64, 64, 64), (65, 33, 1)], ids=str)
def test_all_of_every_section_is_counted_as_numpy_does(tmp_path, dtype, size, chunk_size):
    """There are as many files as sections: Igneous writes, and then needs, one more."""
    voxels = random_voxels(Vec3(*size), dtype)
    write_layer(tmp_path, voxels, LayerSpec(chunk_size=chunk_size, voxel_offset=OFFSET))
    audit = complete(LuminanceLevels(layer=str(tmp_path), coverage_factor=1))
    assert levels_of(tmp_path) == histograms(voxels, first=OFFSET.z)
    assert audit.outputs == {"levels/0": size[2]}
    for file in files(tmp_path).values():
        assert list(file) == ["levels", "patch_size", "num_patches", "coverage_ratio"]
        assert file["patch_size"] == [size[0], size[1], 1]
        assert (file["num_patches"], file["coverage_ratio"]) == (1, 1)


def test_a_section_no_larger_than_a_patch_is_counted_whole_however_small_the_share(tmp_path):
    write_layer(tmp_path, random_voxels(Vec3(300, 200, 2)), LayerSpec(chunk_size=(64, 64, 64)))
    complete(LuminanceLevels(layer=str(tmp_path)))
    for file in files(tmp_path).values():
        assert file["patch_size"] == [300, 200, 1]
        assert (file["num_patches"], file["coverage_ratio"]) == (1, 1)
        assert sum(file["levels"]) == 60_000


def test_the_coarsest_mip_has_a_number(tmp_path):
    layer = write_layer(tmp_path, random_voxels(SIZE), SPEC)
    stage = LuminanceLevels(layer=layer, mip=-1)
    for cell in stage.cells():
        stage.run(cell)
    assert stage.finish("tester").outputs == {"levels/0": SIZE.z}
    assert set(files(tmp_path)) == set(range(11, 31))


def test_a_coarser_mip_is_sampled_by_its_own_size(tmp_path):
    layer = write_layer(tmp_path, random_voxels(SIZE), SPEC)
    complete(Downsample(layer=layer, num_mips=2, compress="none"))
    complete(LuminanceLevels(layer=layer, mip=-1, coverage_factor=1))
    assert levels_of(tmp_path, mip=2) == histograms(read_with_tensorstore(tmp_path, 2), OFFSET.z)
    assert not (tmp_path / "levels/0").exists()
    assert files(tmp_path, mip=2)[11]["patch_size"] == [17, 9, 1]


@pytest.mark.parametrize(
    ("wishes", "box"),
    [
        ({"bounds": "5-60_-6-20_13-29"}, "5-60_-6-20_13-29"),
        ({"offset": (20, 0, 15)}, "20-68_0-26_15-31"),
        ({"shape": (30, 20, 4)}, "3-33_-7-13_11-31"),
        ({"shape": (2048, 2048, 64)}, "3-68_-7-26_11-31"),
        ({"offset": (20, 0, 15), "shape": (30, 20, 4)}, "20-50_0-20_15-31"),
        (
            {"bounds": "5-60_-6-20_13-29", "offset": (6, 0, 14), "shape": (9, 99, 1)},
            "6-15_0-20_14-29",
        ),
    ],
    ids=str,
)
def test_a_part_of_each_section_can_be_sampled(tmp_path, wishes, box):
    voxels = random_voxels(SIZE)
    layer = write_layer(tmp_path, voxels, SPEC)
    complete(LuminanceLevels(layer=layer, coverage_factor=1, **wishes))
    part = BoundingBox.parse(box)
    counted = voxels[part.slices_within(BoundingBox.at(OFFSET, SIZE))]
    assert levels_of(tmp_path) == histograms(counted, first=part.min.z)
    assert {file["coverage_ratio"] for file in files(tmp_path).values()} == {1}


@pytest.mark.parametrize(("encoding", "dtype"), [("png", "uint8"), ("jpeg", "uint8")])
def test_encoded_layers_are_counted(tmp_path, encoding, dtype):
    layer = write_layer(tmp_path, random_voxels(SIZE, dtype), LayerSpec(encoding=encoding))
    complete(LuminanceLevels(layer=layer, coverage_factor=1))
    assert levels_of(tmp_path) == histograms(read_with_tensorstore(tmp_path, 0))


# The sample


def test_a_sample_is_whole_patches_of_the_section(tmp_path, small_patches):
    """Each voxel says in which chunk it is, so that the counts say which patches were drawn."""
    columns = np.arange(13 * 9, dtype=np.uint16).reshape(13, 9) + 1
    voxels = columns.repeat(8, 0).repeat(8, 1)[:100, :70, None, None].repeat(20, 2)
    layer = write_layer(tmp_path, np.asfortranarray(voxels))
    complete(LuminanceLevels(layer=layer, coverage_factor=0.2))
    seen = set()
    for z, file in files(tmp_path).items():
        counts = np.array(file["levels"])
        drawn = np.flatnonzero(counts)
        np.testing.assert_array_equal(counts[drawn], np.bincount(voxels[:, :, z].ravel())[drawn])
        assert file["num_patches"] == 7  # of 7 x 5, a fifth
        assert file["coverage_ratio"] == counts.sum() / (100 * 70)
        assert max(file["patch_size"]) <= 16
        seen.add(tuple(drawn))
    assert len(seen) == 3  # other places for each layer of chunks


@pytest.mark.parametrize("size", [(3000, 3000, 1), (300, 10_000, 1)], ids=str)
def test_the_right_and_bottom_edges_can_be_in_the_sample(tmp_path, size):
    """Of these Igneous never samples the last patches, since it counts patches by area."""
    voxels = np.zeros((*size, 1), np.uint8, "F")
    voxels[-20:], voxels[:, -20:] = 1, 2
    layer = write_layer(tmp_path, voxels, LayerSpec(chunk_size=(512, 512, 1)))
    found = Counter()
    for seed in range(24):
        stage = LuminanceLevels(layer=layer, seed=seed, confirm=True)
        stage.run(stage.cells()[0])
        levels = files(tmp_path)[0]["levels"]
        found += Counter(right=levels[1] > 0, bottom=levels[2] > 0)
    assert found["right"] >= 2
    assert found["bottom"] >= 2


def test_the_same_parameters_draw_the_same_sample_and_another_seed_another(tmp_path, small_patches):
    layer = write_layer(tmp_path, random_voxels(Vec3(100, 100, 9)))
    samples = []
    for seed in (0, 1, 0):
        complete(LuminanceLevels(layer=layer, coverage_factor=0.1, seed=seed))
        samples.append(snapshot(tmp_path / "levels"))
    assert samples[0] == samples[2]
    assert samples[0] != samples[1]


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, and which part of it to sample."""
    edge = st.integers(1, 16)
    chunks = draw(st.builds(Vec3, edge, edge, edge))
    volume = BoundingBox.at(draw(vectors(-20, 20)), draw(sizes(33)))
    low = Vec3(*(draw(st.integers(0, edge - 1)) for edge in volume.size))
    high = Vec3(*(draw(st.integers(a + 1, b)) for a, b in zip(low, volume.size, strict=True)))
    bounds = BoundingBox(volume.min + low, volume.min + high)
    wishes = {
        "bounds": draw(st.none() | st.just(str(bounds))),
        "coverage_factor": draw(st.floats(0.01, 1)),
        "seed": draw(st.integers(0, 3)),
    }
    voxels = random_voxels(volume.size, draw(st.sampled_from(["uint8", "uint16"])))
    box = BoundingBox.parse(wishes["bounds"] or str(volume))
    return voxels, LayerSpec("image", chunks, volume.min), wishes, box


@given(works(), st.integers(1, 12), st.randoms())
@settings(deadline=None, max_examples=40)
def test_the_result_does_not_depend_on_the_cut(work, depth, random):
    voxels, spec, wishes, box = work
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(luminance_levels, "_PATCH_EDGE", 9)
        layer = write_layer(Path(folder, "layer"), voxels, spec)
        complete(LuminanceLevels(layer=layer, levels_path=f"{folder}/whole", **wishes))
        shape = (box.size.x, box.size.y, depth)
        parts = LuminanceLevels(layer=layer, levels_path=f"{folder}/parts", shape=shape, **wishes)
        cells = list(parts.cells())
        random.shuffle(cells)
        for cell in cells:
            parts.run(cell)
        sections = snapshot(Path(folder, "whole/levels"))
        assert snapshot(Path(folder, "parts/levels")) == sections
        assert set(map(int, (Path(name).name for name in sections))) == set(
            range(box.min.z, box.max.z)
        )
        z = random.choice(range(box.min.z, box.max.z))
        one = f"{str(box).rpartition('_')[0]}_{z}-{z + 1}"
        elsewhere = f"{folder}/one"
        complete(LuminanceLevels(layer=layer, levels_path=elsewhere, **wishes | {"bounds": one}))
        assert snapshot(Path(elsewhere, "levels")).items() <= sections.items()


# What is read


def test_a_chunk_is_read_once_by_a_task_and_not_once_for_each_section(tmp_path, reads):
    """Igneous reads it for every one of its sections."""
    layer = write_layer(tmp_path, random_voxels(Vec3(65, 33, 20)))
    stage = LuminanceLevels(layer=layer, coverage_factor=1, shape=(65, 33, 16))
    for cell in stage.cells():
        before = len(reads)
        stage.run(cell)
        here = reads[before:]
        assert len(here) == len(set(here))
    assert len(stage.cells()) == 2
    assert len(reads) == 9 * 5 * 3


def test_only_chunks_that_a_patch_touches_are_read(tmp_path, small_patches, reads):
    layer = write_layer(tmp_path, random_voxels(Vec3(160, 160, 8)))
    stage = LuminanceLevels(layer=layer, coverage_factor=0.03)
    (cell,) = stage.cells()
    work = stage.run(cell)
    assert len(reads) == len(set(reads)) == 3 * 4  # three patches of 2 x 2 chunks
    assert work.voxels == stage.plan().voxels == 3 * 16 * 16 * 8


def test_a_shape_that_cuts_chunks_is_allowed_and_the_plan_says_what_it_costs(tmp_path):
    layer = write_layer(tmp_path, random_voxels(SIZE))
    plan = LuminanceLevels(layer=layer, shape=(99, 99, 3)).plan()
    assert plan.tasks == 7
    assert any("let z of the shape be a multiple of 8" in note for note in plan.notes)
    assert not any(
        "multiple" in n for n in LuminanceLevels(layer=layer, shape=(9, 9, 8)).plan().notes
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("chunk_size", [(64, 64, 64), (1024, 768, 1)], ids=str)
def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path, dtype, chunk_size):
    voxels = random_voxels(Vec3(1024, 768, 16), dtype)
    layer = write_layer(tmp_path, voxels, LayerSpec(chunk_size=chunk_size))
    stage = LuminanceLevels(layer=layer, coverage_factor=1)
    plan = stage.plan().require_accepted()
    assert peak_memory(stage, stage.cells()[0]) <= plan.memory * 1.1 + 100_000
    assert plan.memory < voxels.nbytes


def test_buckets_are_read_by_several_threads(tmp_path, monkeypatch):
    from igneous_airflow.storage.files import StoredFile, open_folder

    voxels = random_voxels(SIZE, "uint16")
    write_layer(tmp_path, voxels, SPEC)
    bucket = open_folder(f"mem://{tmp_path.name}/layer")
    for name, content in snapshot(tmp_path).items():
        bucket.write(name, StoredFile(content))
    monkeypatch.setattr(Layer, "overlap_width", 8)
    complete(LuminanceLevels(layer=bucket.url, coverage_factor=1))
    for z, counts in histograms(voxels, first=OFFSET.z).items():
        assert json.loads(bytes(bucket.read(f"levels/0/{z}").content))["levels"] == counts


# Missing chunks


def test_a_missing_chunk_is_an_error_that_names_it(tmp_path):
    layer = write_layer(tmp_path, random_voxels(Vec3(32, 16, 16)))
    (tmp_path / "8_8_40/8-16_8-16_8-16").unlink()
    with pytest.raises(MissingChunk, match=r"8-16_8-16_8-16 .*fill_missing"):
        complete(LuminanceLevels(layer=layer))


def test_missing_chunks_can_be_left_out_and_are_not_counted_as_black(tmp_path):
    """Igneous counts them as black, of which nobody can tell how much is padding."""
    voxels = random_voxels(Vec3(32, 16, 24)) | 1
    layer = write_layer(tmp_path, voxels)
    (tmp_path / "8_8_40/8-16_8-16_8-16").unlink()
    for file in (tmp_path / "8_8_40").glob("*_16-24"):
        file.unlink()
    complete(LuminanceLevels(layer=layer, fill_missing=True))
    found = files(tmp_path)
    there = np.ones((32, 16), bool)
    there[8:16, 8:] = False
    for z in range(24):
        seen = voxels[:, :, z] if z < 8 else voxels[:, :, z][there] if z < 16 else voxels[:0, 0, 0]
        assert found[z]["levels"] == np.bincount(seen.ravel(), minlength=256).tolist()
        assert found[z]["coverage_ratio"] == seen.size / (32 * 16)


# Plans


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (random_voxels(SIZE, "int8"), "holds int8: levels are counted for uint8 and uint16"),
        (random_voxels(SIZE, "int16"), "holds int16"),
        (random_voxels(SIZE, "uint32"), "holds uint32"),
        (random_voxels(SIZE, "float32"), "holds float32"),
        (random_voxels(SIZE, channels=3), "has 3 channels"),
    ],
)
def test_voxels_without_levels_are_refused(tmp_path, voxels, reason):
    """Igneous runs out of memory, or fails in every task."""
    layer = write_layer(tmp_path, voxels)
    before = snapshot(tmp_path)
    assert reason in "\n".join(refusals_of(LuminanceLevels(layer=layer)))
    assert snapshot(tmp_path) == before


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    for start in (stage.prepare, stage.cells):
        with pytest.raises((InvalidParameter, OSError)):
            start()
    return refusals


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"mip": 1}, "mips 0 to 0"),
        ({"bounds": "0-9_0-9_0-9"}, "bounds: 0-9_0-9_0-9 reaches out of the volume, which is 3-68"),
        ({"offset": (0, 0, 15)}, "offset: 0,0,15 lies outside of 3-68_-7-26_11-31"),
        ({"offset": (68, 0, 15)}, "offset: 68,0,15 lies outside"),
        ({"offset": (3, 0, 31)}, "offset: 3,0,31 lies outside"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_what_there_is(tmp_path, wishes, reason):
    layer = write_layer(tmp_path, random_voxels(SIZE), SPEC)
    assert reason in "\n".join(refusals_of(LuminanceLevels(layer=layer, **wishes)))


def change_info(path, scale=None, **changes):
    data = json.loads((path / "info").read_text())
    data["scales"][0] |= scale or {}
    (path / "info").write_text(json.dumps(data | changes))


@pytest.mark.parametrize(
    ("scale", "changes", "reason"),
    [
        ({"sharding": {"@type": "x"}}, {}, "is sharded"),
        ({"size": [65, 33, 0]}, {}, "has no voxels"),
        ({"encoding": "wonder"}, {}, "is unknown"),
        ({"chunk_sizes": [[90_000, 90_000, 1]], "size": [90_000, 90_000, 20]}, {}, "raise memory"),
        ({}, {"type": "segmentation"}, "values are labels"),
    ],
    ids=str,
)
def test_layers_that_cannot_be_counted_are_refused(tmp_path, scale, changes, reason):
    layer = write_layer(tmp_path, random_voxels(SIZE))
    change_info(tmp_path, scale, **changes)
    assert reason in "\n".join(refusals_of(LuminanceLevels(layer=layer)))


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    assert "no layer at" in refusals_of(LuminanceLevels(layer=f"{tmp_path}/no"))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"coverage_factor": 0},
        {"coverage_factor": 1.01},
        {"coverage_factor": float("nan")},
        {"seed": -1},
        {"seed": 0.5},
        {"levels_path": "levels"},
        {"levels_path": ""},
        {"shape": (0, 9, 9)},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LuminanceLevels(layer="/data/layer", **wrong)


def test_tasks_are_whole_chunks_deep_and_large_enough(tmp_path):
    layer = write_layer(tmp_path, random_voxels(Vec3(9, 9, 200)), LayerSpec(chunk_size=(9, 9, 1)))
    assert LuminanceLevels(layer=layer).plan().tasks == 1
    change_info(tmp_path, {"size": [20_000, 20_000, 200], "chunk_sizes": [[64, 64, 16]]})
    plan = LuminanceLevels(layer=layer).plan()
    assert plan.tasks == 13  # 16 sections each: one patch of 2000 x 2000 in a hundred
    assert plan.voxels == 20_000 * 20_000 * 200 // 100
    assert plan.memory < 3_000_000


def test_levels_that_are_there_are_replaced_and_the_plan_says_so(tmp_path):
    layer = write_layer(tmp_path, random_voxels(SIZE), SPEC)
    complete(LuminanceLevels(layer=layer, bounds="3-68_-7-26_11-14", coverage_factor=1))
    stage = LuminanceLevels(layer=layer)
    assert stage.plan().replaces[0].startswith("levels/0: 3 histograms, ")
    with pytest.raises(PlanRefused, match=r"confirm: the levels in .*/levels/0 would be replaced"):
        stage.plan().require_accepted()
    complete(stage)


# Provenance and audit


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_provenance_is_where_the_levels_are(tmp_path, elsewhere):
    """Igneous fails there when levels_path is given."""
    layer = write_layer(tmp_path / "layer", random_voxels(SIZE), SPEC)
    path = f"{tmp_path}/other" if elsewhere else None
    stage = LuminanceLevels(layer=layer, levels_path=path, coverage_factor=0.5)
    complete(stage)
    place = tmp_path / ("other" if elsewhere else "layer")
    provenance = json.loads((place / "provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {"task": "LuminanceLevelsTask", **stage.parameters()}
    assert entry["by"] == "tester"
    assert provenance["sources"] == ([layer] if elsewhere else [])
    assert (tmp_path / "layer/levels").exists() != elsewhere


def test_every_section_is_missed_when_it_is_lost_after_its_task(tmp_path):
    layer = write_layer(tmp_path, random_voxels(Vec3(9, 9, 12)))
    stage = LuminanceLevels(layer=layer)
    complete(stage)
    for file in (tmp_path / "levels/0").iterdir():
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(AuditFailed, match=rf"1 file missing.* levels/0/{file.name}\.$"):
            stage.finish("tester")
        file.write_bytes(content)


@pytest.mark.real_data
def test_levels_of_an_image_stack_of_electron_microscopy(tmp_path, em_voxels):
    spec = LayerSpec(chunk_size=(128, 128, 8), resolution=(4.6, 4.6, 45))
    complete(LuminanceLevels(layer=write_layer(tmp_path, em_voxels, spec), coverage_factor=1))
    assert levels_of(tmp_path) == histograms(em_voxels)
