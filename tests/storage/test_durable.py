"""Files are brought to the disk: each file once, then each folder once."""

import os
from pathlib import Path

import pytest

from igneous_airflow.errors import StorageUnavailable
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Ledger
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.storage.durable import sync
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.trash import Entry, Trash
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced, in order."""
    seen: list[tuple[str, str]] = []

    def path_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(("file", path_of(fd))))
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(("folder", path_of(fd))))
    return seen


def test_every_file_is_synced_before_every_folder_each_once(tmp_path: Path, synced) -> None:
    names = ["a/1", "a/2.gz", "b/c/3.br", "4.zstd", "5"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    plain = [name.removesuffix(".gz").removesuffix(".br").removesuffix(".zstd") for name in names]
    sync(f"file://{tmp_path}", plain, ["d"])
    files = [path for kind, path in synced if kind == "file"]
    folders = [path for kind, path in synced if kind == "folder"]
    assert sorted(files) == sorted(str(tmp_path / name) for name in names)
    assert sorted(folders) == sorted(str(tmp_path / name) for name in ("", "a", "b", "b/c"))
    assert [kind for kind, _ in synced] == ["file"] * 5 + ["folder"] * 4


def test_folders_in_which_files_were_only_removed_are_synced(tmp_path: Path, synced) -> None:
    (tmp_path / "8_8_40").mkdir()
    sync(f"file://{tmp_path}", [], ["8_8_40"])
    assert synced == [("folder", f"{tmp_path}/8_8_40")]


def test_files_in_buckets_need_nothing(synced) -> None:
    sync("s3://bucket/layer", ["a"], ["b"])
    sync("", ["a"])
    assert synced == []


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chunk").write_bytes(b"x")

    def failing(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(StorageUnavailable, match=r"cannot sync .*chunk: Input/output error"):
        sync(f"file://{tmp_path}", ["chunk"])


def test_what_a_task_wrote_is_on_the_disk_before_its_receipt_is_written(
    tmp_path: Path, synced, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(64, 32, 8)))
    run, _ = Run.launch(
        Downsample(layer=url, num_mips=2),
        url=f"file://{tmp_path}/runs/run",
        queue=f"sqlite://{tmp_path}/queue.db",
        by="tester",
    )
    run.prepare()
    run.enqueue()
    write = Ledger.write_receipt
    tasks = []

    def noted(ledger: Ledger, *receipts: Receipt) -> None:
        names = {name for receipt in receipts for name in receipt.work.files}
        assert set(synced) == {
            *(("file", f"{tmp_path}/layer/{name}.gz") for name in names),
            ("folder", f"{tmp_path}/layer/16_16_40"),
            ("folder", f"{tmp_path}/layer/32_32_40"),
            ("folder", f"{tmp_path}/layer"),
        }
        assert len(names) > 2
        tasks.extend(receipt.task for receipt in receipts)
        write(ledger, *receipts)
        synced.clear()

    monkeypatch.setattr(Ledger, "write_receipt", noted)
    synced.clear()
    options = WorkerOptions(idle_seconds=0, until_done=True)
    settled: list[object] = []
    Worker(run.open_queue(), run.runs_folder, options, settled.append).work()
    assert sorted(tasks) == list(range(run.planned)) == [0, 1], settled


def test_what_the_trash_says_of_an_entry_is_on_the_disk_before_files_go_there(
    tmp_path: Path, synced
) -> None:
    trash = Trash(open_folder(f"file://{tmp_path}"), "20250101T000000Z-abcdef")
    trash.begin(Entry(name=trash.name, what="chunks", stage="delete", folders=("8_8_40",)))
    entry = f"{tmp_path}/.trash/{trash.name}"
    assert synced[0] == ("file", f"{entry}/entry.json")
    assert ("folder", entry) in synced
    assert ("folder", f"{tmp_path}/.trash") in synced


def test_the_info_of_meshes_is_on_the_disk_before_the_first_task(tmp_path: Path, synced) -> None:
    voxels = random_voxels(Vec3(16, 16, 8), "uint32")
    url = write_layer(tmp_path / "layer", voxels, LayerSpec("segmentation"))
    stage = Mesh(layer=url, mesh_dir="meshes").resolved()
    stage.prepare()
    folder = f"{tmp_path}/layer"
    for kind, name in (("file", "meshes/info"), ("folder", "meshes"), ("file", "info")):
        assert (kind, f"{folder}/{name}") in synced
