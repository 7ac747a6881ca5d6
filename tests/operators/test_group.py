"""Whole DAG runs in one process, and how the tasks of a stage hang together."""

import re
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest
import tensorstore
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import DAG, BaseOperator, XComArg
from airflow.sdk.exceptions import AirflowFailException
from airflow.utils.session import create_session

from igneous_airflow.errors import IgneousError
from igneous_airflow.operators.group import stage_group
from igneous_airflow.operators.workers import LocalWorkers
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.worker.loop import Worker, WorkerOptions

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
STATES = dict.fromkeys(("plan", "enqueue", "workers", "drained", "finish", "proved"), "success")


def states(dag_run: Any) -> dict[str, str]:
    return {t.task_id.rpartition(".")[2]: str(t.state) for t in dag_run.get_task_instances()}


def xcom(dag_run: Any, task: str) -> Any:
    with create_session() as session:
        query = XComModel.get_many(
            run_id=dag_run.run_id,
            dag_ids=dag_run.dag_id,
            task_ids=f"downsample.{task}",
            key="return_value",
        )
        return XComModel.deserialize_value(session.scalars(query).one())


def test_a_dag_run_makes_the_mips_and_tells_the_story(
    dags: dict[str, DAG], make_layer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = make_layer()
    conf = {"layer": str(layer), "num_mips": 1, "compress": "none"}  # tensorstore reads no .gz
    done = dags["igneous_downsample"].test(run_conf=conf)
    assert states(done) == STATES
    assert done.state == "success"

    kvstore = {"driver": "file", "path": f"{layer}/"}
    fine, coarse = (
        tensorstore.open(
            {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": mip}
        ).result()
        for mip in (0, 1)
    )
    assert coarse.shape == (128, 128, 64, 1)
    source = fine[0:4, 0:4, 5, 0].read().result().astype(float)
    pooled = coarse[0:2, 0:2, 5, 0].read().result()
    assert (pooled == source.reshape(2, 2, 2, 2).mean(axis=(1, 3)) // 1).all()
    assert '"by": "dag_test"' in (layer / "provenance").read_text()

    assert xcom(done, "plan")["plan"]["tasks"] == 4
    assert xcom(done, "enqueue") == ["local"]
    assert xcom(done, "finish")["work"]["voxels"] == 256 * 256 * 64

    log = capsys.readouterr().out
    story = (
        r"downsample: 4 tasks \(a grid",
        "Sent 4 of 4 tasks to sqlite://",
        "0.0 % done: 0 of 4 tasks",
        "outcome=done .* task=",
        "100.0 % done: 4 of 4 tasks",
        "all 4 tasks are done and 4 chunks were found",
        r"queue\.db is removed",
    )
    places = [re.search(line, log) for line in story]
    assert all(places), [line for line, place in zip(story, places, strict=True) if not place]
    assert [p.start() for p in places if p] == sorted(p.start() for p in places if p)


def test_a_refused_plan_fails_the_dag_run_and_nothing_else_runs(
    dags: dict[str, DAG], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = dags["igneous_downsample"].test(run_conf={"layer": f"{tmp_path}/nothing"})
    assert done.state == "failed"
    found = states(done)
    assert found.pop("plan") == found.pop("proved") == "failed"
    assert set(found.values()) == {"upstream_failed"}
    assert f"there is no layer at file://{tmp_path}/nothing" in capsys.readouterr().out


def test_a_failed_dag_run_goes_on_where_it_stopped(
    dags: dict[str, DAG], make_layer: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = make_layer()
    chunk = layer / "4_4_40" / "128-192_0-64_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    now = datetime.now(UTC)

    def run_dag() -> Any:
        return dags["igneous_downsample"].test(
            run_conf={"layer": str(layer), "num_mips": 1}, logical_date=now, run_after=now
        )

    failed = run_dag()
    assert states(failed) == {
        **STATES,
        "workers": "failed",
        "drained": "failed",
        "finish": "upstream_failed",
        "proved": "failed",
    }
    assert failed.state == "failed"
    log = capsys.readouterr().out
    assert log.count("MissingChunk: ") >= 3, "the worker, `workers` and `drained` name it"
    assert "128-192_0-64_0-64" in log
    assert len(list(tmp_path.glob("state/*/queue.db"))) == 1
    receipts = {p: p.stat().st_mtime_ns for p in tmp_path.glob("state/*/done/*")}
    assert len(receipts) == 3

    chunk.write_bytes(content)
    done = run_dag()
    assert done.state == "success"
    assert "Sent 1 of 4 tasks" in capsys.readouterr().out
    assert (
        receipts.items()
        <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("state/*/done/*")}.items()
    )


def test_a_dag_run_whose_output_was_lost_before_the_end_makes_it_when_cleared(
    dags: dict[str, DAG], make_layer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer = make_layer()
    now = datetime.now(UTC)
    finish, lost = Run.finish, []

    def finish_too_late(run: Run) -> Any:
        if not lost:
            lost.append(sorted((layer / "8_8_40").iterdir())[1])
            lost[0].unlink()
        return finish(run)

    monkeypatch.setattr(Run, "finish", finish_too_late)

    def run_dag() -> Any:
        return dags["igneous_downsample"].test(
            run_conf={"layer": str(layer), "num_mips": 1}, logical_date=now, run_after=now
        )

    failed = run_dag()
    assert states(failed) == {
        **STATES,
        "drained": "failed",
        "finish": "upstream_failed",
        "proved": "failed",
    }
    assert len(list(tmp_path.glob("state/*/done/*"))) == 3
    done = run_dag()
    assert done.state == "success"
    assert xcom(done, "enqueue") == ["local"]
    assert lost[0].exists()


def test_workers_that_fail_after_the_work_is_done_fail_nothing(
    dags: dict[str, DAG], make_layer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_machine(*_: Any) -> None:
        raise AirflowFailException("the machine is lost")

    monkeypatch.setattr(LocalWorkers, "_require_done", lose_the_machine)
    done = dags["igneous_downsample"].test(run_conf={"layer": str(make_layer())})
    assert states(done) == {**STATES, "workers": "failed"}
    assert done.state == "success"


def test_a_dag_run_whose_workers_are_elsewhere_waits_for_them_and_proves_their_work(
    dags: dict[str, DAG], make_layer: Make, tmp_path: Path
) -> None:
    ended, runs = Event(), f"file://{tmp_path}/state"

    def work_elsewhere() -> None:
        while not ended.wait(0.2):
            for queue in tmp_path.glob("state/*/queue.db"):
                with suppress(IgneousError), closing(open_queue(f"sqlite://{queue}")) as tasks:
                    Worker(tasks, runs, WorkerOptions(until_done=True), lambda _: None).work()

    elsewhere = Thread(target=work_elsewhere, daemon=True)
    elsewhere.start()
    layer = make_layer()
    done = dags["igneous_downsample"].test(
        run_conf={"layer": str(layer), "num_mips": 1, "workers": 0}
    )
    ended.set()
    elsewhere.join()
    assert states(done) == STATES
    assert xcom(done, "finish")["tasks"] == 4
    assert len(list((layer / "8_8_40").iterdir())) == 4


def test_receipts_decide_however_the_workers_ended() -> None:
    with DAG("a_dag") as dag:
        stage_group(Downsample)
    drained = dag.get_task("downsample.drained")
    assert drained.trigger_rule == "all_done_min_one_success"
    assert drained.upstream_task_ids == {"downsample.workers", "downsample.enqueue"}
    assert dag.get_task("downsample.finish").upstream_task_ids == {"downsample.drained"}


def test_two_tasks_decide_how_a_dag_run_ends_and_neither_waits_for_the_other() -> None:
    """As Airflow's own rule sees them: `DagRun._tis_for_dagrun_state`."""
    with DAG("a_dag") as dag:
        first = stage_group(Downsample)
        first >> stage_group(Downsample, group_id="again")
    proved = dag.get_task("proved")
    assert proved.is_teardown, "tasks that are not are skipped when a DAG run is set to failed"
    assert proved.on_failure_fail_dagrun
    assert proved.upstream_task_ids == {"downsample.drained", "again.drained"}
    assert deciding(dag) == {"proved", "again.finish"}


class Instance(NamedTuple):
    """A task of a DAG run."""

    task_id: str
    state: str


def deciding(dag: DAG) -> set[str]:
    """The tasks by whose states Airflow decides how a DAG run ends."""
    tasks = [Instance(task.task_id, "success") for task in dag.tasks]
    return {task.task_id for task in DagRun._tis_for_dagrun_state(None, dag=dag, tis=tasks)}


def test_tasks_after_a_stage_wait_for_both_that_rely_on_the_proof() -> None:
    with DAG("a_dag"):
        own = BaseOperator(task_id="own")
        stage_group(Downsample) >> own
        stage_group(Downsample, group_id="again") << own
    assert own.upstream_task_ids == {"downsample.drained", "downsample.finish"}
    assert own.downstream_task_ids == {"again.plan"}


def test_a_dag_may_have_a_stage_twice_with_other_workers() -> None:
    made = []

    def elsewhere(run_url: str, members: XComArg) -> BaseOperator:
        assert members.operator.task_id.endswith(".enqueue")
        made.append(run_url)
        return BaseOperator(task_id="workers")

    with DAG("a_dag") as dag:
        first = stage_group(Downsample, workers=elsewhere)
        second = stage_group(Downsample, group_id="again", workers=elsewhere)
        first >> second
    assert "task_ids='downsample.plan'" in made[0]
    assert "task_ids='again.plan'" in made[1]
    assert "downsample.finish" in dag.get_task("again.plan").upstream_task_ids
    assert dag.get_task("again.plan").group_id == "again"


def test_everything_is_retried_when_the_machine_has_troubles() -> None:
    with DAG("a_dag") as dag:
        stage_group(Downsample)
    assert all(task.retries == 2 for task in dag.tasks)
    assert all(task.retry_delay.total_seconds() <= 60 for task in dag.tasks)
