"""The trash beside runs that still fill it, are killed, or name the same entry: nothing is lost."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from igneous_airflow.errors import InvalidInfo, InvalidParameter, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Launch, Stage
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage import provenance, restoring
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.storage.info import put_back
from igneous_airflow.storage.local import LocalFolder
from igneous_airflow.storage.restoring import restore
from igneous_airflow.storage.trash import Trash, entries_of
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import complete, snapshot
from igneous_airflow.testing.surfaces import blobs

ENTRY = "20250102T030405Z-abcdef"
KEY = "8_8_40"
SMALL = LayerSpec(chunk_size=(2, 2, 9))


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer whose delete has six tasks."""
    write_layer(tmp_path / "layer", random_voxels(Vec3(65, 33, 9)), SMALL)
    return tmp_path / "layer"


def chunks(layer: Path) -> dict[str, bytes]:
    return snapshot(layer / KEY)


def folder_of(layer: Path) -> Folder:
    return open_folder(f"file://{layer}")


def kept(layer: Path) -> dict[str, bytes]:
    """The chunks in all entries of the trash."""
    return {path.name: path.read_bytes() for path in layer.glob(f".trash/*/files/{KEY}/*")}


def begun(layer: Path, tasks: int) -> tuple[Stage, list[Any]]:
    """A delete of which some tasks are done; returns it with those that are left."""
    stage = Delete(layer=str(layer), confirm=True, trash_entry=ENTRY).resolved()
    stage.prepare()
    blocks = list(stage.cells())
    for block in blocks[:tasks]:
        stage.run(block)
    return stage, blocks[tasks:]


def launched(stage: Stage, folder: Path, name: str = "r") -> Run:
    run, _ = Run.launch(
        stage, url=f"file://{folder}/runs/{name}", queue=f"sqlite://{folder}/q.db", by="tester"
    )
    run.prepare()
    return run


def work(run: Run) -> None:
    stage = run.make_stage()
    for task, block in enumerate(stage.cells()):
        done = stage.run(block)
        run.ledger.write_receipt(Receipt(task=task, attempt=1, seconds=1, worker="w", work=done))


