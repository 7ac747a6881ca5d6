"""Contrast normalization: its contract, and every voxel as the formula makes it of the volume."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AuditFailed, InvalidLevels, InvalidParameter, MissingChunk
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.contrast_normalization import ContrastNormalization
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.levels import LevelsFolder
from igneous_airflow.testing.layers import (
    LayerSpec,
    assert_mips,
    info_of,
    random_voxels,
    read_with_cloudvolume,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import (
    StageTests,
    complete,
    complete_whole_and_in_parts,
    peak_memory,
    snapshot,
)
from igneous_airflow.testing.strategies import factors, sizes, vectors

PLANE = Vec3(2, 2, 1)
SIZE, OFFSET = Vec3(65, 33, 20), Vec3(3, -7, 11)
SPEC = LayerSpec(voxel_offset=OFFSET)


def dim_voxels(size, dtype="uint8"):
    """Voxels of sections that differ in brightness and contrast; a third of them is 0."""
    voxels = random_voxels(size, dtype).astype(np.float64)
    for z in range(size.z):
        voxels[:, :, z] *= 0.3 + 0.5 * (z * 7 % 5) / 5
    return np.asfortranarray(voxels.astype(dtype))


def counted(path, voxels, spec=SPEC, **wishes):
    """Write a layer and its levels, and return its address."""
    layer = write_layer(path, voxels, spec)
    complete(LuminanceLevels(layer=layer, coverage_factor=1, **wishes))
    return layer


@pytest.fixture
def normalize(tmp_path):
    """Write a source with its levels, normalize it to `tmp_path/dest`, and return the audit."""

    def count_and_normalize(voxels, spec=SPEC, **wishes):
        src = counted(tmp_path / "src", voxels, spec)
        return complete(ContrastNormalization(src=src, dest=f"{tmp_path}/dest", **wishes))

    return count_and_normalize


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        src = counted(tmp_path / "src", dim_voxels(SIZE))
        return ContrastNormalization(
            src=src, dest=f"{tmp_path}/dest", mip=-1, max_mips=1, shape=(32, 16, 8)
        )


class TestContractOfGlobalScope(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        src = counted(
            tmp_path / "src", dim_voxels(SIZE, "uint16"), levels_path=f"{tmp_path}/levels"
        )
        return ContrastNormalization(
            src=src,
            dest=f"{tmp_path}/dest",
            scope="global",
            levels_path=f"{tmp_path}/levels",
            clip_fraction=(0.02, 0.01),
            translate=(-4, 5, 2),
            max_mips=2,
            shape=(32, 32, 8),
        )


# What becomes of the voxels


def clip_of(voxels, low, high):
    """The two grey values between which voxels are stretched, as the specification words it."""
    bins = np.iinfo(voxels.dtype).max + 1
    counts = np.bincount(voxels.ravel(), minlength=bins)
    counts[0] = 0
    total = int(counts.sum())
    found = [0, 0]
    for number, share in enumerate((low, 1 - high)):
        below = 0
        for value, count in enumerate(counts.tolist()):
            below += count
            if total == 0 or below / total > share:
                break
            found[number] = value
    return found


def stretched(voxels, clip, minval=0, maxval=None):
    """The formula of the specification, voxel by voxel."""
    white = np.iinfo(voxels.dtype).max
    lower, upper = clip
    values = voxels.astype(np.float32)
    if lower != upper:
        values = (values - np.float32(lower)) * np.float32(white / (upper - lower))
    return np.clip(np.round(values), minval, white if maxval is None else maxval).astype(
        voxels.dtype
    )


def by_section(voxels, low=0.01, high=0.01, **limits):
    sections = [voxels[:, :, z : z + 1] for z in range(voxels.shape[2])]
    made = [stretched(s, clip_of(s, low, high), **limits) for s in sections]
    return np.concatenate(made, axis=2)


def as_one(voxels, low=0.01, high=0.01):
    return stretched(voxels, clip_of(voxels, low, high))


def with_mips(voxels, count, factor=PLANE):
    return [voxels, *pool(voxels, factor, count, "average")]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("fraction", "low", "high"),
    [("0.01", 0.01, 0.01), (0, 0, 0), ("0.1,0.02", 0.1, 0.02), ([0.3, 0.4], 0.3, 0.4)],
    ids=str,
)
def test_each_section_is_stretched_by_its_own_levels(
    tmp_path, normalize, dtype, fraction, low, high
):
    voxels = dim_voxels(SIZE, dtype)
    normalize(voxels, clip_fraction=fraction, max_mips=2, compress="none")
    expected = with_mips(by_section(voxels, low, high), 2)
    assert_mips(tmp_path / "dest", expected)
    assert_mips(tmp_path / "dest", expected, read=read_with_cloudvolume)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_global_scope_stretches_all_by_the_sum_of_the_levels(tmp_path, normalize, dtype):
    voxels = dim_voxels(SIZE, dtype)
    normalize(voxels, scope="global", max_mips=1, compress="none")
    assert_mips(tmp_path / "dest", with_mips(as_one(voxels), 1))
    assert not np.array_equal(as_one(voxels), by_section(voxels))


def test_a_ramp_is_stretched_between_2_and_252(tmp_path, normalize):
    ramp = np.asfortranarray(np.arange(1, 256, dtype=np.uint8)[:, None, None, None])
    normalize(ramp, LayerSpec(), max_mips=0, compress="none")
    result = read_with_tensorstore(tmp_path / "dest", 0).ravel()
    assert list(result[:3]) == [0, 0, 1]
    assert list(result[-5:]) == [254, 255, 255, 255, 255]


def test_sections_with_nothing_to_stretch_stay_as_they_are(tmp_path, normalize):
    voxels = dim_voxels(Vec3(20, 20, 4))
    voxels[:, :, 1], voxels[:, :, 2] = 77, 0
    normalize(voxels, max_mips=0, compress="none")
    result = read_with_tensorstore(tmp_path / "dest", 0)
    np.testing.assert_array_equal(result[:, :, 1:3], voxels[:, :, 1:3])
    np.testing.assert_array_equal(result, by_section(voxels))


def test_smallest_and_largest_value_clip_in_the_end(tmp_path, normalize):
    voxels = dim_voxels(SIZE)
    normalize(voxels, minval=10, maxval=200, max_mips=1, compress="none")
    expected = by_section(voxels, minval=10, maxval=200)
    assert (expected.min(), expected.max()) == (10, 200)
    assert_mips(tmp_path / "dest", with_mips(expected, 1))


def test_clip_values_can_be_given_without_any_levels(tmp_path):
    voxels = dim_voxels(SIZE)
    src = write_layer(tmp_path / "src", voxels, SPEC)
    wishes = {"scope": "global", "clip_values": " 12, 140", "max_mips": 0, "compress": "none"}
    complete(ContrastNormalization(src=src, dest=f"{tmp_path}/dest", **wishes))
    assert_mips(tmp_path / "dest", [stretched(voxels, (12, 140))])


def test_the_chosen_mip_is_read_with_its_levels_and_written_in_its_place(tmp_path):
    """The first Igneous wrote every mip into mip 0."""
    src = write_layer(tmp_path / "src", dim_voxels(SIZE), SPEC)
    complete(Downsample(layer=src, num_mips=1, compress="none"))
    complete(LuminanceLevels(layer=src, mip=1, coverage_factor=1))
    stage = ContrastNormalization(
        src=src, dest=f"{tmp_path}/dest", mip=-1, max_mips=1, compress="none"
    )
    complete(stage)
    expected = by_section(read_with_tensorstore(tmp_path / "src", 1))
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 1), expected)
    assert not (tmp_path / "dest/8_8_40").exists()
    missing = ContrastNormalization(src=src, dest=f"{tmp_path}/other", mip=0)
    assert "there are none in" in "".join(missing.plan().refusals)


def test_voxels_can_move_and_keep_the_levels_of_where_they_were(tmp_path, normalize):
    voxels = dim_voxels(SIZE)
    normalize(voxels, translate=(-4, 5, 2), max_mips=1, compress="none", chunk_size=(16, 16, 4))
    assert_mips(tmp_path / "dest", with_mips(by_section(voxels), 1))
    info = json.loads((tmp_path / "dest/info").read_text())
    assert [scale["voxel_offset"] for scale in info["scales"]] == [[-1, -2, 13], [-1, -1, 13]]


def test_levels_may_lie_in_another_folder(tmp_path):
    voxels = dim_voxels(SIZE)
    src = counted(tmp_path / "src", voxels, levels_path=f"{tmp_path}/other")
    wishes = {"max_mips": 0, "compress": "none"}
    stage = ContrastNormalization(
        src=src, dest=f"{tmp_path}/dest", levels_path=f"{tmp_path}/other", **wishes
    )
    complete(stage)
    assert_mips(tmp_path / "dest", [by_section(voxels)])
    assert "there are none in" in "".join(
        stage.model_copy(update={"levels_path": None}).plan().refusals
    )


def test_the_source_is_never_written_to_and_edge_chunks_exist_at_every_mip(tmp_path):
    """Igneous once made fewer mips in the tasks at the edge."""
    voxels = dim_voxels(Vec3(130, 70, 9))
    src = counted(tmp_path / "src", voxels, LayerSpec())
    before = snapshot(tmp_path / "src")
    stage = ContrastNormalization(
        src=src, dest=f"{tmp_path}/dest", max_mips=3, shape=(64, 64, 8), compress="none"
    )
    assert complete(stage).outputs == {
        "8_8_40": 306,
        "16_16_40": 90,
        "32_32_40": 30,
        "64_64_40": 12,
    }
    assert_mips(tmp_path / "dest", with_mips(by_section(voxels), 3))
    assert snapshot(tmp_path / "src") == before


def test_a_destination_that_exists_keeps_its_chunks(tmp_path):
    voxels = dim_voxels(SIZE)
    src = counted(tmp_path / "src", voxels)
    write_layer(
        tmp_path / "dest",
        np.zeros_like(voxels),
        LayerSpec(chunk_size=(16, 8, 4), voxel_offset=OFFSET),
    )
    complete(ContrastNormalization(src=src, dest=f"{tmp_path}/dest", max_mips=1, compress="none"))
    assert_mips(tmp_path / "dest", with_mips(by_section(voxels), 1))


# Cuts


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, and how to normalize it."""
    edge = st.integers(1, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    wishes = {
        "factor": draw(factors()),
        "max_mips": draw(st.integers(0, 2)),
        "chunk_size": draw(st.none() | chunks),
        "translate": draw(st.none() | vectors(-9, 9)),
        "scope": draw(st.sampled_from(["section", "global"])),
        "clip_fraction": draw(st.sampled_from(["0.01", "0", "0.2,0.3"])),
        "minval": draw(st.sampled_from([None, 1])),
    }
    voxels = dim_voxels(draw(sizes(33)), draw(st.sampled_from(["uint8", "uint16"])))
    return voxels, LayerSpec("image", draw(chunks), draw(vectors(-20, 20))), wishes


@given(works(), st.integers(1, 3), st.randoms(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random, tight):
    voxels, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        src = counted(Path(folder, "src"), voxels, spec)
        whole = ContrastNormalization(src=src, dest=f"{folder}/whole", compress="none", **wishes)
        made = complete_whole_and_in_parts(whole, blocks, random, smallest_tiles=tight)
        low, high = {"0.01": (0.01, 0.01), "0": (0, 0)}.get(wishes["clip_fraction"], (0.2, 0.3))
        if wishes["scope"] == "global":
            expected = np.maximum(as_one(voxels, low, high), wishes["minval"] or 0)
        else:
            expected = by_section(voxels, low, high, minval=wishes["minval"] or 0)
        assert_mips(made, with_mips(expected, len(info_of(made)["scales"]) - 1, wishes["factor"]))


@pytest.mark.parametrize("scope", ["section", "global"])
def test_the_parts_of_a_volume_normalized_one_by_one_make_the_whole(tmp_path, scope):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    wishes = {"src": src, "scope": scope, "max_mips": 1}
    complete(ContrastNormalization(dest=f"{tmp_path}/whole", **wishes))
    for bounds in ("3-35_-7-26_11-27", "35-68_-7-26_11-27", "3-68_-7-26_27-31"):
        complete(ContrastNormalization(dest=f"{tmp_path}/parts", bounds=bounds, **wishes))
    for name in ("whole", "parts"):
        (tmp_path / name / "provenance").unlink()
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "parts")


# Levels


def test_levels_are_read_once_by_the_tasks_of_a_run_and_only_those_that_are_needed(
    tmp_path, monkeypatch
):
    """Igneous once needed those of one section more than there are."""
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    read, reads = LevelsFolder.read, []
    monkeypatch.setattr(LevelsFolder, "read", lambda self, z: (reads.append(z), read(self, z))[1])
    stage = ContrastNormalization(
        src=src, dest=f"{tmp_path}/dest", bounds="3-68_-7-26_11-27", shape=(32, 32, 8), max_mips=0
    ).resolved()
    assert stage.plan().require_accepted()
    stage.prepare()
    assert reads == []
    for cell in stage.cells():
        stage.run(cell)
    assert sorted(reads) == list(range(11, 27))
    whole = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", scope="global").resolved()
    whole.accepted()  # though it replaces voxels
    assert sorted(reads[16:]) == list(range(11, 31))
    del reads[:]
    for cell in whole.cells():
        whole.run(cell)
    assert reads == []


def test_levels_that_change_are_read_again_when_the_stage_starts_again(tmp_path):
    voxels = dim_voxels(SIZE)
    src = counted(tmp_path / "src", voxels)
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", max_mips=0, compress="none")
    complete(stage)
    levels = LevelsFolder(src, 0, "uint8")
    for z, found in list(levels.read_all(range(11, 31))):
        found.counts[200] = 10**6
        levels.write(z, found)
    complete(stage)
    result = read_with_tensorstore(tmp_path / "dest", 0)
    assert (result != by_section(voxels)).any()


def refusals_of(stage):
    """The reasons of a plan, which leaves everything as it was."""
    refusals = stage.resolved().plan().refusals
    assert refusals
    return "\n".join(refusals)


@pytest.mark.parametrize("scope", ["section", "global"])
def test_missing_levels_are_named_by_the_plan(tmp_path, scope):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    for z in (13, 14, 20):
        (tmp_path / f"src/levels/0/{z}").unlink()
    before = snapshot(tmp_path)
    wishes = {"src": src, "dest": f"{tmp_path}/dest", "scope": scope}
    assert "those of sections 13 to 14, 20 are missing in" in refusals_of(
        ContrastNormalization(**wishes)
    )
    assert snapshot(tmp_path) == before
    bounds = "3-68_-7-26_19-27"
    assert "those of section 20 are missing in" in refusals_of(
        ContrastNormalization(bounds=bounds, **wishes)
    )
    (tmp_path / "src/levels/0/20").write_bytes((tmp_path / "src/levels/0/21").read_bytes())
    complete(ContrastNormalization(bounds=bounds, **wishes))


@pytest.mark.parametrize("scope", ["section", "global"])
def test_levels_of_another_bit_depth_are_named_by_the_plan(tmp_path, scope):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    other = counted(tmp_path / "other", dim_voxels(SIZE, "uint16"))
    wishes = {"src": src, "dest": f"{tmp_path}/dest", "levels_path": other, "scope": scope}
    reason = refusals_of(ContrastNormalization(**wishes))
    assert "levels/0/11 has 65,536 grey values, but the layer's voxels have 256" in reason
    assert "so it seems with sections 12 to 30" in reason


def test_levels_that_vanish_after_the_plan_are_named_by_the_task(tmp_path):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest")
    stage.prepare()
    (tmp_path / "src/levels/0/13").unlink()
    with pytest.raises(InvalidLevels, match="levels/0/13 is missing: run luminance_levels"):
        stage.run(stage.cells()[0])


def test_global_scope_is_resolved_before_the_work(tmp_path):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", scope="global")
    stage.prepare()
    with pytest.raises(InvalidParameter, match="work on the stage that `resolved` gives"):
        stage.run(stage.cells()[0])
    noted = stage.resolved()
    assert noted.resolved() == noted
    assert f"grey values from {noted.clip_values.replace(',', ' to ')}" in "".join(
        noted.plan().notes
    )
    assert noted.provenance()["clip_values"] == noted.clip_values


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_provenance_names_where_the_levels_were(tmp_path, elsewhere):
    path = f"file://{tmp_path}/levels" if elsewhere else None
    src = counted(tmp_path / "src", dim_voxels(SIZE), levels_path=path)
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", levels_path=path)
    complete(stage)
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {
        "task": "ContrastNormalizationTask",
        **stage.parameters(),
        "levels_path": path or src,
    }
    assert provenance["sources"] == [src]


# Plans


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (random_voxels(SIZE, "int16"), "holds int16: levels are counted for uint8 and uint16"),
        (random_voxels(SIZE, "uint32"), "holds uint32"),
        (random_voxels(SIZE, "float32"), "holds float32"),
        (random_voxels(SIZE, channels=3), "has 3 channels"),
    ],
)
@pytest.mark.parametrize("scope", ["section", "global"])
def test_voxels_without_levels_are_refused(tmp_path, voxels, reason, scope):
    src = write_layer(tmp_path / "src", voxels)
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", scope=scope)
    assert reason in refusals_of(stage)
    with pytest.raises(InvalidParameter, match="levels are counted for"):
        stage.prepare()
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"mip": 1}, "mips 0 to 0"),
        ({"bounds": "0-9_0-9_0-9"}, "bounds: 0-9_0-9_0-9 reaches out of the source"),
        ({"bounds": "3-10_-7-26_11-31"}, "would fill only parts of the destination's chunks"),
        ({"minval": 256}, "minval: 256 is not a value of uint8, which ends at 255"),
        ({"maxval": 65535}, "maxval: 65535 is not a value of uint8"),
        ({"scope": "global", "clip_values": "3,300"}, "clip_values: 300 is not a value of uint8"),
        ({"background_color": -1}, "background_color: -1 is not a value of uint8"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(tmp_path, wishes, reason):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", **wishes)
    assert reason in "\n".join(stage.plan().refusals)
    assert not (tmp_path / "dest").exists()


def test_a_destination_of_another_dtype_is_refused(tmp_path):
    src = counted(tmp_path / "src", dim_voxels(SIZE))
    write_layer(tmp_path / "dest", dim_voxels(SIZE, "uint16"), SPEC)
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest")
    assert "holds uint16 in 1 channel(s), but would get uint8 in 1" in refusals_of(stage)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    stage = ContrastNormalization(src=f"{tmp_path}/no", dest=f"{tmp_path}/dest")
    assert "no layer at" in "".join(stage.plan().refusals)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "clip_fraction",
            [
                -0.1,
                1.1,
                "a",
                "",
                "0.1,0.2,0.3",
                "0,5",
                [0.6, 0.5],
                float("nan"),
                True,
                None,
                {},
                [],
            ],
        ),
        ("clip_values", ["5", "5,4", "-1,5", "a,b", "1.5,3", 7]),
        ("minval", [-1, 0.5, 65536, "low"]),
        ("scope", ["volume", ""]),
        ("levels_path", ["levels", ""]),
    ],
)
def test_wrong_values_are_refused_by_name(name, values):
    wishes = {"src": "/data/src", "dest": "/data/dest"}
    if name == "clip_values":
        wishes["scope"] = "global"
    for value in values:
        with pytest.raises(ValueError, match=name):
            ContrastNormalization(**wishes, **{name: value})


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"minval": 9, "maxval": 9}, "must be smaller than"),
        ({"clip_values": "1,2"}, "set scope: global"),
    ],
)
def test_values_that_do_not_go_together_are_refused(wishes, reason):
    with pytest.raises(ValueError, match=reason):
        ContrastNormalization(src="/data/src", dest="/data/dest", **wishes)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(0.01, "0.01"), ((0.01, 0.02), "0.01,0.02"), (" 0.5 ", "0.5"), ([1e-3], "0.001")],
)
def test_a_clip_fraction_is_one_number_or_two(given, kept):
    stage = ContrastNormalization(src="/data/src", dest="/data/dest", clip_fraction=given)
    assert stage.clip_fraction == kept


