"""The services of docker-compose.yml as processes of this machine: same versions, same settings.

Versions, environments and commands are read from the compose file; only names of hosts, ports and
folders are others. Other files load this one by its path: tests are no package.
"""

import base64
import fcntl
import json
import os
import re
import runpy
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import yaml
from rest import OPENER, call_airflow

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
PROGRAMS = ROOT / ".bench" / "services"
MINISTACK = runpy.run_path(str(ROOT / "tests" / "queue" / "sqs_server.py"))
BIN = Path(sys.executable).parent
_VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")
_START_SECONDS = 240
_STAND_IN_HEALTH = "/_ministack/health"


class Unavailable(Exception):
    """A service cannot be had on this machine."""


def new_secrets() -> dict[str, str]:
    """What `make env` writes into .env, by name."""
    example = (ROOT / ".env.example").read_text()
    pairs = [line.split("=", 1) for line in example.splitlines() if line and line[0] != "#"]
    return {
        name: value or base64.urlsafe_b64encode(secrets.token_bytes(_length(name))).decode()
        for name, value in pairs
    }


def _length(name: str) -> int:
    return 32 if "FERNET" in name else 48


def compose(environment: dict[str, str]) -> dict[str, Any]:
    """The compose file with its variables filled in, as far as it uses the syntax."""

    def fill(match: re.Match[str]) -> str:
        name, default = match.groups()
        return environment.get(name) or default or ""

    text = _VARIABLE.sub(fill, FILE.read_text()).replace("$$", "$")
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def version(image: str) -> str:
    """The tag of an image in the compose file."""
    found: str = yaml.safe_load(FILE.read_text())["services"][image]["image"]
    return found.rpartition(":")[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# programs


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, as Debian's package installs them."""
    major = version("postgres")
    folder = Path(f"/usr/lib/postgresql/{major}/bin")
    if not (folder / "initdb").exists():
        raise Unavailable(
            f"PostgreSQL {major} is not installed: apt-get install postgresql-{major}"
        )
    return folder


def elasticmq_jars() -> Path:
    """The folder with ElasticMQ and what it needs, from Maven Central."""
    wanted = version("sqs")
    pom = (
        "<project><modelVersion>4.0.0</modelVersion>"
        "<groupId>tests</groupId><artifactId>elasticmq</artifactId><version>1</version>"
        "<packaging>pom</packaging><dependencies><dependency><groupId>org.elasticmq</groupId>"
        f"<artifactId>elasticmq-server_3</artifactId><version>{wanted}</version></dependency>"
        "</dependencies></project>"
    )

    def install(folder: Path) -> None:
        (folder / "pom.xml").write_text(pom)
        command = "mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=jars"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=600)

    if not (shutil.which("java") and shutil.which("mvn")):
        raise Unavailable("ElasticMQ needs Java 17 and Maven")
    return _installed(f"elasticmq-{wanted}", install) / "jars"


def versitygw_program() -> Path:
    """The S3 gateway, built from its Go module."""
    wanted = version("s3")

    def install(folder: Path) -> None:
        command = ["go", "install", f"github.com/versity/versitygw/cmd/versitygw@{wanted}"]
        environment = os.environ | {"GOBIN": str(folder)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=1_200)

    if not shutil.which("go"):
        raise Unavailable("versitygw needs Go")
    return _installed(f"versitygw-{wanted}", install) / "versitygw"


