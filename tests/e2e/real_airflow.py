"""A real Airflow for tests, used over its REST API as a CI job would.

The four components of `airflow standalone` run as processes of their own: like this their log
servers can be left out, which would listen on every address.
"""

import copy
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rest import call_airflow

from igneous_airflow.run import Run

ROOT = Path(__file__).parents[2]
DAG = "igneous_downsample"
COMPONENTS = (
    ("api-server", "--workers", "1"),
    ("scheduler", "--skip-serve-logs"),
    ("triggerer", "--skip-serve-logs"),
    ("dag-processor",),
)
Conf = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server says to a request of a user."""

    status: int
    headers: dict[str, str]
    text: str


class RealAirflow:
    """An Airflow that runs, and the calls that the tests make.

    `users` are names with their roles; a user's password is the name. `settings` are variables of
    the environment beside those that every test needs.
    """

    def __init__(
        self,
        home: Path,
        users: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self._users = {"admin": "admin", **(users or {})}
        self._settings = settings or {}
        self.runs = home / "runs"
        self.own_dags = home / "own_dags"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self._token = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self.dag = DAG
        # no proxy stands between processes of one machine

    def environment(self) -> dict[str, str]:
        self.own_dags.mkdir(exist_ok=True)
        bundles = [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder), "refresh_interval": 5},
            }
            for name, folder in (("igneous", ROOT / "dags"), ("own", self.own_dags))
        ]
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({name: name for name in self._users}))
        settings = {
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "4",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(map(":".join, self._users.items())),
            "API__HOST": "127.0.0.1",
            "API__PORT": str(self.port),
            "API__BASE_URL": self.base,
            "API_AUTH__JWT_SECRET": secrets.token_hex(64),
            "API__SECRET_KEY": secrets.token_hex(64),
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "IGNEOUS__RUNS": str(self.runs),
        }
        named = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        mine = {"AIRFLOW_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        return {**os.environ, **named, **mine, **self._settings}

    def start(self) -> None:
        airflow = str(Path(sys.executable).with_name("airflow"))
        environment = self.environment()
        subprocess.run(
            [airflow, "db", "migrate"],
            env=environment,
            check=True,
            capture_output=True,
            timeout=120,
        )
        for component in COMPONENTS:
            with (self.home / f"{component[0]}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [airflow, *component],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        wait_until(self._answers, seconds=180)
        account = {"username": "admin", "password": "admin"}
        self._token = self.call("POST", "/auth/token", account)["access_token"]
        chains = {file.stem for file in (ROOT / "dags").glob("[!_]*.py")} - {"stages"}
        shipped = [DAG, *(f"igneous_{name}" for name in chains)]
        wait_until(lambda: all(map(self.has, shipped)), seconds=300)

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and any(p.poll() is None for p in self._processes):
                time.sleep(0.1)

    def processes(self) -> list[int]:
        """Everything that runs in the sessions that the components lead."""
        sessions = {process.pid for process in self._processes}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(folder.name)) in sessions:
                    found.append(int(folder.name))
        return found

    def _answers(self) -> bool:
        assert all(process.poll() is None for process in self._processes), "a component has ended"
        try:
            return self._status("GET", "/api/v2/monitor/health") == 200
        except OSError:
            return False

    def _status(self, method: str, path: str, body: Conf | None = None) -> int:
        try:
            self.call(method, path, body)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def call(self, method: str, path: str, body: Conf | None = None, accept: str = "json") -> Any:
        """Call the API; raises HTTPError."""
        return call_airflow(self.base, self._token, method, path, body, accept)

    def token_of(self, user: str) -> str:
        """Log a user in."""
        account = {"username": user, "password": user}
        return str(self.call("POST", "/auth/token", account)["access_token"])

    def ask(self, path: str, token: str, method: str = "GET", body: Conf | None = None) -> Answer:
        """Ask for a path as it is written, with the rights of a token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        text = answer.read().decode(errors="replace")
        connection.close()
        return Answer(answer.status, found, text)

    def of(self, dag: str) -> "RealAirflow":
        """The same Airflow, with calls about another DAG."""
        other = copy.copy(self)
        other.dag = dag
        return other

    def has(self, dag: str) -> bool:
        """Whether the DAG file of a DAG has been read."""
        return self._status("GET", f"/api/v2/dags/{dag}") == 200

    def dag_runs(self) -> list[Any]:
        """The runs of the DAG that have begun, the oldest first."""
        path = f"/api/v2/dags/{self.dag}/dagRuns?order_by=run_after&limit=100"
        return list(self.call("GET", path)["dag_runs"])

    def trigger(self, run: str, conf: Conf) -> None:
        body = {"dag_run_id": run, "logical_date": None, "conf": conf}
        self.call("POST", f"/api/v2/dags/{self.dag}/dagRuns", body)

    def refusal(self, conf: Conf) -> str:
        """The words with which triggering is refused."""
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.trigger(f"refused-{secrets.token_hex(4)}", conf)
        with caught.value as error:
            assert error.code == 400
            return error.read().decode()

    def dag_run(self, run: str) -> Any:
        return self.call("GET", f"/api/v2/dags/{self.dag}/dagRuns/{run}")

    def end_of(self, run: str) -> str:
        """Wait for the end of a DAG run and return its state."""
        wait_until(lambda: self.dag_run(run)["state"] in ("success", "failed"), seconds=480)
        return str(self.dag_run(run)["state"])

    def task(self, run: str, task: str) -> str:
        index = "/0" if task.endswith("workers") else ""  # the first of the crew
        return f"/api/v2/dags/{self.dag}/dagRuns/{run}/taskInstances/{_full(task)}{index}"

    def xcom(self, run: str, task: str) -> Any:
        return self.call("GET", self.task(run, task) + "/xcomEntries/return_value")["value"]

    def states(self, run: str, step: str) -> set[str]:
        """The states of the tasks of a chain's step."""
        path = f"/api/v2/dags/{self.dag}/dagRuns/{run}/taskInstances?limit=100"
        tasks = self.call("GET", path)["task_instances"]
        return {task["state"] for task in tasks if task["task_id"].startswith(f"{step}.")}

    def log(self, run: str, task: str, attempt: int = 1) -> str:
        place = self.task(run, task).removesuffix("/0")
        index = 0 if task.endswith("workers") else -1
        path = f"{place}/logs/{attempt}?map_index={index}"
        return str(self.call("GET", path, accept="x-ndjson"))

    def clear(self, run: str, *tasks: str, alone: bool = False) -> None:
        """Clear tasks and all that comes after them, or them alone."""
        body = {
            "dry_run": False,
            "dag_run_id": run,
            "task_ids": [_full(task) for task in tasks],
            "include_downstream": not alone,
            "only_failed": False,
        }
        self.call("POST", f"/api/v2/dags/{self.dag}/clearTaskInstances", body)

    def mark(self, run: str, task: str, state: str) -> None:
        """Set the state of a task by hand, of all its instances."""
        path = f"/api/v2/dags/{self.dag}/dagRuns/{run}/taskInstances/{_full(task)}"
        # SQLite may be locked by the scheduler, which Airflow answers with 500
        wait_until(lambda: self._status("PATCH", path, {"new_state": state}) != 500, seconds=60)

    def set_state(self, run: str, state: str) -> None:
        """Set the state of a DAG run by hand."""
        self.call("PATCH", f"/api/v2/dags/{self.dag}/dagRuns/{run}", {"state": state})

    def deletes(self, run: str) -> bool:
        """Whether a DAG run can be deleted; it is."""
        path = f"/api/v2/dags/{self.dag}/dagRuns/{run}"
        return self._status("DELETE", path) == 200

    def task_states(self, run: str) -> dict[str, str | None]:
        """The states of all tasks of a DAG run, by their ids; of a mapped one, of its last."""
        path = f"/api/v2/dags/{self.dag}/dagRuns/{run}/taskInstances?limit=100"
        tasks = self.call("GET", path)["task_instances"]
        return {task["task_id"]: task["state"] for task in tasks}

    def audit_log(self, run: str) -> list[tuple[str, str]]:
        """What Airflow's own audit log says of a DAG run: the event and the user."""
        path = f"/api/v2/eventLogs?dag_id={self.dag}&run_id={run}&order_by=when&limit=100"
        entries = self.call("GET", path)["event_logs"]
        return [(entry["event"], entry["owner"]) for entry in entries]

    def proved(self, run: str) -> set[str]:
        """The stages of a DAG run whose run is proved, by the records in the run folders."""
        folders = [path.parent for path in self.runs.glob(f"{self.dag}_{run}_*/run.json")]
        loaded = (Run.load(f"file://{folder}") for folder in folders)
        return {recorded.stage for recorded in loaded if recorded.is_finished}

    def receipts(self, run: str) -> dict[Path, int]:
        """The receipts of a run, with the times when they were written."""
        return {p: p.stat().st_mtime_ns for p in self.runs.glob(f"*_{run}_*/done/*")}

    def workers(self, run: str) -> list[int]:
        """Process ids of the worker command of a run and of its worker processes' parent."""
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if f"_{run}_".encode() in (command := _command(folder)) and b"\0worker\0" in command
        ]


def ci_job(airflow: RealAirflow, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI job would, with the secrets in its environment."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFLOW_URL": airflow.base,
        "AIRFLOW_USER": "admin",
        "AIRFLOW_PASSWORD": "admin",
        "no_proxy": "127.0.0.1",
        **variables,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _full(task: str) -> str:
    """The id of a task; of a chain it is given in full."""
    return task if "." in task or task == "proved" else f"downsample.{task}"


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
