"""Plans of Mesh: what they count, and what they refuse with a way out."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from igneous_airflow.errors import PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete, snapshot
from igneous_airflow.testing.surfaces import blobs

SPEC = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(16, 16, 16))
BOUNDS = "3-43_-7-29_11-41"


@pytest.fixture
def layer(tmp_path):
    return write_layer(tmp_path / "layer", blobs(Vec3(40, 36, 30)), SPEC)


def change_info(layer, **changes):
    path = Path(layer.removeprefix("file://")) / "info"
    data = json.loads(path.read_text())
    data["scales"][0] |= changes.pop("scale", {})
    path.write_text(json.dumps(data | changes))


def refusals_of(stage):
    """The reasons of a plan; nothing has been written."""
    folder = Path(stage.layer.removeprefix("file://"))
    before = snapshot(folder)
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    assert snapshot(folder) == before
    return "\n".join(refusals)


def test_a_plan_counts_tasks_voxels_bytes_and_memory(layer):
    plan = Mesh(layer=layer, shape=(16, 16, 16)).plan()
    assert (plan.tasks, plan.voxels, plan.bytes_read) == (3 * 3 * 2, 40 * 36 * 30, 40 * 36 * 30 * 8)
    assert plan.grid == "a grid of 3,3,2 cells, 16,16,16 voxels each"
    assert 18**3 * 8 < plan.memory < plan.memory_target == 3_500_000_000
    assert plan.outputs == ("mesh_mip_0_err_40: fragments, within 40 nm but for single tips",)
    assert "writes" not in plan.describe()
    assert plan.notes == ()
    raw = Mesh(layer=layer, simplification=False).plan()
    assert raw.outputs == ("mesh_mip_0_err_40: fragments, exact",)


def test_the_shape_fits_into_the_memory_target(tmp_path):
    layer = write_layer(tmp_path, np.zeros((1, 1, 1, 1), np.uint64), SPEC)
    change_info(layer, scale={"size": [4000, 4000, 4000]})
    chosen = {}
    for memory in (3_500_000_000, 1_000_000_000, 50_000_000, 1_000_000):
        stage = Mesh(layer=layer, memory_target=memory)
        plan = stage.plan()
        assert plan.memory <= memory
        assert plan.memory > memory / 3
        chosen[memory] = tuple(stage.resolved().shape)
    assert chosen[3_500_000_000] == (512, 512, 256)
    assert sorted(chosen.values(), reverse=True) == list(chosen.values())
    assert len(set(chosen.values())) == 4


def test_bounds_are_grown_to_whole_cells_and_the_plan_says_so(layer):
    stage = Mesh(layer=layer, shape=(16, 16, 16), bounds="20-21_-7-29_30-31")
    plan = stage.plan()
    assert plan.notes == ("bounds: the cells that 20-21_-7-29_30-31 touches are 19-35_-7-29_27-41",)
    assert plan.tasks == len(stage.cells()) == 3
    assert Mesh(layer=layer, bounds=BOUNDS).plan().notes == ()


def test_an_error_below_the_voxel_size_and_slow_shapes_are_noted(layer):
    (note,) = Mesh(layer=layer, max_simplification_error=39).plan().notes
    assert "less than a voxel" in note
    assert Mesh(layer=layer, max_simplification_error=1, simplification=False).plan().notes == ()
    change_info(layer, scale={"size": [600, 600, 600]})
    (note,) = Mesh(layer=layer, shape=(512, 512, 512), memory_target=10**11).plan().notes
    assert "twice the time" in note


def test_a_directory_that_the_info_names_is_noted(layer):
    change_info(layer, mesh="mesh_mip_0_err_40.0")
    plan = Mesh(layer=layer).plan()
    assert plan.outputs == ("mesh_mip_0_err_40.0: fragments, within 40 nm but for single tips",)
    assert "names mesh_mip_0_err_40.0" in plan.notes[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"type": "image"}, "of type 'image': only a segmentation"),
        ({"data_type": "float32"}, "float32 voxels are not labels"),
        ({"num_channels": 2}, r"2 channel\(s\) of uint64"),
        ({"scale": {"sharding": {"@type": "x"}}}, "8_8_40 is sharded"),
        ({"scale": {"encoding": "jpeg"}}, "encoding jpeg"),
        ({"scale": {"encoding": "novel"}}, "encoding 'novel' is unknown"),
        ({"scale": {"size": [0, 5, 5]}}, "has no voxels: its size is 0,5,5"),
        ({"mesh": "../elsewhere"}, "not the name of a folder inside the layer"),
        ({"mesh": "8_8_40"}, "the folder of scale 8_8_40 is that of mesh, 8_8_40"),
        ({"scales": []}, "has no scales"),
    ],
)
def test_layers_without_objects_are_refused(layer, changes, named):
    change_info(layer, **changes)
    import re

    assert re.search(named, refusals_of(Mesh(layer=layer)))


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"mip": 1}, "mip 1 does not exist"),
        ({"bounds": "0-10_0-10_12-20"}, f"reaches out of the volume, which is {BOUNDS}"),
        ({"bounds": "100-101_0-1_12-13"}, "reaches out of the volume"),
        ({"shape": (40, 36, 30), "memory_target": 1_000_000}, "choose a shape smaller than 40,36"),
        ({"mesh_dir": "8_8_40"}, "holds the chunks of a scale"),
    ],
)
def test_wishes_that_do_not_fit_the_layer_are_refused(layer, wishes, named):
    assert named in refusals_of(Mesh(layer=layer, **wishes))


@pytest.mark.parametrize(
    "wishes",
    [
        {"mip": -2},
        {"shape": (0, 1, 1)},
        {"max_simplification_error": 0},
        {"max_simplification_error": 12.5},
        {"dust_threshold": -1},
        {"object_ids": "0"},
        {"remap_table": "1"},
        {"mesh_dir": "/mesh"},
        {"compress": "zip"},
        {"bounds": "5"},
    ],
    ids=str,
)
def test_wishes_without_meaning_are_refused(layer, wishes):
    with pytest.raises(ValidationError, match=next(iter(wishes))):
        Mesh(layer=layer, **wishes)


def test_no_layer_is_a_refusal(tmp_path):
    assert "no layer" in "\n".join(Mesh(layer=f"{tmp_path}/none").plan().refusals)


def test_another_directory_than_the_info_names_is_refused(layer):
    change_info(layer, mesh="meshes")
    text = refusals_of(Mesh(layer=layer, mesh_dir="others"))
    assert "names meshes" in text
    assert "remove 'mesh'" in text
    assert Mesh(layer=layer, mesh_dir="meshes/").plan().refusals == ()


def test_meshes_of_another_format_are_refused(layer, tmp_path):
    change_info(layer, mesh="meshes")
    (tmp_path / "layer/meshes").mkdir()
    (tmp_path / "layer/meshes/info").write_text('{"@type": "neuroglancer_multilod_draco"}')
    assert "neuroglancer_multilod_draco" in refusals_of(Mesh(layer=layer))


def test_another_grid_in_the_directory_is_refused_unless_it_is_to_be_replaced(layer, tmp_path):
    complete(Mesh(layer=layer, shape=(20, 20, 20)))
    other = {"layer": layer, "shape": (16, 16, 16)}
    text = refusals_of(Mesh(**other))
    assert "meshes of mip 0 in cells of 20,20,20, these would be of mip 0 in cells of 16" in text
    assert "new_grid" in text
    plan = Mesh(**other, new_grid=True).plan()
    assert plan.refusals == ()
    complete(Mesh(**other, new_grid=True))
    info = json.loads((tmp_path / "layer/mesh_mip_0_err_40/info").read_text())
    assert info["chunk_size"] == [16, 16, 16]


def test_an_empty_shape_is_that_of_the_meshes_that_are_there(layer):
    complete(Mesh(layer=layer, shape=(20, 21, 22), bounds="3-4_-7-29_11-12"))
    assert tuple(Mesh(layer=layer).resolved().shape) == (20, 21, 22)
    assert Mesh(layer=layer, max_simplification_error=80).plan().refusals == ()
    assert tuple(Mesh(layer=layer, new_grid=True).resolved().shape) == (512, 512, 256)


def test_a_running_stage_means_the_same_after_it_prepared(layer):
    stage = Mesh(layer=layer, mip=-1, max_simplification_error=12).resolved()
    assert stage.mip == 0
    assert stage.mesh_dir == "mesh_mip_0_err_12"
    stage.prepare()
    assert stage.resolved() == stage
    assert stage.plan().refusals == ()


def test_images_of_the_sample_are_no_segmentation(tmp_path):
    layer = write_layer(tmp_path, random_voxels(Vec3(9, 9, 9)), LayerSpec("image"))
    assert "only a segmentation" in refusals_of(Mesh(layer=layer))