def _installed(name: str, install: Callable[[Path], None]) -> Path:
    """A folder of programs, which is made once for all tests."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    folder = PROGRAMS / name
    with (PROGRAMS / f"{name}.lock").open("w") as waits_for_others:
        fcntl.flock(waits_for_others, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=PROGRAMS))
            try:
                install(unfinished)
            except (OSError, subprocess.SubprocessError) as error:
                shutil.rmtree(unfinished)
                said = getattr(error, "stderr", b"") or b""
                raise Unavailable(f"{name} cannot be installed: {error} {said[-500:]!r}") from error
            unfinished.rename(folder)
    return folder


# the services


class Stack:
    """The services of the compose file, running."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="igneous-services-"))
        self.folder.chmod(0o755)  # for PostgreSQL's user
        self.secrets = new_secrets()
        self.compose = compose(self.secrets)
        self.ports = {name: free_port() for name in ("postgres", "sqs", "s3", "airflow", "health")}
        self.health = {"s3": "/health", "sqs": "/health"}
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.settings: dict[str, str] = {}  # of Airflow, besides those of the compose file
        self.proxies: dict[str, Any] = {}  # in front of services, which all others see instead
        self._token = ""

    def url(self, service: str) -> str:
        if service in self.proxies:
            return str(self.proxies[service].endpoint)
        return f"http://127.0.0.1:{self.ports[service]}"

    def local(self, text: str) -> str:
        """A setting of the compose file, for processes of this machine."""
        places = {
            "http://s3:7070": self.url("s3"),
            "http://sqs:9324": self.url("sqs"),
            "http://airflow:8080": self.url("airflow"),
            "http://localhost:8080": self.url("airflow"),
            "@postgres:5432": f"@127.0.0.1:{self.ports['postgres']}",
            "/opt/igneous/dags": str(ROOT / "dags"),
            "/opt/airflow": str(self.folder / "airflow"),
        }
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """The environment of a service by the compose file, and of ours what does no harm."""
        given = self.compose["services"][service].get("environment", {})
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports["airflow"]),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__PARALLELISM": "4",  # of two cores
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.ports["health"]),
            "NO_PROXY": "127.0.0.1",
        }
        return (
            kept | {name: self.local(value) for name, value in given.items()} | own | self.settings
        )

    def command(self, service: str, entrypoint: list[str]) -> list[str]:
        """What the container of a service runs."""
        described = self.compose["services"][service]
        command = described["command"]
        words = shlex.split(command) if isinstance(command, str) else command
        return [self.local(word) for word in [*described.get("entrypoint", entrypoint), *words]]

    def start(self) -> None:
        (self.folder / "airflow" / "logs").mkdir(parents=True)
        self._start_postgres()
        self.start_storage()
        self.wait_for("postgres", self._postgres_answers)
        for start in ("first", "second"):  # every `docker compose up` runs it
            if self._run("setup", ["airflow"]).wait(_START_SECONDS) != 0:
                raise RuntimeError(f"setup failed at the {start} start: {self.log('setup')}")
        for service in ("airflow", "scheduler", "dag-processor", "triggerer"):
            self._run(service, ["airflow"])
        self.start_workers()
        health = f"{self.url('airflow')}/api/v2/monitor/health"
        self.wait_for("airflow", lambda: self._answers(health))
        account = {"username": "admin", "password": self.secrets["AIRFLOW_ADMIN_PASSWORD"]}
        self._token = self.call("POST", "/auth/token", account)["access_token"]

    def start_storage(self) -> None:
        """Start queue and bucket, without the others."""
        self._start_sqs()
        self._start_s3()
        for service in ("s3", "sqs"):
            health = self.url(service) + self.health[service]
            self.wait_for(service, partial(self._answers, health))
        if self.health["sqs"] == _STAND_IN_HEALTH:
            self._make_queues()

    def start_workers(self) -> None:
        """Start the container of workers, which runs until it is stopped."""
        self._run("worker", ["igneous-airflow", "worker"])

    def stop_workers(self) -> None:
        """Stop that container, whose workers end what they are doing."""
        worker = self.started["worker"]
        worker.terminate()
        worker.wait(_START_SECONDS)

    def restart(self, service: str) -> None:
        """Kill a component of Airflow without a warning, and start it as its container would be."""
        for process in self.processes(service):
            os.kill(process, signal.SIGKILL)
        self.started[service].wait()
        self._run(service, ["airflow"])

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def wait_for(self, service: str, happened: Callable[[], object]) -> None:
        """Wait for something that a service does; fails with its log."""
        deadline = time.monotonic() + _START_SECONDS
        while not happened():
            process = self.started.get(service)
            dead = process is not None and process.poll() is not None
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"{service} does not work: {self.log(service)[-5_000:]}")
            time.sleep(0.3)

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and self.processes():
                time.sleep(0.1)
                for started in self.started.values():
                    started.poll()

    def processes(self, service: str = "") -> list[int]:
        """Everything that runs in the sessions of a service, or of all."""
        chosen = [self.started[service]] if service else self.started.values()
        sessions = {process.pid for process in chosen}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError, OSError):
                if os.getsid(int(folder.name)) in sessions and _is_alive(folder):
                    found.append(int(folder.name))
        return found

    def _run(self, service: str, entrypoint: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return self._spawn(
            service,
            self.command(service, entrypoint),
            env=self.environment(service),
            cwd=self.folder / "airflow",
            **options,
        )

    def _spawn(self, service: str, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.started[service] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        return self.started[service]

    def _start_postgres(self) -> None:
        programs, settings = postgres_programs(), self.environment("postgres")
        folder = self.folder / "postgres"
        folder.mkdir()
        password = folder / "password"
        password.write_text(settings["POSTGRES_PASSWORD"])
        # PostgreSQL refuses to run as root; Debian's package has a user for it
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        name, data = settings["POSTGRES_USER"], str(folder / "data")
        login = ["--username", name, "--auth", "scram-sha-256", "--pwfile", str(password)]
        subprocess.run(
            [programs / "initdb", "--pgdata", data, "--no-sync", *login],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        address = ["-h", "127.0.0.1", "-p", str(self.ports["postgres"]), "-k", str(folder)]
        server = [str(programs / "postgres"), "-D", data, "-F", *address]
        self._spawn("postgres", server, cwd=folder, **user)

    def _postgres_answers(self) -> bool:
        import psycopg2

        settings = self.environment("postgres")
        login = {
            "host": "127.0.0.1",
            "port": self.ports["postgres"],
            "user": settings["POSTGRES_USER"],
            "password": settings["POSTGRES_PASSWORD"],
        }
        try:
            connection = psycopg2.connect(dbname="postgres", **login)
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {settings['POSTGRES_DB']}")
        connection.close()
        return True

    def _start_sqs(self) -> None:
        try:
            jars = elasticmq_jars()
        except Unavailable:
            self._start_stand_in("sqs")
            return
        config = self.folder / "elasticmq.conf"
        config.write_text(self.compose["configs"]["elasticmq"]["content"])
        options = {
            "config.file": config,
            "rest-sqs.bind-hostname": "127.0.0.1",
            "rest-sqs.bind-port": self.ports["sqs"],
        }
        classes = ["-cp", f"{jars}/*", "org.elasticmq.server.Main"]
        defines = [f"-D{name}={value}" for name, value in options.items()]
        self._spawn("sqs", ["java", "-Xmx256m", *defines, *classes])

    def _start_s3(self) -> None:
        try:
            program = versitygw_program()
        except Unavailable:
            self._start_stand_in("s3")
            return
        data = self.folder / "layers"
        data.mkdir()
        words = [word.replace("/data", str(data)) for word in self.command("s3", [])]
        settings = self.environment("s3") | {"VGW_PORT": f"127.0.0.1:{self.ports['s3']}"}
        self._spawn("s3", [str(program), *words], env=settings)

    def _start_stand_in(self, service: str) -> None:
        """Let ministack stand in for a server that a laptop cannot have; CI must have it."""
        if os.environ.get("CI") == "true":
            raise Unavailable(f"the server of {service} cannot be installed")
        program = MINISTACK["required_programs"]() / "ministack"
        port = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.ports[service])}
        self._spawn(service, [str(program)], env=os.environ | port | {"SERVICES": service})
        self.health[service] = _STAND_IN_HEALTH

    def _make_queues(self) -> None:
        """Make what ElasticMQ makes by its configuration."""
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
        client = boto3.client("sqs", region_name="us-east-1", endpoint_url=self.url("sqs"), **keys)
        client.create_queue(QueueName="igneous-dead")
        dead = "arn:aws:sqs:us-east-1:000000000000:igneous-dead"
        policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 1000})
        client.create_queue(QueueName="igneous", Attributes={"RedrivePolicy": policy})

    # the REST interface of Airflow

    def _answers(self, url: str) -> bool:
        try:
            with OPENER.open(url, timeout=10):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def call(self, method: str, path: str, body: Any = None, accept: str = "json") -> Any:
        """Call Airflow's API; raises HTTPError."""
        return call_airflow(self.url("airflow"), self._token, method, path, body, accept)

    def has_dag(self, dag: str) -> bool:
        try:
            self.call("GET", f"/api/v2/dags/{dag}")
        except urllib.error.HTTPError:
            return False
        return True


def _is_alive(folder: Path) -> bool:
    return "\nState:\tZ" not in (folder / "status").read_text()


@contextmanager
def running(stack: Stack, *, storage_only: bool = False) -> Iterator[Stack]:
    """Start everything; what is missing on this machine skips the tests, but fails in CI."""
    import pytest

    try:
        if storage_only:
            stack.start_storage()
        else:
            import psycopg2  # noqa: F401

            stack.start()
        yield stack
    except (Unavailable, ImportError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{error}")
    finally:
        stack.stop()
        shutil.rmtree(stack.folder, ignore_errors=True)
