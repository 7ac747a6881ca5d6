"""Which workers a run gets: one name for each Airflow task that has workers; used by `stage.py`.

The tasks are mapped over these names: one for the processes of a machine, one for each pod, or one
for a Kubernetes Job when the pods are many.
"""

from collections.abc import Iterable
from typing import Literal

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.fields import ADDRESS, LAYER
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.pod_template import PodTemplate
from igneous_airflow.operators.settings import PodSettings, workers_run_on
from igneous_airflow.stage import Stage, fields_of_kind

LOCAL, POD, JOB = "local", "pod", "job"
#: Stands for no workers: tasks mapped over nothing are skipped, and `drained` with them.
NOBODY = "nobody"
#: More pods than this are one Job: Airflow would start a process for each.
MOST_PODS = 50
#: More processes than this on the machine of an Airflow task are a mistake.
MOST_PROCESSES = 64


def crew(options: RunOptions, tasks: int) -> list[str]:
    """Name the workers for this many tasks; `NOBODY` when there are none, or workers elsewhere."""
    if not tasks or not options.workers:
        return [NOBODY]
    if place_of(options) == "local":
        return [LOCAL]
    pods = pods_wanted(options, tasks)
    if pods > MOST_PODS:
        return [f"{JOB} of {pods} pods"]
    return [f"{POD} {number} of {pods}" for number in range(1, pods + 1)]


def pods_wanted(options: RunOptions, tasks: int) -> int:
    """As many pods as were asked for, yet none that would find no task."""
    return min(options.workers, -(-tasks // options.processes))


def require_workable(options: RunOptions, stage: Stage, addresses: Iterable[str]) -> None:
    """Raise InvalidParameter when these workers could not do the stage's work.

    `addresses` are those of the run and its queue. Pods must reach them, and the layers.
    """
    PodSettings.read().require_offered(options)
    if place_of(options) == "kubernetes":
        template = PodTemplate.load(PodSettings.read().template)
        named = [getattr(stage, name) for name in fields_of_kind(type(stage), ADDRESS, LAYER)]
        template.require_reachable([*addresses, *filter(None, named)])
    elif options.workers > MOST_PROCESSES:
        raise InvalidParameter(
            f"workers: {options.workers} processes on one machine are too many; the most are "
            f"{MOST_PROCESSES}, or let them run on kubernetes"
        )


def place_of(options: RunOptions) -> Literal["local", "kubernetes"]:
    """Where the workers run: as the form says, or else the configuration."""
    return options.run_on or workers_run_on()
