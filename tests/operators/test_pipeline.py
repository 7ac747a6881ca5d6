"""Chains run as whole DAG runs in one process: order, proof, skipped and failed steps."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session

from igneous_airflow.operators.sensor import StageDrainedSensor
from igneous_airflow.operators.stage_workers import StageWorkers
from igneous_airflow.run import Run
from igneous_airflow.storage.layer import Layer

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
TASKS = ("plan", "enqueue", "workers", "drained", "finish")


@pytest.fixture
def copy(dags: dict[str, DAG]) -> DAG:
    """Transfer, downsample, delete the source (`chains/copy.py`), watched closely."""
    dag = dags["igneous_copy"]
    for step in ("transfer", "downsample", "delete"):
        drained = dag.get_task(f"{step}.drained")
        drained.poke_interval, drained.patience = 0.1, 1
    return dag


def states(dag_run: Any, step: str) -> set[str]:
    """The states of a step's tasks."""
    found = {
        name: str(task.state)
        for task in dag_run.get_task_instances()
        for group, _, name in [task.task_id.partition(".")]
        if group == step
    }
    assert found.keys() == set(TASKS)
    return set(found.values())


def state(dag_run: Any, task_id: str) -> str:
    (found,) = [t.state for t in dag_run.get_task_instances() if t.task_id == task_id]
    return str(found)


def runs(tmp_path: Path) -> dict[str, Run]:
    """The runs that are recorded, by stage."""
    loaded = [Run.load(f"file://{path.parent}") for path in tmp_path.glob("state/*/run.json")]
    return {run.stage: run for run in loaded}


def scales(layer: Path) -> list[str]:
    return [scale.key for scale in Layer.open(f"file://{layer}").info.scales]


def test_each_step_works_on_what_the_one_before_made(
    copy: DAG, make_layer: Make, tmp_path: Path
) -> None:
    layer, dest = make_layer(), tmp_path / "dest"
    places = {"src": str(layer), "dest": str(dest)}
    deletion = {"run_delete": True, "confirm": True, "delete_num_mips": 9}
    done = copy.test(run_conf={**places, **deletion, "downsample_num_mips": 1})
    for step in ("transfer", "downsample", "delete"):
        assert states(done, step) == {"success"}
    assert done.state == "success"
    assert scales(dest) == ["4_4_40", "8_8_40"]
    assert len(list((dest / "8_8_40").iterdir())) == 4
    assert scales(layer) == []
    assert not list(layer.glob("4_4_40/*"))
    assert {stage: run.resolved["mip"] for stage, run in runs(tmp_path).items()} == {
        "transfer": 0,
        "downsample": 0,
        "delete": 0,
    }


def test_each_step_leaves_the_url_of_its_run(copy: DAG, make_layer: Make, tmp_path: Path) -> None:
    done = copy.test(run_conf={"src": str(make_layer()), "dest": f"{tmp_path}/dest"})
    assert done.state == "success"
    with create_session() as session:
        query = XComModel.get_many(run_id=done.run_id, dag_ids="igneous_copy")
        pushed = {
            (x.task_id, x.key): XComModel.deserialize_value(x) for x in session.scalars(query)
        }
    urls = {task: value for (task, key), value in pushed.items() if key == "run_url"}
    assert urls == {f"{stage}.plan": run.url for stage, run in runs(tmp_path).items()}


