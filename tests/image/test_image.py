"""The worker image itself, run by docker or podman as a cluster would run it; `make image-test`."""

import json
import os
import runpy
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.progress import State
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

pytestmark = [pytest.mark.image, pytest.mark.timeout(300)]

SQS = runpy.run_path(str(Path(__file__).parents[1] / "queue" / "sqs_server.py"))
ENGINE = os.environ.get("IGNEOUS_AIRFLOW_ENGINE", "podman")
IMAGE = os.environ.get("IGNEOUS_AIRFLOW_IMAGE", "")
MEGABYTE = 10**6
# the security context of pod_template.yaml, in the engine's words
LOCKED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# podman keeps health checks as timers of systemd, which containers and CI machines do not have
NO_TIMERS = ("--no-healthcheck",) if ENGINE == "podman" else ()


@pytest.fixture(scope="module", autouse=True)
def _image_is_given() -> None:
    assert IMAGE, "run these tests by `make image-test`"


def engine(*arguments: str, check: bool = True) -> str:
    answer = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, check=False)
    assert not check or answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def container(*arguments: str, options: tuple[str, ...] = ()) -> str:
    """Run the image's entry point to its end and return what it wrote."""
    fixed = ("run", "--rm", "--network=host", *LOCKED, *NO_TIMERS)
    return engine(*fixed, *options, IMAGE, *arguments)


def python(script: str) -> str:
    """Run a script with the image's Python instead of the entry point."""
    return container("-c", script, options=("--entrypoint=python3",))


def mounted(folder: Path) -> tuple[str, ...]:
    return (f"--volume={folder}:{folder}",)


@pytest.fixture(scope="module")
def description() -> dict:
    return json.loads(engine("image", "inspect", IMAGE))[0]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which the container's user may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def launch(folder: Path, layer: str = "layer", queue: str = "") -> Run:
    """A run of 16 tasks in the shared folder, which anybody may go on with."""
    write_layer(folder / layer, random_voxels(Vec3(64, 32, 16)))
    stage = Downsample(layer=f"file://{folder}/{layer}", num_mips=1)
    url = f"file://{folder}/run-{layer}"
    run, _ = Run.launch(stage, url=url, queue=queue or f"sqlite://{folder}/{layer}.db", by="me")
    run.prepare()
    run.enqueue()
    for path in folder.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return run


def stored(layer: Path) -> dict[str, bytes]:
    files = (path for path in layer.rglob("*") if path.is_file() and path.name != "provenance")
    return {str(path.relative_to(layer)): path.read_bytes() for path in files}


def assert_drained(run: Run, folder: Path) -> None:
    """The run is done, and its layer the same as one that was worked on without a container."""
    assert run.progress().state is State.DONE
    run.finish()
    twin = launch(folder, "twin")
    Worker(
        twin.open_queue(), twin.runs_folder, WorkerOptions(until_done=True), lambda _: None
    ).work()
    twin.finish()
    assert stored(folder / "layer") == stored(folder / "twin")


def test_the_entry_point_is_the_worker_and_tells_its_version() -> None:
    assert version("igneous-airflow") in container("--version")
    assert "Work on the tasks of QUEUE" in container("--help")


