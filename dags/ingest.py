"""Make a layer of files, ready for a viewer: the voxels, their contrast, coarser mips, meshes.

The DAG `igneous_ingest`. Contrast is done when asked for, into a layer of its own; meshes are made
of segmentations. Each step after the first can be switched off.
"""

from igneous_airflow.operators.chain import Refusal, Step, part_that_moves
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages.contrast_normalization import ContrastNormalization
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest

ingest = Step(Ingest, defaults={"skip_downsamples": True})  # which is a later step's work
is_segmentation = ingest["layer_type"].is_("segmentation")
levels = Step(
    LuminanceLevels,
    name="levels",
    binds={"layer": ingest["dest"]},
    switch=False,
    switch_name="contrast",
    refusals=(
        Refusal(
            (ingest["layer_type"].is_not("image"),),
            "has no grey values to stretch: switch run_contrast off, or choose image",
        ),
    ),
)
contrast = Step(
    ContrastNormalization,
    name="contrast",
    binds={
        "src": ingest["dest"],
        "mip": levels["mip"],
        "bounds": levels["bounds"],
        "levels_path": levels["levels_path"],
    },
    defaults={"skip_downsamples": True},
    switch=False,
)
downsample = Step(
    Downsample,
    binds={
        "layer": (contrast["dest"], ingest["dest"]),
        "mip": (contrast["mip"], None),
        "bounds": (contrast["bounds"], None),
    },
    switch=True,
    refusals=(part_that_moves(contrast),),
)
mesh = Step(Mesh, binds={"layer": ingest["dest"]}, switch=True, only_if=is_segmentation)
manifest = Step(MeshManifest, binds={"layer": ingest["dest"]}, switch=True, only_if=is_segmentation)
dag = pipeline(
    "ingest",
    __doc__,
    ingest,
    levels,
    contrast,
    downsample,
    mesh,
    manifest,
    shared=("factor", "method", "sparse", "background_color", "compress_level", "memory_target"),
)
