"""The task that decides how a DAG run of stages ends; used by `group.py`.

Airflow decides by the tasks that nothing comes after, and any task may be marked by hand. So two of
them decide here, each of which fails unless the runs are proved, and neither of which waits for the
other: the last `finish`, and this one. It is a teardown: when a DAG run is set to failed, Airflow
skips all tasks but teardowns, and a skipped task does not fail a DAG run.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.utils.skipmixin import (
    XCOM_SKIPMIXIN_FOLLOWED,
    XCOM_SKIPMIXIN_KEY,
    XCOM_SKIPMIXIN_SKIPPED,
)
from airflow.sdk import BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowFailException

from igneous_airflow.errors import RunFailed, RunNotFound
from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.form import Form, Skipped
from igneous_airflow.operators.params import RunOptions, read_params
from igneous_airflow.operators.proof import planned_run, states_of
from igneous_airflow.operators.stage import explained

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Under this key the task leaves what became of each step, however it ends itself.
STEPS = "steps"
PROVED, PLANNED, SKIPPED, UNPROVED = "proved", "planned", "skipped", "not proved"

Verdicts = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class GuardedStep:
    """A step that must be proved, unless its form turns it off.

    An `optional` one may also be skipped by tasks before it, none of which has failed.
    """

    group_id: str
    form: Form
    step: Step
    optional: bool = False


class RequireProved(BaseOperator):
    """Fail the DAG run unless each step was proved, or skipped by request.

    That the tasks of a step were skipped is not enough: the parameters of the DAG run must say so,
    or the step must be optional. When only the plan was asked for, a step must have been planned.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.as_teardown(on_failure_fail_dagrun=True)
        self.guarded: list[GuardedStep] = []

    def guard(self, step: GuardedStep, drained: BaseOperator | MappedOperator) -> None:
        """Look at a step when its task `drained`, which proves it, has ended."""
        self.guarded.append(step)
        self.set_upstream(drained)

    def execute(self, context: "Context") -> Verdicts:
        """Return what became of each step; fails without retry, naming those not proved."""
        with explained(context):
            plan_only = read_params(RunOptions, context["params"]).plan_only
            verdicts = {s.group_id: _judge(s, context, plan_only=plan_only) for s in self.guarded}
            if any(verdict["state"] == PLANNED for verdict in verdicts.values()):
                verdicts = {name: _without_fault(verdict) for name, verdict in verdicts.items()}
            context["ti"].xcom_push(key=STEPS, value=verdicts)
            if not any(verdict["state"] == PLANNED for verdict in verdicts.values()):
                _require_proved(verdicts)
        for group_id, verdict in verdicts.items():
            self.log.info("%s: %s", group_id, " ".join(filter(None, verdict.values())))
        return verdicts


def _without_fault(verdict: dict[str, str]) -> dict[str, str]:
    """The verdict on a step of a DAG run of which only the plan was requested."""
    if verdict["state"] != UNPROVED:
        return verdict
    return {"state": SKIPPED, "why": "only the plan was requested"}


def _require_proved(verdicts: Verdicts) -> None:
    unproved = [
        f"  - {group_id}: {verdict['why']}"
        for group_id, verdict in verdicts.items()
        if verdict["state"] == UNPROVED
    ]
    if unproved:
        raise AirflowFailException("\n".join(["Not every step was proved:", *unproved]))


def _judge(guarded: GuardedStep, context: "Context", *, plan_only: bool) -> dict[str, str]:
    """What became of a step, and why if it was not proved."""
    if why := _why_skipped(guarded, context):
        return {"state": SKIPPED, "why": why}
    try:
        run = planned_run(context, guarded.group_id)
    except (RunFailed, RunNotFound) as error:
        return {"state": UNPROVED, "why": str(error)}
    if plan_only:
        return {"state": PLANNED, "why": ""}
    if run.is_finished:
        return {"state": PROVED, "why": ""}
    return {
        "state": UNPROVED,
        "why": f"the run {run.url} is not proved: clear the task {guarded.group_id}.enqueue with "
        "those after it. Tasks that are done are not repeated",
    }


def _why_skipped(guarded: GuardedStep, context: "Context") -> str:
    """Why a step is not to run; empty when it is."""
    if not guarded.step.always_runs:
        step = guarded.form.read(context["params"])[guarded.step.name]
        if isinstance(step, Skipped):
            return step.reason
    if guarded.optional and _was_left_out(guarded.group_id, context):
        return "by the tasks before it"
    return ""


def _was_left_out(group_id: str, context: "Context") -> bool:
    """Whether tasks before a step have skipped it before it began, and none of them has failed.

    That the task `plan` is skipped is not enough: anyone may mark it so.
    """
    plan = f"{group_id}.plan"
    before = context["dag"].get_task(plan).get_flat_relative_ids(upstream=True)
    states = states_of(context, [plan, *before])
    if states.pop(plan, None) != "skipped":
        return False
    found = set(states.values())
    skipped = "skipped" in found or any(_skips(task, plan, context) for task in before)
    return skipped and found.isdisjoint({"failed", "upstream_failed"})


def _skips(task: str, plan: str, context: "Context") -> bool:
    """Whether a task has said that a later one is to be skipped, as branches do."""
    told = context["ti"].xcom_pull(task_ids=task, key=XCOM_SKIPMIXIN_KEY)
    if not isinstance(told, dict):
        return False
    if XCOM_SKIPMIXIN_FOLLOWED in told:
        is_next = plan in context["dag"].get_task(task).downstream_task_ids
        return is_next and plan not in told[XCOM_SKIPMIXIN_FOLLOWED]
    return plan in told.get(XCOM_SKIPMIXIN_SKIPPED, ())
