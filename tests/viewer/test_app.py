"""The viewer's server: only files of layers that a view names, as a browser wants them."""

import gzip
import json
from urllib.parse import quote

import pytest
import zstandard

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage import allowed
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

CHUNK = "8_8_40/0-8_0-8_0-8"


def compress(path):
    """Store a file compressed in place of its plain form; gives its content."""
    plain = path.read_bytes()
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(plain))
    return plain


@pytest.fixture
def folder(tmp_path):
    write_layer(tmp_path / "layers" / "image", random_voxels(Vec3(16, 8, 8)), LayerSpec())
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "layers" / "other").mkdir()
    (tmp_path / "layers" / "other" / "info").write_text("secret")
    return tmp_path / "layers" / "image"


@pytest.fixture
def client(folder, serve):
    return serve({"run": {"image": f"file://{folder}"}})


def test_a_file_comes_as_it_is(client, folder):
    answer = client.get(f"/data/run/image/{CHUNK}")
    assert answer.status == 200
    assert answer.content == (folder / CHUNK).read_bytes()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, GZIP;q=0.5", "gzip"),
        ("identity", None),
        ("gzip;q=0", None),
        ("x-gzipped", None),
    ],
)
def test_a_compressed_file_comes_under_its_plain_name(client, folder, accepted, coding):
    plain = compress(folder / CHUNK)
    answer = client.get(f"/data/run/image/{CHUNK}", accept_encoding=accepted)
    assert answer.content == plain
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "Accept-Encoding"


def test_a_compression_that_the_browser_cannot_undo_is_undone(client, folder):
    plain = (folder / CHUNK).read_bytes()
    (folder / CHUNK).unlink()
    (folder / f"{CHUNK}.zstd").write_bytes(zstandard.compress(plain))
    assert client.get(f"/data/run/image/{CHUNK}", accept_encoding="gzip").content == plain


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=100-", 100, 511),
        ("bytes=-12", 500, 511),
        ("bytes=9-99999", 9, 511),
    ],
)
def test_a_range_is_one_of_the_uncompressed_bytes(client, folder, asked, first, last, compressed):
    plain = compress(folder / CHUNK) if compressed else (folder / CHUNK).read_bytes()
    answer = client.get(f"/data/run/image/{CHUNK}", range=asked)
    assert answer.status == 206
    assert answer.content == plain[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/512"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("asked", ["bytes=512-", "bytes=-0"])
def test_a_range_beyond_the_file_is_refused_with_its_size(client, folder, asked, compressed):
    if compressed:
        compress(folder / CHUNK)
    answer = client.get(f"/data/run/image/{CHUNK}", range=asked)
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */512"


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=9-3"},
        {"range": "bytes=a-b"},
        {"range": "lines=1-2"},
        {"range": "bytes=0-1,4-5"},
        {"range": "bytes=0-1", "if_range": '"another version"'},
    ],
)
def test_a_range_that_cannot_be_given_as_asked_is_ignored(client, folder, headers):
    answer = client.get(f"/data/run/image/{CHUNK}", **headers)
    assert answer.status == 200
    assert answer.content == (folder / CHUNK).read_bytes()


def test_only_the_range_of_a_stored_file_is_read(client, folder, tmp_path):
    """A shard may have more bytes than the machine has memory; here they are a hole."""
    info = json.loads((folder / "info").read_text())
    info["scales"][0]["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1"}
    (folder / "info").write_text(json.dumps(info))
    shard = folder / "8_8_40" / "0f.shard"
    with shard.open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek((1 << 40) - 4)
        stream.write(b"last")
    answer = client.get("/data/run/image/8_8_40/0f.shard", range="bytes=-8")
    assert answer.status == 206
    assert answer.content == bytes(4) + b"last"
    assert client.get("/data/run/image/8_8_40/0f.shard").status == 502
    assert client.get("/data/run/image/8_8_40/0f.shard", range="bytes=0-999999999").status == 413


@pytest.mark.parametrize(
    "path",
    [
        "/data/run/image/../other/info",
        "/data/run/image/..%2f..%2fsecret",
        "/data/run/image/%2e%2e/%2e%2e/secret",
        "/data/run/image/8_8_40/../../other/info",
        "/data/run/image//etc/passwd",
        "/data/run/image/%2fetc%2fpasswd",
        "/data/run/image/..%5c..%5csecret",
        "/data/run/image/info%00",
        "/data/run/image/",
        "/data/run/other/info",
        "/data/other/image/info",
        "/data/run/file:%2f%2f%2fetc/passwd",
        "/data/s3:%2f%2fbucket/image/info",
        "/data/run/..%2fother/info",
    ],
)
def test_nothing_outside_of_a_view_is_opened(client, path):
    answer = client.get(path)
    assert answer.status == 404
    assert "secret" not in answer.text


def test_a_link_that_leads_out_of_the_layer_is_not_followed(client, folder, tmp_path):
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "inside").symlink_to(folder / "info")
    assert client.get("/data/run/image/out").status == 404


def test_a_missing_chunk_is_told_as_such(client):
    assert client.get("/data/run/image/8_8_40/0-8_0-8_8-16").status == 404


def test_the_state_names_the_layers_of_the_view(client, folder):
    state = json.loads(client.get("/state/run").text)
    assert [layer["source"] for layer in state["layers"]] == ["precomputed://{base}/data/run/image"]
    assert state["position"] == [8, 4, 4]
    assert len(Layer.open(f"file://{folder}").info.scales) == 1


def test_layers_are_called_by_their_folders(folder, serve):
    other = folder.parent / "copy" / "image"
    write_layer(other, random_voxels(Vec3(16, 8, 8)), LayerSpec())
    labels = folder.parent / "labels"
    write_layer(labels, random_voxels(Vec3(16, 8, 8), "uint64"), LayerSpec("segmentation"))
    view = {"src": f"file://{folder}", "dest": f"file://{other}", "layer": f"file://{labels}"}
    state = json.loads(serve({"run": view}).get("/state/run").text)
    assert [one["name"] for one in state["layers"]] == ["image (src)", "image (dest)", "labels"]


def test_a_view_that_is_not_there_is_told_as_such(client):
    for path in ("/open/other", "/state/other", "/data/other/image/info"):
        answer = client.get(path)
        assert answer.status == 404
        assert "no such view" in answer.text


def test_the_client_is_served_from_here(client):
    answer = client.get("/neuroglancer/v/1/")
    assert answer.status == 200
    assert "<script" in answer.text


def test_the_page_that_opens_a_view_escapes_its_name(folder, serve):
    name = "<script>alert(1)<script>"
    client = serve({name: {"image": f"file://{folder}"}})
    answer = client.get(f"/open/{quote(name)}")
    assert answer.status == 200
    assert "<script>alert" not in answer.text


def test_a_layer_that_this_process_may_not_open_is_forbidden(serve, tmp_path):
    layer = tmp_path / "private" / "layer"
    write_layer(layer, random_voxels(Vec3(64, 16, 8)))
    client = serve({"one": {"layer": f"file://{layer}"}})
    assert client.get("/data/one/layer/info").status == 200
    allowed.limit_process("x", allowed.Allowed.parse(str(tmp_path / "lab"), "x"))
    for path in ("/data/one/layer/info", "/state/one"):
        answer = client.get(path)
        assert answer.status == 403
        assert "outside" in answer.text