def killed(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


# Entries that are not complete


def test_what_a_run_may_still_move_is_not_restored_and_the_run_is_named(
    layer: Path, tmp_path: Path
) -> None:
    run = launched(Delete(layer=str(layer), confirm=True, trash_entry=ENTRY), tmp_path)
    stage = run.make_stage()
    stage.run(stage.cells()[0])
    before = snapshot(layer)
    with pytest.raises(PlanRefused, match=r"the delete run r may still .*cancel r.*--unfinished"):
        restore(folder_of(layer), ENTRY, "me")
    assert snapshot(layer) == before
    run.cancel("tester")
    restore(folder_of(layer), ENTRY, "me", unfinished=True)
    assert not kept(layer)


def test_a_restore_beside_a_delete_that_goes_on_loses_nothing(
    layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chunks(layer)
    stage, rest = begun(layer, 2)

    def while_a_worker_goes_on(*arguments: Any) -> Any:
        stage.run(rest[-1])
        return put_back(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("igneous_airflow.storage.restoring.put_back", while_a_worker_goes_on)
        restored = restore(folder_of(layer), ENTRY, "me", unfinished=True)
    assert restored.files
    assert restored.left == len(kept(layer)) > 0
    assert chunks(layer) | kept(layer) == whole
    again = restore(folder_of(layer), ENTRY, "me", unfinished=True)
    assert (again.files, again.left) == (restored.left, 0)
    assert chunks(layer) == whole
    assert not list((layer / ".trash").iterdir())


@pytest.mark.parametrize("end", ["restored", "emptied"])
def test_what_is_moved_after_the_entry_was_taken_away_can_be_restored(
    layer: Path, end: str
) -> None:
    stage, _ = begun(layer, 2)
    if end == "restored":
        restore(folder_of(layer), ENTRY, "me", unfinished=True)
    else:
        assert Trash(folder_of(layer), ENTRY).remove()
    left = chunks(layer)
    for block in stage.cells():
        stage.run(block)
    stage.finish("tester")
    entry = Trash(folder_of(layer), ENTRY).read()
    assert entry is not None
    assert entry.complete
    restore(folder_of(layer), ENTRY, "me")
    assert chunks(layer) == left
    assert [scale["key"] for scale in json.loads((layer / "info").read_text())["scales"]] == [KEY]


def test_files_that_come_while_the_trash_is_emptied_stay_with_their_entry(
    layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, rest = begun(layer, 1)
    delete_folder = LocalFolder.delete_folder

    def while_a_worker_goes_on(folder: LocalFolder, prefix: str) -> None:
        delete_folder(folder, prefix)
        stage.run(rest[0])

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "delete_folder", while_a_worker_goes_on)
        assert not Trash(folder_of(layer), ENTRY).remove()
    assert kept(layer)
    assert Trash(folder_of(layer), ENTRY).read() is not None


# The same entry twice


def test_an_entry_that_is_another_runs_is_refused(layer: Path, tmp_path: Path) -> None:
    launch = launched(Delete(layer=str(layer), confirm=True, trash_entry=ENTRY), tmp_path)
    work(launch)
    launch.finish()
    write_layer(tmp_path / "new", random_voxels(Vec3(8, 8, 9)), SMALL)
    for path in (tmp_path / "new").rglob("*"):
        if path.is_file():
            (layer / KEY).mkdir(exist_ok=True)
            (layer / path.relative_to(tmp_path / "new")).write_bytes(path.read_bytes())
    before = snapshot(layer)
    again = Delete(layer=str(layer), confirm=True, trash_entry=ENTRY)
    named = rf"has {ENTRY} in its trash already \(.*, of the run r\): leave trash_entry empty"
    with pytest.raises(PlanRefused, match=named):
        launched(again, tmp_path, "other")
    with pytest.raises(PlanRefused, match=named):
        again.resolved().prepare()
    with pytest.raises(InvalidParameter, match=named):
        again.resolved().accepted(Launch("other", "0123abcd", begun=True)).prepare()
    assert snapshot(layer) == before


def test_an_entry_that_was_filled_without_a_run_is_not_filled_again(layer: Path) -> None:
    complete(Delete(layer=str(layer), bounds="0-2_0-2_0-9", confirm=True, trash_entry=ENTRY))
    stage = Delete(layer=str(layer), confirm=True, trash_entry=ENTRY)
    with pytest.raises(PlanRefused, match="of another run"):
        stage.resolved().prepare()


def test_what_was_written_again_is_not_put_over_what_is_in_the_trash(layer: Path) -> None:
    whole = chunks(layer)
    stage, _ = begun(layer, 3)
    name = min(kept(layer))
    (layer / KEY / name).write_bytes(b"new")
    box = BoundingBox.parse(name.removesuffix(".gz"))
    (block,) = (block for block in stage.cells() if block.box.contains(box))
    with pytest.raises(InvalidParameter, match=rf"{name}.* nothing is replaced.* a new delete"):
        stage.run(block)
    assert chunks(layer)[name] == b"new"
    assert kept(layer)[name] == whole[name]


def test_a_file_that_was_half_moved_is_moved_on(layer: Path) -> None:
    whole = chunks(layer)
    stage, _ = begun(layer, 1)
    name = min(kept(layer))
    (layer / KEY / name).hardlink_to(layer / ".trash" / ENTRY / "files" / KEY / name)
    for block in stage.cells():
        stage.run(block)
    stage.finish("tester")
    assert kept(layer) == whole


def test_a_file_that_a_killed_restore_has_half_moved_is_not_taken_for_a_new_one(
    layer: Path,
) -> None:
    whole = chunks(layer)
    complete(Delete(layer=str(layer), confirm=True, trash_entry=ENTRY))
    name = min(kept(layer))
    (layer / KEY).mkdir(exist_ok=True)
    (layer / KEY / name).hardlink_to(layer / ".trash" / ENTRY / "files" / KEY / name)
    assert restore(folder_of(layer), ENTRY, "me").files == len(whole) - 1
    assert chunks(layer) == whole
    assert not list((layer / ".trash").iterdir())


def test_meshes_that_a_killed_run_has_moved_are_a_complete_entry_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = LayerSpec("segmentation", chunk_size=(16, 16, 16))
    url = write_layer(tmp_path / "labels", blobs(Vec3(40, 36, 30)), spec)
    complete(Mesh(layer=url, shape=(20, 36, 30)))
    complete(MeshManifest(layer=url))
    wanted = Mesh(layer=url, shape=(16, 16, 16), new_grid=True, confirm=True, trash_entry=ENTRY)
    stage = wanted.resolved()
    with monkeypatch.context() as patch:
        patch.setattr(Trash, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.prepare()
    (trash,) = entries_of(open_folder(url))
    entry = trash.read()
    assert entry is not None
    assert not entry.complete
    stage.prepare()
    for block in stage.cells():
        stage.run(block)
    stage.finish("tester")
    entry = trash.read()
    assert entry is not None
    assert entry.complete
    assert f"has {ENTRY} in its trash already" in wanted.plan().refusals[0]


# Runs that are killed


@pytest.mark.parametrize("keep", [True, False])
def test_a_delete_that_was_killed_after_its_scales_left_the_info_is_launched_again(
    layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    stage = Delete(layer=str(layer), confirm=True, scales=KEY, keep_deleted=keep)
    run = launched(stage, tmp_path)
    work(run)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "record_processing", killed)
        with pytest.raises(KeyboardInterrupt):
            run.finish()
    assert json.loads((layer / "info").read_text())["scales"] == []
    again = launched(stage, tmp_path)
    assert again.launch_id == run.launch_id
    assert again.enqueue() == 0
    again.finish()
    assert Run.load(run.url).is_finished
    with pytest.raises(PlanRefused, match="has no scale"):  # a run that has not begun
        launched(stage, tmp_path, "other")


# The provenance


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    """A transfer to a layer whose voxels are there, of which no run is recorded."""
    spec = LayerSpec(chunk_size=(8, 8, 8))
    for name, value in (("dest", 1), ("src", 2)):
        write_layer(tmp_path / name, np.full((16, 16, 16, 1), value, np.uint8, order="F"), spec)
    return Transfer(src=f"{tmp_path}/src", dest=f"{tmp_path}/dest", max_mips=0)


def test_a_part_that_was_restored_counts_as_made_by_the_restore(transfer: Transfer) -> None:
    part = transfer.model_copy(update={"bounds": "0-16_0-16_0-8"})
    other = transfer.model_copy(update={"bounds": "0-16_0-16_8-16"})
    complete(Delete(layer=transfer.dest, confirm=True, bounds=part.bounds, trash_entry=ENTRY))
    complete(part)
    assert not part.plan().unconfirmed
    restore(open_folder(transfer.dest), ENTRY, "me", replace=True)
    assert "made by RestoreTask" in part.plan().unconfirmed
    assert "RestoreTask" not in other.plan().unconfirmed


def test_a_scale_that_was_restored_counts_as_made_by_the_restore(transfer: Transfer) -> None:
    complete(transfer)
    complete(Delete(layer=transfer.dest, confirm=True, trash_entry=ENTRY))
    restore(open_folder(transfer.dest), ENTRY, "me")
    for bounds in (None, "0-8_0-8_0-8"):
        plan = transfer.model_copy(update={"bounds": bounds}).plan()
        assert "made by RestoreTask" in plan.unconfirmed


DAMAGED = [
    "{",
    '{"proc',
    "[]",
    '["ab"]',
    "null",
    "5",
    '"x"',
    '{"processing": {}}',
    '{"sources": 1}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_provenance_is_kept_named_and_hinders_no_restore(layer: Path, text: str) -> None:
    whole = chunks(layer)
    complete(Delete(layer=str(layer), confirm=True, trash_entry=ENTRY))
    (layer / "provenance").write_text(text)
    restored = restore(folder_of(layer), ENTRY, "me")
    assert "Repair its JSON, or move the file away" in restored.unrecorded
    assert chunks(layer) == whole
    assert not restoring.was_restored(folder_of(layer), ENTRY)
    with pytest.raises(InvalidInfo, match=r"cannot be read: .*Repair its JSON, or move the file"):
        provenance.record_processing(folder_of(layer), {"task": "x"}, "me")
    assert (layer / "provenance").read_text() == text
