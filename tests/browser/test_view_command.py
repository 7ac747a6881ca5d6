"""Layers drawn by `igneous-airflow view`, without Airflow, under names that need escaping."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import chromium
import numpy as np
import pytest
from drawing import central, panel, wait_until_ready
from playwright.sync_api import Browser, Page

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.sample import DEFAULT

SAMPLE = replace(DEFAULT, size=Vec3(128, 112, 24))
SLICE, MESHES = 0, 2  # panels of the layout 4panel, in the page's order


@pytest.fixture
def layers(tmp_path: Path) -> list[str]:
    """An image and its segmentation with meshes."""
    folder, urls = tmp_path / "100% of #1", []
    for name, voxels, kind in zip(
        ("em", "größe?"), SAMPLE.volumes(), ("image", "segmentation"), strict=True
    ):
        spec = LayerSpec(kind, chunk_size=(64, 64, 16), resolution=SAMPLE.resolution)
        urls.append(write_layer(folder / name, voxels[..., np.newaxis], spec))
    for stage in (Mesh(layer=urls[1]), MeshManifest(layer=urls[1])):
        stage.prepare()
        for block in stage.cells():
            stage.run(block)
        stage.finish(by="me@example.org")
    return [url.removeprefix("file://") for url in urls]


@pytest.fixture
def address(layers: list[str]) -> Iterator[str]:
    """Where the command says that the layers are."""
    command = [sys.executable, "-m", "igneous_airflow", "view", *layers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        process.wait(30)


def test_an_image_with_labels_and_meshes_is_drawn(
    address: str, browser: Browser, picture: Callable[..., None]
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page: Page = context.new_page()
    faults: list[str] = []
    missing: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda got: missing.append(got.url) if got.status >= 400 else None)
    chromium.watch_policy(page, faults)
    page.goto(address)
    wait_until_ready(page)
    picture(page, "view-command", full_page=False)
    names = page.evaluate("viewer.layerManager.managedLayers.map(one => one.name)")
    assert names == ["em", "größe?"]
    for place in (SLICE, MESHES):
        pixels = central(panel(page, place)).astype(int)
        coloured = pixels.max(axis=2) - pixels.min(axis=2) > 40
        assert coloured.mean() > 0.05
        if place == SLICE:
            assert pixels[~coloured].mean(axis=1).std() > 10
    context.close()
    assert faults == []
    assert [url for url in missing if "/data/" in url and not url.endswith("/info")] == []
