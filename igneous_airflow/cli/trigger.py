"""`igneous-airflow trigger`: start a DAG over Airflow's REST API and follow it, as CI jobs do."""

import json
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import click

from igneous_airflow.cli.airflow_api import AirflowApi, reason_of
from igneous_airflow.cli.proof import Proof, find_proof
from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import InvalidParameter, RunFailed

_ENDED = ("success", "failed")
_FAILED = ("failed", "upstream_failed")
_PROOFS = ("drained", "finish")  # steps of a stage that work is proved by
_OURS = "igneous_airflow"  # in the names of loggers
_DONE = "outcome=done"  # in a worker's line about a task


@dataclass
class DagRun:
    """A run of a DAG, triggered once however often it is asked for."""

    api: AirflowApi
    dag: str
    name: str
    _states: dict[str, str] = field(default_factory=dict)
    _lines: set[tuple[str, int, str]] = field(default_factory=set)

    @property
    def dag_path(self) -> str:
        """Where the API has its DAG."""
        return f"/api/v2/dags/{quote(self.dag, safe='')}"

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"{self.dag_path}/dagRuns/{quote(self.name, safe='')}"

    @property
    def link(self) -> str:
        """Where people see it."""
        return f"{self.api.url}/dags/{quote(self.dag)}/runs/{quote(self.name)}"

    def trigger(self, conf: dict[str, Any]) -> bool:
        """Start it; False when it was started before with the same parameters.

        Raises InvalidParameter for parameters that are refused, or that differ from those before.
        """
        body = {"dag_run_id": self.name, "logical_date": None, "conf": conf}
        try:
            self.api.call("POST", f"{self.dag_path}/dagRuns", body)
        except HTTPError as error:
            if error.code == HTTPStatus.CONFLICT:
                self._require_same(conf)
                return False
            reason = f"{reason_of(error)}{self._unknown(conf)}"
            raise InvalidParameter(f"{self.dag} was not started: {reason}") from error
        return True

    def _unknown(self, conf: dict[str, Any]) -> str:
        """Which parameters the DAG does not have, and those that it has."""
        try:
            known = self.api.call("GET", f"{self.dag_path}/details")["params"]
        except HTTPError:  # there is no such DAG
            return ""
        unknown = sorted(conf.keys() - known.keys())
        return f". It has no {', '.join(unknown)}, but {', '.join(known)}" if unknown else ""

    def _require_same(self, conf: dict[str, Any]) -> None:
        before = self.api.call("GET", self.path)["conf"] or {}
        differing = sorted(
            name for name in conf.keys() | before.keys() if conf.get(name) != before.get(name)
        )
        if differing:
            raise InvalidParameter(
                f"{self.name} was started before with other values for {', '.join(differing)}: "
                "give another --run-id, or the values it had"
            )

    def resume(self, to_clear: Collection[str] = ()) -> None:
        """Clear what failed and all after it: only tasks without a receipt are done again.

        Where the proof failed, that begins with `enqueue`, which sends what is missing. `to_clear`
        are further tasks, which need not have failed.
        """
        tasks = self._tasks()
        failed = {task["task_id"] for task in tasks if task["state"] in _FAILED}
        steps = [task.rpartition(".") for task in failed]
        senders = {f"{stage}.enqueue" for stage, _, step in steps if step in _PROOFS}
        failed |= (senders | {*to_clear}) & {task["task_id"] for task in tasks}
        body = {
            "dry_run": False,
            "dag_run_id": self.name,
            "task_ids": sorted(failed),
            "include_downstream": True,
            "only_failed": False,
        }
        self.api.call("POST", f"{self.dag_path}/clearTaskInstances", body)

    def state(self) -> str:
        """Airflow's word for how it stands."""
        return str(self.api.call("GET", self.path)["state"])

    def proof(self, *, plan_only: bool) -> Proof:
        """Which of its steps are proved, by the records of their runs."""
        return find_proof(self.api, self.path, self._tasks(), plan_only=plan_only)

    def news(self) -> Iterator[str]:
        """What happened since the last call, a line each."""
        tasks = self._tasks()
        for task in tasks:
            yield from self._log(task)
            name, state = _name(task), task["state"] or "waiting"
            if self._states.get(name, "waiting") != state:
                self._states[name] = state
                yield f"{name}: {state}"

    def results(self) -> Iterator[str]:
        """Links to what the finished tasks made, a line each."""
        for task in self._tasks():
            path = f"{self._task_path(task)}/links?map_index={task['map_index']}"
            links = self.api.call("GET", path)["extra_links"]
            for name, link in links.items():
                if link:
                    yield f"{name}: {link if '://' in link else self.api.url + link}"

    def _tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = []
        while True:  # Airflow answers with a page at a time, of 100 unless configured otherwise
            path = f"{self.path}/taskInstances?limit=100&offset={len(tasks)}"
            page = self.api.call("GET", path)
            tasks += page["task_instances"]
            if not page["task_instances"] or len(tasks) >= page["total_entries"]:
                break
        return sorted(tasks, key=lambda task: (task["start_date"] or "~", task["task_id"]))

    def _task_path(self, task: dict[str, Any]) -> str:
        return f"{self.path}/taskInstances/{quote(task['task_id'], safe='')}"

    def _log(self, task: dict[str, Any]) -> Iterator[str]:
        """New lines of ours in the log of a task's latest attempt, and errors of anybody's."""
        attempt = task["try_number"]
        if not attempt or task["state"] in (None, "scheduled", "queued"):
            return
        path = f"{self._task_path(task)}/logs/{attempt}?map_index={task['map_index']}"
        try:
            text = self.api.call("GET", path, accept="x-ndjson")
        except HTTPError:  # there is none yet
            return
        # what Airflow says of the log itself, before its lines, differs from one answer to the next
        for line in filter(str.strip, text.splitlines()):
            if (told := (_name(task), attempt, line)) not in self._lines:
                self._lines.add(told)
                yield from (f"  {_name(task)}: {words}" for words in _told(json.loads(line)))


