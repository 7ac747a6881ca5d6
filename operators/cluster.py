"""What workers in a cluster have in common: when they are needed, and what their end means.

Used by `pods.py` and `jobs.py`. All of these take seconds to import, so that only tasks that have
pods do so, never a DAG file.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import PodLaunchFailedException
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchTimeoutException
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException

from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.pod_template import CONTAINER, PodTemplate
from igneous_airflow.operators.settings import PodSettings
from igneous_airflow.operators.stage import explained
from igneous_airflow.progress import State
from igneous_airflow.run import Run

if TYPE_CHECKING:
    from airflow.sdk import Context

_RESENDS = 3  # of lost messages
_REFUSED = (401, 403)


class ClusterWorkers(ABC):
    """Workers in a cluster, started again when they end early, as long as the run advances.

    Eviction and preemption are normal. Those that lead send lost messages again. Where Airflow
    defers, what must not be forgotten meanwhile (`memory`) travels with the trigger.
    """

    what = "pod"

    def __init__(self, task: BaseOperator, run: Run, options: RunOptions, *, leads: bool) -> None:
        self._task_id = task.task_id
        self.log = task.log
        self._run = run
        self._options = options
        self._leads = leads
        self._settings = PodSettings.read()
        self._done = 0  # when the present workers were started
        self._resends = 0
        self._killed = False

    def work(self, context: "Context") -> None:
        """Send what is missing if nobody can have it, then have workers until none is needed."""
        if self._leads:
            with explained():
                self._run.resume()
        self._go_on(context)

    def resume(self, context: "Context", event: dict[str, Any]) -> None:
        """Go on when the triggerer says that the workers have ended; may defer again."""
        self._done, self._resends = event["done"], event["resends"]
        with self._endured(_launch_problem(event)):
            self._end(context, event)
        self._require_gain()
        self._go_on(context)

    def on_kill(self) -> None:
        """Remove the pods: their workers give their tasks back."""
        self._killed = True
        self._remove()

    @property
    def memory(self) -> dict[str, Any]:
        """What `resume` must be given back in its event."""
        return {"done": self._done, "resends": self._resends}

    @abstractmethod
    def _start(self, context: "Context") -> None:
        """Start workers and wait for their end; may defer."""

    @abstractmethod
    def _end(self, context: "Context", event: dict[str, Any]) -> None:
        """Clean up after workers that a trigger has waited for."""

    @abstractmethod
    def _remove(self) -> None:
        """Remove the workers that there are now."""

    def _go_on(self, context: "Context") -> None:
        while not self._killed and self._are_needed():
            with explained():
                self._done = self._run.done().count
            with self._endured():
                self._start(context)
            self._require_gain()

    def _are_needed(self) -> bool:
        """Whether tasks are left; raises AirflowFailException when tasks were given up."""
        with explained():
            progress = self._run.progress()
            if progress.state is State.FAILED:
                self._run.require_done(progress)
            if progress.undecided:
                return True
            if progress.state is State.DONE:
                self.log.info("No pod is needed: every task has its receipt")
                return False
            if not self._leads or self._resends >= _RESENDS:
                self.log.info("The queue is empty, though receipts are missing")
                return False
            self._resends += 1
            self.log.warning("Messages were lost: sent %s tasks again", f"{self._run.enqueue():,}")
            return True

    def _require_gain(self) -> None:
        """Let Airflow retry, later and not for ever, when workers ended and nothing was gained."""
        with explained():
            progress = self._run.progress()
        if not progress.undecided or self._killed:
            return
        if progress.done <= self._done:
            raise AirflowException(
                f"the {self.what} has ended, {progress.waiting + progress.leased:,} tasks are left "
                "and none was done meanwhile; what it said stands above"
            )
        self.log.warning("The %s has ended before the work: starting it again", self.what)

    @contextmanager
    def _endured(self, problem: str = "") -> Iterator[None]:
        """Bear that workers failed, since receipts decide; not that there never were any.

        Raises AirflowFailException when the cluster refuses us, AirflowException when it cannot
        start them, for which `problem` may already be known.
        """
        try:
            yield
        except AirflowFailException:  # our own
            raise
        except (AirflowException, ApiException) as error:
            for cause in _chain(error):
                if isinstance(cause, ApiException) and cause.status in _REFUSED:
                    raise AirflowFailException(
                        "the cluster refuses what Airflow needs for its workers: "
                        f"{_words(cause)}. Give Airflow's account the role of worker_image/"
                        "manifests/airflow.yaml, and see that the namespace is the right one"
                    ) from None
                if isinstance(cause, PodLaunchFailedException | PodLaunchTimeoutException):
                    problem = problem or str(cause)
            if problem:
                raise AirflowException(f"the {self.what} could not start: {problem}") from None
            self.log.warning("The %s has failed: %s", self.what, error)

    def _operator_arguments(self) -> dict[str, Any]:
        """What the operators for pods and jobs are both given."""
        with explained():
            template = PodTemplate.load(self._settings.template)
        pod = template.fill_in(self._run, self._options, self._settings)
        return {
            "task_id": self._task_id,
            "name": _name(self._run),
            "namespace": pod["metadata"]["namespace"],
            "kubernetes_conn_id": self._settings.connection,
            "pod_template_dict": pod,
            "base_container_name": CONTAINER,
        }


def _name(run: Run) -> str:
    """What a run's pods are called, before what makes their names different."""
    return f"igneous-{run.stage.replace('_', '-')}-{run.id.rpartition('-')[2][-8:]}".lower()


def _launch_problem(event: dict[str, Any]) -> str:
    """Why the pod that a trigger has waited for never ran; empty when it did."""
    never = PodLaunchFailedException.__name__ in event.get("stack_trace", "")
    return str(event["message"]) if never or event["status"] == "timeout" else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those before it: cleaning up after one raises another."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _words(error: ApiException) -> str:
    """What the API server said, which names account, verb and resource."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
