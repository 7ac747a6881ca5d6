"""Plans that end a run, and plans that somebody has to approve, in whole DAG runs."""

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.forecast import Forecast
from igneous_airflow.operators.approval import why_to_approve
from igneous_airflow.overview import Overview
from igneous_airflow.run import Run

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
AFTER = ("enqueue", "workers", "drained", "finish")


def states(dag_run: Any, step: str = "downsample") -> dict[str, str]:
    """The states of a step's tasks."""
    found = {}
    for task in dag_run.get_task_instances():
        group, _, name = task.task_id.partition(".")
        if group == step:
            found[name] = str(task.state)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def xcom(dag_run: Any, task: str, key: str) -> Any:
    with create_session() as session:
        query = XComModel.get_many(
            run_id=dag_run.run_id, dag_ids=dag_run.dag_id, task_ids=task, key=key
        )
        return XComModel.deserialize_value(session.scalars(query).one())


def the_run(tmp_path: Path) -> Run:
    (record,) = tmp_path.glob("state/*/run.json")
    return Run.load(f"file://{record.parent}")


def test_a_dag_run_of_which_only_the_plan_is_asked_for_ends_after_it(
    dags: dict[str, DAG], make_layer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = make_layer()
    before = tree(layer)
    conf = {"layer": str(layer), "num_mips": 1, "plan_only": True}
    done = dags["igneous_downsample"].test(run_conf=conf)
    assert done.state == "success"
    assert states(done) == {"plan": "success", **dict.fromkeys(AFTER, "skipped")}
    assert tree(layer) == before

    log = capsys.readouterr().out
    assert "downsample: 4 tasks (a grid" in log
    assert "takes  not known: no earlier run of this stage is recorded" in log
    assert "Only the plan was asked for" in log
    plan = xcom(done, "downsample.plan", "plan")
    assert json.loads(json.dumps(plan))["tasks"] == 4
    assert plan["voxels"] == 256 * 256 * 64
    assert xcom(done, "downsample.plan", "return_value")["plan"] == plan
    run = the_run(tmp_path)
    assert xcom(done, "downsample.plan", "run_url") == run.url
    detail = Overview(f"file://{tmp_path}/state").detail(run.id)
    assert detail.state == "planned"
    assert detail.why_it_waits == "only its plan was requested"
    assert detail.plan == Forecast.model_validate(plan)


def test_what_would_be_deleted_is_planned_without_being_confirmed(
    dags: dict[str, DAG], make_layer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = make_layer()
    before = tree(layer)
    done = dags["igneous_delete"].test(run_conf={"layer": str(layer), "plan_only": True})
    assert done.state == "success"
    assert set(states(done, "delete").values()) == {"success", "skipped"}
    assert "UNCONFIRMED" in capsys.readouterr().out
    assert tree(layer) == before


def test_a_chain_of_which_only_the_plan_is_asked_for_ends_after_its_first_plan(
    dags: dict[str, DAG], make_layer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = {"src": str(make_layer()), "dest": f"{tmp_path}/dest", "plan_only": True}
    done = dags["igneous_copy"].test(run_conf=conf)
    assert done.state == "success"
    assert states(done, "transfer")["plan"] == "success"
    for step in ("transfer", "downsample", "delete"):
        after = [states(done, step)[task] for task in AFTER]
        assert set(after) == {"skipped"}
    assert states(done, "downsample")["plan"] == states(done, "delete")["plan"] == "skipped"
    assert "of which only the plan was asked for" in capsys.readouterr().out
    assert not (tmp_path / "dest").exists()
    assert the_run(tmp_path).stage == "transfer"


class Answer(logging.Handler):
    """A person who answers as soon as Airflow says that it waits for one."""

    def __init__(self, option: str, layer: Path) -> None:
        super().__init__()
        self.option = option
        self.layer = layer
        self.seen: dict[str, bytes] | None = None
        self.asked: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "Waiting for Human-in-the-loop input" in record.getMessage() and self.seen is None:
            self.seen = tree(self.layer)
            thread = Thread(target=self.answer)  # in a transaction of its own
            thread.start()
            thread.join()

    def answer(self) -> None:
        from airflow.api_fastapi.app import create_app
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
        from airflow.api_fastapi.core_api.security import get_user
        from fastapi.testclient import TestClient

        app = create_app(apps="core")
        user = SimpleAuthManagerUser(username="Ada", role="admin")
        for each in (app, *(route.app for route in app.routes if hasattr(route, "app"))):
            if hasattr(each, "dependency_overrides"):
                each.dependency_overrides[get_user] = lambda: user
        with TestClient(app) as client:
            path = "/api/v2/dags/~/dagRuns/~/hitlDetails?response_received=false"
            for waiting in client.get(path).raise_for_status().json()["hitl_details"]:
                task = waiting["task_instance"]
                self.asked.append(waiting)
                client.patch(
                    f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}"
                    f"/taskInstances/{task['task_id']}/-1/hitlDetails",
                    json={"chosen_options": [self.option]},
                ).raise_for_status()


@pytest.fixture
def answering(dags: dict[str, DAG]) -> Callable[..., tuple[Any, Answer]]:
    """Run the DAG with a person who answers."""

    def run_dag(option: str, layer: Path, **options: Any) -> tuple[Any, Answer]:
        person = Answer(option, layer)
        logger = logging.getLogger("airflow.sdk.definitions.dag")
        logger.addHandler(person)
        try:
            conf = {"layer": str(layer), "num_mips": 1}
            return dags["igneous_downsample"].test(run_conf=conf, **options), person
        finally:
            logger.removeHandler(person)

    return run_dag


def test_a_run_above_the_limit_begins_when_somebody_approves_it_and_asks_once(
    answering: Make, make_layer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__APPROVE_ABOVE_TASKS", "3")
    layer, now = make_layer(), datetime.now(UTC)
    chunk = layer / "4_4_40" / "128-192_0-64_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    before = tree(layer)
    failed, person = answering("Approve", layer, logical_date=now, run_after=now)
    assert person.seen == before, "the layer is as it was while the run waits"
    assert states(failed)["plan"] == "success"
    assert failed.state == "failed", "for another reason: a chunk is missing"
    chunk.write_bytes(content)
    done, nobody = answering("Reject", layer, logical_date=now, run_after=now)
    assert nobody.asked == [], "all was cleared, and what was approved stays approved"
    assert done.state == "success"
    assert set(states(done).values()) == {"success"}
    assert len(list((layer / "8_8_40").iterdir())) == 4
    (asked,) = person.asked
    assert asked["subject"] == f"downsample of file://{layer}: begin?"
    assert "It waits for approval, since its 4 tasks are over 3.\n" in asked["body"]
    assert "\n- downsample: 4 tasks (a grid" in asked["body"]
    assert "\n- takes  not known" in asked["body"]
    assert the_run(tmp_path).approved_by == "Ada"
    assert xcom(done, "downsample.plan", "return_value")["plan"]["tasks"] == 4


def test_a_rejected_run_fails_with_a_clear_message_and_writes_nothing(
    answering: Make,
    make_layer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__APPROVE_ABOVE_TASKS", "0")
    layer = make_layer()
    before = tree(layer)
    now = datetime.now(UTC)
    done, person = answering("Reject", layer, logical_date=now, run_after=now)
    assert done.state == "failed"
    assert states(done) == {"plan": "failed", **dict.fromkeys(AFTER, "upstream_failed")}
    assert "Ada rejected the plan: nothing was written to the layer" in capsys.readouterr().out
    assert tree(layer) == before
    assert the_run(tmp_path).why_it_waits == "Ada rejected its plan"
    # cleared, it asks again, and an approval counts
    done, person = answering("Approve", layer, logical_date=now, run_after=now)
    assert person.seen == before
    assert done.state == "success"
    assert the_run(tmp_path).approved_by == "Ada"


@pytest.mark.parametrize(
    ("limits", "known", "words"),
    [
        ({}, {}, ""),
        ({"tasks": "9"}, {}, "since its 10 tasks are over 9"),
        ({"tasks": "10"}, {}, ""),
        ({"cost": "2"}, {"cost": 2.5, "currency": "EUR"}, "cost, about 2.50 EUR, is over 2 EUR"),
        ({"cost": "2"}, {"cost": 2.0, "currency": "EUR"}, ""),
        ({"cost": "2"}, {"currency": "EUR"}, "since no run of this stage has told what it costs"),
        ({"cost": "3", "tasks": "5"}, {"cost": 2.0, "currency": "EUR"}, "its 10 tasks are over 5"),
    ],
)
def test_what_is_over_a_limit_must_be_approved(
    limits: dict[str, str], known: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in limits.items():
        monkeypatch.setenv(f"AIRFLOW__IGNEOUS__APPROVE_ABOVE_{name.upper()}", limit)
    why = why_to_approve(Forecast(stage="downsample", tasks=10, **known))
    assert words in why
    assert bool(why) == bool(words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TASKS", "many", "approve_above_tasks = 'many' in Airflow's configuration is no number"),
        ("COST", "-1", "approve_above_cost = '-1' in Airflow's configuration is no number"),
        ("COST", "nan", "approve_above_cost = 'nan'"),
        ("COST", "5", "approve_above_cost is set in Airflow's configuration, but no prices are"),
    ],
)
def test_limits_that_make_no_sense_are_named(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AIRFLOW__IGNEOUS__APPROVE_ABOVE_{name}", value)
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        why_to_approve(Forecast(stage="downsample", tasks=10))


def test_a_run_within_the_limit_waits_for_nobody(
    dags: dict[str, DAG], make_layer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__APPROVE_ABOVE_TASKS", "4")
    conf = {"layer": str(make_layer()), "num_mips": 1}
    assert dags["igneous_downsample"].test(run_conf=conf).state == "success"
    assert (the_run(tmp_path).why_it_waits, the_run(tmp_path).approved_by) == ("", "")
    assert not list(tmp_path.glob("state/*/hold.json"))
