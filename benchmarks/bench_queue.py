"""How fast the embedded queue is: send, lease and done, counts; `--messages` of about 800 bytes."""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from igneous_airflow.queue.protocol import Queue, open_queue

_PAIRS = 2_000


def bodies(count: int) -> Iterator[str]:
    fields = ", ".join(f'"parameter_{i}": "value of parameter {i}"' for i in range(17))
    for index in range(count):
        yield f'{{"run": "benchmark", {fields}, "cells": [{index}, {index + 1}]}}'


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pairs_per_second(queue: Queue) -> float:
    start = time.perf_counter()
    for _ in range(_PAIRS):
        lease = queue.lease(60)
        assert lease is not None
        queue.done(lease)
    return _PAIRS / (time.perf_counter() - start)


def row(label: str, value: float, unit: str, needed: str = "", *, ok: bool = True) -> None:
    verdict = f"  {'ok' if ok else 'MISSED'}, {needed}" if needed else ""
    print(f"{label:<42}{value:>14,.2f} {unit}{verdict}")


def row_below(label: str, value: float, unit: str, most: float) -> None:
    row(label, value, unit, f"below {most:g} needed", ok=value < most)


def measure(queue: Queue, messages: int, path: Path) -> None:
    queue.send(bodies(_PAIRS))
    row("lease + done, almost empty", pairs_per_second(queue), "pairs/s")

    before, start = peak_megabytes(), time.perf_counter()
    queue.send(bodies(messages))
    seconds = time.perf_counter() - start
    row("send", seconds, "s")
    row("send", messages / seconds, "messages/s")
    row("growth of peak memory while sending", peak_megabytes() - before, "MB")
    row("size of the file", path.stat().st_size / 1e6, "MB")

    for label in ("counts, first", "counts, again"):
        start = time.perf_counter()
        assert queue.counts().waiting == messages
        row(label, 1000 * (time.perf_counter() - start), "ms")

    row("lease + done, full", pairs_per_second(queue), "pairs/s")
    leases = [queue.lease(60) for _ in range(1000)]
    start = time.perf_counter()
    assert queue.counts().leased == len(leases)
    row("counts with 1000 leases", 1000 * (time.perf_counter() - start), "ms")
    row("lease + done, full, 1000 leases", pairs_per_second(queue), "pairs/s")

    start = time.perf_counter()
    queue.purge()
    row("purge", time.perf_counter() - start, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    messages = parser.parse_args().messages
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "queue.db")
        queue = open_queue(f"sqlite://{path}")
        print(f"{messages:,} messages of {len(next(bodies(1)))} bytes")
        measure(queue, messages, path)
        queue.close()


if __name__ == "__main__":
    main()
