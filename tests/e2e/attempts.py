"""One attempt at some runs, in a process to which an accident happens at a chosen moment.

Moments are counted, not timed, so that a seed finds the same one again: every change of a file
below the folder of the runs, and every step of the queue. An audit hook of the interpreter sees
them, so that the library runs as it is.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from igneous_airflow.errors import RunNotFound
from igneous_airflow.queue.protocol import Lease
from igneous_airflow.queue.sqlite import SqliteQueue
from igneous_airflow.run import Run
from igneous_airflow.stages import stage_class
from igneous_airflow.worker.loop import Worker, WorkerOptions

#: The first seed; the others follow it.
BASE = int(os.environ.get("IGNEOUS_AIRFLOW_SEED", "1"))
PHASES = ("launch", "prepare", "enqueue", "work", "finish")
#: A stage with its parameters.
Step = tuple[str, dict[str, Any]]
#: The number of a step, and a phase of its run.
Phase = tuple[int, str]

_CHANGES = frozenset({"os.link", "os.remove", "os.rename", "os.mkdir", "os.rmdir"})
_WRITING = os.O_WRONLY | os.O_RDWR
_OPTIONS = WorkerOptions(lease_seconds=0.5, idle_seconds=0.05, retry_delay=0.05, until_done=True)


@dataclass(frozen=True, slots=True)
class Accident:
    """A signal that a process gets just before something changes.

    With `cut`, a file that is about to get its name keeps the first half of its bytes only, as if
    the process had died while it wrote them.
    """

    phase: Phase
    moment: int
    number: signal.Signals = signal.SIGKILL
    cut: bool = False


class Moments:
    """Counts what changes in each phase, and lets the accident happen."""

    def __init__(self, root: str, accident: Accident | None) -> None:
        self._root = root
        self._accident = accident
        self.phase: Phase = (0, PHASES[0])
        self.counts: Counter[Phase] = Counter()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a change of a file below the root; an audit hook."""
        changes = event in _CHANGES or (event == "open" and bool(int(arguments[2]) & _WRITING))
        if changes and str(arguments[0]).startswith(self._root):
            self.tick(str(arguments[0]) if event == "os.rename" else "")

    def tick(self, written: str = "") -> None:
        """Count a moment; `written` is a file that is about to get its name."""
        self.counts[self.phase] += 1
        accident = self._accident
        if accident is None or (accident.phase, accident.moment) != (
            self.phase,
            self.counts[self.phase],
        ):
            return
        if accident.cut and written.endswith(".partial"):
            os.truncate(written, Path(written).stat().st_size // 2)
        os.kill(os.getpid(), accident.number)


class CountedQueue(SqliteQueue):
    """A queue whose steps are moments."""

    def __init__(self, url: str, moments: Moments) -> None:
        super().__init__(Path(url.removeprefix("sqlite://")))
        self._moments = moments

    def send(self, bodies: Iterable[str]) -> int:
        def counted() -> Iterator[str]:
            for body in bodies:
                self._moments.tick()
                yield body

        return super().send(counted())

    def lease(self, seconds: float, *, wait: float = 0) -> Lease | None:
        lease = super().lease(seconds, wait=wait)
        if lease is not None:
            self._moments.tick()
        return lease

    def done(self, lease: Lease) -> None:
        self._moments.tick()
        super().done(lease)

    def purge(self) -> None:
        self._moments.tick()
        super().purge()


def run_url(root: str, number: int) -> str:
    """The address of the run of a step."""
    return f"file://{root}/runs/step-{number}"


def attempt(
    root: str, steps: Sequence[Step], accident: Accident | None, tell: Connection | None = None
) -> None:
    """Begin or go on with the run of each step, to its proof; tells how many moments there were."""
    moments = Moments(root, accident)
    sys.addaudithook(moments.audit)
    for number, step in enumerate(steps):
        _go_on(root, number, step, moments)
    if tell is not None:
        tell.send(moments.counts)


def _go_on(root: str, number: int, step: Step, moments: Moments) -> None:
    """What the commands of stages do, and `resume` where the run is recorded."""
    url = run_url(root, number)
    moments.phase = (number, "launch")
    try:
        run = Run.load(url)
    except RunNotFound:
        name, parameters = step
        stage = stage_class(name).model_validate(parameters)
        queue = f"sqlite://{root}/queues/step-{number}.db"
        run, _ = Run.launch(stage, url=url, queue=queue, by="tester")
    if run.is_finished:
        return
    run = run.opening_queues(lambda url: CountedQueue(url, moments)).go_on("tester")
    moments.phase = (number, "prepare")
    run.prepare()
    moments.phase = (number, "enqueue")
    run.resume()
    moments.phase = (number, "work")
    _work(run)
    moments.phase = (number, "finish")
    run.finish()


def _work(run: Run) -> None:
    """Work until nothing is left, or SIGTERM comes, which ends the process in order."""
    queue = run.open_queue()
    worker = Worker(queue, run.runs_folder, _OPTIONS, lambda _: None)
    stopped = []

    def stop(_number: int, _frame: object) -> None:
        stopped.append(True)
        worker.stop()

    before = signal.signal(signal.SIGTERM, stop)
    worker.work()
    signal.signal(signal.SIGTERM, before)
    queue.close()
    if stopped:
        sys.exit(0)
