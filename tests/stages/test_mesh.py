"""Mesh: its contract, and its surfaces as trimesh and cloud-volume see them."""

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import StageTests


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        spec = LayerSpec("segmentation", voxel_offset=(3, -7, 11), chunk_size=(8, 8, 8))
        layer = write_layer(tmp_path / "layer", random_voxels(Vec3(33, 17, 9), "uint64"), spec)
        return Mesh(layer=layer, mip=-1, shape=(16, 16, 8), exclude_object_ids=["7"])
