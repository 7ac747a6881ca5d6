"""What `trigger` tells of a run, from answers as Airflow gives them; e2e asks a real Airflow."""

import json
from email.message import Message
from http import HTTPStatus
from io import BytesIO
from typing import Any, cast
from urllib.error import HTTPError

import pytest

from igneous_airflow.cli.trigger import AirflowApi, DagRun
from igneous_airflow.errors import InvalidParameter

TASK = {"task_id": "plan", "map_index": -1, "try_number": 1, "start_date": "2026-01-01"}
PLANNED = {"logger": "igneous_airflow.operators", "event": "3 tasks", "timestamp": "1"}
FAILED = {
    "level": "error",
    "event": "Task failed with exception",
    "error_detail": [{"exc_type": "AirflowFailException", "exc_value": "mip 9 does not exist"}],
}


class Answers:
    """An API that gives one answer after the other to each kind of question."""

    url = "http://airflow"

    def __init__(
        self, states: list[str], logs: list[list[dict[str, Any]]], page: int = 100
    ) -> None:
        self.tasks = [[{**TASK, "state": state}] for state in states]
        self.logs = logs

    def call(self, method: str, path: str, *_: Any, **__: Any) -> Any:
        if "/logs/" in path:
            return "\n".join(map(json.dumps, self.logs.pop(0)))
        offset = int(path.rpartition("offset=")[2])
        tasks = self.tasks[0]
        if offset + 100 >= len(tasks):
            self.tasks.pop(0)
        return {"task_instances": tasks[offset : offset + 100], "total_entries": len(tasks)}


def run_of(answers: Answers) -> DagRun:
    return DagRun(cast("AirflowApi", answers), "dag", "run")


def test_the_reason_is_told_though_airflow_says_less_of_the_log_itself_than_before() -> None:
    about_the_log = [{"event": f"Could not read served logs {n}"} for n in range(3)]
    run = run_of(
        Answers(
            ["running", "failed"], [[*about_the_log, PLANNED], [{"event": "x"}, PLANNED, FAILED]]
        )
    )
    assert list(run.news()) == ["  plan: 3 tasks", "plan: running"]
    assert list(run.news()) == [
        "  plan: AirflowFailException: mip 9 does not exist",
        "plan: failed",
    ]


def test_tasks_beyond_the_first_page_are_seen() -> None:
    answers = Answers([], [])
    answers.tasks = [
        [{**TASK, "map_index": n, "state": "skipped" if n == 249 else None} for n in range(250)]
    ]
    answers.logs = [[]]
    assert list(run_of(answers).news()) == ["plan[249]: skipped"]


def test_resuming_begins_with_what_is_sent_where_the_proof_failed() -> None:
    """A cleared `drained` or `finish` alone would look at the same missing receipts again."""
    cleared: list[list[str]] = []

    class Failed(Answers):
        def call(self, method: str, path: str, *body: Any, **options: Any) -> Any:
            if path.endswith("/clearTaskInstances"):
                cleared.append(body[0]["task_ids"])
                return {}
            return super().call(method, path, *body, **options)

    for ended in ({"drained": "failed", "finish": "upstream_failed"}, {"finish": "failed"}):
        states = dict.fromkeys(("plan", "enqueue", "drained", "finish"), "success") | ended
        answers = Failed([], [])
        answers.tasks = [
            [{**TASK, "task_id": f"downsample.{step}", "state": states[step]} for step in states]
            + [{**TASK, "task_id": "finish", "state": "failed"}]  # of somebody else
        ]
        run_of(answers).resume(["mesh.plan"])
        assert "mesh.plan" not in cleared[-1], "it is not there"
        names = {name.rpartition(".")[2] for name in cleared[-1] if "." in name}
        assert names == {"enqueue", *ended}
        assert "finish" in cleared[-1]
        assert ".enqueue" not in cleared[-1]


def test_resuming_begins_with_a_step_that_only_seems_to_have_ended() -> None:
    cleared: list[str] = []

    class Marked(Answers):
        def call(self, method: str, path: str, *body: Any, **options: Any) -> Any:
            if path.endswith("/clearTaskInstances"):
                cleared.extend(body[0]["task_ids"])
                return {}
            return super().call(method, path, *body, **options)

    answers = Marked([], [])
    answers.tasks = [
        [
            {**TASK, "task_id": f"mesh.{step}", "state": "success"}
            for step in ("plan", "enqueue", "finish")
        ]
    ]
    run_of(answers).resume(["mesh.enqueue"])
    assert cleared == ["mesh.enqueue"]


class Refusal:
    """An API that refuses to start a DAG with two parameters."""

    url = "http://airflow"

    def call(self, method: str, path: str, *_: Any, **__: Any) -> Any:
        if method == "GET":
            assert path == "/api/v2/dags/dag/details"
            return {"params": {"source": None, "ingest_dest": None}}
        detail = (
            "Invalid input for param ingest_dest: No value passed\n\n"
            "Failed validating 'type' in schema:\n    {'first': True}"
        )
        body = BytesIO(json.dumps({"detail": detail}).encode())
        raise HTTPError(self.url, HTTPStatus.BAD_REQUEST, "Bad Request", Message(), body)


def test_a_parameter_that_the_dag_does_not_have_is_named_beside_those_that_it_has() -> None:
    run = DagRun(cast("AirflowApi", Refusal()), "dag", "run")
    with pytest.raises(InvalidParameter) as refused:
        run.trigger({"source": "s", "destination": "d"})
    assert str(refused.value) == (
        "dag was not started: Invalid input for param ingest_dest: No value passed. It has no "
        "destination, but source, ingest_dest"
    )
