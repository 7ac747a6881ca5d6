"""Layers that the viewer has open: their files and infos, read again every few seconds."""

import math
import time
from threading import Lock

from igneous_airflow.errors import IgneousError
from igneous_airflow.storage.allowed import require_allowed
from igneous_airflow.storage.layer import Layer
from igneous_airflow.viewer.links import names_behind
from igneous_airflow.viewer.served import ServedFile, served_file

_FRESH, _AGAIN = 5.0, 1.0  # seconds
_INFO_BYTES = 1_000_000  # that are read as an info: the largest of layers have a tenth of it


class OpenLayers:
    """Layers by their addresses; used by several threads.

    The info of one is read again when it is `fresh` seconds old; for names that it does not have,
    when it is `again` seconds old: reading one takes time that all requests share.
    """

    def __init__(self, fresh: float = _FRESH, again: float = _AGAIN) -> None:
        self._fresh = fresh
        self._again = again
        self._open: dict[str, _Opened] = {}
        self._lock = Lock()

    def open(self, url: str) -> Layer:
        """Open a layer, with the info that it has now, or had a second ago.

        Raises AccessDenied, InvalidInfo, LayerNotFound or StorageUnavailable.
        """
        return self._layer(url, self._again)

    def find(self, url: str, path: str) -> tuple[Layer, ServedFile] | None:
        """A layer and the file of its format that a path names; None when there is none.

        Raises what `open` raises.
        """
        for age in (self._fresh, self._again):  # it may have got another scale
            layer = self._layer(url, age)
            if (found := _served(layer, url, path)) is not None:
                return layer, found
        return None

    def _layer(self, url: str, age: float) -> Layer:
        """A layer whose info was read less than `age` seconds ago, or is read now."""
        require_allowed(url)  # which may change before an info is read again
        now = time.monotonic()
        with self._lock:
            kept = self._fresh + self._again
            self._open = {k: v for k, v in self._open.items() if now - v.asked < kept or k == url}
            opened = self._open.setdefault(url, _Opened())
            opened.asked = now
        return opened.layer(url, age)


class _Opened:
    """A layer, or why it cannot be opened; read by one thread while others wait for it."""

    def __init__(self) -> None:
        self.asked = 0.0
        self._read_at = -math.inf
        self._found: Layer | IgneousError | None = None
        self._lock = Lock()

    def layer(self, url: str, age: float) -> Layer:
        with self._lock:
            if self._found is None or time.monotonic() - self._read_at >= age:
                try:
                    self._found = Layer.open(url, _INFO_BYTES)
                except IgneousError as error:
                    self._found = error
                self._read_at = time.monotonic()
            found = self._found
        if isinstance(found, IgneousError):
            raise found.with_traceback(None)
        return found


def _served(layer: Layer, url: str, path: str) -> ServedFile | None:
    """The file of a layer that a path names, also where links on disk lead it elsewhere."""
    found = served_file(layer.info, path)
    if found is None:
        return None
    behind = names_behind(url, path)
    if behind is None or any(served_file(layer.info, name) is None for name in behind):
        return None
    return found


def storage_of(url: str) -> str:
    """What answers for a layer, as a bucket or a disk: when it hangs, all of its layers do."""
    parts = url.split("/")
    if url.startswith("file://"):
        return "/".join(parts[:5])  # the first two folders
    has_endpoint = parts[2:3] in (["http:"], ["https:"])  # and a bucket behind it
    return "/".join(parts[: 6 if has_endpoint else 3])
