"""Maps of labels as numpy and h5py write them, on disk, in memory and behind a web address."""

import gc
import io
import tempfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

from igneous_airflow.errors import InvalidParameter, StorageUnavailable
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.label_map import LabelMap

VALUES = np.array([0, 7, 2**64 - 1, 2**53 + 1, 5], np.uint64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def npy(values, **how):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), **how)
    return stream.getvalue()


def hdf5(**datasets):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return stream.getvalue()


class Server:
    """A web server with one file, which can be fetched in parts."""

    def __init__(self, content):
        self.content = content
        self.gives_parts = True
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                found = self.path == "/folder/map"
                body, code = outer.content if found else b"", 200 if found else 404
                outer.requests.append((self.command, self.headers.get("Range")))
                if found and outer.gives_parts and "Range" in self.headers:
                    first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                    body, code = body[int(first) : int(last) + 1], 206
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hash(outer.content)}"')
                self.end_headers()
                if self.command == "GET":
                    with suppress(ConnectionError):  # cloud-files only looks whether it is there
                        self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/folder/map"

    def __enter__(self):
        # h5py holds its lock while it waits for this server, whose thread must not wait for that
        # lock, as it does to throw away what h5py has made
        gc.disable()
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        gc.enable()


@pytest.fixture(params=["disk", "memory", "web"])
def put(request, tmp_path):
    """Return a function that puts a file somewhere and gives its address."""
    if request.param == "web":
        with Server(b"") as server:

            def put_there(content):
                server.content = content
                return server.url

            yield put_there
        return
    folder = open_folder(
        {"disk": f"file://{tmp_path}/maps", "memory": "mem://maps/x"}[request.param]
    )

    def put_here(content):
        folder.write("map", StoredFile(content))
        return f"{folder.url}/map"

    yield put_here
    folder.delete("map")


@pytest.mark.parametrize("dtype", ["<u4", "<u8", ">u4", ">u8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_npy_file_maps_each_label_to_its_element(put, dtype, version):
    values = VALUES.astype(dtype)
    found = LabelMap.open(put(npy(values, version=version)))
    assert (found.length, found.dtype, found.background) == (5, np.dtype(dtype), 0)
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize("dtype", ["<u4", "<u8", ">u8"])
def test_a_dataset_starts_with_the_image_of_label_1(put, dtype):
    values = VALUES.astype(dtype)
    found = LabelMap.open(put(hdf5(main=values[1:], other=[1.5])))
    assert (found.length, found.dtype, found.background) == (5, np.dtype(dtype), 0)
    np.testing.assert_array_equal(found.values, values)


def test_a_compressed_dataset_is_converted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("igneous_airflow.storage.label_map._PIECE", 7)
    values = np.random.default_rng(1).integers(0, 2**64 - 1, 100, dtype=np.uint64)
    with h5py.File(tmp_path / "map.h5", "w") as file:
        file.create_dataset("main", data=values, compression="gzip", chunks=(9,))
    found = LabelMap.open(f"file://{tmp_path}/map.h5")
    np.testing.assert_array_equal(found.values, [0, *values])


def test_what_background_becomes_is_told(put):
    assert LabelMap.open(put(npy(VALUES[::-1]))).background == 5


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "neither"),
        (b"# a text", "neither"),
        (npy(VALUES.astype(np.int64)), r"int64.*uint32 or uint64"),
        (npy(VALUES.astype(np.uint16)), r"uint16.*uint32 or uint64"),
        (npy(VALUES.astype(float)), "float64"),
        (npy(VALUES.astype(object), allow_pickle=True), "object"),
        (npy(VALUES[None]), r"\(1, 5\).*one axis"),
        (npy(VALUES[0]), r"\(\).*one axis"),
        (npy(VALUES[:0]), "empty"),
        (npy(VALUES)[:-1], "cut off"),
        (npy(VALUES)[:20], "header"),
        (hdf5(other=VALUES, second=VALUES), "no dataset 'main'.*other, second"),
        (hdf5(main=VALUES.astype(float)), "float64"),
        (hdf5(main=VALUES[None]), "one axis"),
        (hdf5(main=VALUES[0]), "one axis"),
        (hdf5(main=VALUES[:0]), "empty"),
        (hdf5(**{"main/deeper": VALUES}), "no dataset 'main'"),
        (hdf5(main=VALUES)[:100], "damaged"),
    ],
)
def test_what_is_no_map_is_refused_by_name(put, content, named):
    url = put(content)
    with pytest.raises(InvalidParameter, match=named) as caught:
        LabelMap.open(url)
    assert url in str(caught.value)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "map.npz", VALUES)
    with pytest.raises(InvalidParameter, match=r"archive.*numpy\.save"):
        LabelMap.open(f"file://{tmp_path}/map.npz")


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_an_absent_map_and_a_folder_are_refused_by_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidParameter, match=f"{tmp_path}/{name} is not there"):
        LabelMap.open(f"file://{tmp_path}/{name}")


