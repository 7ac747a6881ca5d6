"""What the viewer must not give away, and what must not bring it down; attacked over HTTP."""

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import brotli
import numpy as np
import pytest
import viewer_server
import zstandard
from viewer_server import serving

from igneous_airflow.errors import AccessDenied, StorageUnavailable
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

CHUNK = "8_8_40/0-64_0-64_0-64"
MANY = 3 << 30  # bytes that a bomb becomes
MOST_MEMORY = 300 << 20


@pytest.fixture
def layer(tmp_path):
    spec = LayerSpec(chunk_size=(64, 64, 64))
    write_layer(tmp_path / "layer", random_voxels(Vec3(64, 64, 64)), spec)
    return tmp_path / "layer"


def views(folder):
    return {"run": {"layer": f"file://{folder}"}}


@pytest.mark.parametrize("has_info", [False, True])
def test_of_a_folder_with_secrets_only_the_format_is_served(tmp_path, layer, has_info):
    """As it is after a transfer to such a folder, or after the plan of one."""
    home = tmp_path / "airflow"
    home.mkdir()
    secrets = ("airflow.cfg", "passwords.json", "airflow.db", "provenance", "logs/task.log")
    for name in secrets:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("s3cr3t")
    if has_info:
        shutil.copy(layer / "info", home / "info")
    with serving(views(home)) as client:
        for name in secrets:
            answer = client.get(f"/data/run/layer/{name}")
            assert answer.status == 404
            assert b"s3cr3t" not in answer.content
        assert client.get("/data/run/layer/info").status == (200 if has_info else 404)


def test_an_info_that_is_none_of_a_layer_is_not_served(tmp_path):
    (tmp_path / "info").write_text('{"s3cr3t": true}')
    with serving(views(tmp_path)) as client:
        answer = client.get("/data/run/layer/info")
    assert answer.status == 422
    assert b"s3cr3t" not in answer.content


def change_info(layer, **changes):
    info = json.loads((layer / "info").read_text())
    (layer / "info").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    "name", ["../names", "/{parent}/names", "mesh/../../names", "%2e%2e/names"]
)
def test_meshes_outside_of_the_layer_are_neither_served_nor_listed(tmp_path, layer, name):
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "4711:0").write_text('{"fragments": ["s3cr3t"]}')
    (tmp_path / "names" / "info").write_text('{"@type": "s3cr3t"}')
    mesh = name.format(parent=str(tmp_path).strip("/"))
    change_info(layer, type="segmentation", mesh=mesh, skeletons=mesh, segment_properties=mesh)
    with serving(views(layer)) as client:
        state = client.get("/state/run")
        assert "4711" not in state.text
        for path in (f"{mesh}/4711:0", f"{mesh}/info", "names/info", "../names/info"):
            answer = client.get(f"/data/run/layer/{path}")
            assert answer.status == 422  # the info is refused as a whole
            assert b"s3cr3t" not in answer.content


@pytest.mark.parametrize(
    "scale",
    [
        {"resolution": [1e-300, 1e300, 1]},
        {"resolution": [1e308, 1e308, 1e308]},
        {"resolution": [5e-324, 5e-324, 5e-324]},
        {"size": [10**400, 1, 1]},
        {"size": [2**60, 64, 64]},
        {"voxel_offset": [-(10**30), 0, 0]},
        {"resolution": [float("nan"), 8, 40]},
        {"resolution": [float("inf"), 8, 40]},
        {"resolution": [10**400, 8, 40]},
        {"resolution": ["8", [], {}]},
        {"key": "../8_8_40", "resolution": [1e-300, 1, 1]},
    ],
)
def test_a_layer_that_cannot_be_drawn_is_refused_in_words(layer, scale):
    info = json.loads((layer / "info").read_text())
    change_info(layer, scales=[{**info["scales"][0], **scale}])
    with serving(views(layer)) as client:
        answer = client.get("/state/run")
    assert 400 <= answer.status < 500
    assert "scale" in answer.text or "is not a number of JSON" in answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_an_info_of_many_brackets_is_refused_in_words(layer):
    (layer / "info").write_text("[" * 200_000)
    with serving(views(layer)) as client:
        assert client.get("/state/run").status == 422
        assert client.get("/data/run/layer/info").status == 422


HOSTILE = "<img src=x onerror=alert(1)>"


