"""Links to what a stage has made, in Neuroglancer, and to DAG runs, in Airflow's UI."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperator, BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class NeuroglancerLink(BaseOperatorLink):
    """Opens the layer of a run in the plugin's viewer."""

    name = "View in Neuroglancer"

    def get_link(self, operator: BaseOperator, *, ti_key: "TaskInstanceKey") -> str:  # noqa: ARG002
        """The address of the viewer; Airflow asks for it when the task has ended."""
        run = str(getattr(operator, "run_url", "")).rstrip("/").rpartition("/")[2]
        return f"{_base_url()}/igneous/viewer/open/{run}"


def dag_run_url(context: Mapping[str, Any]) -> str:
    """Where people see the DAG run of a task's context; empty when there is none."""
    dag_run = context.get("dag_run")
    if dag_run is None:
        return ""
    return f"{_base_url()}/dags/{quote(dag_run.dag_id)}/runs/{quote(dag_run.run_id)}"


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="/")).rstrip("/")
