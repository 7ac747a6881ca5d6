"""The chains of this repository, run as whole DAG runs on tiny layers and read by cloud-volume."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from airflow.sdk import DAG
from cloudvolume import CloudVolume

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

pytestmark = pytest.mark.airflow


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    """Labels above 2^53 in a layer with an offset and odd edges."""
    path = tmp_path / "segmentation"
    spec = LayerSpec("segmentation", chunk_size=(16, 16, 8), voxel_offset=(5, -3, 2))
    write_layer(path, random_voxels(Vec3(41, 35, 9), "uint64"), spec)
    return path


def states(dag_run: Any) -> dict[str, set[str]]:
    """The states of each step's tasks."""
    found: dict[str, set[str]] = {}
    for task in dag_run.get_task_instances():
        step, dot, _ = task.task_id.partition(".")
        if dot:
            found.setdefault(step, set()).add(str(task.state))
    return found


def mips_of(layer: Path) -> int:
    return len(Layer.open(f"file://{layer}").info.scales)


def labels_of(layer: Path) -> set[int]:
    volume = CloudVolume(f"file://{layer}", progress=False, parallel=1)
    return {int(label) for label in np.unique(volume[:])} - {0}


def labels_with_meshes(layer: Path) -> set[int]:
    """The labels whose meshes cloud-volume finds, all of which it can read."""
    info = Layer.open(f"file://{layer}").info
    folder = layer / str(info.mesh_directory)
    labels = {int(path.name.removesuffix(":0")) for path in folder.glob("*:0")}
    volume = CloudVolume(f"file://{layer}", progress=False, parallel=1)
    assert all(len(volume.mesh.get(label, fuse=False)[label].faces) for label in labels)
    return labels


def test_a_segmentation_gets_mips_meshes_and_manifests(
    dags: dict[str, DAG], segmentation: Path
) -> None:
    conf = {"layer": str(segmentation), "num_mips": 2, "mesh_mip": 0, "shape": "16,16,9"}
    done = dags["igneous_segmentation"].test(run_conf=conf)
    assert list(states(done).values()) == [{"success"}] * 3
    assert done.state == "success"
    assert mips_of(segmentation) == 3
    assert labels_with_meshes(segmentation) == labels_of(segmentation)


def test_meshes_are_made_of_a_mip_that_the_step_before_has_made(
    dags: dict[str, DAG], segmentation: Path
) -> None:
    conf = {"layer": str(segmentation), "num_mips": 1, "mesh_mip": 1}
    assert dags["igneous_segmentation"].test(run_conf=conf).state == "success"
    assert (segmentation / "mesh_mip_1_err_40" / "info").exists()
    assert labels_with_meshes(segmentation)


def test_each_stage_of_the_chain_of_meshes_can_be_run_alone(
    dags: dict[str, DAG], segmentation: Path
) -> None:
    conf = {"layer": str(segmentation), "max_simplification_error": 10}
    mesh = dags["igneous_mesh"]
    first = mesh.test(run_conf={**conf, "run_mesh": True, "run_mesh_manifest": False})
    assert states(first) == {"mesh": {"success"}, "mesh_manifest": {"skipped"}}
    assert labels_with_meshes(segmentation) == set()
    second = mesh.test(run_conf={**conf, "run_mesh": False, "run_mesh_manifest": True})
    assert states(second) == {"mesh": {"skipped"}, "mesh_manifest": {"success"}}
    assert labels_with_meshes(segmentation) == labels_of(segmentation)


def test_there_are_no_manifests_unless_every_mesh_task_is_done(
    dags: dict[str, DAG], segmentation: Path
) -> None:
    (segmentation / "8_8_40" / "21-37_-3-13_2-10").unlink()
    done = dags["igneous_mesh"].test(run_conf={"layer": str(segmentation), "shape": "16,16,9"})
    assert done.state == "failed"
    assert states(done)["mesh_manifest"] == {"upstream_failed"}
    assert list(segmentation.glob("mesh_mip_0_err_40/*:0:*")), "other tasks have left fragments"
    assert labels_with_meshes(segmentation) == set()


def test_a_run_that_began_with_the_coarsest_mip_goes_on_from_its_plan(
    dags: dict[str, DAG], segmentation: Path
) -> None:
    """By then there is a coarser one, which cannot be pooled any more."""
    chunk = segmentation / "8_8_40" / "21-37_-3-13_2-10"
    content = chunk.read_bytes()
    chunk.unlink()
    now = datetime.now(UTC)

    def run_dag() -> Any:
        conf = {"layer": str(segmentation), "downsample_mip": -1, "mesh_mip": 0}
        return dags["igneous_segmentation"].test(run_conf=conf, logical_date=now, run_after=now)

    assert run_dag().state == "failed"
    assert mips_of(segmentation) > 1
    chunk.write_bytes(content)
    assert run_dag().state == "success"


