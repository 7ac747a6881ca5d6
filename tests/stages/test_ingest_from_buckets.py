"""HDF5 from a real S3-compatible server: what arrives, and how the processes that read it end."""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import h5py
import numpy as np
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import random_voxels, read_with_tensorstore

SERVER = runpy.run_path(str(Path(__file__).parent.parent / "queue" / "sqs_server.py"))
VOXELS = random_voxels(Vec3(128, 128, 64), "uint8")
#: Starts processes as a pool of workers does, of which each does a task and ends; prints how.
WORK_AND_END = """
import multiprocessing, sys

def work(source, dest):
    from igneous_airflow.stages.ingest import Ingest
    from igneous_airflow.worker.memory import spare_what_lasts
    stage = Ingest(source=source, dest=dest, axes="zyx", resolution=(8, 8, 8), max_mips=0)
    stage.prepare()
    stage.run(stage.cells()[0])
    spare_what_lasts()

if __name__ == "__main__":
    source, folder, count = sys.argv[1:]
    context = multiprocessing.get_context("spawn")
    for _ in range(0, int(count), 2):
        pair = [context.Process(target=work, args=(source, f"{folder}/d{i}")) for i in range(2)]
        for child in pair:
            child.start()
        for child in pair:
            child.join()
            print(child.exitcode)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the same voxels in several forms, and the environment that leads there."""
    folder = tmp_path_factory.mktemp("hdf5")
    array = VOXELS[..., 0].transpose(2, 1, 0)
    with h5py.File(folder / "packed.h5", "w") as file:
        file.create_dataset("main", data=array, chunks=(16, 64, 64), compression="gzip")
    with h5py.File(folder / "szip.h5", "w") as file:
        file.create_dataset("main", data=array, chunks=(16, 64, 64), compression="szip")
    layout = h5py.VirtualLayout(array.shape, "uint8")
    layout[:] = h5py.VirtualSource("packed.h5", "main", array.shape)[:]
    with h5py.File(folder / "virtual.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    with SERVER["required"]("s3") as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="hdf5-sources")
        for path in folder.iterdir():
            client.upload_file(str(path), "hdf5-sources", f"data/{path.name}")
        client.close()
        yield {path.stem: f"s3://hdf5-sources/data/{path.name}" for path in folder.iterdir()}


@pytest.mark.parametrize(("form", "count"), [("packed", 12), ("szip", 2), ("virtual", 2)])
def test_processes_that_have_read_hdf5_from_a_bucket_end_well(
    source, tmp_path: Path, form: str, count: int
) -> None:
    """HDF5 closes at the very end what is open then, when nothing can be read from a bucket."""
    program = tmp_path / "work_and_end.py"
    program.write_text(WORK_AND_END)
    command = [sys.executable, str(program), source[form], str(tmp_path), str(count)]
    answer = subprocess.run(command, capture_output=True, check=True, text=True, timeout=280)
    assert answer.stdout.split() == ["0"] * count, answer.stderr


def test_an_ingest_from_a_bucket_ends_with_0_and_no_worker_is_killed(
    source, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "igneous_airflow", "ingest", source["packed"], f"{tmp_path}/d"),
        *("--axes", "zyx", "--resolution", "8,8,8", "--runs", f"{tmp_path}/runs"),
        *("--shape", "64,64,64", "--max-mips", "0", "--processes", "2"),
        *("--compress", "none"),
    ]
    answer = subprocess.run(command, capture_output=True, check=False, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr
    assert "killed" not in answer.stderr
    assert "all 4 tasks are done" in answer.stdout
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "d", 0), VOXELS)
