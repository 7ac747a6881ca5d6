"""Where runs and workers live, by Airflow's configuration and the DAG run's identity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from airflow.sdk import conf

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.run import run_folder_name

_FILE = "file://"
_TEMPLATE = Path(__file__).parent.parent / "worker_image" / "pod_template.yaml"


def run_url(dag_id: str, run_id: str, group_id: str) -> str:
    """The folder of a stage's run: the same whenever a task of this DAG run asks, or is cleared."""
    return f"{_state_folder()}/{run_folder_name(dag_id, run_id, group_id)}"


def queue_url(run: str) -> str:
    """The embedded queue of a run: in the run's folder, or with Airflow when that is a bucket."""
    if run.startswith(_FILE):
        return f"sqlite://{run.removeprefix(_FILE)}/queue.db"
    from airflow.configuration import AIRFLOW_HOME

    name = run.rpartition("/")[2]
    return f"sqlite://{Path(AIRFLOW_HOME).absolute()}/igneous/queues/{name}.db"


def workers_run_on() -> Literal["local", "kubernetes"]:
    """The option `[igneous] workers`; raises InvalidParameter when it is no such place."""
    text: str = conf.get("igneous", "workers")
    if text == "local":
        return "local"
    if text == "kubernetes":
        return "kubernetes"
    raise InvalidParameter(
        f"[igneous] workers = {text!r} in Airflow's configuration: write local or kubernetes"
    )


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What Airflow's configuration says of worker pods."""

    image: str
    namespace: str
    template: Path
    connection: str
    deferrable: bool

    @classmethod
    def read(cls) -> Self:
        """The options of `[igneous]` that concern pods."""
        return cls(
            image=conf.get("igneous", "worker_image"),
            namespace=conf.get("igneous", "namespace"),
            template=Path(conf.get("igneous", "pod_template") or _TEMPLATE),
            connection=conf.get("igneous", "kubernetes_conn_id"),
            deferrable=conf.getboolean("igneous", "deferrable"),
        )


def _state_folder() -> str:
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
