"""An Airflow of its own for one machine: the demonstration's, and the one `make airflow` starts.

It is only ever started as a command: nothing here imports Airflow.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import click

from igneous_airflow.cli.worker import dags_path
from igneous_airflow.errors import RunFailed

_HOST = "127.0.0.1"
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
#: The parts of Airflow; log servers are left out, because they listen on every address.
_COMPONENTS = (
    ("api-server",),
    ("scheduler", "--skip-serve-logs"),
    ("triggerer", "--skip-serve-logs"),
    ("dag-processor",),
)


@dataclass(frozen=True)
class EmbeddedAirflow:
    """An Airflow with a home folder, an SQLite database and secrets of its own."""

    home: Path
    port: int = 8080

    @property
    def address(self) -> str:
        """Where the user interface answers."""
        return f"http://{_HOST}:{self.port}"

    @property
    def runs(self) -> Path:
        """The folder in which runs are recorded."""
        return self.home / "igneous"

    def environment(self) -> dict[str, str]:
        """The variables that make commands use this Airflow, and nothing of the user's own."""
        bundle = {
            "name": "igneous",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(dags_path())},
        }
        settings = {
            "API__HOST": _HOST,
            "API__PORT": str(self.port),
            "API__BASE_URL": self.address,
            "API__SECRET_KEY": self._secret("api-secret"),
            "API_AUTH__JWT_SECRET": self._secret("jwt-secret"),
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__FERNET_KEY": "",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "4",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
            "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "IGNEOUS__RUNS": f"file://{self.runs}",
        }
        kept = {name: v for name, v in os.environ.items() if not name.startswith("AIRFLOW_")}
        own = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        return kept | own | {"AIRFLOW_HOME": str(self.home)}

    def _secret(self, name: str) -> str:
        """A random secret that stays the same for this home, readable by its owner only."""
        path = self.home / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(64))
        return path.read_text()

    def password(self) -> str:
        """The password of the user `admin`."""
        password = self._secret("password")[:16]
        passwords = self.home / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({"admin": password}))
        return password

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running an Airflow on this home; raises RunFailed."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "address").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunFailed(
                    f"an Airflow runs in {self.home} already, at {file.read()}: use it, or stop it "
                    "first"
                ) from None
            file.truncate(0)
            file.write(self.address)
            file.flush()
            yield

    def set_up(self) -> None:
        """Make home and database; a database of an older version is migrated."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.password()
        log = self.home / "migrate.log"
        if self.start(["db", "migrate"], log).wait() != 0:
            raise RunFailed(f"Airflow's database could not be set up: read {log}")

    def start(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start an `airflow` command in a process group of its own, with its output in a file."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=self.environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def serve(self) -> None:
        """Run all parts of Airflow until interrupted or terminated, or one of them ends."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the parts then, too
        parts = {part[0]: self.start(part, self.home / f"{part[0]}.log") for part in _COMPONENTS}
        try:
            self._wait_until_it_answers(parts)
            click.echo(
                f"Airflow answers at {self.address}\n"
                f"  user      admin\n"
                f"  password  {self.password()}\n"
                f"  logs      {self.home}/*.log\n"
                f"Stop it with Ctrl-C."
            )
            while all(process.poll() is None for process in parts.values()):
                time.sleep(1)
            self._require_alive(parts)
        except KeyboardInterrupt:
            click.echo("Stopping Airflow ...")
        finally:
            stop(parts.values())

    def _wait_until_it_answers(self, parts: dict[str, subprocess.Popen[bytes]]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self._require_alive(parts)
            try:
                with urlopen(f"{self.address}/api/v2/monitor/health", timeout=5):  # noqa: S310
                    return
            except (URLError, OSError):
                time.sleep(0.5)
        raise RunFailed(f"Airflow did not answer at {self.address}: read {self.home}/*.log")

    def _require_alive(self, parts: dict[str, subprocess.Popen[bytes]]) -> None:
        for name, process in parts.items():
            if process.poll() is not None:
                raise RunFailed(f"Airflow's {name} has ended: read {self.home / name}.log")


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End process groups: asked first, killed when they do not listen."""
    started = [process for process in processes if process.poll() is None]
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in started:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port(wanted: int) -> int:
    """The wanted port of this machine, or any other when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunFailed(f"no port of {_HOST} is free")


@click.command
@click.option("--folder", default=".demo", show_default=True, help="Where this Airflow lives.")
@click.option("--port", default=8080, show_default=True, help="Another one is taken if in use.")
def airflow(folder: str, port: int) -> None:
    """Start an Airflow on this machine with a DAG for every stage, and print its address."""
    embedded = EmbeddedAirflow(Path(folder).absolute() / "airflow", free_port(port))
    with embedded.held():
        click.echo(f"Starting Airflow in {embedded.home}; this takes about half a minute ...")
        embedded.set_up()
        embedded.serve()
