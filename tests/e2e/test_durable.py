"""The order in which a worker's files reach the disk, by a trace of the system calls."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

_CALLS = "trace=openat,close,fdatasync,fsync,rename,renameat,renameat2"


def traced(run: Run, folder: Path, *options: str) -> list[str]:
    """Work on a run under strace; returns what was synced and renamed, in order."""
    command = [sys.executable, "-m", "igneous_airflow", "worker", run.queue, "--until-done"]
    log = folder / "trace"
    strace = ["strace", "-f", "-y", "-e", _CALLS, "-o", str(log)]
    subprocess.run([*strace, *command, "--runs", run.runs_folder, *options], check=True)
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if match := re.search(r"(fdatasync|fsync)\(\d+<([^>]*)>", line):
            found.append(f"{match[1]} {match[2]}")
        elif match := re.search(r"rename\w*\(.*\"([^\"]*)\"\)?", line):
            found.append(f"rename {match[1]}")
    return found


def launched(folder: Path) -> Run:
    layer = write_layer(folder / "layer", random_voxels(Vec3(64, 32, 8)))
    run, _ = Run.launch(
        Downsample(layer=layer, num_mips=2),
        url=f"file://{folder}/runs/run",
        queue=f"sqlite://{folder}/queue.db",
        by="tester",
    )
    run.prepare()
    run.enqueue()
    return run


def test_each_file_and_each_folder_is_synced_once_before_the_receipt(tmp_path: Path) -> None:
    run = launched(tmp_path)
    calls = traced(run, tmp_path)
    receipts = [at for at, call in enumerate(calls) if re.match(r"rename .*/runs/run/done/", call)]
    assert len(receipts) == run.planned > 1
    start = 0
    for end in receipts:
        task = calls[start:end]
        chunks = [c.removeprefix("rename ") for c in task if re.match(r"rename .*/layer/\d", c)]
        files = [c.removeprefix("fdatasync ") for c in task if c.startswith("fdatasync ")]
        folders = [
            c.removeprefix("fsync ") for c in task if c.startswith(f"fsync {tmp_path}/layer")
        ]
        assert chunks
        assert sorted(f for f in files if "/layer/" in f) == sorted(chunks), "each file once"
        wanted = {str(Path(chunk).parent) for chunk in chunks} | {f"{tmp_path}/layer"}
        assert sorted(folders) == sorted(wanted), "each folder once"
        last_write = max(task.index(f"rename {chunk}") for chunk in chunks)
        first_file = min(task.index(f"fdatasync {chunk}") for chunk in chunks)
        last_file = max(task.index(f"fdatasync {chunk}") for chunk in chunks)
        first_folder = min(task.index(f"fsync {folder}") for folder in folders)
        assert last_write < first_file <= last_file < first_folder
        start = end + 1
    run.finish()


def test_on_a_scratch_disk_nothing_of_the_layer_is_synced(tmp_path: Path) -> None:
    run = launched(tmp_path)
    calls = traced(run, tmp_path, "--no-sync")
    assert not [call for call in calls if "sync" in call.split()[0] and "/layer" in call]
    run.finish()