def test_hostile_names_come_back_as_plain_text(tmp_path):
    hostile = tmp_path / HOSTILE
    with serving(views(hostile)) as client:
        for path in (
            "/open/%3Cimg%20src=x%20onerror=alert(1)%3E",
            "/state/run",
            "/state/%3Cimg%20src=x%3E",
            "/data/run/layer/info",
            "/data/run/%3Cimg%20src=x%3E/info",
            "/%3Cimg%20src=x%3E",
        ):
            answer = client.get(path)
            assert answer.status == 404
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_hostile_view_is_escaped_in_its_page(layer):
    with serving({f'"{HOSTILE}': {"layer": f"file://{layer}"}}) as client:
        answer = client.get("/open/%22%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert answer.status == 200
    assert "<img" not in answer.text
    assert 'data-view="&quot;&lt;img' in answer.text


def test_a_storage_that_refuses_is_told_without_its_words(layer, monkeypatch):
    def refuse(url, most):
        raise AccessDenied(f"cannot read {url} at http://10.0.0.1:9000 with key AKIAX")

    monkeypatch.setattr(Layer, "open", refuse)
    with serving(views(layer)) as client:
        for path in ("/data/run/layer/info", f"/data/run/layer/{CHUNK}", "/state/run"):
            answer = client.get(path)
            assert answer.status == 403
            assert "10.0.0.1" not in answer.text
            assert str(layer) not in answer.text


def test_a_storage_that_fails_is_told_without_its_words(layer, monkeypatch):
    def fail(url, most):
        raise StorageUnavailable("cannot connect to http://10.0.0.1:9000")

    monkeypatch.setattr(Layer, "open", fail)
    with serving(views(layer)) as client:
        answer = client.get("/data/run/layer/info")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "10.0.0.1" not in answer.text


def gzip_bomb(size):
    """Zeros as gzip: one block of a stream, again and again."""
    packer, zeros = zlib.compressobj(9, wbits=-15), bytes(1 << 24)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(size // len(zeros)):
        checksum = zlib.crc32(zeros, checksum)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    ending = packer.flush() + struct.pack("<II", checksum, size)
    return header + block * (size // len(zeros)) + ending


def lying(bomb):
    """A bomb that says in its last bytes that it holds few."""
    return bomb[:-4] + (64**3).to_bytes(4, "little")


def brotli_bomb(size):
    packer, zeros = brotli.Compressor(quality=1), bytes(1 << 24)
    parts = [packer.process(zeros) for _ in range(size // len(zeros))]
    return b"".join([*parts, packer.finish()])


def zstd_bomb(size):
    packer, zeros = zstandard.ZstdCompressor().compressobj(), bytes(1 << 24)
    parts = [packer.compress(zeros) for _ in range(size // len(zeros))]
    return b"".join([*parts, packer.flush()])


BOMBS = {".gz": gzip_bomb, ".br": brotli_bomb, ".zstd": zstd_bomb}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "small.gz").write_bytes(lying(gzip_bomb(MANY >> 6)))
    for suffix, make in BOMBS.items():
        (folder / f"bomb{suffix}").write_bytes(make(MANY))
    (folder / "lying.gz").write_bytes(lying((folder / "bomb.gz").read_bytes()))
    return folder


def peak_memory(layer, *requests):
    """Serve a layer in a process of its own; gives the statuses, and the memory it took at most."""
    script = viewer_server.__file__
    answer = subprocess.run(
        [sys.executable, script, str(layer), json.dumps(requests)],
        capture_output=True,
        check=True,
        timeout=240,
    )
    told = json.loads(answer.stdout)
    return told["statuses"], told["bytes"]


ASKED = [
    {"accept-encoding": "identity"},
    {"accept-encoding": "gzip, br, zstd"},
    {"range": "bytes=0-0"},
]


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.br", "bomb.zstd", "lying.gz", "small.gz"])
def test_a_chunk_that_would_become_gigabytes_takes_no_memory(layer, bombs, name):
    for path in (layer / "8_8_40").iterdir():
        path.unlink()
    shutil.copy(bombs / name, layer / f"{CHUNK}{Path(name).suffix}")
    path = f"/data/run/layer/{CHUNK}"
    statuses, size = peak_memory(layer, *([path, headers] for headers in ASKED))
    is_small = (bombs / name).stat().st_size < 64**3  # as stored: a browser may undo it
    assert statuses == [502, 200 if is_small else 502, 502]
    assert size < MOST_MEMORY


@pytest.mark.parametrize("name", ["bomb.gz", "lying.gz"])
def test_a_chunk_of_a_large_chunk_size_is_bounded_as_well(layer, bombs, name):
    """Even where the info promises as much as a bomb becomes."""
    info = json.loads((layer / "info").read_text())
    scale = {**info["scales"][0], "size": [2048] * 3, "chunk_sizes": [[2048] * 3]}
    change_info(layer, scales=[scale])
    chunk = "8_8_40/0-2048_0-2048_0-2048"
    shutil.copy(bombs / name, layer / f"{chunk}.gz")
    path = f"/data/run/layer/{chunk}"
    statuses, size = peak_memory(layer, [path, ASKED[0]], [path, ASKED[2]])
    assert statuses == [502, 502]
    assert size < MOST_MEMORY + (128 << 20)  # what may be served at once


def test_an_info_that_would_become_gigabytes_takes_no_memory(layer, bombs):
    (layer / "info").unlink()
    shutil.copy(bombs / "lying.gz", layer / "info.gz")
    statuses, size = peak_memory(layer, ["/data/run/layer/info", {}], ["/state/run", {}])
    assert statuses == [422, 422]
    assert size < MOST_MEMORY


def test_a_file_of_gigabytes_that_is_no_chunk_is_not_read(layer):
    with (layer / CHUNK).open("wb") as stream:
        stream.truncate(MANY)
    path = f"/data/run/layer/{CHUNK}"
    statuses, size = peak_memory(layer, [path, {}], [path, {"range": "bytes=0-9"}])
    assert statuses == [502, 206]
    assert size < MOST_MEMORY


def test_a_chunk_that_is_as_large_as_it_may_be_is_served(tmp_path):
    voxels = np.random.default_rng(1).integers(0, 2**63, (64, 64, 64, 1), np.uint64)
    spec = LayerSpec("segmentation", encoding="compressed_segmentation", chunk_size=(64, 64, 64))
    layer = tmp_path / "noise"
    url = write_layer(layer, voxels, spec)
    stored = gzip.compress(bytes(Layer.open(url).folder.read(CHUNK).content), 0)
    with serving(views(layer)) as client:
        assert client.get(f"/data/run/layer/{CHUNK}").status == 200
        for path in (layer / "8_8_40").iterdir():
            path.unlink()
        (layer / f"{CHUNK}.gz").write_bytes(stored)
        assert client.get(f"/data/run/layer/{CHUNK}", accept_encoding="identity").status == 200
