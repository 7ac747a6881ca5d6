"""The link from a finished stage to what it made, in Neuroglancer; shown by Airflow's UI."""

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperator, BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class NeuroglancerLink(BaseOperatorLink):
    """Opens the layer of a run in the plugin's viewer."""

    name = "View in Neuroglancer"

    def get_link(self, operator: BaseOperator, *, ti_key: "TaskInstanceKey") -> str:  # noqa: ARG002
        """The address of the viewer; Airflow asks for it when the task has ended."""
        base: str = conf.get("api", "base_url", fallback="/")
        run = str(getattr(operator, "run_url", "")).rstrip("/").rpartition("/")[2]
        return f"{base.rstrip('/')}/igneous/viewer/open/{run}"
