"""What a function raises in a process that can take little memory."""

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from igneous_airflow.errors import IgneousError

ROOM = 96 << 20  # bytes that a process may take beside what it has


def error_with_little_memory(undo: Callable[..., object], *arguments: Any) -> str:
    """The type of an error and its words; nothing when there is none.

    The process comes of one that has no threads: one that forks amid a thread's work may wait for
    its lock for ever.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "igneous_airflow.run", "numpy"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_error, undo, arguments).result(timeout=120)


def _error(undo: Callable[..., object], arguments: tuple[Any, ...]) -> str:
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # with all that is imported
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    try:
        undo(*arguments)
    except (IgneousError, MemoryError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
