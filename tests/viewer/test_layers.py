"""Layers that the viewer has open, and which of them hang together."""

import json
import time

import pytest

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.viewer.layers import OpenLayers, storage_of

CHUNK = "8_8_40/0-16_0-8_0-8"


@pytest.fixture
def opened(monkeypatch):
    """The addresses of layers, each time that one is opened."""
    opened, real = [], Layer.open

    def note(url, most):
        opened.append(url)
        return real(url, most)

    monkeypatch.setattr(Layer, "open", note)
    return opened


@pytest.fixture
def folder(tmp_path):
    write_layer(tmp_path / "image", random_voxels(Vec3(16, 8, 8)))
    return tmp_path / "image"


def chunk_of(folder):
    return f"8_8_40/{next((folder / '8_8_40').iterdir()).name.removesuffix('.gz')}"


def test_the_info_of_a_layer_is_not_read_for_every_chunk(folder, opened):
    layers, url = OpenLayers(fresh=60), f"file://{folder}"
    for _ in range(5):
        assert layers.find(url, chunk_of(folder)) is not None
    assert len(opened) == 1


def test_an_info_is_read_again_after_a_while(folder, opened):
    layers, url = OpenLayers(fresh=0, again=0), f"file://{folder}"
    for _ in range(3):
        assert layers.find(url, chunk_of(folder)) is not None
    assert len(opened) == 3


def add_scale(folder):
    info = json.loads((folder / "info").read_text())
    info["scales"].append({**info["scales"][0], "key": "16_16_40", "resolution": [16, 16, 40]})
    (folder / "info").write_text(json.dumps(info))


def test_a_chunk_of_a_scale_that_was_added_just_now_is_found(folder):
    layers, url = OpenLayers(fresh=60, again=0), f"file://{folder}"
    added = chunk_of(folder).replace("8_8_40", "16_16_40")
    assert layers.find(url, added) is None
    add_scale(folder)
    found = layers.find(url, added)
    assert found is not None
    assert found[1].name == added


def test_a_request_for_the_info_gets_the_current_one(folder, opened):
    layers, url = OpenLayers(fresh=60), f"file://{folder}"
    for _ in range(2):
        add_scale(folder)
        layer, file = layers.find(url, "info")
        assert layer.folder.read(file.name).content == (folder / "info").read_bytes()
    assert len(opened) == 1


def test_an_info_is_not_read_for_each_name_that_is_not_there(folder, opened):
    layers, url = OpenLayers(), f"file://{folder}"
    for number in range(500):
        assert layers.find(url, f"nothing/{number}-1_0-1_0-1") is None
    assert len(opened) == 1
    layers = OpenLayers(again=0.05)
    assert layers.find(url, "nothing") is None
    time.sleep(0.06)
    assert layers.find(url, "nothing") is None
    assert len(opened) == 3


def test_an_info_that_is_invalid_is_not_read_for_each_request(folder, opened):
    (folder / "info").write_text("{")
    layers, url = OpenLayers(), f"file://{folder}"
    for _ in range(100):
        with pytest.raises(InvalidInfo, match="is not JSON"):
            layers.find(url, "nothing")
    assert len(opened) == 1


@pytest.mark.parametrize(("scales", "padding"), [(20_000, 0), (257, 0), (1, 1_000_000)])
def test_a_huge_info_costs_the_viewer_little(folder, scales, padding):
    info = json.loads((folder / "info").read_text())
    info["scales"] = [{**info["scales"][0], "key": f"k{n}"} for n in range(scales)]
    (folder / "info").write_text(json.dumps({**info, "padding": "x" * padding}))
    layers, url = OpenLayers(), f"file://{folder}"
    started = time.process_time()
    for number in range(50):
        with pytest.raises(InvalidInfo, match=r"larger than the 1,000,000 bytes|has 257 scales"):
            layers.find(url, f"nothing/{number}-1_0-1_0-1")
    assert time.process_time() - started < 0.5


def test_layers_that_are_not_looked_at_any_more_are_forgotten(folder, tmp_path):
    layers = OpenLayers(fresh=0, again=0)
    for name in ("one", "two", "three"):
        layers.open(write_layer(tmp_path / name, random_voxels(Vec3(8, 8, 8))))
    assert len(layers._open) == 1


@pytest.mark.parametrize(
    ("url", "storage"),
    [
        ("s3://bucket/layers/em", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("gs://bucket/em", "gs://bucket"),
        ("https://example.org/layers/em", "https://example.org"),
        ("http://127.0.0.1:8000/em", "http://127.0.0.1:8000"),
        ("s3://http://127.0.0.1:9000/bucket/em", "s3://http://127.0.0.1:9000/bucket"),
        ("s3://https://example.org/bucket/em", "s3://https://example.org/bucket"),
        ("s3://https-bucket/em", "s3://https-bucket"),
        ("lab://bucket/em", "lab://bucket"),
        ("file:///mnt/lab/em", "file:///mnt/lab"),
        ("file:///mnt/lab/em/cells", "file:///mnt/lab"),
        ("file:///em", "file:///em"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_what_answers_for_a_layer_is_told_from_its_address(url, storage):
    assert storage_of(url) == storage
