"""Where runs live, by Airflow's configuration and the DAG run's identity; used by PlanStage."""

from pathlib import Path

from airflow.sdk import conf

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.run import run_folder_name

_FILE = "file://"


def run_url(dag_id: str, run_id: str, group_id: str) -> str:
    """The folder of a stage's run: the same whenever a task of this DAG run asks, or is cleared."""
    return f"{state_url()}/{run_folder_name(dag_id, run_id, group_id)}"


def queue_url(run: str) -> str:
    """The embedded queue of a run: in the run's folder, or with Airflow when that is a bucket."""
    if run.startswith(_FILE):
        return f"sqlite://{run.removeprefix(_FILE)}/queue.db"
    from airflow.configuration import AIRFLOW_HOME

    name = run.rpartition("/")[2]
    return f"sqlite://{Path(AIRFLOW_HOME).absolute()}/igneous/queues/{name}.db"


def state_url() -> str:
    """The option `[igneous] state`; raises InvalidParameter when it is no address."""
    text: str = conf.get("igneous", "state")
    if "://" in text:
        return text.rstrip("/")
    if not Path(text).is_absolute():
        raise InvalidParameter(
            f"[igneous] state = {text!r} in Airflow's configuration is not an address: write a "
            "bucket URL or an absolute path"
        )
    return f"{_FILE}{text.rstrip('/')}"
