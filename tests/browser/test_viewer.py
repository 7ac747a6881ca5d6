"""What a run has made, drawn by Neuroglancer inside of Airflow: ready, complete, in its place.

Only all three together show it: the viewer's own account of its chunks, the server's log of what
was asked for, and the pixels.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from drawing import Pixels, central, panel, wait_until_ready
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from real_airflow import RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.sample import DEFAULT
from igneous_airflow.worker.loop import Worker, WorkerOptions

SAMPLE = replace(DEFAULT, size=Vec3(256, 224, 24))
SCALE = 320  # voxels that fit into the height of the panel with meshes
HUES = ("#ff0000", "#00ff00", "#0000ff")
SLICE, MESHES = 0, 2  # panels of the layout 4panel, in the page's order
POSE = {
    "projectionOrientation": [0, 0, 0, 1],
    "projectionScale": SCALE,
    "layout": {"type": "3d", "orthographicProjection": True},
    "showAxisLines": False,
    "showScaleBar": False,
    "showDefaultAnnotations": False,
    "showSlices": False,
    "projectionBackgroundColor": "#000000",
}


class ServerLog:
    """What the API server was asked for below the viewer since this was made."""

    def __init__(self, airflow: RealAirflow) -> None:
        self._file = airflow.home / "api-server.log"
        self._start = self._file.stat().st_size

    def answers(self) -> list[tuple[str, int]]:
        text = self._file.read_bytes()[self._start :].decode()
        found = re.findall(r" path=(/igneous/viewer/\S+) .*?status_code=(\d+)", text)
        return [(path, int(status)) for path, status in found]

    def require_complete(self) -> None:
        """Every file of a layer that was asked for was there."""
        data = [(path, status) for path, status in self.answers() if "/data/" in path]
        assert data
        assert [one for one in data if one[1] not in (200, 206)] == []


@pytest.fixture(scope="module")
def volumes() -> tuple[Pixels, NDArray[np.uint64]]:
    return SAMPLE.volumes()


def write(path: Path, voxels: NDArray[Any], layer_type: str) -> str:
    spec = LayerSpec(
        layer_type,
        chunk_size=(64, 64, 16),
        voxel_offset=SAMPLE.voxel_offset,
        resolution=SAMPLE.resolution,
    )
    return write_layer(path, voxels[..., np.newaxis], spec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an image and its segmentation lie side by side."""
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def largest(volumes: tuple[Pixels, NDArray[np.uint64]]) -> list[int]:
    """The labels of the largest objects."""
    labels, counts = np.unique(volumes[1], return_counts=True)
    order = [int(label) for label in labels[np.argsort(-counts.astype(np.int64))] if label]
    return order[: len(HUES)]


@pytest.fixture(scope="module")
def meshed(
    airflow: RealAirflow,
    volumes: tuple[Pixels, NDArray[np.uint64]],
    folder: Path,
) -> str:
    """A DAG run of `igneous_mesh` that has meshed the labels."""
    layer = write(folder / "cells", volumes[1], "segmentation")
    chain = airflow.of("igneous_mesh")
    run = "viewer-meshes"
    chain.trigger(run, {"layer": layer, "shape": "128,128,24", "simplification": False})
    assert chain.end_of(run) == "success"
    return run


@pytest.fixture(scope="module")
def downsampled(
    airflow: RealAirflow,
    volumes: tuple[Pixels, NDArray[np.uint64]],
    folder: Path,
) -> str:
    """The name of a finished run on an image, that no DAG has launched."""
    layer = write(folder / "em", volumes[0], "image")
    url = f"file://{airflow.runs}/viewer-image"
    queue = f"sqlite://{airflow.runs}/viewer-image/queue.db"
    run, _ = Run.launch(Downsample(layer=layer, num_mips=1), url=url, queue=queue, by="a@b.org")
    run.prepare()
    run.enqueue()
    tasks = run.open_queue()
    options = WorkerOptions(idle_seconds=0.01, until_done=True)
    Worker(tasks, run.runs_folder, options, lambda event: None).work()
    tasks.close()
    run.finish()
    return run.id