def test_fragments_that_keep_manifests_from_being_made_are_named_before_anything_is_meshed(
    dags: dict[str, DAG], segmentation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of an earlier grid, which meshing on another one leaves where they are."""
    conf = {"layer": str(segmentation), "shape": "16,16,9", "spatial_index": False}
    assert dags["igneous_mesh"].test(run_conf=conf).state == "success"
    before = {path: path.read_bytes() for path in segmentation.rglob("*") if path.is_file()}
    other = {**conf, "shape": "32,32,9", "new_grid": True, "confirm": True}
    assert dags["igneous_mesh"].test(run_conf=other).state == "failed"
    assert "Set remove_stale to delete them" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    again = dags["igneous_mesh"].test(run_conf={**other, "remove_stale": True})
    assert again.state == "success"
    assert labels_with_meshes(segmentation) == labels_of(segmentation)


def test_a_mistake_in_the_last_step_is_found_before_the_first_one_starts(
    dags: dict[str, DAG], segmentation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = {"layer": str(segmentation), "object_ids": "0,3", "mesh_bounds": "9-3_0-1_0-1"}
    done = dags["igneous_segmentation"].test(run_conf=conf)
    assert done.state == "failed"
    words = capsys.readouterr().out
    assert "  - object_ids: 0 is the background, which is no object" in words
    assert "  - mesh_bounds: " in words
    assert mips_of(segmentation) == 1


@pytest.fixture
def dim_image(tmp_path: Path) -> Path:
    """Sections of few grey values, each brighter than the one before."""
    path = tmp_path / "image"
    random = np.random.default_rng(5)
    sections = [random.integers(20 + z, 60 + z, (40, 33), dtype=np.uint8) for z in range(6)]
    voxels = np.stack(sections, axis=2)[..., np.newaxis]
    write_layer(path, voxels, LayerSpec(chunk_size=(16, 16, 4), voxel_offset=(2, 0, 9)))
    return path


def test_an_image_gets_levels_contrast_and_mips(
    dags: dict[str, DAG], dim_image: Path, tmp_path: Path
) -> None:
    bright = tmp_path / "bright"
    conf = {"layer": str(dim_image), "dest": str(bright), "clip_fraction": 0.05, "num_mips": 1}
    done = dags["igneous_contrast"].test(run_conf=conf)
    assert states(done) == {name: {"success"} for name in ("levels", "contrast", "downsample")}
    assert sorted(path.name for path in (dim_image / "levels" / "0").iterdir()) == sorted(
        map(str, range(9, 15))
    )
    voxels = CloudVolume(f"file://{bright}", progress=False, parallel=1)[:]
    assert all(voxels[:, :, z].min() == 0 and voxels[:, :, z].max() == 255 for z in range(6))
    assert mips_of(bright) == 2
    assert CloudVolume(f"file://{bright}", mip=1, progress=False, parallel=1)[:].shape[0] == 20


def test_a_part_of_an_image_gets_levels_contrast_and_mips(
    dags: dict[str, DAG], dim_image: Path, tmp_path: Path
) -> None:
    """Its other sections have no levels, and the new layer no chunks of them."""
    bright = tmp_path / "bright"
    conf = {"layer": str(dim_image), "dest": str(bright), "bounds": "2-42_0-33_9-13", "num_mips": 1}
    done = dags["igneous_contrast"].test(run_conf=conf)
    assert states(done) == {name: {"success"} for name in ("levels", "contrast", "downsample")}
    coarse = CloudVolume(f"file://{bright}", mip=1, progress=False, parallel=1)
    assert coarse[1:21, 0:17, 9:13].shape == (20, 17, 4, 1)
    assert not any(path.name.endswith("13-15") for path in bright.rglob("*_*_*-*"))


def test_bounds_that_do_not_fit_the_coarsest_mip_are_refused_before_levels_are_counted(
    dags: dict[str, DAG], dim_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They fit the chunks of the stretched image."""
    conf = {"layer": str(dim_image), "dest": f"{tmp_path}/bright", "num_mips": 1}
    done = dags["igneous_contrast"].test(run_conf=conf | {"bounds": "2-18_0-16_9-13"})
    assert done.state == "failed"
    assert states(done)["levels"] == {"failed", "upstream_failed"}
    assert "  - bounds: 2-18_0-16_9-13 would fill only parts of chunks of the coarsest mip" in (
        capsys.readouterr().out
    )
    assert not (dim_image / "levels").exists()
    assert not (tmp_path / "bright").exists()


def test_all_steps_are_planned_when_only_the_plan_is_asked_for(
    dags: dict[str, DAG], dim_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = {"layer": str(dim_image), "dest": f"{tmp_path}/bright", "num_mips": 1}
    done = dags["igneous_contrast"].test(run_conf=conf | {"plan_only": True})
    assert done.state == "success"
    words = capsys.readouterr().out
    planned = re.findall(r"\b(\w+): [0-9]+ tasks? \(", words)
    assert planned == ["luminance_levels", "contrast_normalization", "downsample"]
    assert "REFUSED" not in words
    assert not (dim_image / "levels").exists()
    assert not (tmp_path / "bright").exists()


def test_contrast_without_levels_is_refused_with_the_sections(
    dags: dict[str, DAG], dim_image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = {"layer": str(dim_image), "dest": f"{tmp_path}/bright", "run_levels": False}
    done = dags["igneous_contrast"].test(run_conf=conf)
    assert states(done)["levels"] == {"skipped"}
    assert done.state == "failed"
    assert "9" in (words := capsys.readouterr().out)
    assert "levels" in words
    assert not (tmp_path / "bright").exists()


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder of sections with few grey values, as a microscope leaves it."""
    folder = tmp_path / "stack"
    folder.mkdir()
    random = np.random.default_rng(6)
    for z in range(6):
        section = random.integers(20 + z, 60 + z, (33, 40), dtype=np.uint8)
        tifffile.imwrite(folder / f"section_{z}.tif", section)
    return folder


def test_sections_become_a_layer_with_mips_and_no_meshes(
    dags: dict[str, DAG], stack: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    conf = {"source": str(stack), "ingest_dest": str(image), "resolution": "8,8,40", "num_mips": 2}
    done = dags["igneous_ingest"].test(run_conf=conf)
    assert done.state == "success"
    assert states(done) == {
        "ingest": {"success"},
        "levels": {"skipped"},
        "contrast": {"skipped"},
        "downsample": {"success"},
        "mesh": {"skipped"},
        "mesh_manifest": {"skipped"},
    }
    sections = [tifffile.imread(path).T for path in sorted(stack.iterdir())]
    voxels = np.asarray(CloudVolume(f"file://{image}", progress=False, parallel=1)[:])
    np.testing.assert_array_equal(voxels[..., 0], np.stack(sections, axis=2))
    assert mips_of(image) == 3


def test_contrast_of_ingested_sections_goes_into_a_layer_of_its_own_with_the_mips(
    dags: dict[str, DAG], stack: Path, tmp_path: Path
) -> None:
    image, bright = tmp_path / "image", tmp_path / "bright"
    conf = {
        "source": str(stack), "ingest_dest": str(image), "resolution": "8,8,40",
        "run_contrast": True, "contrast_dest": str(bright), "coverage_factor": 1,
        "clip_fraction": 0.05, "num_mips": 1,
    }  # fmt: skip
    done = dags["igneous_ingest"].test(run_conf=conf)
    assert done.state == "success"
    assert [states(done)[name] for name in ("levels", "contrast")] == [{"success"}] * 2
    assert (mips_of(image), mips_of(bright)) == (1, 2)
    voxels = CloudVolume(f"file://{bright}", progress=False, parallel=1)[:]
    assert all(voxels[:, :, z].min() == 0 and voxels[:, :, z].max() == 255 for z in range(6))


def test_contrast_of_voxels_that_are_no_greys_is_refused_before_they_are_ingested(
    dags: dict[str, DAG], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "affinities.npy", np.zeros((9, 8, 7), np.float32))
    conf = {
        "source": f"{tmp_path}/affinities.npy", "ingest_dest": f"{tmp_path}/image", "axes": "xyz",
        "resolution": "8,8,40", "run_contrast": True, "contrast_dest": f"{tmp_path}/bright",
    }  # fmt: skip
    assert dags["igneous_ingest"].test(run_conf=conf).state == "failed"
    assert "luminance_levels cannot start, nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "image").exists()


def test_labels_become_a_segmentation_with_mips_and_meshes(
    dags: dict[str, DAG], tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    np.save(tmp_path / "labels.npy", random_voxels(Vec3(41, 35, 9), "uint64")[..., 0])
    conf = {
        "source": f"{tmp_path}/labels.npy", "ingest_dest": str(labels), "axes": "xyz",
        "resolution": "8,8,40", "layer_type": "segmentation", "num_mips": 1,
    }  # fmt: skip
    done = dags["igneous_ingest"].test(run_conf=conf)
    assert done.state == "success"
    assert [states(done)[name] for name in ("levels", "contrast")] == [{"skipped"}] * 2
    assert mips_of(labels) == 2
    assert labels_with_meshes(labels) == labels_of(labels)
