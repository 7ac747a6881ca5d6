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
from igneous_airflow.storage.durable import sync
from igneous_airflow.testing.layers import random_voxels, write_layer
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
    url = write_layer(tmp_path / "layer", random_voxels(Vec3(32, 16, 8)))
    run, _ = Run.launch(
        Downsample(layer=url, num_mips=1),
        url=f"file://{tmp_path}/runs/run",
        queue=f"sqlite://{tmp_path}/queue.db",
        by="tester",
    )
    run.prepare()
    run.enqueue()
    write = Ledger.write_receipt

    def noted(ledger: Ledger, *receipts: Receipt) -> None:
        synced.append(("receipt", str(tmp_path)))
        write(ledger, *receipts)

    monkeypatch.setattr(Ledger, "write_receipt", noted)
    synced.clear()
    options = WorkerOptions(idle_seconds=0, until_done=True)
    Worker(run.open_queue(), run.runs_folder, options, lambda _: None).work()
    kinds = [kind for kind, _ in synced]
    end = kinds.index("receipt")
    written = {path for kind, path in synced[:end] if kind == "file"}
    assert written <= {str(path) for path in (tmp_path / "layer" / "16_16_40").iterdir()}
    assert written
    assert "folder" in kinds[:end]
