"""What `trigger` takes for a proof, by answers as Airflow and the plugin's page give them."""

from typing import Any, cast

import pytest

from igneous_airflow.cli.airflow_api import AirflowApi
from igneous_airflow.cli.proof import Proof, find_proof
from igneous_airflow.cli.trigger import DagRun, _require_proved
from igneous_airflow.errors import RunFailed

RUN = "/api/v2/dags/chain/dagRuns/run"
TASKS = ("plan", "enqueue", "workers", "drained", "finish")


class Recorded:
    """An API that knows what tasks left and which runs are proved."""

    url = "http://airflow"

    def __init__(
        self,
        planned: tuple[str, ...] = (),
        proved: tuple[str, ...] = (),
        verdicts: dict[str, str] | None = None,
    ) -> None:
        self.answers: dict[str, Any] = {}
        for step in planned:
            path = f"{RUN}/taskInstances/{step}.plan/xcomEntries/run_url"
            self.answers[path] = {"value": f"s3://bucket/runs/{step}-1"}
            self.answers[f"/igneous/page/api/runs/{step}-1"] = {"proved": step in proved}
        if verdicts is not None:
            found = {step: {"state": state, "why": ""} for step, state in verdicts.items()}
            self.answers[f"{RUN}/taskInstances/proved/xcomEntries/steps"] = {"value": found}

    def find(self, path: str) -> Any:
        return self.answers.get(path)

    def forget(self, step: str) -> None:
        del self.answers[f"/igneous/page/api/runs/{step}-1"]


def instances(*steps: str, state: str = "success", **plans: str) -> list[dict[str, Any]]:
    """The tasks of steps, all in one state but for some plans."""
    return [
        {"task_id": f"{step}.{task}", "state": plans.get(step, state) if task == "plan" else state}
        for step in steps
        for task in TASKS
    ]


def proof(api: Recorded, tasks: list[dict[str, Any]], *, plan_only: bool = False) -> Proof:
    return find_proof(cast("AirflowApi", api), RUN, tasks, plan_only=plan_only)


def test_a_step_whose_record_says_so_is_proved() -> None:
    found = proof(Recorded(("mesh",), ("mesh",), {"mesh": "proved"}), instances("mesh"))
    assert (found.proved, found.gaps) == (["mesh"], {})


def test_green_tasks_prove_nothing() -> None:
    found = proof(Recorded(("mesh",), (), {"mesh": "proved"}), instances("mesh"))
    assert found.proved == []
    assert found.gaps == {
        "mesh": "is not proved (its run is s3://bucket/runs/mesh-1): clear the task mesh.enqueue "
        "with those after it"
    }
    assert found.to_clear == ["mesh.enqueue"]


def test_a_step_that_this_dag_run_has_not_planned_is_to_be_planned() -> None:
    api = Recorded(("mesh",), ("mesh",), {"mesh": "proved", "manifest": "not proved"})
    found = proof(api, instances("mesh", "manifest", manifest="skipped"))
    assert found.gaps == {
        "manifest": "was not planned: clear the task manifest.plan with those after it"
    }
    assert found.to_clear == ["manifest.plan"]


def test_a_record_that_is_gone_is_no_proof() -> None:
    api = Recorded(("mesh",), ("mesh",))
    api.forget("mesh")
    assert proof(api, instances("mesh")).gaps.keys() == {"mesh"}


def test_a_step_that_was_skipped_by_request_needs_no_proof() -> None:
    api = Recorded(("mesh",), ("mesh",), {"mesh": "proved", "manifest": "skipped"})
    found = proof(api, instances("mesh", "manifest", manifest="skipped"))
    assert (found.proved, found.gaps) == (["mesh"], {})


def test_what_only_tasks_skipped_is_believed_of_older_dag_runs_beside_a_proved_step() -> None:
    tasks = instances("mesh", "manifest", manifest="skipped")
    assert proof(Recorded(("mesh",), ("mesh",)), tasks).gaps == {}
    nothing = proof(Recorded(), instances("mesh", state="skipped"))
    assert nothing.gaps.keys() == {"mesh"}, "as of a DAG run that was set to failed before it began"
    left_out = proof(Recorded(verdicts={"mesh": "skipped"}), instances("mesh", state="skipped"))
    assert left_out.gaps == {}


def test_a_plan_is_enough_when_only_that_was_asked_for() -> None:
    tasks = instances("mesh", "manifest", manifest="skipped")
    verdicts = {"mesh": "planned", "manifest": "not proved"}
    assert proof(Recorded(("mesh",), (), verdicts), tasks, plan_only=True).gaps == {}
    found = proof(Recorded((), (), dict.fromkeys(verdicts, "not proved")), tasks, plan_only=True)
    assert found.gaps.keys() == {"mesh", "manifest"}


def test_tasks_that_make_no_step_need_no_proof() -> None:
    own = [{"task_id": name, "state": "success"} for name in ("own.plan", "plan", "own.finish")]
    assert proof(Recorded(), own).steps == []


@pytest.mark.parametrize(
    ("state", "gaps", "words"),
    [
        ("failed", {}, "chain run has failed; look at"),
        ("failed", {"mesh": "is not proved"}, "  - mesh is not proved\n"),
        ("success", {"mesh": "is not proved"}, "ended as a success, but is not proved; look at"),
    ],
)
def test_a_dag_run_must_have_succeeded_and_be_proved(
    state: str, gaps: dict[str, str], words: str
) -> None:
    run = DagRun(cast("AirflowApi", Recorded()), "chain", "run")
    with pytest.raises(RunFailed) as failed:
        _require_proved(run, state, Proof(gaps=gaps))
    assert words in str(failed.value)
    assert ("--resume" in str(failed.value)) is bool(gaps)


def test_a_proved_dag_run_passes() -> None:
    run = DagRun(cast("AirflowApi", Recorded()), "chain", "run")
    _require_proved(run, "success", Proof(proved=["mesh"]))
