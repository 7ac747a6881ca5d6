"""The Airflow task that has one of the crew work on a run, wherever that is; used by `group.py`.

Nothing of Kubernetes is imported before it is needed: it takes seconds, at every parsing of a DAG.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator

from igneous_airflow.operators.crew import JOB, LOCAL, NOBODY
from igneous_airflow.operators.params import RunOptions, read_params
from igneous_airflow.operators.proof import RUN_URL
from igneous_airflow.operators.settings import load_run
from igneous_airflow.operators.stage import RunOperator, explained
from igneous_airflow.operators.workers import LocalWorkers

if TYPE_CHECKING:
    from airflow.sdk import Context

    from igneous_airflow.operators.cluster import ClusterWorkers


class StageWorkers(RunOperator):
    """Have one of the crew work on a run until no task is left to wait for.

    Fails without retry, naming tasks and errors, when tasks were given up; whatever else keeps the
    run from being done may be retried, which goes on where it stopped.
    """

    template_fields: Sequence[str] = (RUN_URL, "worker")

    def __init__(self, *, worker: str, retries: int = 2, **kwargs: Any) -> None:
        super().__init__(retries=retries, **kwargs)
        self.worker = worker
        self._working: LocalWorkers | ClusterWorkers | None = None

    def execute(self, context: "Context") -> None:
        """Work, or defer until the workers in the cluster have ended."""
        if self.worker == NOBODY:
            self.log.info("No worker is started: nothing is left to do, or it is left to others")
            return
        if self.worker == LOCAL:
            self._working = LocalWorkers(task_id=self.task_id, run_url=self.run_url)
        else:
            self._working = self._in_kubernetes(context)
        self._working.work(context)

    def trigger_reentry(self, context: "Context", event: dict[str, Any]) -> None:
        """Go on after a deferral; KubernetesPodOperator defers with this method's name."""
        self._working = working = self._in_kubernetes(context)
        working.resume(context, event)

    def on_kill(self) -> None:
        """Stop the processes, or remove the pods."""
        if self._working is not None:
            self._working.on_kill()

    def _in_kubernetes(self, context: "Context") -> "ClusterWorkers":
        from igneous_airflow.operators.jobs import JobOfPods
        from igneous_airflow.operators.pods import WorkerPod

        options = read_params(RunOptions, context["params"])
        with explained():
            run = load_run(self.run_url)
        if self.worker.startswith(JOB):
            return JobOfPods(self, run, options)
        return WorkerPod(self, run, options, leads=context["ti"].map_index == 0)


def stage_workers(run_url: str, members: XComArg) -> BaseOperator | MappedOperator:
    """One task for each member of the crew that `EnqueueStage` has returned."""
    return StageWorkers.partial(
        task_id="workers", run_url=run_url, map_index_template="{{ task.worker }}"
    ).expand(worker=members)
