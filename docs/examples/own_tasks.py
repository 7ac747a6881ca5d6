"""A stage between tasks of your own: what follows it starts only when its run is proved."""

from airflow.sdk import DAG, Param, task

from igneous_airflow.operators.group import stage_group
from igneous_airflow.stages.downsample import Downsample


@task
def tell() -> str:
    """Something of your own that relies on the mips."""
    return "the layer has mips"


with DAG("own_tasks", schedule=None, params={"layer": Param(type="string"), "workers": 2}):
    mips = stage_group(Downsample, parameters={"layer": "{{ params.layer }}", "num_mips": 1})
    mips >> tell()
