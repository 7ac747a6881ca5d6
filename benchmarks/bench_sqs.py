"""How fast the SQS queue is, with a local server: `python -m benchmarks.bench_sqs --messages N`.

The server does in Python what Amazon's does, one request at a time: rates here are its as much as
ours. Round trips count requests; times are in units of the server's own latency.
"""

import argparse
import os
import runpy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from unittest import mock

from benchmarks.bench_queue import bodies, peak_megabytes, row
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_service import connect
from igneous_airflow.run import Run
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.worker.loop import Worker, WorkerOptions

_SERVER = Path(__file__).resolve().parents[1] / "tests" / "queue" / "sqs_server.py"
_TASKS = 2_000
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
        """Seconds of a round trip: taking one message and deleting it, half of both."""
        self.queue.send(bodies(200))
        url = {"QueueUrl": self.client.get_queue_url(QueueName=self.address.name)["QueueUrl"]}
        took = []
        for _ in range(200):
            start = time.perf_counter()
            (message,) = self.client.receive_message(**url)["Messages"]
            self.client.delete_message(**url, ReceiptHandle=message["ReceiptHandle"])
            took.append((time.perf_counter() - start) / 2)
        return median(took)

    def enqueue(self, messages: int) -> None:
        """Send many messages, of which the server forgets most on the way."""
        url = {"QueueUrl": self.client.get_queue_url(QueueName=self.address.name)["QueueUrl"]}

        def forgotten() -> Iterator[str]:
            for index, body in enumerate(bodies(messages)):
                if index % _SERVER_HOLDS == _SERVER_HOLDS - 1:
                    self.client.purge_queue(**url)
                yield body

        self.queue.send(bodies(1_000))
        before, start = peak_megabytes(), time.perf_counter()
        assert self.queue.send(forgotten()) == messages
        seconds = time.perf_counter() - start
        row("send", messages / seconds, "messages/s")
        row("growth of peak memory while sending", peak_megabytes() - before, "MB")
        self.client.purge_queue(**url)

    def per_task(self, label: str, work: Callable[[], None], latency: float) -> None:
        """Measure what each of the tasks costs."""
        self.requests.clear()
        start = time.perf_counter()
        work()
        seconds = (time.perf_counter() - start) / _TASKS
        row(f"{label}: requests a task", sum(self.requests.values()) / _TASKS, "")
        row(f"{label}: time a task", seconds / latency, "round trips")

    def take_all(self) -> None:
        """Lease and settle every message."""
        while lease := self.queue.lease(120):
            self.queue.done(lease)


def measure(bench: Bench, messages: int, folder: str) -> None:
    latency = bench.latency()
    row("the server's latency", 1e3 * latency, "ms")
    bench.enqueue(messages)
    bench.queue.send(bodies(_TASKS))
    bench.per_task("lease and done", bench.take_all, latency)

    stages = mock.patch("igneous_airflow.stages.registered_stages", return_value={"idle": Idle})
    queues = mock.patch("igneous_airflow.run.open_queue", return_value=bench.queue)
    with stages, queues:
        run, _ = Run.launch(Idle(), url=f"file://{folder}/run", queue="sqs://bench", by="bench")
        run.enqueue()
        options = WorkerOptions(until_done=True)
        worker = Worker(bench.queue, options, lambda _event: None)
        bench.per_task("worker with receipts", worker.work, latency)
        assert run.progress().done == _TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    messages = parser.parse_args().messages
    server = runpy.run_path(str(_SERVER))
    os.environ.update(server["CREDENTIALS"])
    with server["running"]() as endpoint, tempfile.TemporaryDirectory() as folder:
        bench = Bench(endpoint)
        print(f"{messages:,} messages of {len(next(bodies(1)))} bytes")
        measure(bench, messages, folder)
        bench.queue.delete()
        bench.queue.close()


if __name__ == "__main__":
    main()
