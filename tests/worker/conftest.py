"""What the tests of workers share: a stage that does as it is told, and tasks held at a point."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.proof import Account
from igneous_airflow.queue.memory import MemoryQueue
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer


class Obedient(Stage):
    """Writes one file a cell, and before that does what `orders` say for the cell, once each."""

    name: ClassVar[str] = "obedient"
    folder: str
    count: int = 3

    orders: ClassVar[dict[int, list[Callable[[], None]]]] = {}
    ran: ClassVar[list[int]] = []

    def plan(self) -> Plan:
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        Path(self.folder).mkdir(exist_ok=True)

    def cells(self) -> Sequence[int]:
        return range(self.count)

    def run(self, cell: int) -> Work:
        self.ran.append(cell)
        if waiting := self.orders.get(cell):
            waiting.pop(0)()
        (Path(self.folder) / str(cell)).write_bytes(b"voxels of %d" % cell)
        return Work(voxels=10, chunks_written=1, bytes_written=11)

    def finish(self, by: str, account: Account | None = None) -> Audit:
        return Audit(outputs={self.folder: len(list(Path(self.folder).iterdir()))})


@pytest.fixture
def obedient(monkeypatch: pytest.MonkeyPatch) -> type[Obedient]:
    """The stage, registered, with neither orders nor a past."""
    monkeypatch.setattr("igneous_airflow.stages.registered_stages", lambda: {"obedient": Obedient})
    monkeypatch.setattr(Obedient, "orders", {})
    monkeypatch.setattr(Obedient, "ran", [])
    return Obedient


@pytest.fixture
def launch(
    obedient: type[Obedient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Launches and enqueues a run of the stage on a queue object."""

    def launch(
        queue: MemoryQueue, count: int = 3, *, batch: int | None = None, folder: str = "out"
    ) -> Run:
        monkeypatch.setattr("igneous_airflow.run.open_queue", lambda _url: queue)
        queue.runs = f"file://{tmp_path}"  # for the workers of the tests
        stage = obedient(folder=str(tmp_path / folder), count=count)
        url = f"file://{tmp_path}/run"
        run, _ = Run.launch(stage, url=url, queue="memory://test", by="somebody", batch=batch)
        run.prepare()
        run.enqueue()
        return run

    return launch


class HeldLayer:
    """A layer of four tasks, the first of which waits at its first chunk until it is let go.

    The chunk's file is a pipe: reading it blocks until somebody writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        write_layer(path, random_voxels(Vec3(64, 16, 8)))
        self.chunk = path / "8_8_40" / "0-8_0-8_0-8"
        self._content = self.chunk.read_bytes()
        self._writer = -1
        self.chunk.unlink()
        os.mkfifo(self.chunk)

    def launch(self, state: Path) -> Run:
        """Launch and enqueue a run that makes one mip."""
        run, _ = Run.launch(
            Downsample(layer=str(self.path), num_mips=1),
            url=f"file://{state}/runs/run",
            queue=f"sqlite://{state}/runs/run/queue.db",
            by="somebody",
        )
        run.prepare()
        run.enqueue()
        return run

    def wait_until_read(self, seconds: float = 30) -> None:
        """Return when a worker is inside the first task; fails when none is in time."""
        self._close()

        def opened() -> bool:
            with suppress(OSError):  # ENXIO: nobody reads yet
                self._writer = os.open(self.chunk, os.O_WRONLY | os.O_NONBLOCK)
            return self._writer >= 0

        wait_until(opened, seconds)

    def mend(self) -> None:
        """Put a usual file in the place of the pipe; who reads now, goes on waiting."""
        whole = self.chunk.with_name("whole")
        whole.write_bytes(self._content)
        whole.rename(self.chunk)

    def let_go(self) -> None:
        """Give the chunk to who reads now, and to everybody else."""
        self.mend()
        if self._writer >= 0:
            with suppress(BrokenPipeError):  # nobody reads any more
                os.write(self._writer, self._content)
        self._close()

    def _close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


@pytest.fixture
def held_layer(tmp_path: Path) -> Iterator[HeldLayer]:
    """A layer whose first task can be held."""
    layer = HeldLayer(tmp_path / "layer")
    yield layer
    layer.let_go()


def wait_until(happened: Callable[[], Any], seconds: float = 30) -> None:
    """Look every few milliseconds; fails when it has not happened in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """The function, for tests."""
    return wait_until
