"""No name leads out of a folder on a web server or in a bucket, however it is spelled."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from igneous_airflow.errors import AccessDenied
from igneous_airflow.sources.zarr_store import FolderStore
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage import allowed
from igneous_airflow.storage.allowed import Allowed
from igneous_airflow.storage.files import Folder, StoredFile, open_folder

AWAY = (
    "../secret", "lab/../../secret", "%2e%2e/secret", "%2E%2e/secret", "%252e%252e/secret",
    ".%2e/secret", "..%2fsecret", "..\\secret", "..;/secret", "..%3bx/secret", "..?x", "..%23",
    "\u2025/secret",
)  # fmt: skip


class _Files(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *args: Any) -> None:
        self.asked.append(self.path)

    def send_head(self) -> Any:
        if os.path.isdir(self.translate_path(self.path)):  # noqa: PTH112
            self.send_error(404)
            return None
        return super().send_head()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server of `lab` and `private`, its address, and the paths it was asked for."""
    handler = type("_Asked", (_Files,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for folder, value in (("lab/x.zarr", 1), ("private/s.zarr", 7)):
        (tmp_path / folder).parent.mkdir()
        group = zarr.open_group(tmp_path / folder, mode="w", zarr_format=2)
        array = group.create_array("0", shape=(8, 8, 8), chunks=(8, 8, 8), dtype="u1")
        array[:] = np.full((8, 8, 8), value, "u1")
    return tmp_path


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def limit(prefixes: str) -> None:
        parsed = Allowed.parse(prefixes, "test")
        monkeypatch.setattr(allowed, "_limits", {"test": lambda: parsed})

    return limit


def refusals(source: str, dest: Path, dataset: str | None) -> str:
    options = {"dataset": dataset} if dataset else {}
    stage = Ingest(source=source, dest=str(dest), axes="zyx", resolution=(1, 1, 1), **options)
    return "; ".join(stage.plan().refusals)


@pytest.mark.parametrize("up", ["..", "%2e%2e", "%2E%2E", "%252e%252e", "..;", "%c0%ae%c0%ae"])
def test_no_dataset_leads_out_of_an_array_on_a_web_server(
    up: str, web: tuple[str, list[str]], images: Path, only: Callable[[str], None]
) -> None:
    url, asked = web
    only(f"{url}/lab, {images}")
    assert not refusals(f"{url}/lab/x.zarr", images / "out", "0")
    dataset = f"{up}/{up}/private/s.zarr/0"
    assert refusals(f"{url}/lab/x.zarr", images / "out", dataset)
    assert all(path.startswith("/lab/x.zarr") for path in asked), asked


def test_no_path_in_ome_metadata_leads_out_of_an_image_on_a_web_server(
    web: tuple[str, list[str]], images: Path, only: Callable[[str], None]
) -> None:
    url, asked = web
    only(f"{url}/lab, {images}")
    path = "%2e%2e/%2e%2e/private/s.zarr/0"
    multiscales = [{"version": "0.4", "datasets": [{"path": path}]}]
    attributes = json.dumps({"multiscales": multiscales})
    (images / "lab/x.zarr/.zattrs").write_text(attributes)
    assert refusals(f"{url}/lab/x.zarr", images / "out", None)
    assert all(path.startswith("/lab/x.zarr") for path in asked), asked


@pytest.mark.parametrize("up", ["..", "%2e%2e"])
def test_no_dataset_leads_out_of_an_array_on_disk(up: str, images: Path) -> None:
    assert refusals(str(images / "lab/x.zarr"), images / "out", f"{up}/{up}/private/s.zarr/0")


def actions(folder: Folder, name: str) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: folder.read(name),
        "write": lambda: folder.write(name, StoredFile(b"")),
        "delete": lambda: folder.delete(name),
        "exists": lambda: folder.exists(name),
        "stream": lambda: folder.stream(name),
        "version": lambda: folder.version(name),
        "names": lambda: list(folder.names(name)),
        "folders": lambda: list(folder.folders(name)),
        "names_starting": lambda: list(folder.names_starting(name, [""])),
        "names_starting a name": lambda: list(folder.names_starting("", [name])),
        "sizes_starting": lambda: list(folder.sizes_starting(name, [""])),
        "sizes": lambda: list(folder.sizes(name)),
        "entries": lambda: list(folder.entries(name)),
        "entry": lambda: folder.entry(name),
        "read_part": lambda: folder.read_part(name, 0, memoryview(bytearray(1))),
        "delete_folder": lambda: folder.delete_folder(name),
    }


@pytest.mark.parametrize("name", AWAY)
def test_no_method_of_a_bucket_takes_a_name_that_leads_away(name: str) -> None:
    folder = open_folder("mem://names/lab")
    for act in actions(folder, name).values():
        with pytest.raises(AccessDenied, match="may lead to another folder"):
            act()


def test_names_with_percent_signs_that_lead_nowhere_are_taken() -> None:
    folder = open_folder("mem://names/percent")
    folder.write("a%20b/100%.bin", StoredFile(b"1"))
    stored = folder.read("a%20b/100%.bin")
    assert stored is not None
    assert stored.content == b"1"


def test_zarr_asks_for_nothing_above_a_bucket() -> None:
    store = FolderStore(open_folder("mem://names/lab"))
    with pytest.raises(AccessDenied, match="may lead"):
        store._read("../private/0", None)
