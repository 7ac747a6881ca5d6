"""Mesh every segmentation whose labels were replaced, as soon as they are.

Scheduled on a stage: it runs when any layer was made by `watershed_remap`, whoever started that.
"""

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, get_current_context, task

from igneous_airflow.operators.assets import made_by
from igneous_airflow.stages.watershed_remap import WatershedRemap


@task
def new_layers() -> list[dict[str, Any]]:
    """The form of the next DAG for each layer, of which there may be several since the last run.

    Airflow lists an event twice, as one of the stage and as one of the layer.
    """
    events = get_current_context()["triggering_asset_events"]
    layers = {event.extra["layer"] for found in events.values() for event in found}
    return [{"layer": layer} for layer in sorted(layers)]


with DAG("meshes_of_new_labels", schedule=made_by(WatershedRemap), catchup=False):
    TriggerDagRunOperator.partial(
        task_id="mesh", trigger_dag_id="igneous_mesh", logical_date=None
    ).expand(conf=new_layers())
