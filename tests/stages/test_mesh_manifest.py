"""Mesh manifest: its contract, and which fragments it puts together."""

import numpy as np
import pytest

from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.stages import StageTests


def complete(stage):
    """Do all of a stage, as a run would."""
    stage = stage.resolved()
    stage.plan().require_accepted()
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    return stage.finish("tester")


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        voxels = np.arange(1, 65, dtype=np.uint64).reshape(4, 4, 4, 1).repeat(3, 0).repeat(3, 1)
        voxels = np.asfortranarray(voxels.repeat(3, 2))
        layer = write_layer(tmp_path / "layer", voxels, LayerSpec("segmentation"))
        complete(Mesh(layer=layer, shape=(8, 8, 8)))
        return MeshManifest(layer=layer, magnitude=1)
