"""Layers that the viewer has open: their files and infos, read again every few seconds."""

import time
from threading import Lock

from igneous_airflow.storage.layer import Layer
from igneous_airflow.viewer.links import names_behind
from igneous_airflow.viewer.served import ServedFile, served_file

_FRESH = 5.0  # seconds


class OpenLayers:
    """Layers by their addresses; used by several threads."""

    def __init__(self, fresh: float = _FRESH) -> None:
        self._fresh = fresh
        self._open: dict[str, tuple[float, Layer]] = {}
        self._lock = Lock()

    def open(self, url: str) -> Layer:
        """Open a layer, with the info that it has now.

        Raises AccessDenied, InvalidInfo, LayerNotFound or StorageUnavailable.
        """
        layer = Layer.open(url)
        now = time.monotonic()
        with self._lock:
            self._open = {k: v for k, v in self._open.items() if now - v[0] < self._fresh}
            self._open[url] = now, layer
        return layer

    def find(self, url: str, path: str) -> tuple[Layer, ServedFile] | None:
        """A layer and the file of its format that a path names; None when there is none.

        Raises what `open` raises.
        """
        opened, layer = self._open.get(url, (0.0, None))
        if layer is not None and path != "info" and time.monotonic() - opened < self._fresh:
            found = _served(layer, url, path)
            if found is not None:
                return layer, found
        layer = self.open(url)  # it may have got another scale
        found = _served(layer, url, path)
        return None if found is None else (layer, found)


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