@pytest.mark.parametrize("skipped", ["transfer", "downsample"])
def test_a_skipped_step_does_not_skip_those_after_it(
    copy: DAG, make_layer: Make, tmp_path: Path, skipped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, other = make_layer(), make_layer("other")
    conf = {"src": str(layer), "dest": str(other), "run_delete": True, "confirm": True}
    done = copy.test(run_conf={**conf, f"run_{skipped}": False, "downsample_num_mips": 1})
    assert states(done, skipped) == {"skipped"}
    (run,) = {"transfer", "downsample"} - {skipped}
    assert states(done, run) == states(done, "delete") == {"success"}
    assert done.state == "success"
    assert f"run_{skipped} is off" in capsys.readouterr().out
    assert runs(tmp_path).keys() == {run, "delete"}
    assert len(scales(other)) == (1 if skipped == "downsample" else 2)


def test_a_chain_of_which_nothing_is_to_run_is_refused(
    copy: DAG, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = copy.test(run_conf={"run_transfer": False, "run_downsample": False})
    assert done.state == "failed"
    assert state(done, "transfer.plan") == "failed"
    assert "no step is to run: run_transfer is off" in capsys.readouterr().out
    assert all(run.refusals for run in runs(tmp_path).values()), "nothing was launched"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"axis": "x", "downsample_factor": "2,2,1"},
            "axis: x and downsample_factor: 2,2,1 are both given",
        ),
        (
            {"run_delete": True, "scales": "../x"},
            "scales: '../x' is not the name of a folder inside the layer",
        ),
        ({"no_mips": 3}, "no_mips: there is no such parameter; did you mean max_mips?"),
        # by the layer that the first step would make
        ({"downsample_bounds": "0-9_0-9_0-9"}, "  - downsample_bounds: 0-9_0-9_0-9"),
        ({"run_delete": True}, "  - confirm: "),
    ],
    ids=["downsample", "delete", "nobody", "bounds", "unconfirmed"],
)
def test_a_wrong_value_of_a_late_step_is_refused_before_anything_is_written(
    copy: DAG,
    make_layer: Make,
    tmp_path: Path,
    wrong: dict[str, Any],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = copy.test(run_conf={"src": str(make_layer()), "dest": f"{tmp_path}/dest", **wrong})
    assert done.state == "failed"
    assert state(done, "transfer.plan") == "failed"
    assert states(done, "downsample") == states(done, "delete") == {"upstream_failed"}
    assert words in capsys.readouterr().out
    assert not (tmp_path / "dest").exists()
    assert all(run.refusals for run in runs(tmp_path).values()), "nothing was launched"


def test_a_chain_replaces_what_it_made_itself_and_nothing_else_unasked(
    copy: DAG, make_layer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = {"src": str(make_layer()), "dest": f"{tmp_path}/dest", "downsample_num_mips": 1}
    conf |= {"skip_downsamples": False, "max_mips": 1, "transfer_method": "min"}
    for _ in range(2):  # as a CI repeats it
        done = copy.test(run_conf=conf)
        assert done.state == "success"
        assert states(done, "downsample") == {"success"}
    capsys.readouterr()
    done = copy.test(run_conf=conf | {"downsample_method": "max"})
    assert done.state == "failed"
    assert state(done, "transfer.plan") == "failed"
    said = capsys.readouterr().out
    assert "confirm: the voxels of mip 1 of " in said
    assert "Set 'Yes, replace or delete' to replace them" in said
    done = copy.test(run_conf=conf | {"downsample_method": "max", "confirm": True})
    assert done.state == "success"


def test_a_failed_step_stops_the_chain_and_goes_on_where_it_stopped(
    copy: DAG, make_layer: Make, tmp_path: Path
) -> None:
    layer, dest = make_layer(), tmp_path / "dest"
    chunk = layer / "4_4_40" / "128-192_0-64_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    now = datetime.now(UTC)

    def run_dag() -> Any:
        conf = {"src": str(layer), "dest": str(dest), "shape": "64,64,64"}
        return copy.test(run_conf=conf, logical_date=now, run_after=now)

    failed = run_dag()
    assert failed.state == "failed"
    assert state(failed, "transfer.workers") == state(failed, "transfer.drained") == "failed"
    assert state(failed, "transfer.finish") == "upstream_failed"
    assert states(failed, "downsample") == states(failed, "delete") == {"upstream_failed"}
    assert runs(tmp_path).keys() == {"transfer"}
    receipts = {p: p.stat().st_mtime_ns for p in tmp_path.glob("state/*/done/*")}
    assert len(receipts) == 15

    chunk.write_bytes(content)
    done = run_dag()
    assert done.state == "success"
    assert states(done, "downsample") == {"success"}
    now_there = {p: p.stat().st_mtime_ns for p in tmp_path.glob("state/*/done/*")}
    assert receipts.items() <= now_there.items()


def lose_a_receipt(tmp_path: Path) -> None:
    min(tmp_path.glob("state/*transfer*/done/*")).unlink()


@pytest.mark.parametrize("kind", [StageWorkers, StageDrainedSensor])
def test_the_next_step_starts_only_when_every_task_has_its_receipt(
    copy: DAG, make_layer: Make, tmp_path: Path, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = kind.execute

    def execute_and_lose(self: Any, context: Any) -> None:
        execute(self, context)
        lose_a_receipt(tmp_path)

    monkeypatch.setattr(kind, "execute", execute_and_lose)
    done = copy.test(run_conf={"src": str(make_layer()), "dest": f"{tmp_path}/dest"})
    assert done.state == "failed"
    assert state(done, "transfer.drained") == "failed"
    assert states(done, "downsample") == {"upstream_failed"}
    assert runs(tmp_path).keys() == {"transfer"}


@pytest.mark.parametrize(
    ("marked", "stopped"),
    [
        ("plan", "transfer.enqueue"),
        ("enqueue", "transfer.drained"),
        ("workers", "transfer.drained"),
        ("drained|workers", "transfer.finish"),
        ("(drained|workers|finish)", "downsample.plan"),
    ],
)
def test_tasks_that_are_marked_as_a_success_prove_nothing(
    copy: DAG,
    make_layer: Make,
    tmp_path: Path,
    marked: str,
    stopped: str,
) -> None:
    conf = {"src": str(make_layer()), "dest": f"{tmp_path}/dest"}
    pattern = re.compile(rf"transfer\.({marked})")
    done = copy.test(run_conf=conf, mark_success_pattern=pattern)
    assert state(done, stopped) in ("failed", "upstream_failed")
    assert state(done, "downsample.enqueue") == "upstream_failed"
    assert (state(done, "proved"), done.state) == ("failed", "failed")


def test_a_step_that_is_proved_needs_no_finish_for_the_next_one_to_begin(
    copy: DAG, make_layer: Make, tmp_path: Path
) -> None:
    conf = {"src": str(make_layer()), "dest": f"{tmp_path}/dest"}
    done = copy.test(run_conf=conf, mark_success_pattern=re.compile("finish"))
    assert done.state == "success"
    assert all(run.is_finished for run in runs(tmp_path).values())


def test_two_dag_runs_of_a_chain_have_runs_and_queues_of_their_own(
    copy: DAG, make_layer: Make, tmp_path: Path
) -> None:
    src = str(make_layer())
    for dest in ("one", "two"):
        assert copy.test(run_conf={"src": src, "dest": f"{tmp_path}/{dest}"}).state == "success"
    records = [Run.load(f"file://{path.parent}") for path in tmp_path.glob("state/*/run.json")]
    assert len(records) == len({run.queue for run in records}) == 4
