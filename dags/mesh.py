"""Make the meshes of a segmentation: the surfaces, then the manifests by which viewers find them.

The DAG `igneous_mesh`. Either step alone is run by switching the other one off.
"""

from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest

dag = pipeline(
    "mesh",
    __doc__,
    Step(Mesh, switch=True),
    Step(MeshManifest, switch=True),
    shared=("layer",),
)
