"""How fast runs on SQS are, with a local server: `python -m benchmarks.bench_sqs --tasks N`.

The server, ministack, does in Python what Amazon's does, one request at a time: rates here are its
as much as ours. `--endpoint` names another one. Round trips count requests; times are in units of
the server's own latency.
"""

import argparse
import os
import runpy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from unittest import mock

from benchmarks.bench_queue import bodies, peak_megabytes, row, row_below
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_service import connect
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.worker.loop import Worker, WorkerOptions

_SERVER = Path(__file__).resolve().parents[1] / "tests" / "queue" / "sqs_server.py"
_TASKS = 2_000
_SPEED = 2_000  # messages a second, asked for
_MEGABYTES = 50  # by which memory may grow, however many messages are sent
_ROUND_TRIPS = 1.3  # of a task that does nothing, asked for
_SERVER_HOLDS = 100_000  # it keeps about 3 kB of memory a message


class Idle(Stage):
    """A stage whose cells are no work; its methods are described by Stage."""

    name: ClassVar[str] = "idle"
    count: int = _TASKS

    def plan(self) -> Plan:  # noqa: D102
        return Plan(stage=self.name, tasks=self.count)

    def prepare(self) -> None:
        """Do nothing."""

    def cells(self) -> Sequence[int]:  # noqa: D102
        return range(self.count)

    def run(self, _cell: int) -> Work:  # noqa: D102
        return Work()

    def finish(self, _by: str) -> Audit:  # noqa: D102
        return Audit(outputs={})


class Bench:
    """One queue, with a count of the requests that it makes."""

    def __init__(self, endpoint: str) -> None:
        self.requests: Counter[str] = Counter()
        self.address = Address("bench", "us-east-1", endpoint)
        self.queue = SqsQueue(self.address, self._connect)
        self.client = connect(self.address)

    def _connect(self, address: Address) -> Any:
        client = connect(address)
        client.meta.events.register("before-call.sqs", self._count)
        return client

    def _count(self, model: Any, **_: Any) -> None:
        self.requests[model.name] += 1

    def latency(self) -> float:
        """Seconds of a round trip: one message taken, extended and deleted, a third of it all.

        It is a queue of its own, so that the tasks are left alone.
        """
        url = {"QueueUrl": self.client.create_queue(QueueName="latency")["QueueUrl"]}
        took = []
        for _ in range(200):
            self.client.send_message(**url, MessageBody=next(bodies(1)))
            start = time.perf_counter()
            (message,) = self.client.receive_message(**url)["Messages"]
            handle = {"ReceiptHandle": message["ReceiptHandle"]}
            self.client.change_message_visibility(**url, **handle, VisibilityTimeout=60)
            self.client.delete_message(**url, **handle)
            took.append((time.perf_counter() - start) / 3)
        return median(took)

    def enqueue(self, tasks: int, folder: str) -> None:
        """Plan and send a run of many tasks, of which the server forgets most on the way."""
        url = {"QueueUrl": self.client.get_queue_url(QueueName=self.address.name)["QueueUrl"]}
        send = self.queue.send

        def forgotten(bodies: Iterable[str]) -> Iterator[str]:
            for index, body in enumerate(bodies):
                if index % _SERVER_HOLDS == _SERVER_HOLDS - 1:
                    self.client.purge_queue(**url)
                yield body

        self.launch(1_000, f"{folder}/warm").enqueue()
        self.client.purge_queue(**url)  # else the run would, and wait for a minute
        before, start, own = peak_megabytes(), time.perf_counter(), time.process_time()
        run = self.launch(tasks, f"{folder}/many")
        planned = time.perf_counter()
        with mock.patch.object(self.queue, "send", lambda bodies: send(forgotten(bodies))):
            assert run.enqueue() == tasks
        row("plan", planned - start, "s")
        speed = tasks / (time.perf_counter() - planned)
        row("enqueue", speed, "messages/s", f"{_SPEED:,} needed", ok=speed >= _SPEED)
        row(
            "enqueue, of this process's own time", tasks / (time.process_time() - own), "messages/s"
        )
        row_below("growth of peak memory", peak_megabytes() - before, "MB", _MEGABYTES)
        self.client.purge_queue(**url)

    def launch(self, tasks: int, folder: str) -> Run:
        """Plan a run on this queue, with a message for each task."""
        run, _ = Run.launch(
            Idle(count=tasks), url=f"file://{folder}", queue="sqs://bench", by="bench", batch=1
        )
        return run.opening_queues(lambda _: self.queue)

    def per_task(self, label: str, work: Callable[[], None]) -> None:
        """Measure what each of the tasks costs, in the latency of just before and after."""
        latency = self.latency()
        self.requests.clear()
        start = time.perf_counter()
        work()
        seconds = (time.perf_counter() - start) / _TASKS
        row(f"{label}: requests a task", sum(self.requests.values()) / _TASKS, "")
        latency = (latency + self.latency()) / 2
        row(f"{label}: a round trip", 1e3 * latency, "ms")
        row_below(f"{label}: time a task", seconds / latency, "round trips", _ROUND_TRIPS)

    def take_all(self) -> None:
        """Lease and settle every message."""
        while lease := self.queue.lease(120):
            self.queue.done(lease)


def measure(bench: Bench, tasks: int, folder: str) -> None:
    bench.queue.send([])
    bench.enqueue(tasks, folder)
    bench.queue.send(bodies(_TASKS))
    bench.per_task("lease and done", bench.take_all)
    run = bench.launch(_TASKS, f"{folder}/run")
    run.enqueue()
    # without the pauses before counters are believed, which come once
    options = WorkerOptions(idle_seconds=0, until_done=True)
    worker = Worker(bench.queue, run.runs_folder, options, lambda _event: None)
    bench.per_task("worker with receipts", worker.work)
    assert run.progress().done == _TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--endpoint", help="of a server that runs already")
    options = parser.parse_args()
    server = runpy.run_path(str(_SERVER))
    os.environ.update(server["CREDENTIALS"])
    running = nullcontext(options.endpoint) if options.endpoint else server["running"]()
    stages = mock.patch("igneous_airflow.stages.registered_stages", return_value={"idle": Idle})
    with running as endpoint, stages, tempfile.TemporaryDirectory() as folder:
        bench = Bench(endpoint)
        print(f"{options.tasks:,} tasks")
        measure(bench, options.tasks, folder)
        bench.queue.delete()
        bench.queue.close()


if __name__ == "__main__":
    main()
