"""The demonstration: real DAG runs in an Airflow of its own, on layers of the user's own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

pytestmark = pytest.mark.airflow


def demo(folder: Path, data: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "igneous_airflow", "demo", data, "--folder", "demo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "demo/airflow").glob("*.log"))


def test_the_demonstration_downsamples_an_image_of_the_users_twice(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    write_layer(layer, random_voxels(Vec3(33, 17, 9)))
    for _ in range(2):
        done = demo(tmp_path, "layer")
        assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
        assert "Done in " in done.stdout
        assert re.search("16_16_40 +12 chunks", done.stdout)
        assert (tmp_path / "demo/layers.png").exists()
    assert len(Layer.open(f"file://{layer}").info.scales) == 6


def test_the_demonstration_makes_meshes_of_a_segmentation_of_the_users(tmp_path: Path) -> None:
    layer = tmp_path / "labels"
    write_layer(layer, random_voxels(Vec3(33, 17, 9), "uint32"), LayerSpec("segmentation"))
    done = demo(tmp_path, "labels")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
    assert f"{layer}, by igneous_segmentation" in done.stdout
    manifests = list(layer.glob("mesh_mip_0_err_40/*:0"))
    assert f"{len(manifests)} manifests" in done.stdout
    assert len(manifests) > 5


def test_the_demonstration_says_why_it_makes_no_meshes(tmp_path: Path) -> None:
    layer = tmp_path / "labels"
    write_layer(layer, random_voxels(Vec3(20, 17, 9), "float32"), LayerSpec("segmentation"))
    done = demo(tmp_path, "labels")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
    assert "no meshes are made: " in done.stdout
    assert not list(layer.glob("mesh*"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [("wrong", "there is no layer at file://"), ("zarr://x", "not zarr")],
)
def test_a_layer_that_cannot_be_worked_on_is_refused_before_airflow_is_set_up(
    tmp_path: Path, data: str, reason: str
) -> None:
    done = demo(tmp_path, data)
    assert done.returncode in (1, 2)
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []
