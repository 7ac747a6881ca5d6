"""A finished run that is started once more means the mips that it meant before."""

import json
from pathlib import Path

import pytest

from igneous_airflow.errors import PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stage import Stage
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import do_missing


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    write_layer(path, random_voxels(Vec3(32, 32, 32)), LayerSpec(chunk_size=Vec3(8, 8, 8)))
    return path


def complete(stage: Stage, folder: Path, name: str) -> None:
    url, queue = f"file://{folder}/runs/{name}", f"sqlite://{folder}/{name}.db"
    run, _ = Run.launch(stage, url=url, queue=queue, by="tester")
    run.prepare()
    do_missing(run)
    run.finish()


def mips(layer: Path) -> list[str]:
    return [scale["key"] for scale in json.loads((layer / "info").read_text())["scales"]]


def test_a_finished_delete_does_not_delete_the_mip_that_has_the_number_now(
    layer: Path, tmp_path: Path
) -> None:
    complete(Downsample(layer=str(layer), num_mips=2), tmp_path, "mips")
    delete = Delete(layer=str(layer), mip=1, confirm=True)
    complete(delete, tmp_path, "delete")
    assert mips(layer) == ["8_8_40", "32_32_40"]
    with pytest.raises(PlanRefused, match=r"no scale 16_16_40: it may have been deleted already"):
        complete(delete, tmp_path, "delete")
    assert mips(layer) == ["8_8_40", "32_32_40"]


def test_the_coarsest_mip_is_still_the_one_that_it_was(layer: Path, tmp_path: Path) -> None:
    stage = Downsample(layer=str(layer), mip=-1, num_mips=1)
    for _ in range(2):
        complete(stage, tmp_path, "mips")
        assert mips(layer) == ["8_8_40", "16_16_40"]
