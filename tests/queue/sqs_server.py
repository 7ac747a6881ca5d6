"""Starts a local server that speaks the languages of SQS and S3, for tests and benchmarks.

Other files load this one by its path: tests are no package.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
LOCK = Path(__file__).with_name("ministack.lock")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_SECONDS = 30


class Unavailable(Exception):
    """The server cannot be installed here."""


def install(lock: Path = LOCK) -> Path:
    """Make a program's own environment, unless it is there, and return the folder of its programs.

    `ministack.lock` makes one called `ministack`. It needs one of its own, since it asks for one
    certain release of botocore.
    """
    folder = FOLDER / lock.stem
    made_from, uv = folder / lock.name, str(ROOT / ".venv" / "bin" / "uv")
    FOLDER.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as waits_for_others:
        fcntl.flock(waits_for_others, fcntl.LOCK_EX)
        if not made_from.exists() or made_from.read_bytes() != lock.read_bytes():
            python = str(folder / "bin" / "python")
            try:
                subprocess.run([uv, "venv", "--quiet", "--clear", str(folder)], check=True)
                pip = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python]
                subprocess.run([*pip, str(lock)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Unavailable(f"{lock.stem} cannot be installed: {error}") from error
            shutil.copyfile(lock, made_from)
    return folder / "bin"


def required_programs(lock: Path = LOCK) -> Path:
    """Install for tests: what cannot be had skips them on a laptop, and fails in CI."""
    import pytest

    try:
        return install(lock)
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@contextmanager
def running(services: str = "sqs") -> Iterator[str]:
    """Run the server on a free port of this machine only, and give its address."""
    program, port = install() / "ministack", free_port()
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": services}
    environment = os.environ | settings | {"LOG_LEVEL": "ERROR"}
    endpoint = f"http://127.0.0.1:{port}"
    with process([str(program)], f"{endpoint}/_ministack/health", environment):
        yield endpoint


@contextmanager
def process(command: list[str], health: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the block is left; enter it when the server answers at `health`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, **quiet)
    try:
        _wait_for(server, health)
        yield
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def required(services: str = "sqs") -> Iterator[str]:
    """Run the server for tests: where it cannot be installed, skip on a laptop and fail in CI."""
    required_programs()
    with running(services) as endpoint:
        yield endpoint


def _wait_for(server: subprocess.Popen[bytes], health: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"there is no answer at {health}")
