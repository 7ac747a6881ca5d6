"""Many worker pods of a run as one Kubernetes Job; used by `stage_workers.py`.

A Job without a number of completions is what Kubernetes calls a work queue: it is complete when one
pod has found the queue drained and all others have ended; pods that end otherwise are replaced.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook, KubernetesHook
from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes.client import CoreV1Api, models
from kubernetes.client.exceptions import ApiException

from igneous_airflow.operators.cluster import ClusterWorkers
from igneous_airflow.operators.crew import pods_wanted
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.settings import load_run
from igneous_airflow.progress import Pace, Progress, State
from igneous_airflow.run import Run

if TYPE_CHECKING:
    from airflow.sdk import Context

_POLL_SECONDS = 15.0
_FAILURES_PER_POD = 5  # until the Job is given up; disruptions do not count
_FORGOTTEN_SECONDS = 3600  # after which Kubernetes removes an ended Job that nobody has removed
_TROUBLES_BORNE = 10  # looks that fail, one after the other
_LOGS_SHOWN = 5
_LINES_SHOWN = 20
_DECIDED = (State.DONE, State.FAILED)


class JobOfPods(ClusterWorkers):
    """A Job of as many pods as are wanted; the task's log gets the ends of some of theirs."""

    what = "job"

    def __init__(self, task: BaseOperator, run: Run, options: RunOptions) -> None:
        super().__init__(task, run, options, leads=True)
        self._job: KubernetesJobOperator | None = None

    def _start(self, context: "Context") -> None:
        job = self._create(context)
        if self._settings.deferrable:
            trigger = JobTrigger(
                run_url=self._run.url,
                name=job.metadata.name,
                namespace=job.metadata.namespace,
                connection=self._settings.connection,
                memory=self.memory,
            )
            raise TaskDeferred(trigger=trigger, method_name="trigger_reentry")
        self._wait(self._operator().hook, job)
        self._clean_up(job.metadata.name, job.metadata.namespace)

    def _end(self, context: "Context", event: dict[str, Any]) -> None:  # noqa: ARG002
        self._clean_up(event["name"], event["namespace"])

    def _remove(self) -> None:
        if self._job is not None:
            self._job.on_kill()

    def _operator(self) -> KubernetesJobOperator:
        pods = pods_wanted(self._options, self._run.planned)
        return KubernetesJobOperator(
            **self._operator_arguments(),
            random_name_suffix=False,  # so that a retry finds the Job that there is
            parallelism=pods,
            backoff_limit=_FAILURES_PER_POD * pods,
            ttl_seconds_after_finished=_FORGOTTEN_SECONDS,
            on_kill_propagation_policy="Background",
        )

    def _create(self, context: "Context") -> models.V1Job:
        """Create the Job, or take up the one that an earlier attempt has left."""
        self._job = operator = self._operator()
        job = operator.build_job_request_obj(context)
        job.spec.pod_failure_policy = models.V1PodFailurePolicy(
            rules=[
                models.V1PodFailurePolicyRule(
                    action="Ignore",
                    on_pod_conditions=[
                        models.V1PodFailurePolicyOnPodConditionsPattern(
                            type="DisruptionTarget", status="True"
                        )
                    ],
                )
            ]
        )
        try:
            operator.create_job(job)
        except ApiException as error:
            if error.status != 409:  # it is there
                raise
            self.log.info("Going on with the job %s, which is there already", job.metadata.name)
        operator.job = job  # for on_kill
        return job

    def _wait(self, hook: KubernetesHook, job: models.V1Job) -> None:
        pace, said = Pace(), ""
        while True:
            progress = self._run.progress()
            if (text := pace.describe(progress)) != said:
                self.log.info("%s", text)
                said = text
            status = hook.get_job_status(job.metadata.name, job.metadata.namespace)
            if progress.state in _DECIDED or _is_over(status):
                return
            time.sleep(_POLL_SECONDS)

    def _clean_up(self, name: str, namespace: str) -> None:
        """Show how pods have ended, and remove the Job with its pods."""
        self._job = operator = self._job or self._operator()
        core, batch = operator.hook.core_v1_client, operator.hook.batch_v1_client
        pods = core.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
        failed = [pod for pod in pods if pod.status.phase == "Failed"]
        self.log.info("The job %s had %s pods; %s have failed", name, len(pods), len(failed))
        for pod in (failed or pods)[:_LOGS_SHOWN]:
            self._show_log(core, pod)
        batch.delete_namespaced_job(name, namespace, propagation_policy="Background")

    def _show_log(self, core: CoreV1Api, pod: models.V1Pod) -> None:
        """Log the end of a pod's log, unless its node is gone."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            answer = core.read_namespaced_pod_log(
                name, namespace, tail_lines=_LINES_SHOWN, _preload_content=False
            )
        except ApiException as error:
            self.log.info("[%s] has left no log: %s", name, error.reason)
            return
        for line in answer.data.decode(errors="replace").splitlines():
            self.log.info("[%s] %s", name, line)


def _is_over(job: Any) -> bool:
    """Whether a Job is complete or has failed; given by one of two client libraries."""
    conditions = job.status.conditions or []
    return any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions)


class JobTrigger(BaseTrigger):
    """Fires when a run is decided or its Job is over; removes the Job when the task is given up.

    The event is the Job's name and namespace, and `memory` as it was given.
    """

    def __init__(
        self, *, run_url: str, name: str, namespace: str, connection: str, memory: dict[str, Any]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_url = run_url
        self.name = name
        self.namespace = namespace
        self.connection = connection
        self.memory = memory

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where to find this class, and what to call it with."""
        return (
            "igneous_airflow.operators.jobs.JobTrigger",
            {
                "run_url": self.run_url,
                "name": self.name,
                "namespace": self.namespace,
                "connection": self.connection,
                "memory": self.memory,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look from time to time, at the run and at the Job."""
        pace, said, troubles = Pace(), "", 0
        status = "waiting"
        while status == "waiting" and troubles < _TROUBLES_BORNE:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                progress = await asyncio.to_thread(self._progress)
                job = await self._hook().get_job_status(self.name, self.namespace)
            except Exception as error:  # noqa: BLE001 - of whatever kind, it may pass
                self.log.warning("Cannot look at the job %s: %s", self.name, error)
                troubles += 1
                continue
            troubles = 0
            if (text := pace.describe(progress)) != said:
                self.log.info("%s", text)
                said = text
            if progress.state in _DECIDED or _is_over(job):
                status = "over"
        event = {"status": status, "name": self.name, "namespace": self.namespace, **self.memory}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Remove the Job and its pods: somebody has marked the task."""
        from kubernetes_asyncio.client import BatchV1Api

        self.log.info("Removing the job %s", self.name)
        async with self._hook().get_conn() as connection:
            await BatchV1Api(connection).delete_namespaced_job(
                self.name, self.namespace, propagation_policy="Background"
            )

    def _hook(self) -> AsyncKubernetesHook:
        return AsyncKubernetesHook(conn_id=self.connection)

    def _progress(self) -> Progress:
        return load_run(self.run_url).progress()
