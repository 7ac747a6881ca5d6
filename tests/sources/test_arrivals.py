"""Which folders of sections have arrived whole."""

import os
import time
from pathlib import Path

import pytest

from igneous_airflow.errors import InvalidParameter, SourceNotFound
from igneous_airflow.sources.arrivals import find_arrivals
from igneous_airflow.storage.files import StoredFile, open_folder


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"voxels")


def looked_at(folder: Path, *, marker: str | None = None, quiet: float = 0) -> dict[str, str]:
    """What each folder waits for."""
    found = find_arrivals(f"file://{folder}", marker=marker, quiet=quiet)
    return {arrival.name: arrival.waits_for for arrival in found}


def test_folders_come_in_natural_order_and_hidden_ones_do_not(tmp_path: Path) -> None:
    for name in ("s10", "s2", ".rsync", "_trash"):
        put(tmp_path / name, "a.tif")
    put(tmp_path, "s3.tif")
    assert list(looked_at(tmp_path)) == ["s2", "s10"]


def test_a_folder_is_whole_when_nothing_in_it_has_changed_for_a_while(tmp_path: Path) -> None:
    put(tmp_path / "s1", "a.tif")
    assert "more seconds without a change" in looked_at(tmp_path, quiet=0.5)["s1"]
    time.sleep(0.3)
    put(tmp_path / "s1", "b.tif")
    time.sleep(0.3)
    assert looked_at(tmp_path, quiet=0.5)["s1"], "a file came meanwhile"
    time.sleep(0.3)
    assert looked_at(tmp_path, quiet=0.5) == {"s1": ""}
    with (tmp_path / "s1" / "a.tif").open("ab") as stream:
        stream.write(b"more")
    assert looked_at(tmp_path, quiet=0.5)["s1"], "a file grew"


def test_a_copy_that_keeps_the_times_of_its_originals_is_no_old_folder(tmp_path: Path) -> None:
    put(tmp_path / "s1", "a.tif")
    for path in (tmp_path / "s1" / "a.tif", tmp_path / "s1"):
        os.utime(path, (0, 0))
    assert looked_at(tmp_path, quiet=60)["s1"]


def test_a_folder_without_files_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    assert looked_at(tmp_path) == {"s1": "files"}


def test_a_marker_says_that_a_folder_is_whole_however_new_it_is(tmp_path: Path) -> None:
    put(tmp_path / "s1", "a.tif", "done")
    put(tmp_path / "s2", "a.tif")
    waiting = looked_at(tmp_path, marker="done", quiet=3600)
    assert waiting == {"s1": "", "s2": "its file done"}


def test_a_bucket_needs_a_marker() -> None:
    bucket = open_folder("mem://arrivals")
    for name in ("s1/a.tif", "s1/done", "s2/a.tif"):
        bucket.write(name, StoredFile(b"voxels"))
    found = {a.url: a.waits_for for a in find_arrivals(bucket.url, marker="done", quiet=0)}
    assert found == {"mem://arrivals/s1": "", "mem://arrivals/s2": "its file done"}
    with pytest.raises(InvalidParameter, match="marker: a bucket does not tell when"):
        list(find_arrivals(bucket.url, marker=None, quiet=0))


def test_a_watched_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=f"no folder {tmp_path}/missing"):
        looked_at(tmp_path / "missing")
