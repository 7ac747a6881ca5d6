"""One worker pod of a run, by KubernetesPodOperator; used by `stage_workers.py`."""

from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from igneous_airflow.operators.cluster import ClusterWorkers

if TYPE_CHECKING:
    from airflow.sdk import Context

_SCHEDULE_SECONDS = 1800  # a cluster that grows needs time for new nodes
_START_SECONDS = 600  # an image of some hundred megabytes may have to be pulled
_LOG_SECONDS = 30  # between looks at a pod's log while the triggerer waits
_START_POLL_SECONDS = 5
_POLL_SECONDS = 10.0


class WorkerPod(ClusterWorkers):
    """A pod, with its log in the log of the Airflow task."""

    _pod: KubernetesPodOperator | None = None

    def _start(self, context: "Context") -> None:
        self._pod = self._operator()
        if self._pod.deferrable:
            self._pod.execute_async(context)
        else:
            self._pod.execute_sync(context)

    def _end(self, context: "Context", event: dict[str, Any]) -> None:
        self._pod = self._operator()
        self._pod.trigger_reentry(context, event)

    def _remove(self) -> None:
        if self._pod is not None:
            self._pod.on_kill()

    def _operator(self) -> KubernetesPodOperator:
        return KubernetesPodOperator(
            **self._operator_arguments(),
            container_name_log_prefix_enabled=False,
            schedule_timeout_seconds=_SCHEDULE_SECONDS,
            startup_timeout_seconds=_START_SECONDS,
            startup_check_interval_seconds=_START_POLL_SECONDS,
            log_events_on_failure=True,
            log_pod_spec_on_failure=False,
            deferrable=self._settings.deferrable,
            poll_interval=_POLL_SECONDS,
            logging_interval=_LOG_SECONDS,
            trigger_kwargs=self.memory,
        )
