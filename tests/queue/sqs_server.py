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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench" / "ministack"
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


def install() -> Path:
    """Make the server's own environment, unless it is there, and return the program's path.

    It needs one of its own, since it asks for one certain release of botocore.
    """
    made_from, uv = FOLDER / "ministack.lock", str(ROOT / ".venv" / "bin" / "uv")
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as waits_for_others:
        fcntl.flock(waits_for_others, fcntl.LOCK_EX)
        if not made_from.exists() or made_from.read_bytes() != LOCK.read_bytes():
            python = str(FOLDER / "bin" / "python")
            try:
                subprocess.run([uv, "venv", "--quiet", "--clear", str(FOLDER)], check=True)
                pip = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python]
                subprocess.run([*pip, str(LOCK)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Unavailable(f"ministack cannot be installed: {error}") from error
            shutil.copyfile(LOCK, made_from)
    return FOLDER / "bin" / "ministack"


@contextmanager
def running(services: str = "sqs") -> Iterator[str]:
    """Run the server on a free port of this machine only, and give its address."""
    program = install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": services}
    server = subprocess.Popen(
        [program],
        env=os.environ | settings | {"LOG_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, endpoint)
        yield endpoint
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def required(services: str = "sqs") -> Iterator[str]:
    """Run the server for tests: where it cannot be installed, skip on a laptop and fail in CI."""
    import pytest

    try:
        install()
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with running(services) as endpoint:
        yield endpoint


def _wait_for(server: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"ministack does not answer at {endpoint}")
