"""Make `tests/data/format1`: layers and run folders in the formats of version 0.1.0.

Run with the code of that version, at the commit that added this file; later code writes other
formats. `python tests/data/make_format1.py` replaces everything there but the README.
"""

import contextlib
import gzip
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from igneous_airflow.forecast import Forecast, Prices, Rate
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.ledger import Ledger
from igneous_airflow.run import Run
from igneous_airflow.stage import Stage
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.task import Task
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions, _give_back

DATA = Path(__file__).parent / "format1"
REPOSITORY = Path(__file__).parents[2]
#: What stands in the data for the folder that holds `layers` and `runs`.
PLACEHOLDER = "/placeholder"
HOST = "worker-host"
SIZE, CHUNK, OFFSET = Vec3(64, 32, 16), (8, 8, 8), (3, -7, 11)


def main() -> None:
    """Make the data in a temporary folder, and put them here without that folder's name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_layers(root)
        make_unfinished_run(root)
        make_finished_runs(root)
        make_held_runs(root)
        anonymize(root)
        for name in ("layers", "runs"):
            shutil.rmtree(DATA / name, ignore_errors=True)
            shutil.copytree(root / name, DATA / name)


def make_layers(root: Path) -> None:
    """An image for each kind of run, half of it background, and a segmentation."""
    image = random_voxels(SIZE)
    image[:32, :, :8] = 0
    spec = LayerSpec(chunk_size=CHUNK, voxel_offset=OFFSET)
    for name in ("image", "finished_image"):
        write_layer(root / "layers" / name, image, spec)
    labels = np.zeros((*Vec3(24, 20, 16), 1), np.uint64, order="F")
    labels[1:14, 1:14, 2:9] = 1
    labels[10:23, 8:19, 9:15] = 2**63 + 5
    labels[15:23, 2:7, 2:15] = 77
    spec = LayerSpec("segmentation", chunk_size=CHUNK, voxel_offset=OFFSET)
    write_layer(root / "layers" / "segmentation", labels, spec)


def launch(root: Path, name: str, stage: Stage, batch: int = 1, *, plan_only: bool = False) -> Run:
    """Record a run, with its plan as Airflow notes it."""
    url = f"file://{root}/runs/{name}"
    run, plan = Run.launch(
        stage,
        url=url,
        queue=f"sqlite://{root}/runs/{name}/queue.db",
        by="tester@example.org",
        origin={"dag": f"igneous_{stage.name}", "run": "manual__2026-01-01"},
        batch=batch,
        plan_only=plan_only,
    )
    run.write_plan(Forecast.make(plan, run, Rate.measure(iter(())), 2, Prices.parse("", "prices")))
    return run


def make_unfinished_run(root: Path) -> None:
    """A run of 16 tasks with everything that can be in its folder and its queue.

    Tasks 0, 1, 4, 5 and 6 are done; 0, 1, 4 and 5 left out what is background. Task 2 was given
    up, 3 waits after a failure, a worker died with 7, another gave 8 back, and the others wait.
    What made 2 and 3 fail is fixed.
    """
    layer = root / "layers" / "image"
    stage = Downsample(
        layer=f"file://{layer}", mip=-1, num_mips=1, skip_empty="skip", compress="none"
    )
    run = launch(root, "unfinished", stage)
    run.prepare()
    run.enqueue()
    queue = run.open_queue()
    worker = Worker(queue, WorkerOptions(retry_delay=86_400.0), lambda _event: None)
    for _ in range(7):
        lease = queue.lease(60)
        assert lease is not None
        cell = run.make_stage().cells()[Task.decode(lease.body).index]
        chunk = layer / "8_8_40" / str(BoundingBox.at(cell.min, Vec3(*CHUNK)))
        with broken(chunk, Task.decode(lease.body).index):
            worker.settle(lease)
    assert queue.lease(0.001) is not None  # of a worker that died
    lease = queue.lease(60)
    assert lease is not None
    _give_back(queue, lease)
    queue.close()
    Ledger(run.url, run.launch_id).note_worker(f"{socket.gethostname()}:123", 7)
    (root / "runs" / "unfinished" / "done" / "0000000009-0ldlaunch").touch()  # counts nothing


@contextlib.contextmanager
def broken(chunk: Path, task: int) -> Iterator[None]:
    """Let task 2 read a chunk that is damaged, and task 3 one that cannot be read just now."""
    if task not in (2, 3):
        yield
        return
    (stored,) = (path for path in chunk.parent.glob(f"{chunk.name}*"))
    content = stored.read_bytes()
    stored.unlink()
    if task == 2:
        stored.write_bytes(b"damaged")
    else:
        stored.symlink_to(stored.name)
    yield
    stored.unlink()
    stored.write_bytes(content)


def make_finished_runs(root: Path) -> None:
    """Two that the command line's workers did, two cells a task, and meshes with manifests."""
    layer = f"file://{root}/layers/finished_image"
    segmentation = f"file://{root}/layers/segmentation"
    stages: dict[str, Stage] = {
        "finished": Downsample(layer=layer, num_mips=2, skip_empty="skip"),
        "mesh": Mesh(layer=segmentation, shape=Vec3(12, 10, 16)),
        "manifest": MeshManifest(layer=segmentation),
    }
    for name, stage in stages.items():
        run = launch(root, name, stage, batch=2)
        run.prepare()
        run.enqueue()
        command("worker", run.queue, "--until-done")
        command("finish", run.url)


