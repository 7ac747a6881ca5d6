"""Copy a mip, make coarser ones of the copy, and delete the source: a chain for the tests."""

from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.group import pipeline
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer

transfer = Step(Transfer, defaults={"skip_downsamples": True}, switch=True)
downsample = Step(Downsample, binds={"layer": transfer["dest"]}, switch=True)
delete = Step(Delete, binds={"layer": transfer["src"]}, switch=False)

dag = pipeline(
    "copy",
    __doc__,
    transfer,
    downsample,
    delete,
    shared=("fill_missing", "memory_target", "compress"),
)
