"""One measured run of igneous-pipeline, inside its own environment; started by `__main__.py`.

`pin`, `timed` and `run_all` are also used by `own_side.py` and the like, so that all sides measure
alike. Nothing but the standard library is imported before the process is pinned to its core.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any


def pin(core: int) -> None:
    """Keep this process, and every thread that a library will start, on one core."""
    os.sched_setaffinity(0, {core})


def run_all(tasks: Iterable[Any]) -> None:
    """Work on tasks of either side; igneous-pipeline's are functions, or objects of a class."""
    for task in tasks:
        getattr(task, "execute", task)()


def timed(work: Callable[[], None]) -> None:
    """Say that everything is ready, wait for a line, do the work, print what it took as JSON.

    `start` and `end` are seconds of the clock that all processes share, `cpu` are seconds of all
    threads, `megabytes` is the largest memory that the process ever held.
    """
    print("ready", flush=True)
    sys.stdin.readline()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    cpu, end = time.process_time() - cpu, time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"start": start, "end": end, "cpu": cpu, "megabytes": peak}))


def tasks_of(stage: str, layer: str, mips: int, source: str) -> list[Callable[[], None]]:
    """Make the tasks; this also writes the new scales to the info file: preparation, not work."""
    from igneous import task_creation

    if stage == "transfer":
        tasks = task_creation.create_transfer_tasks(
            source, layer, chunk_size=(64, 64, 64), compress="gzip",
            skip_downsamples=mips == 0, max_mips=mips or None, no_src_update=True,
        )  # fmt: skip
    elif stage == "quantize_affinities":
        tasks = task_creation.create_quantize_tasks(
            source, layer, shape=(512, 512, 64), chunk_size=(64, 64, 64)
        )
    elif stage == "luminance_levels":
        tasks = task_creation.create_luminance_levels_tasks(layer)
    elif stage == "contrast_normalization":
        tasks = task_creation.create_contrast_normalization_tasks(source, layer)
    else:
        tasks = task_creation.create_downsampling_tasks(
            layer, mip=0, num_mips=mips, fill_missing=False, compress="gzip"
        )
    return list(tasks)


def main() -> None:
    stage, layer, mips, core, source = sys.argv[1:]
    pin(int(core))
    tasks = tasks_of(stage, layer, int(mips), source)
    timed(lambda: run_all(tasks))


if __name__ == "__main__":
    main()
