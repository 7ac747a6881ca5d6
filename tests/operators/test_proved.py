"""What counts as a proof inside a DAG run, and what does not; e2e marks tasks of a real one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.group import stage_group
from igneous_airflow.operators.proved import GuardedStep, RequireProved
from igneous_airflow.operators.sensor import StageProvedSensor
from igneous_airflow.operators.settings import load_run
from igneous_airflow.operators.stage import EnqueueStage, FinishStage, PlanStage
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.worker.loop import Worker, WorkerOptions

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
MIPS = Step(Downsample)
ONE = Form(Chain((MIPS,)))
SWITCHED = Step(Downsample, switch=True)
CHAIN = Form(Chain((SWITCHED,)))


class Instance:
    """What a task knows of its DAG run: XComs and states of tasks."""

    def __init__(self) -> None:
        self.xcoms: dict[tuple[str, str], Any] = {}
        self.states: dict[str, str | None] = {}
        self.pushed: dict[str, Any] = {}

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.xcoms.get((task_ids, key))

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_task_states(
        self, dag_id: str, task_ids: list[str], run_ids: list[str]
    ) -> dict[str, dict[str, str | None]]:
        assert (dag_id, run_ids) == ("a_dag", ["manual-1"])
        return {run_ids[0]: {name: self.states.get(name) for name in task_ids}}


@pytest.fixture
def in_dag_run(context: Make) -> Make:
    """A context with the XComs and states of a DAG run."""

    def make(ti: Instance, *, clear_number: int = 0, **params: Any) -> Any:
        made = context(**params)
        made["ti"] = ti
        made["dag_run"].clear_number = clear_number
        return made

    return make


@pytest.fixture
def planned(make_layer: Make, in_dag_run: Make) -> tuple[Instance, str]:
    """A DAG run whose step was planned and sent, and the URL of its run."""
    ti = Instance()
    context = in_dag_run(ti, layer=str(make_layer()), num_mips=1)
    url = PlanStage(task_id="plan", form=ONE, step=MIPS).execute(context)["run_url"]
    ti.xcoms["downsample.plan", "run_url"] = url
    EnqueueStage(task_id="enqueue", run_url=url).execute({})
    return ti, url


def work(url: str) -> None:
    run = load_run(url)
    Worker(run.open_queue(), run.runs_folder, WorkerOptions(until_done=True), lambda _: None).work()


def guard(form: Form = ONE, step: Step = MIPS, group_id: str = "downsample") -> RequireProved:
    with DAG("a_dag"):
        made = RequireProved(task_id="proved")
        made.guard(GuardedStep(group_id, form, step), BaseOperator(task_id="drained"))
    return made


def drained(url: str) -> StageProvedSensor:
    return StageProvedSensor(task_id="drained", run_url=url, deferrable=False)


def finish(url: str) -> FinishStage:
    return FinishStage(task_id="finish", run_url=url, proved_by="downsample.drained")


def test_a_dag_run_needs_the_proof_of_the_run_that_it_planned(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    ti, url = planned
    with pytest.raises(AirflowFailException) as failed:
        guard().execute(in_dag_run(ti))
    assert f"downsample: the run {url} is not proved: clear the task downsample.enqueue" in str(
        failed.value
    )
    assert ti.pushed["steps"]["downsample"]["state"] == "not proved"
    work(url)
    with pytest.raises(AirflowFailException):
        guard().execute(in_dag_run(ti))
    Run.load(url).finish()
    assert guard().execute(in_dag_run(ti))["downsample"]["state"] == "proved"


def test_what_an_earlier_dag_run_of_the_same_name_has_proved_does_not_count(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    work(planned[1])
    Run.load(planned[1]).finish()
    for left in (None, planned[1] + "-other"):
        again = Instance()
        again.xcoms["downsample.plan", "run_url"] = left
        with pytest.raises(AirflowFailException, match=r"clear the task downsample\.plan with"):
            guard().execute(in_dag_run(again))


def test_a_record_that_is_gone_proves_nothing(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    Path(planned[1].removeprefix("file://"), "run.json").unlink()
    with pytest.raises(AirflowFailException, match="no run is recorded"):
        guard().execute(in_dag_run(planned[0]))


def test_a_step_is_skipped_by_its_switch_and_not_by_the_states_of_its_tasks(
    in_dag_run: Make,
) -> None:
    ti = Instance()
    ti.states["downsample.plan"] = "skipped"
    for on in (True, None):
        params = {} if on is None else {"run_downsample": on}
        with pytest.raises(AirflowFailException, match="was not planned in this DAG run"):
            guard(CHAIN, SWITCHED).execute(in_dag_run(ti, layer="/x", **params))


def test_a_chain_that_goes_on_without_a_step_says_why(in_dag_run: Make) -> None:
    first, last = Step(Downsample, name="first", switch=True), Step(Downsample, name="last")
    form = Form(Chain((first, last), shared=tuple(Downsample.model_fields)))
    context = in_dag_run(Instance(), layer="/x", run_first=False)
    verdicts = guard(form, first, "first").execute(context)
    assert verdicts == {"first": {"state": "skipped", "why": "run_first is off"}}


def test_when_only_the_plan_is_asked_for_later_steps_are_at_no_fault(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    first, last = Step(Downsample, name="downsample"), Step(Downsample, name="last")
    form = Form(Chain((first, last), shared=tuple(Downsample.model_fields)))
    task = guard(form, first, "downsample")
    task.guarded.append(replace(task.guarded[0], group_id="last", step=last))
    verdicts = task.execute(in_dag_run(planned[0], plan_only=True))
    assert verdicts["last"] == {"state": "skipped", "why": "only the plan was requested"}


def test_when_only_the_plan_is_asked_for_a_step_must_have_been_planned(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    verdicts = guard().execute(in_dag_run(planned[0], plan_only=True))
    assert verdicts["downsample"]["state"] == "planned"
    with pytest.raises(AirflowFailException, match="was not planned"):
        guard().execute(in_dag_run(Instance(), plan_only=True))


@pytest.mark.parametrize(
    ("plan", "before", "told", "optional", "passes"),
    [
        ("skipped", "skipped", None, True, True),
        ("skipped", "success", {"followed": ["other"]}, True, True),
        ("skipped", "success", {"skipped": ["downsample.plan"]}, True, True),
        ("skipped", "success", {"followed": ["downsample.plan"]}, True, False),
        ("skipped", "success", {"skipped": ["other"]}, True, False),
        ("skipped", "success", None, True, False),  # it was marked by hand
        ("skipped", "skipped", None, False, False),
        ("skipped", "failed", {"followed": []}, True, False),
        ("upstream_failed", "upstream_failed", None, True, False),
        ("success", "success", {"followed": []}, True, False),
    ],
)
def test_only_an_optional_step_may_be_left_out_and_by_tasks_before_it(
    in_dag_run: Make, plan: str, before: str, *, told: object, optional: bool, passes: bool
) -> None:
    with DAG("a_dag") as dag:
        BaseOperator(task_id="before") >> stage_group(Downsample, optional=optional)
    ti = Instance()
    ti.states |= {"downsample.plan": plan, "before": before}
    ti.xcoms["before", "skipmixin_key"] = told
    context = in_dag_run(ti) | {"dag": dag}
    proved = dag.get_task("proved")
    assert isinstance(proved, RequireProved)
    if passes:
        assert proved.execute(context)["downsample"]["state"] == "skipped"
    else:
        with pytest.raises(AirflowFailException, match="was not planned"):
            proved.execute(context)


def count_audits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    audits: list[str] = []
    audit = Run.finish

    def counted(run: Run) -> Any:
        audits.append(run.id)
        return audit(run)

    monkeypatch.setattr(Run, "finish", counted)
    return audits


def test_the_output_is_audited_once_unless_tasks_are_cleared(
    planned: tuple[Instance, str], in_dag_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti, url = planned
    audits = count_audits(monkeypatch)
    work(url)
    ti.xcoms["downsample.drained", "return_value"] = drained(url).execute(in_dag_run(ti))
    assert len(audits) == 1
    summary = finish(url).execute(in_dag_run(ti))
    assert (summary["tasks"], len(audits)) == (4, 1)
    assert finish(url).execute(in_dag_run(ti, clear_number=1)) == summary
    assert len(audits) == 2


def test_a_wait_that_is_cleared_leaves_the_proof_to_finish_which_may_take_it_back(
    planned: tuple[Instance, str], in_dag_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti, url = planned
    work(url)
    drained(url).execute(in_dag_run(ti))
    audits = count_audits(monkeypatch)
    assert drained(url).execute(in_dag_run(ti, clear_number=1)) is None
    assert audits == []
    finish(url).execute(in_dag_run(ti, clear_number=1))
    assert len(audits) == 1


def test_a_wait_that_was_marked_by_hand_leaves_the_proof_to_finish(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    ti, url = planned
    with pytest.raises(AirflowFailException, match="are not done"):
        finish(url).execute(in_dag_run(ti))
    work(url)
    finish(url).execute(in_dag_run(ti))
    assert Run.load(url).is_finished


def test_a_wait_ends_without_a_proof_when_output_is_missing(
    planned: tuple[Instance, str], in_dag_run: Make
) -> None:
    ti, url = planned
    work(url)
    layer = Path(load_run(url).resolved["layer"].removeprefix("file://"))
    min((layer / "8_8_40").iterdir()).unlink()
    with pytest.raises(AirflowFailException, match="1 of 4: 0\n"):
        drained(url).execute(in_dag_run(ti))
    assert not Run.load(url).is_finished


def test_a_queue_that_cannot_be_removed_does_not_fail_a_run_that_is_proved(
    planned: tuple[Instance, str], in_dag_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igneous_airflow.errors import AccessDenied
    from igneous_airflow.queue.sqlite import SqliteQueue

    def refuse(_: SqliteQueue) -> None:
        raise AccessDenied("not yours")

    ti, url = planned
    work(url)
    monkeypatch.setattr(SqliteQueue, "delete", refuse)
    assert finish(url).execute(in_dag_run(ti))["tasks"] == 4


@pytest.mark.parametrize("ended", ["enqueue", "workers", "drained", "finish", "proved"])
def test_a_proved_run_starts_over_only_when_all_that_comes_after_runs_again(
    planned: tuple[Instance, str], in_dag_run: Make, ended: str
) -> None:
    ti, url = planned
    work(url)
    Run.load(url).finish()
    with DAG("a_dag") as dag:
        stage_group(Downsample)
    plan = dag.get_task("downsample.plan")
    assert isinstance(plan, PlanStage)
    params = {name: getattr(load_run(url).make_stage(), name) for name in ("layer", "num_mips")}
    launch = Run.load(url).launch_id
    ti.states = {f"downsample.{ended}" if ended != "proved" else ended: "success"}
    again = plan.execute(in_dag_run(ti, **params))
    assert again["run_url"] == url
    assert again["plan"]["tasks"] == 4
    assert Run.load(url).is_finished
    with pytest.raises(AirflowFailException, match="other values for num_mips"):
        plan.execute(in_dag_run(ti, **{**params, "num_mips": 2}))
    ti.states = {"downsample.plan": "running"}
    plan.execute(in_dag_run(ti, **params))
    assert Run.load(url).launch_id != launch
    assert not Run.load(url).is_finished


def test_a_later_step_is_not_planned_on_a_run_of_another_dag_run(
    make_layer: Make, in_dag_run: Make, planned: tuple[Instance, str]
) -> None:
    work(planned[1])
    Run.load(planned[1]).finish()
    first, last = Step(Downsample), Step(Downsample, name="last")
    form = Form(Chain((first, last), shared=tuple(Downsample.model_fields)))
    plan = PlanStage(task_id="plan", form=form, step=last)
    with pytest.raises(AirflowFailException, match="downsample was not planned in this DAG run"):
        plan.execute(in_dag_run(Instance(), layer=str(make_layer("other")), num_mips=1))
