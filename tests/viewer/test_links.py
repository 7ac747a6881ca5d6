"""Links on disk: a layer may be reached through one, nothing outside of it can be."""

import os

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.viewer.state import Shown, viewer_state

CHUNK = "8_8_40/0-8_0-8_0-8"
OTHER = "8_8_40/8-16_0-8_0-8"


@pytest.fixture
def folder(tmp_path):
    """A layer of two chunks with meshes, beside files that are not its own."""
    spec = LayerSpec("segmentation", chunk_size=(8, 8, 8))
    folder = tmp_path / "layers" / "labels"
    write_layer(folder, random_voxels(Vec3(16, 8, 8), "uint64"), spec)
    info = (folder / "info").read_text()
    (folder / "info").write_text(info.replace('"scales"', '"mesh": "mesh", "scales"', 1))
    (folder / "mesh").mkdir()
    (folder / "mesh" / "7:0").write_text('{"fragments": ["7:0:0-8_0-8_0-8"]}')
    (tmp_path / "home").mkdir()
    for name in ("airflow.cfg", "7:0", "0-8_0-8_0-8", "info"):
        (tmp_path / "home" / name).write_text("secret")
    return folder


@pytest.fixture
def client(folder, serve):
    return serve({"run": {"labels": f"file://{folder}"}})


def stored(folder, name):
    """Where a file of a layer is, compressed or not."""
    plain = folder / name
    return plain if plain.exists() else plain.with_name(f"{plain.name}.gz")


def require_hidden(client, path):
    answer = client.get(f"/data/run/labels/{path}", accept_encoding="identity")
    assert answer.status == 404
    assert b"secret" not in answer.content


@pytest.mark.parametrize("suffix", ["", ".gz", ".br", ".zstd"])
def test_a_chunk_that_is_a_link_out_of_the_layer_is_not_there(client, folder, tmp_path, suffix):
    stored(folder, CHUNK).unlink()
    (folder / f"{CHUNK}{suffix}").symlink_to(tmp_path / "home" / "airflow.cfg")
    require_hidden(client, CHUNK)
    answer = client.get(f"/data/run/labels/{CHUNK}", range="bytes=0-2")
    assert answer.status == 404


@pytest.mark.parametrize("relative", [False, True])
def test_a_scale_folder_that_is_a_link_out_of_the_layer_serves_nothing(
    client, folder, tmp_path, relative
):
    (folder / "8_8_40").rename(folder / "old")
    target = tmp_path / "home"
    (folder / "8_8_40").symlink_to(os.path.relpath(target, folder) if relative else target)
    require_hidden(client, CHUNK)


def test_a_mesh_folder_that_is_a_link_out_of_the_layer_serves_and_lists_nothing(
    client, folder, tmp_path
):
    listed = viewer_state([Shown.of("labels", "x", Layer.open(f"file://{folder}"))])
    assert listed["layers"][0]["segments"] == ["7"]
    (folder / "mesh").rename(folder / "old")
    (folder / "mesh").symlink_to(tmp_path / "home")
    for name in ("7:0", "info"):
        require_hidden(client, f"mesh/{name}")
    state = viewer_state([Shown.of("labels", "x", Layer.open(f"file://{folder}"))])
    assert "segments" not in state["layers"][0]


def test_an_info_that_is_a_link_out_of_the_layer_is_not_served(client, folder, tmp_path):
    outside = tmp_path / "home" / "info"
    outside.write_text((folder / "info").read_text())
    (folder / "info").unlink()
    (folder / "info").symlink_to(outside)
    assert client.get("/data/run/labels/info").status == 403


def test_a_link_to_another_chunk_of_the_layer_is_followed(client, folder):
    stored(folder, CHUNK).unlink()
    (folder / CHUNK).symlink_to(stored(folder, OTHER))
    assert client.get(f"/data/run/labels/{CHUNK}").status == 200


def test_a_link_to_what_is_not_of_the_format_is_not_followed(client, folder):
    (folder / "airflow.cfg").write_text("secret")
    stored(folder, CHUNK).unlink()
    (folder / CHUNK).symlink_to("../airflow.cfg")
    require_hidden(client, CHUNK)


def test_a_link_to_nothing_is_a_missing_chunk(client, folder):
    stored(folder, CHUNK).unlink()
    (folder / CHUNK).symlink_to("nothing")
    require_hidden(client, CHUNK)


def test_a_link_to_itself_is_a_missing_chunk(client, folder):
    stored(folder, CHUNK).unlink()
    (folder / CHUNK).symlink_to(folder / CHUNK)
    require_hidden(client, CHUNK)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_is_not_opened(client, folder, make):
    stored(folder, CHUNK).unlink()
    make(folder / CHUNK)
    require_hidden(client, CHUNK)


def test_the_layer_itself_may_be_a_link(folder, serve, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    client = serve({"run": {"labels": f"file://{tmp_path}/link"}})
    assert client.get("/data/run/labels/info").status == 200
    assert client.get(f"/data/run/labels/{CHUNK}").status == 200
    assert client.get("/data/run/labels/mesh/7:0").status == 200
