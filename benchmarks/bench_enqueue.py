"""What a run costs beside its work: planning and sending a million tasks, and a task of no work.

Prints seconds, and megabytes of peak memory. `--tasks` of the first part, about.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from benchmarks.bench_queue import peak_megabytes, row, row_below
from igneous_airflow.proof import Account
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.worker.loop import Worker, WorkerOptions

_IDLE_TASKS = 500
_CHUNK = 64
_SECONDS, _MEGABYTES, _IDLE_MILLISECONDS = 60, 300, 5  # all that a million tasks may take


class Nothing(Stage):
    """Does nothing, once a cell."""

    name: ClassVar[str] = "nothing"
    count: int = _IDLE_TASKS

    def plan(self) -> Plan:  # noqa: D102
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        """Write nothing."""

    def cells(self) -> Sequence[int]:  # noqa: D102
        return range(self.count)

    def run(self, cell: int) -> Work:  # noqa: ARG002, D102
        return Work()

    def finish(self, by: str, account: Account | None = None) -> Audit:  # noqa: ARG002, D102
        return Audit(outputs={})


@contextmanager
def timed(label: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    row(label, time.perf_counter() - start, "s")
    row("  peak memory so far", peak_megabytes(), "MB")


def launch(stage: Stage, folder: Path) -> Run:
    url, queue = f"file://{folder}/run", f"sqlite://{folder}/run/queue.db"
    return Run.launch(stage, url=url, queue=queue, by="benchmark", batch=1)[0]


def huge_layer(folder: Path, tasks: int) -> str:
    """A layer that has nothing but its info: as many cells of 2 x 2 x 1 chunks, on one axis."""
    scale = {
        "key": "8_8_40",
        "resolution": [8, 8, 40],
        "size": [2 * _CHUNK, 2 * _CHUNK, _CHUNK * tasks],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[_CHUNK] * 3],
        "encoding": "raw",
    }
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    folder.mkdir()
    (folder / "info").write_text(json.dumps(info))
    return str(folder)


def enqueue(folder: Path, tasks: int) -> None:
    stage = Downsample(layer=huge_layer(folder / "layer", tasks), num_mips=1)
    row("before", peak_megabytes(), "MB")
    start = time.perf_counter()
    with timed(f"plan {tasks:,} tasks"):
        run = launch(stage, folder)
    with timed("prepare"):
        run.prepare()
    with timed("enqueue"):
        sent = run.enqueue()
    row_below("planned, prepared and sent", time.perf_counter() - start, "s", _SECONDS)
    row_below("  peak memory", peak_megabytes(), "MB", _MEGABYTES)
    with timed("progress"):
        progress = run.progress()
    assert sent == run.planned == progress.waiting == tasks
    row("size of the queue's file", Path(folder, "run", "queue.db").stat().st_size / 1e6, "MB")


def idle_tasks(folder: Path, *, done: bool) -> float:
    """Milliseconds of a worker for a task that has its receipt already, or does nothing."""
    run = launch(Nothing(), folder)
    run.enqueue()
    for task in range(run.planned if done else 0):
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=0, worker="benchmark"))
    queue = run.open_queue()
    options = WorkerOptions(idle_seconds=0, until_done=True)
    worker = Worker(queue, run.runs_folder, options, lambda _: None)
    start = time.perf_counter()
    worker.work()
    seconds = time.perf_counter() - start
    assert run.progress().done == run.planned
    queue.close()
    return 1000 * seconds / run.planned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    tasks = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as folder:
        enqueue(Path(folder), tasks)
    registered_stages()[Nothing.name] = Nothing
    for done, label in ((True, "a task that was done before"), (False, "a task of no work")):
        with tempfile.TemporaryDirectory() as folder:
            row_below(label, idle_tasks(Path(folder), done=done), "ms", _IDLE_MILLISECONDS)


if __name__ == "__main__":
    main()
