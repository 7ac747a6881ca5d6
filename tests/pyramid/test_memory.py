"""What a task holds while many storage operations are under way, as in a bucket, against its plan.

The storage is slow here, so that as much as ever may waits to be read and written.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.stage import Stage
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.stages import peak_memory

WIDTH = 16
OTHER = 300_000  # bytes of a task that are no voxels

Make = Callable[[Path], Stage]


def noise(path: Path, size: Vec3, dtype: str, layer_type: str, chunk: Vec3) -> str:
    voxels = np.random.default_rng(1).integers(0, 255, (*size, 1)).astype(dtype)
    return write_layer(path, np.asfortranarray(voxels), LayerSpec(layer_type, chunk))


def image(path: Path) -> Stage:
    url = noise(path / "a", Vec3(256, 256, 64), "uint8", "image", Vec3.full(32))
    return Downsample(layer=url, num_mips=3)


def labels(path: Path) -> Stage:
    url = noise(path / "b", Vec3.full(128), "uint64", "segmentation", Vec3.full(32))
    return Downsample(layer=url, num_mips=2, factor="2,2,2")


def labels_in_little_memory(path: Path) -> Stage:
    return labels(path).model_copy(update={"memory_target": 3_000_000})


def large_tiles(path: Path) -> Stage:
    url = noise(path / "c", Vec3(512, 512, 64), "uint8", "image", Vec3(256, 256, 8))
    return Downsample(layer=url, num_mips=2, chunk_size="64,64,64")


def blocks(path: Path) -> Stage:
    url = noise(path / "d", Vec3(256, 256, 64), "uint8", "image", Vec3.full(32))
    return Transfer(src=url, dest=f"file://{path}/out", max_mips=2)


def sections(path: Path) -> Stage:
    url = noise(path / "e", Vec3(256, 256, 64), "uint8", "image", Vec3(256, 256, 1))
    return Transfer(src=url, dest=f"file://{path}/out", chunk_size="32,32,32", max_mips=2)


def sections_in_little_memory(path: Path) -> Stage:
    return sections(path).model_copy(update={"max_mips": 0, "memory_target": 5_000_000})


@pytest.fixture
def slow_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = LocalFolder.read, LocalFolder.write

    def read_slowly(folder: LocalFolder, name: str, most: int | None = None) -> object:
        time.sleep(0.002)
        return read(folder, name)

    def write_slowly(folder: LocalFolder, *args: object, **options: object) -> None:
        time.sleep(0.01)
        write(folder, *args, **options)

    monkeypatch.setattr(LocalFolder, "read", read_slowly)
    monkeypatch.setattr(LocalFolder, "write", write_slowly)
    monkeypatch.setattr(Layer, "overlap_width", WIDTH)


@pytest.mark.parametrize(
    "make",
    [
        image,
        labels,
        labels_in_little_memory,
        large_tiles,
        blocks,
        sections,
        sections_in_little_memory,
    ],
)
def test_a_task_on_a_bucket_stays_within_the_memory_that_its_plan_names(
    tmp_path: Path, slow_bucket: None, make: Make
):
    stage = make(tmp_path)
    plan = stage.plan().require_accepted()
    assert plan.memory <= plan.memory_target
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + OTHER


def test_a_plan_for_a_bucket_counts_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage = image(tmp_path)
    on_disk = stage.plan().memory
    monkeypatch.setattr(Layer, "overlap_width", WIDTH)
    in_a_bucket = stage.plan().memory
    assert in_a_bucket >= on_disk + WIDTH * 2 * 32**3


def test_little_memory_is_no_reason_to_refuse_but_one_to_do_less_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    little = labels_in_little_memory(tmp_path)
    on_disk = little.plan()
    monkeypatch.setattr(Layer, "overlap_width", WIDTH)
    assert on_disk.memory <= little.plan().memory <= 3_000_000
    plenty = little.model_copy(update={"memory_target": 10**9})
    assert plenty.plan().memory > 3_000_000
