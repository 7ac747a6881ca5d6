"""One measured run of meshing or of manifests, by either side; started by `bench_mesh.py`.

It is run as a file, by our interpreter or by the peer's.
"""

import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from igneous_side import pin, run_all, timed  # type: ignore[import-not-found]

SHAPE = (256, 256, 256)
ERROR = 40
#: What `run` imports when it is first called; the peer's imports are not measured either.
_IMPORTED_LATE = (
    "cloudvolume.chunks",
    "deflate",
    "fastremap",
    "igneous_airflow.meshes.audit",
    "igneous_airflow.meshes.cutout",
    "igneous_airflow.meshes.place",
    "meshoptimizer",
    "zmesh",
)


def peer(work: str, layer: str, cells: list[int]) -> list[Callable[[], object]]:
    """The tasks of igneous-pipeline, which are called directly."""
    from igneous.task_creation import create_mesh_manifest_tasks, create_meshing_tasks

    if work == "manifests":
        return list(create_mesh_manifest_tasks(layer, magnitude=3))
    tasks = create_meshing_tasks(layer, 0, shape=SHAPE, max_simplification_error=ERROR)
    return [task for index, task in enumerate(tasks) if index in cells]


def own(work: str, layer: str, cells: list[int]) -> list[Callable[[], object]]:
    """Our stages at their cells."""
    from functools import partial

    from igneous_airflow.stages.mesh import Mesh
    from igneous_airflow.stages.mesh_manifest import MeshManifest
    from igneous_airflow.worker.memory import keep_freed_memory

    keep_freed_memory()  # as every worker process does
    for module in _IMPORTED_LATE:
        import_module(module)
    if work == "manifests":
        manifest = MeshManifest(layer=layer)
        return [partial(manifest.run, cell) for cell in manifest.cells()]
    mesh = Mesh(layer=layer, shape=SHAPE, max_simplification_error=ERROR).resolved()
    mesh.prepare()
    every = mesh.cells()
    return [partial(mesh.run, every[index]) for index in cells]


def main() -> None:
    side, work, layer, core, *cells = sys.argv[1:]
    pin(int(core))
    if work == "meshes":
        for folder in Path(layer.removeprefix("file://")).glob("mesh_mip*"):
            shutil.rmtree(folder)
    tasks = {"peer": peer, "own": own}[side](work, layer, list(map(int, cells)))
    timed(lambda: run_all(tasks))


if __name__ == "__main__":
    main()