def test_an_image_is_drawn(
    airflow: RealAirflow,
    folder: Path,
    downsampled: str,
    open_page: Callable[..., Page],
    picture: Callable[..., None],
) -> None:
    log = ServerLog(airflow)
    page = open_page("/plugin/igneous")
    runs = page.frame_locator("iframe")
    runs.get_by_label("Layer").fill(str(folder / "em"))
    row = runs.get_by_role("row").filter(has_text=str(folder / "em"))
    row.get_by_role("link", name="View", exact=True).click()
    wait_until_ready(page)
    picture(page, "viewer-image", full_page=False)
    log.require_complete()
    assert central(panel(page, 0)).mean(axis=2).std() > 10


def test_the_link_of_the_finish_task_draws_labels_and_meshes_over_the_image(
    airflow: RealAirflow,
    meshed: str,
    downsampled: str,
    open_page: Callable[..., Page],
    picture: Callable[..., None],
) -> None:
    log = ServerLog(airflow)
    task = f"/dags/igneous_mesh/runs/{meshed}/tasks/mesh_manifest.finish/details"
    page = open_page(task)
    link = page.get_by_role("link", name="View in Neuroglancer")
    expect(link).to_be_visible()
    picture(page, "finish-task", full_page=False)
    page.goto(str(link.get_attribute("href")))
    wait_until_ready(page)
    picture(page, "viewer-labels", full_page=False)
    log.require_complete()
    assert len([path for path, _ in log.answers() if re.search(r"/mesh_[^/]*/\d+:0:", path)]) >= 12
    assert page.evaluate("viewer.layerManager.managedLayers.map(one => one.name)") == [
        "em",
        "cells",
    ]
    for place in (SLICE, MESHES):
        pixels = central(panel(page, place)).astype(int)
        coloured = pixels.max(axis=2) - pixels.min(axis=2) > 40
        assert coloured.mean() > 0.05
        if place == SLICE:  # between the cells that are chosen one sees the image
            assert pixels[~coloured].mean(axis=1).std() > 10


def test_meshes_lie_where_their_labels_are(
    airflow: RealAirflow,
    meshed: str,
    volumes: tuple[Pixels, NDArray[np.uint64]],
    largest: list[int],
    open_page: Callable[..., Page],
    picture: Callable[..., None],
) -> None:
    """The silhouette of each mesh, seen along z, is the projection of its label."""
    log = ServerLog(airflow)
    (run,) = (path.name for path in airflow.runs.glob(f"*{meshed}_mesh_manifest*"))
    page = open_page("/igneous/page/page.css")
    state = page.evaluate(f"fetch('/igneous/viewer/state/{run}').then(a => a.json())")
    layer = state["layers"][-1]
    base = f"{airflow.base}/igneous/viewer"
    layer["source"] = layer["source"].replace("{base}", base)
    overlaps = []
    for label, hue in zip(largest, HUES, strict=True):
        posed = state | POSE | {"layers": [layer | chosen(label, hue)]}
        page = open_page(f"/igneous/viewer/neuroglancer/v/1/#!{quote(json.dumps(posed))}")
        wait_until_ready(page)
        picture(page, f"viewer-mesh-{hue[1:]}", full_page=False)
        pixels = panel(page, 0)
        drawn = pixels[..., HUES.index(hue)] > 3  # edges are drawn dark
        drawn[:100, :100] = False  # the names of the axes
        expected = projected(volumes[1] == label, drawn.shape, SCALE)
        overlaps.append(((drawn & expected).sum(), (drawn | expected).sum()))
    log.require_complete()
    both, either = np.array(overlaps).T
    assert both.sum() / either.sum() >= 0.97, overlaps
    assert min(both / either) >= 0.95, overlaps  # meshes cut the corners of voxels


def chosen(label: int, hue: str) -> dict[str, Any]:
    return {"segments": [str(label)], "segmentColors": {str(label): hue}}


def projected(inside: NDArray[np.bool_], shape: tuple[int, ...], scale: float) -> NDArray[np.bool_]:
    """What an object covers of a panel, seen along z: x to the right and y downwards.

    `scale` voxels fill the panel's height, whose middle is the middle of the volume.
    """
    covered = np.pad(inside.any(axis=2), 1)  # what lies outside is taken from the empty margin
    y, x = (
        np.clip(
            (np.arange(pixels) + 0.5 - pixels / 2) * scale / shape[0] + voxels / 2, 0, voxels - 1
        )
        for pixels, voxels in zip(shape, covered.shape[::-1], strict=True)
    )
    return covered[np.ix_(x.astype(int), y.astype(int))].T
