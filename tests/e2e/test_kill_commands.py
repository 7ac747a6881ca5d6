"""Commands that are killed at random times, while their workers work, and go on with `resume`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from attempts import BASE
from twins import left

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.trash import entries_of
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete, snapshot

RUNS = 10
PATIENCE = 120  # seconds

pytestmark = [
    pytest.mark.services,
    # cloud-volume warns when it is first imported
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A layer of 64 tasks before and after a run."""
    folder = tmp_path_factory.mktemp("twins")
    before, after = folder / "before" / "layer", folder / "after" / "layer"
    voxels = random_voxels(Vec3(251, 256, 63), "uint16")
    write_layer(before, voxels, LayerSpec("segmentation", chunk_size=Vec3(8, 8, 16)))
    shutil.copytree(before, after)
    complete(Downsample(layer=str(after), num_mips=3))
    return before.parent, after.parent


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "igneous_airflow", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """The processes that one has started, workers among them."""
    with suppress(FileNotFoundError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill_all(command: subprocess.Popen[bytes]) -> None:
    os.killpg(command.pid, signal.SIGKILL)


def kill_a_child(command: subprocess.Popen[bytes]) -> None:
    """The kernel does this to who wants too much memory; the command goes on."""
    for child in children(command.pid)[-1:]:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def kill_the_parent(command: subprocess.Popen[bytes]) -> None:
    command.kill()


def ask_to_end(command: subprocess.Popen[bytes]) -> None:
    command.terminate()


def stop_and_kill(command: subprocess.Popen[bytes]) -> None:
    os.killpg(command.pid, signal.SIGSTOP)
    time.sleep(1.5)  # longer than a lease
    os.killpg(command.pid, signal.SIGKILL)


ACCIDENTS = (kill_all, kill_a_child, kill_the_parent, ask_to_end, stop_and_kill)


def wait_until(happened: Callable[[], bool], command: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened() and command.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(BASE, BASE + RUNS), ids="seed{}".format)
def test_commands_killed_at_random_times_are_resumed_to_the_same_bytes(
    seed: int, twins: tuple[Path, Path], tmp_path: Path
) -> None:
    before, after = twins
    root, chance = tmp_path / "root", Random(seed)
    shutil.copytree(before, root)
    run, _ = Run.launch(
        Downsample(layer=f"{root}/layer", num_mips=3),
        url=f"file://{root}/runs/run",
        queue=f"sqlite://{root}/queues/queue.db",
        by="tester",
    )
    run.prepare()
    run.enqueue()
    accident, enough = ACCIDENTS[seed % len(ACCIDENTS)], chance.randint(1, 40)
    workers = start(
        *("worker", run.queue, "--runs", run.runs_folder, "--processes", "2"),
        *("--until-done", "--lease-seconds", "1"),
    )
    wait_until(lambda: run.done().count >= enough, workers)
    time.sleep(chance.uniform(0, 0.05))
    accident(workers)
    workers.wait(PATIENCE)
    print(f"seed {seed}: {accident.__name__} after {run.done().count} of {run.planned} tasks")
    assert start("resume", run.url, "--processes", "2").wait(PATIENCE) == 0
    assert Run.load(run.url).state is LaunchState.DONE
    assert voxels(root) == voxels(after)
    assert run.finish() == run.summary()
    assert list(root.rglob("*.partial")) == []


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of 4,096 chunks, whose delete has 16 tasks."""
    layer = tmp_path_factory.mktemp("fine") / "layer"
    write_layer(layer, random_voxels(Vec3(128, 128, 16)), LayerSpec(chunk_size=(2, 2, 16)))
    return layer


def chunks(folder: Path) -> dict[str, bytes]:
    return snapshot(folder / "8_8_40")


def kept(layer: Path) -> dict[str, bytes]:
    """The chunks in the only entry of the trash, if there is one."""
    return {name: c for entry in layer.glob(".trash/*/files") for name, c in chunks(entry).items()}


def number_kept(layer: Path) -> int:
    """How many chunks are in the trash while they come and go."""
    with suppress(FileNotFoundError):
        return sum(1 for folder in layer.glob(".trash/*/files/8_8_40") for _ in folder.iterdir())
    return 0


def trash(what: str, layer: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return start("trash", what, str(layer), *arguments, "--runs", f"{layer.parent}/runs")


@pytest.mark.parametrize("seed", range(BASE, BASE + RUNS), ids="seed{}".format)
@pytest.mark.parametrize("what", ["restore", "empty"])
def test_trash_commands_that_are_killed_lose_nothing_and_end_when_started_again(
    what: str, seed: int, fine: Path, tmp_path: Path
) -> None:
    layer, chance = tmp_path / "layer", Random(seed)
    shutil.copytree(fine, layer)
    whole = chunks(layer)
    complete(Delete(layer=str(layer), confirm=True))
    (entry,) = entries_of(open_folder(f"file://{layer}"))
    arguments = (entry.name,) if what == "restore" else ("--yes",)
    enough = chance.randint(1, len(whole))
    command = trash(what, layer, *arguments)
    wait_until(lambda: number_kept(layer) <= len(whole) - enough, command)
    kill_all(command)
    command.wait(PATIENCE)
    print(f"seed {seed}: {what} was killed with {len(kept(layer))} files in the trash")
    if what == "restore":
        assert chunks(layer) | kept(layer) == whole
    assert trash(what, layer, *arguments).wait(PATIENCE) == 0
    assert chunks(layer) == (whole if what == "restore" else {})
    assert list((layer / ".trash").iterdir()) == []


@pytest.mark.parametrize("seed", range(BASE, BASE + RUNS), ids="seed{}".format)
def test_trash_commands_beside_a_delete_that_goes_on_lose_nothing(
    seed: int, fine: Path, tmp_path: Path
) -> None:
    layer, chance = tmp_path / "layer", Random(seed)
    shutil.copytree(fine, layer)
    whole = chunks(layer)
    run, _ = Run.launch(
        Delete(layer=str(layer), confirm=True, scales="8_8_40"),
        url=f"file://{tmp_path}/runs/run",
        queue=f"sqlite://{tmp_path}/queue.db",
        by="tester",
    )
    run.prepare()
    run.enqueue()
    entry, enough = str(run.resolved["trash_entry"]), chance.randint(1, 10)
    workers = start("worker", run.queue, "--runs", run.runs_folder, "--until-done")
    wait_until(lambda: run.done().count >= enough, workers)
    commands = [
        trash("restore", layer, entry),
        trash("empty", layer, "--yes"),
        trash("restore", layer, entry, "--unfinished"),
    ]
    for command in (*commands, workers):
        command.wait(PATIENCE)
    assert chunks(layer) | kept(layer) == whole
    for _ in range(2):  # the first finds what was restored, and has it deleted again
        start("resume", run.url, "--processes", "1").wait(PATIENCE)
    assert Run.load(run.url).state is LaunchState.DONE
    assert (chunks(layer), kept(layer)) == ({}, whole)
    assert trash("restore", layer, entry).wait(PATIENCE) == 0
    assert chunks(layer) == whole


def voxels(root: Path) -> dict[str, object]:
    """All but the provenance, whose authors differ."""
    return {name: file for name, file in left(root, root).items() if isinstance(file, bytes)}
