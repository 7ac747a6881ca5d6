"""The operators of a stage's steps, called as Airflow calls them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from igneous_airflow.errors import RunFailed, StorageUnavailable
from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.stage import (
    EnqueueStage,
    FinishStage,
    PlanStage,
    explained,
)
from igneous_airflow.operators.workers import LocalWorkers
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.provenance import author
from igneous_airflow.worker.loop import Worker, WorkerOptions

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]


STEP = Step(Downsample)
FORM = Form(Chain((STEP,)))


def plan(context: Any) -> dict[str, Any]:
    return PlanStage(task_id="plan", form=FORM, step=STEP).execute(context)


def test_the_steps_of_a_stage_leave_the_mips_and_take_the_queue_away(
    make_layer: Make, context: Make
) -> None:
    layer = make_layer()
    planned = plan(context(layer=str(layer), num_mips=1, workers=2))
    assert planned["plan"]["tasks"] == 4
    url = planned["run_url"]

    assert EnqueueStage(task_id="enqueue", run_url=url).execute(context()) == ["local"]
    run = Run.load(url)
    queue = Path(run.queue.removeprefix("sqlite://"))
    assert queue.parent == Path(url.removeprefix("file://"))
    Worker(run.open_queue(), run.runs_folder, WorkerOptions(until_done=True), lambda _: None).work()
    assert queue.exists()
    summary = FinishStage(task_id="finish", run_url=url).execute({})
    assert not queue.exists()
    assert FinishStage(task_id="finish", run_url=url).execute({}) == summary
    assert EnqueueStage(task_id="enqueue", run_url=url).execute(context()) == ["nobody"]
    assert not queue.exists(), "a run that is proved needs none"
    assert summary["audit"]["outputs"] == {"8_8_40": 4}
    assert len(list((layer / "8_8_40").iterdir())) == 4
    assert '"by": "somebody"' in (layer / "provenance").read_text()


def test_a_refused_plan_names_every_reason_and_leaves_the_layer_alone(
    make_layer: Make, context: Make, tmp_path: Path
) -> None:
    layer = make_layer()
    before = (layer / "info").read_bytes()
    with pytest.raises(AirflowFailException) as caught:
        plan(context(layer=str(layer), bounds="900-1000_0-10_0-10", memory_target=1_000_000))
    assert "900-1000_0-10_0-10" in str(caught.value)
    assert "memory_target: 1,000,000" in str(caught.value)
    assert (layer / "info").read_bytes() == before
    (refused,) = (tmp_path / "state").iterdir()
    run = Run.load(f"file://{refused}")
    assert run.state is LaunchState.REFUSED
    assert "memory_target: 1,000,000" in run.refusals[0]
    with pytest.raises(RunFailed, match="its plan was refused"):
        run.prepare()


def test_a_layer_that_is_not_there_is_named(context: Make, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match=f"no layer at file://{tmp_path}/nothing"):
        plan(context(layer=f"{tmp_path}/nothing"))


def test_a_conf_with_an_unknown_name_is_refused(context: Make, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match=r"bound: .* did you mean bounds\?"):
        plan(context({"bound": "0-1_0-1_0-1"}, layer=f"{tmp_path}/x", bounds=None))


def test_a_dag_run_has_one_run_per_group_and_two_dag_runs_have_two(
    make_layer: Make, context: Make
) -> None:
    layer = str(make_layer())
    url = plan(context(layer=layer))["run_url"]
    assert plan(context(layer=layer))["run_url"] == url
    assert plan(context(layer=layer, run_id="manual-2"))["run_url"] != url
    other = PlanStage(task_id="plan", form=FORM, step=STEP, group_id="again")
    assert other.execute(context(layer=layer))["run_url"] != url


def test_other_values_for_an_unfinished_run_are_refused(make_layer: Make, context: Make) -> None:
    layer = str(make_layer())
    plan(context(layer=layer))
    with pytest.raises(AirflowFailException, match="other values for num_mips"):
        plan(context(layer=layer, num_mips=1))


def test_parameters_of_the_group_come_before_those_of_the_dag_run(
    make_layer: Make, context: Make
) -> None:
    own = {"layer": str(make_layer()), "num_mips": 1}
    planning = PlanStage(task_id="plan", form=FORM, step=STEP, parameters=own)
    run = Run.load(planning.execute(context(num_mips=7))["run_url"])
    assert run.resolved["num_mips"] == 1


def test_without_a_user_who_triggered_it_the_author_is_whoever_works_here(
    make_layer: Make, context: Make
) -> None:
    scheduled = context(layer=str(make_layer()))
    scheduled["dag_run"].triggering_user_name = None
    assert Run.load(plan(scheduled)["run_url"]).by == author()


def test_a_run_that_is_not_complete_cannot_be_finished(make_layer: Make, context: Make) -> None:
    url = plan(context(layer=str(make_layer())))["run_url"]
    EnqueueStage(task_id="enqueue", run_url=url).execute(context())
    with pytest.raises(AirflowFailException, match=r"1 of 1 tasks .* are not done"):
        FinishStage(task_id="finish", run_url=url).execute({})
    assert Path(Run.load(url).queue.removeprefix("sqlite://")).exists(), "it can be resumed"


def test_clearing_the_workers_does_again_what_was_lost_behind_our_back(
    make_layer: Make, context: Make
) -> None:
    layer = make_layer()
    url = plan(context(layer=str(layer), num_mips=1))["run_url"]
    EnqueueStage(task_id="enqueue", run_url=url).execute({})
    workers = LocalWorkers(task_id="workers", run_url=url)
    workers.execute({"params": {"workers": 1}})
    chunk = sorted((layer / "8_8_40").iterdir())[2]
    content = chunk.read_bytes()
    chunk.unlink()
    finish = FinishStage(task_id="finish", run_url=url)
    with pytest.raises(AirflowFailException) as caught:
        finish.execute({})
    words = str(caught.value)
    assert f"8_8_40/{chunk.name.removesuffix('.gz')}" in words
    assert "1 of 4: 1\n" in words
    assert "clear the task `enqueue` with those after it" in words

    kept = {p: p.stat().st_mtime_ns for p in (layer / "8_8_40").iterdir()}
    workers.execute({"params": {"workers": 1}})
    assert finish.execute({})["audit"]["outputs"] == {"8_8_40": 4}
    assert chunk.read_bytes() == content
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in (layer / "8_8_40").iterdir()}.items()


def test_an_error_that_may_pass_is_left_to_the_retries_of_airflow() -> None:
    with pytest.raises(StorageUnavailable), explained():
        raise StorageUnavailable("the disk is full")


def test_clearing_enqueue_goes_on_with_a_run_that_was_cancelled_after_it_began(
    make_layer: Make, context: Make
) -> None:
    url = plan(context(layer=str(make_layer()), num_mips=1))["run_url"]
    enqueue = EnqueueStage(task_id="enqueue", run_url=url)
    enqueue.execute(context())
    Run.load(url).cancel("operator@example.org", "wrong layer")
    assert enqueue.execute(context()) == ["local"]
    run = Run.load(url)
    assert run.state is LaunchState.LAUNCHED
    assert run.progress().waiting == 4


def test_a_run_that_was_cancelled_before_it_began_does_not_begin(
    make_layer: Make, context: Make
) -> None:
    url = plan(context(layer=str(make_layer()), num_mips=1))["run_url"]
    Run.load(url).cancel("operator@example.org")
    with pytest.raises(
        AirflowFailException, match=r"operator@example.org cancelled it.* nothing was"
    ):
        EnqueueStage(task_id="enqueue", run_url=url).execute(context())
