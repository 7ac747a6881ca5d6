"""TaskGroups of stages, and DAGs of chains of them; used by the DAG files.

A stage is plan, enqueue, workers, drained, finish; a chain is one such group after the other. Each
DAG has one task `proved` beside them, which fails it unless every step was proved.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.sdk import DAG, BaseOperator, TaskGroup, TriggerRule, XComArg, chain
from airflow.sdk.definitions.mappedoperator import MappedOperator

from igneous_airflow.operators.assets import made_by
from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.notify import notify_failure
from igneous_airflow.operators.proof import RUN_URL
from igneous_airflow.operators.proved import GuardedStep, RequireProved
from igneous_airflow.operators.sensor import StageProvedSensor
from igneous_airflow.operators.stage import EnqueueStage, FinishStage, PlanStage
from igneous_airflow.operators.stage_workers import stage_workers
from igneous_airflow.stage import Stage

#: Makes the task that works on a run, from the template that gives the run's URL and the names of
#: the crew, which `EnqueueStage` returns.
MakeWorkers = Callable[[str, XComArg], BaseOperator | MappedOperator]

_PROVED = "proved"
_RETRYING: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=10)}


class StageGroup(TaskGroup):
    """The tasks of a stage. What is set after them starts only when the run is proved.

    It waits for `drained` as well as for `finish`: each of them fails unless the run is proved, so
    that marking one by hand starts nothing.
    """

    def get_leaves(self) -> Generator[BaseOperator, None, None]:
        """The tasks that come before what is set after the group."""
        ends = (f"{self.group_id}.drained", f"{self.group_id}.finish")
        yield from (task for task in self if task.task_id in ends)


def stage_group(
    stage: type[Stage],
    *,
    group_id: str = "",
    parameters: Mapping[str, Any] | None = None,
    workers: MakeWorkers = stage_workers,
    patience: float = 60,
    optional: bool = False,
) -> TaskGroup:
    """The tasks of a stage, one after the other; must be called inside a DAG.

    `parameters` may be templates; without them the DAG's params are used. `patience` is how long,
    in seconds, tasks may wait in the queue after the workers have ended.

    Tasks set after the group start only when its run is proved. The DAG gets a task `proved`, which
    fails it unless the runs of all its groups are. A group that tasks before it may skip, as a
    branch does, must be `optional`.
    """
    step = Step(stage, name=group_id)
    form = Form(Chain((step,)))
    make = partial(PlanStage, form=form, step=step, parameters=parameters)
    group = _step_group(step, make, workers, patience)
    _guard(group, form, step, optional=optional)
    return group


def pipeline(
    name: str,
    words: str,
    *steps: Step,
    shared: tuple[str, ...] = (),
    workers: MakeWorkers = stage_workers,
    patience: float = 60,
) -> DAG:
    """The DAG `igneous_NAME` of a chain of steps, with the form that they have together.

    `words` say what it is for, in Markdown, the first line by itself. A step begins when the run of
    the one before it was proved done; one that fails stops the chain, a skipped one does not.
    """
    form = Form(Chain(steps, shared))
    with DAG(
        f"igneous_{name}",
        description=words.partition("\n")[0],
        doc_md=_documentation(words, steps),
        schedule=None,
        params=form.params(),
        tags=["igneous"],
        render_template_as_native_obj=True,
        max_active_runs=16,
    ) as dag:
        groups: list[TaskGroup] = []
        for step in steps:
            # a skipped step has no failed task; whether an earlier one was proved, its run tells
            make = partial(PlanStage, form=form, step=step, trigger_rule=TriggerRule.NONE_FAILED)
            group = _step_group(step, make, workers, patience)
            _guard(group, form, step)
            groups.append(group)
        chain(*groups)
    return dag


def _documentation(words: str, steps: Sequence[Step]) -> str:
    """What a DAG is for, and what each step of a chain does, in Markdown."""
    if len(steps) == 1:
        return words
    return "\n".join([words, "", *(f"1. **{step.name}**: {step.summary}" for step in steps)])


def _run_url_of(group: TaskGroup) -> str:
    """The template of the URL of a step's run; renders to None when the step was skipped."""
    return f"{{{{ ti.xcom_pull(task_ids='{group.group_id}.plan', key='{RUN_URL}') }}}}"


def _guard(group: TaskGroup, form: Form, step: Step, *, optional: bool = False) -> None:
    """Let the DAG fail unless a step is proved; makes the DAG's task `proved` for its first one."""
    dag = group.dag
    guard = dag.task_dict.get(_PROVED)
    if not isinstance(guard, RequireProved):
        guard = RequireProved(task_id=_PROVED, dag=dag, task_group=dag.task_group, **_RETRYING)
    group_id = group.group_id or ""
    drained = dag.get_task(f"{group_id}.drained")
    guard.guard(GuardedStep(group_id, form, step, optional), drained)


def _step_group(
    step: Step, make_plan: Callable[..., PlanStage], workers: MakeWorkers, patience: float
) -> TaskGroup:
    """The tasks of a step, the first of which `make_plan` makes."""
    # not the workers: a run may be done although some failed, and whether it is, `drained` tells
    telling: dict[str, Any] = {"on_failure_callback": notify_failure}
    with StageGroup(step.name, tooltip=step.summary, default_args=_RETRYING) as group:  # type: ignore[arg-type]
        plan = make_plan(task_id="plan", group_id=group.group_id or "", **telling)
        run_url = _run_url_of(group)
        enqueue = EnqueueStage(task_id="enqueue", run_url=run_url, **telling)
        working = workers(run_url, enqueue.output)
        # However the workers ended, receipts decide; yet there is nothing to decide when no task
        # was ever sent: one success among `enqueue` and `workers` is asked for.
        drained = StageProvedSensor(
            task_id="drained",
            run_url=run_url,
            patience=patience,
            trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
            **telling,
        )
        finish = FinishStage(
            task_id="finish",
            run_url=run_url,
            proved_by=drained.task_id,
            outlets=[made_by(step.stage)],
            **telling,
        )
        chain(plan, enqueue, working, drained, finish)
        enqueue >> drained
    return group