def test_the_image_is_small_and_labelled(description: dict) -> None:
    assert description["Size"] < 900 * MEGABYTE
    labels = description["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version("igneous-airflow")
    assert len(labels["org.opencontainers.image.revision"]) == 40


def test_the_user_is_a_number_and_not_root(description: dict) -> None:
    user = description["Config"]["User"]
    assert [int(part) > 0 for part in user.split(":")] == [True, True]
    assert python("import os; print(os.getuid(), os.getgid())").split() == user.split(":")


def test_it_holds_what_every_stage_needs_and_no_airflow() -> None:
    script = """
import importlib.util, pkgutil
import cloudvolume, compresso, crackle, fastremap, meshoptimizer, tinybrain, zmesh
import h5py, imagecodecs, nibabel, tifffile, zarr
import igneous_airflow
from igneous_airflow.stages import registered_stages
print(*registered_stages())
for name in ("airflow", "uv", "pip", "mypy"):
    assert importlib.util.find_spec(name) is None, name
"""
    from igneous_airflow.stages import registered_stages

    assert python(script).split() == list(registered_stages())


def test_it_holds_the_locked_versions() -> None:
    script = """
import re
from importlib.metadata import distributions
for found in distributions():
    print(re.sub("[-_.]+", "-", found.name).lower() + "==" + found.version)
"""
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    locked = {line.split()[0].lower() for line in lock.splitlines() if "==" in line}
    found = set(python(script).split())
    own = {f"igneous-airflow=={version('igneous-airflow')}"}
    assert found - own <= locked
    assert len(found) > 50


def test_it_drains_a_sqlite_queue_on_a_mounted_folder(shared: Path) -> None:
    run = launch(shared)
    log = container(run.queue, "--until-done", options=mounted(shared))
    assert log.count("outcome=done") == run.planned == 16
    assert_drained(run, shared)


def test_it_drains_a_queue_on_sqs(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SQS["CREDENTIALS"].items():
        monkeypatch.setenv(name, value)
    credentials = tuple(f"--env={name}" for name in SQS["CREDENTIALS"])
    with SQS["running"]() as endpoint:
        queue = f"sqs://image-test?region=us-east-1&endpoint={endpoint}"
        run = launch(shared, queue=queue)
        log = container(queue, "--until-done", options=(*mounted(shared), *credentials))
        assert log.count("outcome=done") == run.planned
        assert_drained(run, shared)


@pytest.fixture
def started(shared: Path) -> Iterator[Callable[..., str]]:
    """Start a container on the shared folder, to be watched; it is removed afterwards."""
    name = f"igneous-airflow-test-{uuid4().hex[:8]}"

    def start(*arguments: str) -> str:
        fixed = ("run", "--detach", f"--name={name}", "--network=host", *LOCKED, *NO_TIMERS)
        engine(*fixed, *mounted(shared), IMAGE, *arguments)
        return name

    yield start
    engine("rm", "--force", name, check=False)


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_stopping_the_container_gives_its_task_back(
    shared: Path, started: Callable[..., str]
) -> None:
    run = launch(shared)
    chunk = next((shared / "layer" / "8_8_40").iterdir())
    content = chunk.read_bytes()
    chunk.unlink()
    os.mkfifo(chunk)  # who reads it waits
    chunk.chmod(0o666)
    name = started(run.queue, "--until-done", "--grace-seconds", "1", "--stopped-code", "143")

    writer = -1

    def hold() -> bool:
        nonlocal writer
        with suppress(OSError):
            writer = os.open(chunk, os.O_WRONLY | os.O_NONBLOCK)
        return writer >= 0

    wait_until(hold)
    engine("stop", "--time=30", name)
    os.close(writer)
    assert json.loads(engine("inspect", name))[0]["State"]["ExitCode"] == 143
    assert "outcome='given back'" in engine("logs", name)
    assert (run.progress().leased, run.progress().dead) == (0, 0)

    chunk.unlink()
    chunk.write_bytes(content)
    chunk.chmod(0o666)
    container(run.queue, "--until-done", options=mounted(shared))
    assert_drained(run, shared)


def test_the_probe_tells_a_live_worker_from_a_dead_one(
    shared: Path, started: Callable[..., str]
) -> None:
    run = launch(shared)
    run.open_queue().purge()
    for path in shared.glob("*.db*"):
        path.chmod(0o666)
    name = started(run.queue)

    def healthy(alive_file: str) -> bool:
        environment = f"--env=IGNEOUS_AIRFLOW_ALIVE_FILE={alive_file}"
        probe = [ENGINE, "exec", environment, name, "sh", "/usr/local/bin/healthy"]
        return subprocess.run(probe, check=False).returncode == 0

    wait_until(lambda: healthy("/tmp/worker.alive"))
    engine("exec", name, "touch", "--date=-2 minutes", "/tmp/stale")
    assert not healthy("/tmp/stale")


def test_the_image_names_its_probe(description: dict) -> None:
    check = description.get("Healthcheck") or description["Config"]["Healthcheck"]  # podman, docker
    assert check["Test"] == ["CMD", "sh", "/usr/local/bin/healthy"]
