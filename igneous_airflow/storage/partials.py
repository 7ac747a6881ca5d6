"""Files on disk that are being written, and what killed processes leave of them.

A file is written under a name that tells by whom, and then renamed. What is left under such a name
by a process that has died goes when its folder is listed, and when a run is proved: then in the
folder of the run, and in the folders of the layer that the run has written to.
"""

import os
import re
import socket
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_FILE = "file://"
_ENDING = ".partial"
_NAME = re.compile(r"\..+\.([^.]+)-([0-9]{1,9})-[0-9a-f]+\.partial", re.DOTALL)
_LIFETIME = 24 * 3600.0  # seconds; nothing takes as long to be written
_PROCESSES = Path("/proc")


def partial_path(path: str) -> str:
    """The path under which this thread writes a file first."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{_machine()}-{os.getpid()}-{threading.get_ident():x}{_ENDING}"


def is_partial(name: str) -> bool:
    """Whether a name, without folders, is one of a file that is being written."""
    return name.endswith(_ENDING)


def remove_if_abandoned(path: str) -> None:
    """Remove what a killed process left half written, and nothing that somebody still writes.

    Whether a process on another machine, or in another container, still writes cannot be seen: a
    file of theirs goes when it is a day old. One that may not be removed stays.
    """
    ours = _NAME.fullmatch(path.rpartition("/")[2])
    if ours is None:  # a file of somebody else's
        return
    machine, process = ours.groups()
    with suppress(OSError):
        is_here = machine in (_machine(), _host())
        age = abs(time.time() - os.lstat(path).st_mtime)  # the clock may have been set since
        if age > _LIFETIME or (is_here and not _is_alive(int(process))):
            os.unlink(path)  # noqa: PTH108


def remove_abandoned(url: str, folder: str = "", *, depth: int = 0) -> None:
    """Remove what killed processes left in a folder on disk, and in those so deep below it."""
    if not url.startswith(_FILE):
        return
    with suppress(OSError), os.scandir(Path(url.removeprefix(_FILE), folder)) as entries:
        for entry in entries:
            if is_partial(entry.name):
                remove_if_abandoned(entry.path)
            elif depth and entry.is_dir(follow_symlinks=False):
                remove_abandoned(_FILE + entry.path, depth=depth - 1)


def _host() -> str:
    return socket.gethostname().replace(".", "_")


@lru_cache(1)
def _machine() -> str:
    """The host, and its processes that this one can see: each container counts its own."""
    try:
        return f"{_host()}_{(_PROCESSES / 'self/ns/pid').stat().st_ino:x}"
    except OSError:
        return _host()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether it has ended, and only its parent does not know yet."""
    with suppress(OSError):
        state = (_PROCESSES / str(process) / "stat").read_text().rpartition(") ")[2]
        return state.startswith("Z")
    return False
