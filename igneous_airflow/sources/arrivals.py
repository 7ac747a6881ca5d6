"""Which folders of sections have arrived whole below a watched folder; called by operators.

A folder that somebody still writes to must not be taken. Either a marker file says that it is
whole, or, on disks, that nothing in it has changed for a while.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from igneous_airflow.errors import InvalidParameter, SourceNotFound
from igneous_airflow.sources.order import natural_key
from igneous_airflow.storage.files import open_source_folder
from igneous_airflow.storage.local import disk_errors

_DISK = "file://"
_HIDDEN = (".", "_")  # how names begin of folders that are not meant


@dataclass(frozen=True, slots=True)
class Arrival:
    """A folder below a watched one; `waits_for` says why it is not taken, empty when whole."""

    name: str
    url: str
    waits_for: str = ""


def find_arrivals(folder: str, *, marker: str | None, quiet: float) -> Iterator[Arrival]:
    """Look at the folders directly below `folder`, in the natural order of their names.

    One is whole when the file `marker` is in it; without a marker, when nothing in it was changed
    for `quiet` seconds, which only disks tell. Raises InvalidParameter for a bucket without a
    marker, SourceNotFound for a folder on disk that is not there.
    """
    if marker is None and not folder.startswith(_DISK):
        raise InvalidParameter(
            f"marker: a bucket does not tell when files in {folder} were changed; name a file that "
            "is put into each folder when it is whole"
        )
    if folder.startswith(_DISK) and not Path(folder.removeprefix(_DISK)).is_dir():
        raise SourceNotFound(f"folder: there is no folder {folder.removeprefix(_DISK)}")
    names = (n for n in open_source_folder(folder).folders("") if not n.startswith(_HIDDEN))
    for name in sorted(names, key=natural_key):
        url = f"{folder}/{name}"
        waits_for = _marker(url, marker) if marker else _quiet(url, quiet)
        yield Arrival(name, url, waits_for)


def _marker(url: str, marker: str) -> str:
    return "" if open_source_folder(url).entry(marker) is not None else f"its file {marker}"


def _quiet(url: str, quiet: float) -> str:
    path = Path(url.removeprefix(_DISK))
    with disk_errors("look at", path):
        files = [entry for entry in path.iterdir() if entry.is_file()]
        changed = max(map(_last_change, (path, *files)))
    if not files:
        return "files"
    left = changed + quiet - time.time()
    return f"{left:,.0f} more seconds without a change" if left > 0 else ""


def _last_change(path: Path) -> float:
    try:
        state = path.stat()
    except FileNotFoundError:  # renamed just now, as a copy is that has arrived
        return time.time()
    # a copy may keep the times of its original; the disk's own time of the entry is never kept
    return max(state.st_mtime, state.st_ctime)
