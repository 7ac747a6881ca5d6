"""Make the sections of an image look alike: levels, the stretched image, then its coarser mips.

The DAG `igneous_contrast`. Levels that are there already need not be counted again: switch that
step off.
"""

from igneous_airflow.operators.chain import Step, part_that_moves
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages.contrast_normalization import ContrastNormalization
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels

levels = Step(LuminanceLevels, name="levels", switch=True)
contrast = Step(
    ContrastNormalization,
    name="contrast",
    binds={
        "src": levels["layer"],
        "mip": levels["mip"],
        "bounds": levels["bounds"],
        "levels_path": levels["levels_path"],
    },
    defaults={"skip_downsamples": True},  # which is the next step's work
)
downsample = Step(
    Downsample,
    binds={"layer": contrast["dest"], "mip": levels["mip"], "bounds": levels["bounds"]},
    switch=True,
    refusals=(part_that_moves(contrast),),
)
dag = pipeline(
    "contrast",
    __doc__,
    levels,
    contrast,
    downsample,
    shared=(
        "fill_missing",
        "factor",
        "method",
        "sparse",
        "background_color",
        "skip_empty",
        "compress",
        "compress_level",
        "memory_target",
    ),
)
