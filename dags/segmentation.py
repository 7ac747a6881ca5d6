"""Make a segmentation ready for a viewer: coarser mips, then meshes, then their manifests.

The DAG `igneous_segmentation`. Each step can be switched off.
"""

from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest

dag = pipeline(
    "segmentation",
    __doc__,
    Step(Downsample, switch=True),
    Step(Mesh, switch=True),
    Step(MeshManifest, switch=True),
    shared=("layer", "fill_missing", "memory_target"),
)