def _name(task: dict[str, Any]) -> str:
    """A task's id; with a number when it is one of several."""
    index = task["map_index"]
    return f"{task['task_id']}[{index}]" if index > 0 else str(task["task_id"])


def _told(entry: dict[str, Any]) -> Iterator[str]:
    """What an entry of a log says that is worth telling: progress and errors, not every task."""
    text = str(entry.get("event", ""))
    if entry.get("level") in ("error", "critical"):
        errors = entry.get("error_detail") or []
        yield from (f"{error['exc_type']}: {error['exc_value']}" for error in errors)
        if not errors:
            yield text
    elif _OURS in str(entry.get("logger", "")) and _DONE not in text:
        yield text


def _parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise click.BadParameter(f"{pair!r}: write NAME=VALUE, as num_mips=4")
        try:
            values[name] = json.loads(text)
        except ValueError:  # text that is no JSON means itself
            values[name] = text
        refuse_credentials(values[name])
    return values


@click.command
@click.argument("dag")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--run-id", required=True, help="Name of the run; the same name is the same run.")
@click.option("--resume", is_flag=True, help="If that run failed, go on where it stopped.")
@click.option("--wait/--no-wait", default=True, help="Follow it to its end.", show_default=True)
@click.option("--poll", default=5.0, show_default=True, help="Seconds between looks.")
def trigger(
    *, dag: str, parameters: tuple[str, ...], run_id: str, resume: bool, wait: bool, poll: float
) -> None:
    """Start a DAG through Airflow's REST API, follow it; ends with 0 only when it is proved done.

    The address is taken from AIRFLOW_URL, the account from AIRFLOW_USER and AIRFLOW_PASSWORD, or
    a token from AIRFLOW_TOKEN. Starting the same --run-id twice starts it once.
    """
    run = DagRun(AirflowApi.of_environment(), dag, run_id)
    conf = _parameters(parameters)
    plan_only = conf.get("plan_only") is True
    started = run.trigger(conf)
    click.echo(f"{run.link}{'' if started else ' was started before'}")
    if resume and not started:
        _resume(run, plan_only=plan_only)
    if not wait:
        return
    while (state := run.state()) not in _ENDED:
        _say(run)
        time.sleep(poll)
    _say(run)
    proof = run.proof(plan_only=plan_only)
    _require_proved(run, state, proof)
    for line in run.results():
        click.echo(line)
    what = "is done, and proved" if proof.proved else "is done"
    click.echo(f"{dag} {run_id} {'was only planned, as asked' if plan_only else what}")


def _resume(run: DagRun, *, plan_only: bool) -> None:
    """Go on with a run that has ended without a proof of every step."""
    if (state := run.state()) not in _ENDED:
        return
    proof = run.proof(plan_only=plan_only)
    if state == "failed" or proof.gaps:
        run.resume(proof.to_clear)
        click.echo("Going on where it stopped")


def _require_proved(run: DagRun, state: str, proof: Proof) -> None:
    """Raise RunFailed unless the run succeeded and each of its steps is proved."""
    if state == "success" and not proof.gaps:
        return
    what = "has failed" if state != "success" else "ended as a success, but is not proved"
    lines = [f"{run.dag} {run.name} {what}; look at {run.link}"]
    if proof.gaps:
        lines += [proof.describe(), "Or run this command again with --resume."]
    raise RunFailed("\n".join(lines))


def _say(run: DagRun) -> None:
    for line in run.news():
        click.echo(line)
    sys.stdout.flush()
