"""Which steps of a DAG run are proved, whatever Airflow says of its tasks; used by `trigger`.

The evidence is the record of each step's run, which the plugin's page reads for us. The states of
tasks are none, for anyone may mark a task.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from igneous_airflow.cli.airflow_api import AirflowApi

_PAGE = "/igneous/page/api/runs"
_STEP = ("plan", "enqueue", "finish")  # tasks that make a step of a group of tasks


@dataclass(slots=True)
class Proof:
    """What is known of the steps of a DAG run: which are proved or planned, and which should be."""

    steps: list[str] = field(default_factory=list)
    proved: list[str] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    #: What is wrong with each step that should be proved, and the task to clear.
    gaps: dict[str, str] = field(default_factory=dict)
    to_clear: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The steps that are not proved, a line each."""
        return "\n".join(f"  - {step} {why}" for step, why in self.gaps.items())


def find_proof(
    api: AirflowApi, dag_run: str, tasks: Collection[dict[str, Any]], *, plan_only: bool
) -> Proof:
    """Look for the proof of each step of the DAG run at a path of the API.

    A step that was skipped by request needs none; when only the plan was asked for, one that was
    planned is enough.
    """
    states = {task["task_id"]: task["state"] for task in tasks}
    plans = [name for name in states if name.endswith(".plan")]
    proof = Proof([g for name in plans if _is_step(g := name.removesuffix(".plan"), states)])
    verdicts = _xcom(api, dag_run, "proved", "steps") or {}
    for step in proof.steps:
        verdict = verdicts.get(step, {}).get("state")
        if verdict == "skipped":
            continue
        url = _xcom(api, dag_run, f"{step}.plan", "run_url")
        if url is None:
            # DAG runs of earlier versions have no verdicts; what they were to skip has no run
            if verdict is not None or states[f"{step}.plan"] != "skipped":
                _add(proof, step, "was not planned", "plan")
                if "was refused" in (why := str(verdicts.get(step, {}).get("why"))):
                    proof.gaps[step] = f"has no run: {why}"
        elif _is_proved(api, url):
            proof.proved.append(step)
        else:
            proof.planned.append(step)
            _add(proof, step, f"is not proved (its run is {url})", "enqueue")
    if plan_only and proof.planned:
        proof.gaps.clear()
    elif proof.steps and not (verdicts or proof.proved or proof.gaps):
        _add(proof, proof.steps[0], "was not planned", "plan")
    return proof


def _is_step(group: str, states: Collection[str]) -> bool:
    return all(f"{group}.{name}" in states for name in _STEP)


def _add(proof: Proof, step: str, what: str, task: str) -> None:
    proof.gaps[step] = f"{what}: clear the task {step}.{task} with those after it"
    proof.to_clear.append(f"{step}.{task}")


def _xcom(api: AirflowApi, dag_run: str, task: str, key: str) -> Any:
    path = f"{dag_run}/taskInstances/{quote(task, safe='')}/xcomEntries/{key}"
    entry = api.find(path)
    return None if entry is None else entry["value"]


def _is_proved(api: AirflowApi, url: str) -> bool:
    """Whether the record of a run says so; one that is gone does not."""
    run = api.find(f"{_PAGE}/{quote(url.rstrip('/').rpartition('/')[2], safe='')}")
    return run is not None and run["proved"] is True
