"""Folders in which nothing is written but in memory."""

from pathlib import Path

import pytest

from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.rehearsal import rehearsal
from igneous_airflow.testing.stages import snapshot

OLD, NEW = StoredFile(b"old"), StoredFile(b"new")


@pytest.fixture
def layer(tmp_path: Path) -> str:
    folder = open_folder(f"file://{tmp_path}/layer")
    for name in ("info", "mesh/info", "mesh/cells/1", "mesh/cells/2"):
        folder.write(name, OLD)
    return folder.url


def test_what_is_written_is_seen_by_all_folders_of_the_rehearsal_and_nowhere_else(
    layer: str, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    with rehearsal():
        open_folder(layer).write("info", NEW)
        open_folder(layer).write("mesh/cells/3", NEW)
        assert open_folder(layer).read("info") == NEW
        mesh = open_folder(f"{layer}/mesh")
        assert mesh.read("info") == OLD
        assert mesh.read("cells/3") == NEW
        assert mesh.exists("cells/3")
        assert sorted(mesh.names("cells")) == ["1", "2", "3"]
        assert sorted(open_folder(layer).names("")) == ["info"]
        assert snapshot(tmp_path) == before
    assert open_folder(layer).read("info") == OLD
    assert snapshot(tmp_path) == before


def test_what_is_deleted_is_gone_for_the_rehearsal_only(layer: str, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with rehearsal():
        open_folder(layer).write("mesh/cells/3", NEW)
        open_folder(layer).delete("mesh/cells/1")
        mesh = open_folder(f"{layer}/mesh")
        assert mesh.read("cells/1") is None
        assert not mesh.exists("cells/1")
        assert sorted(mesh.names("cells")) == ["2", "3"]
        mesh.delete_folder("cells")
        assert list(mesh.names("cells")) == []
        assert mesh.read("info") == OLD, "it is beside that folder"
        mesh.write("cells/2", NEW)
        assert list(mesh.names("cells")) == ["2"]
        mesh.delete("cells/2")
        assert mesh.read("cells/2") is None
    assert snapshot(tmp_path) == before


def test_a_rehearsal_within_another_begins_with_what_is_stored(layer: str) -> None:
    with rehearsal():
        open_folder(layer).write("info", NEW)
        with rehearsal():
            assert open_folder(layer).read("info") == OLD
        assert open_folder(layer).read("info") == NEW
