"""Whole runs on this machine, with the accidents that happen to them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.progress import State
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

ANSWER = 60  # seconds

# cloud-volume warns when it is first imported
pytestmark = pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "igneous_airflow", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=ANSWER,
    )


def launch(layer: Path, state: Path) -> Run:
    run, _ = Run.launch(
        Downsample(layer=str(layer), num_mips=3),
        url=f"file://{state}/runs/run-{layer.name}",
        queue=f"sqlite://{state}/runs/run-{layer.name}/queue.db",
        by="somebody",
    )
    run.prepare()
    run.enqueue()
    return run


def work_undisturbed(run: Run) -> None:
    options = WorkerOptions(idle_seconds=0, until_done=True)
    Worker(run.open_queue(), run.runs_folder, options, lambda _: None).work()
    run.finish()


def stored(layer: Path) -> dict[str, bytes]:
    """The bytes of every file of a layer, but for the provenance, which holds the time."""
    return {
        str(path.relative_to(layer)): path.read_bytes()
        for path in layer.rglob("*")
        if path.is_file() and path.name != "provenance"
    }


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """Two layers alike, of 64 tasks that make three mips and take some 10 milliseconds each."""
    first, second = tmp_path / "disturbed", tmp_path / "undisturbed"
    voxels = random_voxels(Vec3(256, 256, 64), "uint16")
    write_layer(first, voxels, LayerSpec("segmentation", chunk_size=Vec3(8, 8, 16)))
    shutil.copytree(first, second)
    return first, second


def test_workers_killed_at_random_moments_leave_what_an_undisturbed_run_leaves(
    layers: tuple[Path, Path], tmp_path: Path
):
    disturbed, undisturbed = layers
    work_undisturbed(launch(undisturbed, tmp_path))
    run = launch(disturbed, tmp_path)
    assert run.planned == 64
    chance = random.Random(5)
    done = [0]
    for _ in range(3):
        workers = subprocess.Popen(
            [
                *(sys.executable, "-m", "igneous_airflow", "worker", run.queue),
                *("--runs", run.runs_folder),
                *("--processes", "2", "--until-done", "--lease-seconds", "1"),
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: run.done().count > done[-1])
        time.sleep(chance.uniform(0, 0.08))
        os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()
        done.append(run.done().count)
    assert done == sorted(set(done)), "every round got a little further"
    assert done[-1] < run.planned, "the layer is too small to be disturbed so often"
    answer = command("resume", run.url, "--processes", "2")
    assert answer.returncode == 0, answer.stderr
    assert run.is_finished
    assert stored(disturbed) == stored(undisturbed)


def test_what_killed_workers_left_half_written_is_removed(tmp_path: Path):
    layer = tmp_path / "layer"
    write_layer(layer, random_voxels(Vec3(32, 16, 8)))
    run = launch(layer, tmp_path / "state")
    scale = layer / "16_16_40"
    scale.mkdir()
    host = socket.gethostname().replace(".", "_")
    nobody = 4_194_305  # beyond the largest id of a process
    (scale / f".0-8_0-8_0-8.{host}-{nobody}-a.partial").touch()
    work_undisturbed(run)
    assert sorted(path.name for path in scale.iterdir()) == [
        "0-8_0-8_0-8.gz",
        "8-16_0-8_0-8.gz",
    ]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory that is almost full of the layer put there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("not allowed to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    tiny_disk: Path, tmp_path: Path
):
    full, roomy = tiny_disk / "full", tmp_path / "roomy"
    noise = np.random.default_rng(1).integers(0, 256, (128, 64, 64, 1), "uint8")
    voxels = np.asfortranarray(noise)
    spec = LayerSpec(chunk_size=Vec3(16, 16, 16))
    write_layer(full, voxels, spec)
    write_layer(roomy, voxels, spec)
    (tiny_disk / "ballast").write_bytes(b"x" * 380_000)
    work_undisturbed(launch(roomy, tmp_path))
    run = launch(full, tmp_path)

    answer = command(
        "worker", run.queue, "--runs", run.runs_folder, "--until-done", "--max-attempts", "1"
    )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    assert run.progress().state is State.FAILED
    for failure in run.final_failures():
        assert f"cannot write {full}/" in failure.error
        assert "No space left on device" in failure.error

    subprocess.run(["mount", "-o", "remount,size=8M", str(tiny_disk)], check=True)
    answer = command("resume", run.url, "--processes", "1")
    assert answer.returncode == 0, answer.stderr
    assert stored(full) == stored(roomy)


def test_a_full_disk_under_queue_and_receipts_ends_in_words_and_can_be_mended(
    tiny_disk: Path, tmp_path: Path
):
    layer = tmp_path / "layer"
    write_layer(layer, random_voxels(Vec3(128, 128, 8)))
    run = launch(layer, tiny_disk)
    ballast = tiny_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            pass
    answer = command("worker", run.queue, "--runs", run.runs_folder, "--until-done")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "full" in answer.stdout + answer.stderr
    assert not run.is_finished

    ballast.unlink()
    answer = command("resume", run.url)
    assert answer.returncode == 0, answer.stderr
    assert run.is_finished


def test_an_interrupted_command_says_how_to_go_on_and_does(
    layers: tuple[Path, Path], tmp_path: Path
):
    disturbed, undisturbed = layers
    work_undisturbed(launch(undisturbed, tmp_path))
    state = tmp_path / "state"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "igneous_airflow", "downsample", str(disturbed)),
            *("--num-mips", "3", "--runs", str(state), "--processes", "1"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        wait_until(lambda: len(list(state.glob("*/done/*"))) > 2)
        os.killpg(started.pid, signal.SIGINT)  # as Ctrl-C does
        _, words = started.communicate(timeout=ANSWER)
    assert started.returncode == 130
    assert "Traceback" not in words
    (folder,) = state.glob("[!.]*")  # not the audit log
    assert f"igneous-airflow resume {folder}" in words
    run = Run.load(f"file://{folder}")
    assert (run.progress().leased, run.progress().dead) == (0, 0)
    answer = command("resume", str(folder))
    assert answer.returncode == 0, answer.stderr
    assert stored(disturbed) == stored(undisturbed)
