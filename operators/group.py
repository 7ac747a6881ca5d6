"""The TaskGroup of one stage: plan, enqueue, workers, drained, finish; used by the DAG files."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, TaskGroup, TriggerRule, XComArg, chain
from airflow.sdk.definitions.mappedoperator import MappedOperator

from igneous_airflow.operators.sensor import StageDrainedSensor
from igneous_airflow.operators.stage import (
    RUN_URL,
    EnqueueStage,
    FinishStage,
    MakeQueue,
    PlanStage,
    RemoveQueue,
)
from igneous_airflow.operators.stage_workers import stage_workers
from igneous_airflow.stage import Stage

#: Makes the task that works on a run, from the template that gives the run's URL and the names of
#: the crew, which `EnqueueStage` returns.
MakeWorkers = Callable[[str, XComArg], BaseOperator | MappedOperator]


def stage_group(
    stage: type[Stage],
    *,
    group_id: str = "",
    parameters: Mapping[str, Any] | None = None,
    workers: MakeWorkers = stage_workers,
    patience: float = 60,
) -> TaskGroup:
    """The tasks of a stage, one after the other; must be called inside a DAG.

    `parameters` may be templates; without them the DAG's params are used. `patience` is how long,
    in seconds, tasks may wait in the queue after the workers have ended.
    """
    retrying: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=10)}
    words = (stage.__doc__ or "").partition("\n")[0]
    with TaskGroup(group_id or stage.name, tooltip=words, default_args=retrying) as group:  # type: ignore[arg-type]
        plan = PlanStage(
            task_id="plan", stage=stage, group_id=group.group_id or "", parameters=parameters
        )
        run_url = f"{{{{ ti.xcom_pull(task_ids='{plan.task_id}', key='{RUN_URL}') }}}}"
        queue = MakeQueue(task_id="queue", run_url=run_url)
        enqueue = EnqueueStage(task_id="enqueue", run_url=run_url)
        working = workers(run_url, enqueue.output)
        # However the workers ended, receipts decide; yet there is nothing to decide when no task
        # was ever sent: one success among `enqueue` and `workers` is asked for.
        drained = StageDrainedSensor(
            task_id="drained",
            run_url=run_url,
            patience=patience,
            trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
        )
        finish = FinishStage(task_id="finish", run_url=run_url)
        remove = RemoveQueue(task_id="remove_queue", run_url=run_url)
        chain(plan, queue, enqueue, working, drained, finish, remove)
        enqueue >> drained
        remove.as_teardown(setups=queue)
    return group
