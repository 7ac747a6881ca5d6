"""Plans of Downsample: what they count, and what they refuse with a way out."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import IgneousError, InvalidInfo, InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)
from igneous_airflow.testing.stages import snapshot

SIZE, OFFSET = Vec3(100, 70, 20), Vec3(5, -6, 7)
SPEC = LayerSpec(voxel_offset=OFFSET)


@pytest.fixture
def url(tmp_path):
    return write_layer(tmp_path / "layer", random_voxels(SIZE), SPEC)


def change_info(url, **changes):
    folder = open_folder(url)
    data = json.loads(bytes(folder.read("info").content))
    scale = changes.pop("scale", {})
    data["scales"][0] |= scale
    folder.write("info", StoredFile(json.dumps(data | changes).encode()))


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused) as caught:
        stage.plan().require_accepted()
    assert all(refusal in str(caught.value) for refusal in refusals)
    return "\n".join(refusals)


def run_all(stage):
    stage = stage.resolved()
    stage.plan().require_accepted()
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    return stage.finish("tester")


def test_a_plan_counts_what_is_done(url):
    stage = Downsample(layer=url, num_mips=2)
    plan = stage.plan()
    assert plan.tasks == len(stage.cells()) == 4 * 3 * 3
    assert plan.voxels == plan.bytes_read == SIZE.product
    assert plan.bytes_written == 50 * 35 * 20 + 25 * 18 * 20
    assert [output.split(":")[0] for output in plan.outputs] == ["16_16_40", "32_32_40"]
    assert 0 < plan.memory <= plan.memory_target
    stage.prepare()
    works = [stage.run(cell) for cell in stage.cells()]
    done = sum(works[1:], works[0])
    assert done.voxels == plan.voxels
    assert done.chunks_written == sum(stage.finish("x").outputs.values())


def test_a_plan_tells_when_fewer_mips_are_made(url):
    plan = Downsample(layer=url, num_mips=20).plan()
    assert len(plan.outputs) == 7
    assert any("7 of 20 mips" in note for note in plan.notes)


def test_a_plan_tells_that_compression_artifacts_carry_over(tmp_path):
    url = write_layer(tmp_path, random_voxels(SIZE), LayerSpec(encoding="jpeg"))
    assert any("lossy jpeg" in note for note in Downsample(layer=url).plan().notes)


def test_mips_that_keep_their_old_voxels_are_named(url):
    run_all(Downsample(layer=url, num_mips=3))
    keep = "mips that are there already keep their old voxels: 2 (32_32_40), 3 (64_64_40); "
    assert any(note.startswith(keep) for note in Downsample(layer=url, num_mips=1).plan().notes)
    for num_mips in (3, 4):
        notes = Downsample(layer=url, num_mips=num_mips).plan().notes
        assert not any("keep" in note for note in notes)


def test_mips_that_are_made_anew_are_named(url):
    run_all(Downsample(layer=url, num_mips=1))
    notes = Downsample(layer=url, num_mips=2).plan().notes
    assert "mips that are there already are made anew: 16_16_40" in notes


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    assert "no layer at" in refusals_of(Downsample(layer=str(tmp_path / "no")))
    assert "no layer at" in refusals_of(Downsample(layer="mem://no/layer"))
    assert not (tmp_path / "no").exists()


def test_a_mip_that_does_not_exist_is_refused(url):
    assert "mips 0 to 0" in refusals_of(Downsample(layer=url, mip=3))


def test_a_layer_without_scales_is_refused(url):
    change_info(url, scales=[])
    for mip in (0, -1):
        assert "has no scales" in refusals_of(Downsample(layer=url, mip=mip))
        with pytest.raises(InvalidParameter):
            Downsample(layer=url, mip=-1).resolved()


@pytest.mark.parametrize("size", [[0, 0, 0], [0, 70, 20], [100, 70, 0]], ids=str)
def test_a_volume_without_voxels_is_refused(url, size):
    change_info(url, scale={"size": size})
    assert "has no voxels" in refusals_of(Downsample(layer=url))


def test_a_volume_of_more_tasks_than_can_be_counted_is_refused(url):
    change_info(url, scale={"size": [2**52, 2**40, 100]})
    assert "more tasks than can be counted" in refusals_of(Downsample(layer=url))


@pytest.mark.parametrize("size", [Vec3(1, 1, 1), Vec3(1, 1, 50)], ids=str)
def test_a_volume_with_nothing_to_pool_is_refused(tmp_path, size):
    url = write_layer(tmp_path, random_voxels(size))
    assert "nothing left to pool" in refusals_of(Downsample(layer=url))


def test_a_sharded_scale_is_refused(url):
    change_info(url, scale={"sharding": {"@type": "neuroglancer_uint64_sharded_v1"}})
    assert "is sharded" in refusals_of(Downsample(layer=url))


def test_a_sharded_scale_in_the_way_is_refused(url):
    stage = Downsample(layer=url, num_mips=1)
    stage.prepare()
    data = json.loads(bytes(open_folder(url).read("info").content))
    data["scales"][1]["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1"}
    change_info(url, scales=data["scales"])
    assert "the existing scale 16_16_40 is sharded" in refusals_of(stage)


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"encoding": "jpeg"}, "encoding jpeg holds uint8, not uint16"),
        ({"encoding": "compresso", "num_mips": 20}, None),
        ({"encoding": "compressed_segmentation"}, "holds uint32, uint64, not uint16"),
        ({"background_color": 70_000}, "70000 is not a value of uint16"),
        ({"background_color": -1}, "-1 is not a value of uint16"),
        ({"background_color": 0.5}, "0.5 is not a value of uint16"),
        ({"background_color": 1e300}, "not a value of uint16"),
    ],
    ids=str,
)
def test_values_that_the_voxels_cannot_have_are_refused(tmp_path, wishes, named):
    url = write_layer(tmp_path, random_voxels(SIZE, "uint16"))
    stage = Downsample(layer=url, **wishes)
    if named is None:
        assert stage.plan().refusals == ()
    else:
        assert named in refusals_of(stage)


def test_any_number_can_be_the_background_of_floats(tmp_path):
    url = write_layer(tmp_path, random_voxels(SIZE, "float32"))
    assert Downsample(layer=url, background_color=0.1).plan().refusals == ()


def test_chunks_too_large_for_a_jpeg_are_refused(tmp_path):
    url = write_layer(
        tmp_path, np.zeros((4, 600, 120, 1), np.uint8), LayerSpec(chunk_size=(4, 600, 60))
    )
    wishes = {"num_mips": 1, "axis": "y", "encoding": "jpeg"}
    assert Downsample(layer=url, **wishes).plan().refusals == ()
    stage = Downsample(layer=url, chunk_size=(4, 600, 120), **wishes)
    assert stage.plan().refusals == ()  # the volume ends before the chunk does
    change_info(url, scale={"size": [4, 600, 4000]})
    assert "choose a smaller chunk_size" in refusals_of(
        Downsample(layer=url, chunk_size=(4, 600, 120), **wishes)
    )


@pytest.mark.parametrize(
    "bounds",
    ["5-105_-6-64_7-20", "6-37_-6-26_7-15", "5-38_-6-26_7-15", "5-37_-6-25_7-27", "50-51_0-1_9-10"],
)
def test_bounds_that_cut_chunks_are_refused_and_the_suggestion_is_accepted(url, bounds):
    refusal = refusals_of(Downsample(layer=url, num_mips=2, bounds=bounds))
    assert f"bounds: {bounds} would fill only parts" in refusal
    aligned = refusal.split("use ")[1].split(",")[0]
    assert BoundingBox.parse(aligned).contains(BoundingBox.parse(bounds))
    run_all(Downsample(layer=url, num_mips=2, bounds=aligned))


@pytest.mark.parametrize("bounds", ["0-37_-6-26_7-15", "5-106_-6-64_7-27", "1000-1032_0-32_0-8"])
def test_bounds_outside_of_the_volume_are_refused(url, bounds):
    refusal = refusals_of(Downsample(layer=url, bounds=bounds))
    assert f"{bounds} reaches out of the volume, which is 5-105_-6-64_7-27" in refusal


def test_too_many_mips_for_the_memory_are_refused_and_the_advice_works(tmp_path):
    voxels = random_voxels(Vec3(512, 512, 9), "uint64")
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (96, 80, 9)))
    stage = Downsample(layer=url, num_mips=4, memory_target=4_500_000)
    for _ in range(4):
        refusals = stage.plan().refusals
        if not refusals:
            break
        (refusal,) = refusals
        numbers = refusal.split("Set num_mips to ")[1].split(" ")
        fitting, rest = (
            int(numbers[0].rstrip(",")),
            int(refusal.split("num_mips ")[2].split(" ")[0]),
        )
        assert f"{fitting} fit" in refusal
        run_all(stage.model_copy(update={"num_mips": fitting}))
        stage = stage.model_copy(update={"mip": -1, "num_mips": rest})
    else:
        pytest.fail("the advice leads nowhere")
    assert stage.mip == -1
    run_all(stage)
    for mip, expected in enumerate(pool(voxels, Vec3(2, 2, 1), 4, "mode"), start=1):
        np.testing.assert_array_equal(read_with_cloudvolume(tmp_path, mip), expected)


def test_the_advice_is_right_when_coarser_mips_exist_already(tmp_path):
    voxels = random_voxels(Vec3(512, 512, 9), "uint64")
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (96, 80, 9)))
    run_all(Downsample(layer=url, num_mips=4))
    (refusal,) = Downsample(layer=url, num_mips=4, memory_target=4_500_000).plan().refusals
    fitting = int(refusal.split("Set num_mips to ")[1].split(",")[0])
    assert f"mip {fitting} and num_mips {4 - fitting}" in refusal


def test_the_advice_and_mip_minus_1_are_right_when_scales_are_out_of_order(tmp_path):
    voxels = random_voxels(Vec3(512, 512, 9), "uint64")
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (96, 80, 9)))
    run_all(Downsample(layer=url, num_mips=1, factor="8,8,1", memory_target=10**9))
    stage = Downsample(layer=url, num_mips=4, memory_target=4_500_000)
    (refusal,) = stage.plan().refusals
    fitting = int(refusal.split("Set num_mips to ")[1].split(",")[0])
    assert fitting < 3
    assert f"mip {fitting + 1} and num_mips {4 - fitting}" in refusal
    run_all(stage.model_copy(update={"num_mips": fitting}))
    assert Downsample(layer=url, mip=-1).resolved().mip == 1  # 64,64,40 nm, not the last one


def test_memory_for_not_even_one_mip_is_refused_with_what_is_needed(tmp_path):
    url = write_layer(
        tmp_path, random_voxels(Vec3(512, 512, 32)), LayerSpec(chunk_size=(512, 512, 32))
    )
    refusal = refusals_of(Downsample(layer=url, memory_target=1_000_000))
    needed = int(refusal.split("needs ")[1].split(":")[0].replace(",", ""))
    assert Downsample(layer=url, num_mips=1, memory_target=needed).plan().refusals == ()
    assert "raise memory_target" in refusal


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        (
            {"chunk_size": (16, 16, 16)},
            "chunk_size: 16,16,16, but the existing scale 16_16_40 has 8,8,8",
        ),
        ({"encoding": "png"}, "encoding: png, but the existing scale 16_16_40 has raw"),
        ({"factor": (2, 2, 1), "num_mips": 3, "chunk_size": (4, 4, 4)}, "delete that mip first"),
    ],
    ids=str,
)
def test_another_form_of_a_scale_that_exists_is_refused(url, tmp_path, wishes, named):
    run_all(Downsample(layer=url, num_mips=1))
    before = snapshot(tmp_path)
    stage = Downsample(layer=url, **wishes)
    assert named in refusals_of(stage)
    for action in (stage.prepare, stage.cells, lambda: stage.run(None), lambda: stage.finish("x")):
        with pytest.raises((PlanRefused, InvalidParameter), match="existing scale 16_16_40"):
            action()
    assert snapshot(tmp_path) == before


def test_a_scale_that_exists_keeps_its_form_when_nothing_is_asked(url, tmp_path):
    run_all(Downsample(layer=url, num_mips=1, chunk_size=(16, 12, 20), encoding="png"))
    run_all(Downsample(layer=url, num_mips=2, confirm=True))
    scales = json.loads((tmp_path / "layer/info").read_text())["scales"]
    assert [scale["chunk_sizes"][0] for scale in scales] == [[8, 8, 8], [16, 12, 20], [8, 8, 8]]
    assert [scale["encoding"] for scale in scales] == ["raw", "png", "raw"]


def test_a_scale_of_another_size_in_the_way_is_refused(url):
    stage = Downsample(layer=url, num_mips=1)
    stage.prepare()
    data = json.loads(bytes(open_folder(url).read("info").content))
    data["scales"][1]["size"] = [49, 35, 20]
    change_info(url, scales=data["scales"])
    assert "has size 49,35,20" in refusals_of(stage)


def test_a_web_address_is_read_only():
    from igneous_airflow.errors import AccessDenied

    with pytest.raises(AccessDenied):
        open_folder("https://example.invalid/layer").check_writable()


def test_an_unreadable_info_file_is_refused(url):
    open_folder(url).write("info", StoredFile(b"<html>"))
    assert "is not JSON" in refusals_of(Downsample(layer=url))
    with pytest.raises(InvalidInfo):
        Downsample(layer=url, mip=-1).resolved()


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusals_of(Downsample(layer=f"{tmp_path}/file/layer"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)
vectors = st.lists(st.integers(-3, 300) | st.integers(), min_size=3, max_size=3)
INFO = {
    "data_type": st.sampled_from(["uint8", "UINT64", "float32", "bool"]) | json_values,
    "num_channels": st.integers(1, 4) | json_values,
    "type": st.text() | json_values,
}
SCALE = {
    "key": st.text() | json_values,
    "size": vectors | json_values,
    "voxel_offset": vectors | json_values,
    "chunk_sizes": st.lists(vectors, min_size=1, max_size=2) | json_values,
    "encoding": st.sampled_from(["raw", "jpeg", "crackle", "zip"]) | json_values,
    "resolution": st.lists(st.floats(), min_size=3, max_size=3) | json_values,
}


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_any_info_file_is_planned_or_refused(data):
    folder = open_folder("mem://fuzz/layer")
    scale = {
        "key": "8_8_40",
        "size": [100, 70, 20],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[8, 8, 8]],
        "encoding": "raw",
        "resolution": [8, 8, 40],
    }
    info = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    for form, strategies in ((info, INFO), (scale, SCALE)):
        for key in data.draw(st.sets(st.sampled_from(sorted(strategies)), max_size=2)):
            form[key] = data.draw(strategies[key])
    folder.write("info", StoredFile(json.dumps({**info, "scales": [scale]}).encode()))
    plan = Downsample(layer=folder.url).plan()
    assert plan.refusals or plan.tasks > 0
    assert plan.describe()


HOSTILE = [
    "",
    " ",
    "\0",
    "a\nb",
    "x" * 5000,
    "../../etc/passwd",
    "'; DROP TABLE layers; --",
    "{{ x }}",
]


@pytest.mark.parametrize("text", [*HOSTILE, "�", "gs://", "s3+http://host/a", "zarr://gs://a/b"])
def test_hostile_addresses_are_refused_with_a_message(text):
    with pytest.raises(ValidationError, match="layer"):
        Downsample(layer=text)


@pytest.mark.parametrize(
    "path", ["x" * 255, "{{ x }}", "'; DROP TABLE layers; --", "💀", "..", "a b"]
)
def test_hostile_paths_are_only_layers_that_are_not_there(tmp_path, path):
    refusal = refusals_of(Downsample(layer=f"{tmp_path}/{path}"))
    assert "no layer" in refusal or "too long" in refusal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", [*HOSTILE[1:], "0-1_0-1", "5-5_0-1_0-1", "9-8_0-1_0-1", f"0-{'9' * 5000}_0-1_0-1"]
)
def test_hostile_bounds_are_refused_with_a_message(text):
    with pytest.raises(ValidationError, match="bounds"):
        Downsample(layer="/data/layer", bounds=text)


@pytest.mark.parametrize(
    "wishes",
    [
        {"axis": "x", "factor": (2, 2, 1)},
        {"factor": (1, 1, 1)},
        {"factor": (3, 2, 1)},
        {"factor": (2, 2)},
        {"factor": (128, 1, 1)},
        {"num_mips": 0},
        {"num_mips": 21},
        {"mip": -2},
        {"chunk_size": (0, 8, 8)},
        {"chunk_size": "8,8"},
        {"chunk_size": [float("inf"), 1, 1]},
        {"method": "median"},
        {"encoding": "gif"},
        {"compress": "rar"},
        {"background_color": float("nan")},
        {"background_color": float("inf")},
        {"memory_target": 5},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(wishes):
    with pytest.raises(ValidationError, match=next(iter(wishes))):
        Downsample(layer="/data/layer", **wishes)


def test_refusals_are_errors_of_ours(url):
    with pytest.raises(IgneousError):
        Downsample(layer=url, mip=9).plan().require_accepted()


def test_a_new_mip_never_takes_the_folder_of_another_scale(tmp_path: Path) -> None:
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(32, 32, 8)))
    info = json.loads((tmp_path / "layer/info").read_text())
    info["scales"][0]["resolution"] = [4, 4, 40]  # corrected, while the key stayed 8_8_40
    (tmp_path / "layer/info").write_text(json.dumps(info))
    (refusal,) = Downsample(layer=url, num_mips=1).plan().refusals
    assert "8_8_40 would overwrite the files of the scale of resolution" in refusal


def test_a_layer_with_a_scale_outside_of_it_is_never_written_to(tmp_path: Path) -> None:
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(32, 32, 8)))
    info = json.loads((tmp_path / "layer/info").read_text())
    coarser = {"key": "../evil", "resolution": [16, 16, 40], "size": [16, 16, 8]}
    info["scales"].append({**info["scales"][0], **coarser})
    (tmp_path / "layer/info").write_text(json.dumps(info))
    (refusal,) = Downsample(layer=url, num_mips=1).plan().refusals
    assert "the key '../evil' of a scale is not the name of a folder inside the layer" in refusal