def command(*words: str) -> None:
    """Run a command of the command line."""
    subprocess.run([Path(sys.executable).with_name("igneous-airflow"), *words], check=True)


def make_held_runs(root: Path) -> None:
    """One that was only planned, one that waits for approval, one that was approved."""
    stage = Downsample(layer=f"file://{root}/layers/image", num_mips=1, factor=Vec3(2, 2, 2))
    launch(root, "planned", stage, plan_only=True)
    why = "it waits for approval, since its 8 tasks are over 5"
    launch(root, "waiting_for_approval", stage).hold.place(why)
    approved = launch(root, "approved", stage)
    approved.hold.place(why)
    approved.hold.release("reviewer@example.org")
    rejected = launch(root, "rejected", stage)
    rejected.hold.place("reviewer@example.org has rejected its plan")


def anonymize(root: Path) -> None:
    """Replace the names of folders and of this machine in every text, and in the queues."""
    texts = {
        str(root): PLACEHOLDER,
        str(REPOSITORY): "/source",
        sys.base_prefix: "/python",
        f'"{socket.gethostname()}:': f'"{HOST}:',
    }
    for path in [*root.glob("layers/*/info"), *root.glob("layers/*/provenance")]:
        path.write_bytes(replaced(path.read_bytes(), texts))
    for path in filter(Path.is_file, root.glob("runs/**/*")):
        if path.name == "queue.db":
            anonymize_queue(path, texts)
        elif path.suffix == ".gz":
            text = replaced(gzip.decompress(path.read_bytes()), texts)
            path.write_bytes(gzip.compress(text, mtime=0))
        else:
            path.write_bytes(replaced(path.read_bytes(), texts))
        if path.parent.name == "workers":
            path.rename(path.with_name(path.name.replace(socket.gethostname(), HOST)))


def replaced(content: bytes, texts: dict[str, str]) -> bytes:
    """The content with each text replaced."""
    for old, new in texts.items():
        content = content.replace(old.encode(), new.encode())
    return content


def anonymize_queue(path: Path, texts: dict[str, str]) -> None:
    """Replace texts in the messages of a queue, and put what is in its log into its one file."""
    connection = sqlite3.connect(path)
    for table, column in (("messages", "body"), ("dead", "body"), ("dead", "reason")):
        for texts_of_one in texts.items():
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", texts_of_one
            )
    connection.commit()
    connection.execute("VACUUM")  # leaves no page with the old texts
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


if __name__ == "__main__":
    main()