def test_a_missing_chunk_is_refused_by_name_or_filled(tmp_path):
    voxels = dim_voxels(Vec3(32, 16, 8)) | 1
    src = counted(tmp_path / "src", voxels, LayerSpec())
    (tmp_path / "src/8_8_40/8-16_8-16_0-8").unlink()
    wishes = {"src": src, "dest": f"{tmp_path}/dest", "max_mips": 0, "compress": "none"}
    with pytest.raises(MissingChunk, match=r"8-16_8-16_0-8 .*fill_missing"):
        complete(ContrastNormalization(**wishes))
    complete(ContrastNormalization(fill_missing=True, **wishes))
    expected = by_section(voxels)
    expected[8:16, 8:] = 0
    assert_mips(tmp_path / "dest", [expected])


def test_every_chunk_is_missed_when_it_is_lost_after_its_task(tmp_path):
    src = counted(tmp_path / "src", dim_voxels(Vec3(17, 9, 9)), LayerSpec())
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", max_mips=1)
    complete(stage)
    for key in ("8_8_40", "16_16_40"):
        for file in (tmp_path / "dest" / key).iterdir():
            content = file.read_bytes()
            file.unlink()
            with pytest.raises(AuditFailed, match=f"{key}/{file.name.removesuffix('.gz')}"):
                stage.finish("tester")
            file.write_bytes(content)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path, dtype):
    voxels = dim_voxels(Vec3(512, 512, 32), dtype)
    src = counted(tmp_path / "src", voxels, LayerSpec(chunk_size=(64, 64, 32)))
    stage = ContrastNormalization(src=src, dest=f"{tmp_path}/dest", max_mips=2)
    plan = stage.plan().require_accepted()
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) <= plan.memory * 1.1 + 1_000_000


def test_buckets_are_worked_on_by_several_threads(tmp_path, monkeypatch):
    from igneous_airflow.storage.files import StoredFile, open_folder

    voxels = dim_voxels(SIZE, "uint16")
    write_layer(tmp_path, voxels, SPEC)
    bucket = open_folder(f"mem://{tmp_path.name}/src")
    for name, content in snapshot(tmp_path).items():
        bucket.write(name, StoredFile(content))
    monkeypatch.setattr(Layer, "overlap_width", 8)
    monkeypatch.setattr(LevelsFolder, "overlap_width", 8)
    dest = f"mem://{tmp_path.name}/dest"
    complete(LuminanceLevels(layer=bucket.url, coverage_factor=1))
    complete(ContrastNormalization(src=bucket.url, dest=dest, max_mips=1))
    layer = Layer.open(dest)
    for mip, expected in enumerate(with_mips(by_section(voxels), 1)):
        scale = layer.scale(mip)
        np.testing.assert_array_equal(layer.read(scale, scale.bounds), expected)


@pytest.mark.real_data
def test_sections_of_electron_microscopy_that_came_out_dim_look_alike_again(
    tmp_path, normalize, em_voxels
):
    voxels = em_voxels.astype(np.float64)
    random = np.random.default_rng(5)
    for z in range(voxels.shape[2]):  # as a microscope's drift would
        voxels[:, :, z] = voxels[:, :, z] * random.uniform(0.35, 0.8) + random.uniform(5, 50)
    dim = np.asfortranarray(voxels.astype(np.uint8))
    spec = LayerSpec(chunk_size=(128, 128, 8), resolution=(4.6, 4.6, 45))
    normalize(dim, spec, max_mips=3, compress="none")
    result = read_with_tensorstore(tmp_path / "dest", 0)
    assert_mips(tmp_path / "dest", with_mips(by_section(dim), 3))
    before, after = (
        np.array([np.percentile(v[:, :, z], [5, 50, 95]) for z in range(20)]) for v in (dim, result)
    )
    assert np.ptp(before, axis=0).min() > 30
    assert np.ptp(after, axis=0).max() < 12
    black, white = (result == 0).mean(), (result == 255).mean()
    assert 0.004 < black < 0.02
    assert 0.004 < white < 0.02
