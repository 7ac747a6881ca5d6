"""The demonstration on a layer of the user's own: a real DAG run in an Airflow of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import random_voxels, write_layer

pytestmark = pytest.mark.airflow


def test_the_demonstration_downsamples_a_layer_of_the_users_twice(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    write_layer(layer, random_voxels(Vec3(33, 17, 9)))
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "igneous_airflow", "demo", "layer", "--folder", "demo"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        logs = "".join(path.read_text() for path in (tmp_path / "demo/airflow").glob("*.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        assert "Done, and proved" in done.stdout
        assert "  16_16_40: 12 chunks" in done.stdout
        assert (tmp_path / "demo/mips.png").exists()
    assert len(Layer.open(f"file://{layer}").info.scales) == 6
