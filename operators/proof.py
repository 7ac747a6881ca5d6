"""What proves a step of a DAG run: the record of its run, never the state of a task.

Anyone may mark a task as a success. So whatever relies on a step asks for its run here.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import IgneousError, RunFailed, RunNotFound
from igneous_airflow.operators.metrics import report_done
from igneous_airflow.operators.settings import load_run, run_url
from igneous_airflow.progress import Summary
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Under this key PlanStage leaves the run's URL, beside its return value.
RUN_URL = "run_url"
_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed"})


def prove(run: Run) -> Summary:
    """Audit a run and record that it is proved; may be done again.

    Raises RunFailed when receipts are missing, AuditFailed when output is.
    """
    was_finished = run.is_finished
    summary = run.finish()
    if not was_finished:
        report_done(run, summary)
    return summary


def proof_mark(context: "Context") -> int:
    """What a task returns that has proved a run: how often tasks of the DAG run were cleared."""
    return context["dag_run"].clear_number or 0


def has_current_proof(context: "Context", task_id: str) -> bool:
    """Whether a task has proved its run since tasks of the DAG run were last cleared."""
    if not task_id:
        return False
    mark: object = context["ti"].xcom_pull(task_ids=task_id)
    return mark == proof_mark(context)


def planned_run(context: "Context", group_id: str) -> Run:
    """The run that the DAG run's own task `plan` of a step has recorded.

    Raises RunFailed when it has recorded none, as when the task was marked by hand: what another
    DAG run of this name may have left in the run's folder proves nothing about this one. Raises
    RunNotFound when the record is gone.
    """
    dag_run = context["dag_run"]
    url = run_url(dag_run.dag_id, dag_run.run_id, group_id)
    recorded: Any = context["ti"].xcom_pull(task_ids=f"{group_id}.plan", key=RUN_URL)
    if recorded != url:
        if _was_refused(url):
            raise RunFailed(
                f"the plan of {group_id} was refused: the log of {group_id}.plan has the reasons; "
                "start a new DAG run with other values"
            )
        raise RunFailed(
            f"{group_id} was not planned in this DAG run: clear the task {group_id}.plan with "
            "those after it"
        )
    return load_run(url)


def _was_refused(url: str) -> bool:
    try:
        return load_run(url).state is LaunchState.REFUSED
    except IgneousError:
        return False


def states_of(context: "Context", task_ids: Iterable[str]) -> dict[str, str | None]:
    """The states of tasks of the DAG run, None where one has not begun.

    Those of a mapped task have a number after the task's id.
    """
    dag_run = context["dag_run"]
    states: dict[str, dict[str, str | None]] = context["ti"].get_task_states(
        dag_id=dag_run.dag_id, task_ids=sorted(task_ids), run_ids=[dag_run.run_id]
    )
    return states.get(dag_run.run_id, {})


def run_to_keep(context: "Context", url: str, after: Iterable[str]) -> Run | None:
    """The proved run at a URL that must not start from the beginning; None when there is none.

    A DAG run that has proved it may start it again only when all the tasks `after` its plan run
    again too: otherwise these would stay green beside a run that is not proved.
    """
    try:
        run = load_run(url)
    except RunNotFound:
        return None
    if not run.is_finished or _ENDED.isdisjoint(states_of(context, after).values()):
        return None
    return run