def test_an_absent_map_on_the_web_is_refused_by_name():
    with Server(b"") as server, pytest.raises(InvalidParameter, match="nothing is not there"):
        LabelMap.open(server.url.replace("map", "nothing"))


def test_a_map_that_is_stored_compressed_is_refused():
    folder = open_folder("mem://maps/compressed")
    folder.write("map", StoredFile(b"x", "gzip"))
    with pytest.raises(InvalidParameter, match="gzip compression"):
        LabelMap.open("mem://maps/compressed/map")


def test_a_local_npy_file_is_not_copied(tmp_path, cache):
    np.save(tmp_path / "map.npy", VALUES)
    values = LabelMap.open(f"file://{tmp_path}/map.npy").values
    assert isinstance(values.base, np.memmap)
    assert not values.flags.writeable
    assert list(cache.iterdir()) == []


def test_maps_of_one_name_never_meet_in_the_cache(tmp_path):
    """Igneous keeps maps by the name of their file alone."""
    for folder, scale in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "map.h5").write_bytes(hdf5(main=VALUES[1:2] * scale))
    one, two = (LabelMap.open(f"file://{tmp_path}/{f}/map.h5").values for f in ("one", "two"))
    assert one.tolist() == [0, 7]
    assert two.tolist() == [0, 14]


def test_a_new_content_is_another_version_and_is_seen(put):
    """Igneous never sees that a map has changed."""
    for make in (npy, lambda values: hdf5(main=values[1:])):
        old = LabelMap.open(put(make(VALUES)))
        np.testing.assert_array_equal(old.values, VALUES)
        new = LabelMap.open(put(make(VALUES // 2)))
        assert new.version != old.version
        np.testing.assert_array_equal(new.values, VALUES // 2)


def test_the_same_content_has_the_same_version(put):
    assert len({LabelMap.open(put(npy(VALUES))).version for _ in range(2)}) == 1


def test_a_map_in_a_bucket_is_fetched_once_for_all_processes(cache):
    with Server(npy(np.arange(3_000_000, dtype=np.uint32))) as server:
        for _ in range(2):
            found = LabelMap.open(server.url)
            assert found.values[2_999_999] == 2_999_999
        fetched = [part for _, part in server.requests if part]
    assert len(list(Path(cache).rglob("*"))) == 2  # a folder, a file
    sizes = [int(b) - int(a) for a, b in (p.removeprefix("bytes=").split("-") for p in fetched)]
    assert [size // 2**20 for size in sizes if size > 2**20] == [11]  # the others are its header


def test_a_server_that_gives_no_parts_is_named():
    with Server(npy(np.arange(1_000_000, dtype=np.uint32))) as server:
        server.gives_parts = False
        with pytest.raises(StorageUnavailable, match=r"map gave .* does not give parts"):
            LabelMap.open(server.url)


def test_a_map_that_changes_while_it_is_fetched_is_tried_again(cache):
    with Server(npy(VALUES)) as server:
        found = LabelMap.open(server.url)
        server.content = npy(VALUES // 2)
        with pytest.raises(StorageUnavailable, match="changed while it was read"):
            _ = found.values
    assert [path for path in Path(cache).rglob("*") if path.is_file()] == []
