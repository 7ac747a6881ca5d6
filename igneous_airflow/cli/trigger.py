"""`igneous-airflow trigger`: start a DAG over Airflow's REST API and follow it, as a CI job does.

Only the standard library is needed. Secrets come from the environment, and are never printed.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import click

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import AccessDenied, InvalidParameter, RunFailed, StorageUnavailable

_ENDED = ("success", "failed")
_FAILED = ("failed", "upstream_failed")
_PROOFS = ("drained", "finish")  # steps of a stage that work is proved by
_TIMEOUT = 60.0
_PATIENCE = 300.0  # seconds that the server may be away, as for an upgrade
_OURS = "igneous_airflow"  # in the names of loggers
_DONE = "outcome=done"  # in a worker's line about a task


@dataclass
class AirflowApi:
    """Airflow's REST API, version 2, at an address."""

    url: str
    token: str = ""

    def login(self, user: str, password: str) -> None:
        """Get a token; raises AccessDenied."""
        answer = self.call("POST", "/auth/token", {"username": user, "password": password})
        self.token = answer["access_token"]

    def call(self, method: str, path: str, body: object = None, *, accept: str = "json") -> Any:
        """Return the answer, as JSON data or, for another kind, as text.

        Raises HTTPError for an answer that says no, AccessDenied where it is about permissions,
        StorageUnavailable when the server does not answer for several minutes.
        """
        headers = {"Content-Type": "application/json", "Accept": f"application/{accept}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
                    content = answer.read().decode()
                return json.loads(content) if accept == "json" else content
            except HTTPError as error:
                if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    raise AccessDenied(
                        f"{self.url} refuses {method} {path} ({error.code}): check AIRFLOW_USER "
                        "and AIRFLOW_PASSWORD, or AIRFLOW_TOKEN, and what that user may do"
                    ) from error
                if error.code < HTTPStatus.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                    raise
            except (URLError, OSError) as error:
                if method != "GET" or time.monotonic() > deadline:
                    raise StorageUnavailable(f"{self.url} does not answer: {error}") from error
            time.sleep(5)


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
            reason = f"{_reason(error)}{self._unknown(conf)}"
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

    def resume(self) -> None:
        """Clear what failed and all after it: only tasks without a receipt are done again.

        Where the proof failed, that begins with `enqueue`, which sends what is missing.
        """
        tasks = self._tasks()
        failed = {task["task_id"] for task in tasks if task["state"] in _FAILED}
        steps = [task.rpartition(".") for task in failed]
        senders = {f"{stage}.enqueue" for stage, _, step in steps if step in _PROOFS}
        failed |= senders & {task["task_id"] for task in tasks}
        # what is after it has succeeded where it is a teardown, which kept the queue
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


def _reason(error: HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        # after the first line, Airflow shows the schema of the parameter
        return str(json.loads(text)["detail"]).partition("\n")[0]
    except (ValueError, KeyError, TypeError):
        return text or str(error)


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
    run = DagRun(_api_of_environment(), dag, run_id)
    conf = _parameters(parameters)
    started = run.trigger(conf)
    click.echo(f"{run.link}{'' if started else ' was started before'}")
    if resume and not started and run.state() == "failed":
        run.resume()
        click.echo("Going on where it stopped")
    if not wait:
        return
    while (state := run.state()) not in _ENDED:
        _say(run)
        time.sleep(poll)
    _say(run)
    if state != "success":
        raise RunFailed(f"{dag} {run_id} has failed; look at {run.link}")
    for line in run.results():
        click.echo(line)
    what = "was only planned, as asked" if conf.get("plan_only") is True else "is done, and proved"
    click.echo(f"{dag} {run_id} {what}")


def _say(run: DagRun) -> None:
    for line in run.news():
        click.echo(line)
    sys.stdout.flush()


def _api_of_environment() -> AirflowApi:
    missing = [] if os.environ.get("AIRFLOW_URL") else ["AIRFLOW_URL"]
    token = os.environ.get("AIRFLOW_TOKEN", "")
    user, password = os.environ.get("AIRFLOW_USER", ""), os.environ.get("AIRFLOW_PASSWORD", "")
    if not token and not (user and password):
        missing.append("AIRFLOW_USER and AIRFLOW_PASSWORD, or AIRFLOW_TOKEN")
    if missing:
        raise InvalidParameter(f"set {' and '.join(missing)} in the environment")
    api = AirflowApi(os.environ["AIRFLOW_URL"].rstrip("/"), token)
    if not token:
        api.login(user, password)
    return api
