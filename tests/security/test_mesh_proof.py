"""What proves that meshes are whole: records, receipts and files, though several runs made them."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.errors import AuditFailed
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.mesh_manifest import MeshManifest
from igneous_airflow.storage.files import open_folder
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.meshes import MeshFolder
from igneous_airflow.testing.layers import LayerSpec, write_layer
from igneous_airflow.testing.stages import complete, do_missing, snapshot, worked_run

SHAPE = (16, 16, 16)
MESHES = "mesh_mip_0_err_40"


def rods(count=4, length=40):
    """Each label a rod along x, through three blocks."""
    voxels = np.zeros((length, 16, 5, 1), np.uint64, order="F")
    for place in range(count):
        voxels[1:-1, 4 * place + 1 : 4 * place + 3, 1:4] = place + 1
    return voxels


@pytest.fixture
def layer(tmp_path):
    """Return a layer of four rods in three blocks."""
    return write_layer(tmp_path / "layer", rods(), LayerSpec("segmentation", chunk_size=SHAPE))


@pytest.fixture
def run(tmp_path, layer):
    """A run that has meshed the layer, and is to be proved."""
    return worked_run(Mesh(layer=layer, shape=SHAPE), tmp_path)


def meshes_of(layer):
    return Path(layer.removeprefix("file://")) / MESHES


def fragments_of(layer):
    return {path.name: path.read_bytes() for path in meshes_of(layer).glob("*:0:*")}


def change_record(layer, change):
    """Change the first block's record as only a fault of a program or a person could."""
    path = min((meshes_of(layer) / "cells").iterdir())
    data = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps(change(data)).encode()))


@pytest.mark.parametrize("left", [[], [1], [1, 2, 3]])
def test_fragments_of_a_receipt_that_the_record_does_not_name_are_not_deleted(layer, run, left):
    before = fragments_of(layer)
    change_record(layer, lambda data: data | {"labels": left})
    with pytest.raises(AuditFailed, match=r"4:0:0-16_0-16_0-5 \(not in its record\)") as failed:
        run.finish()
    assert failed.value.cells == (0,)
    assert fragments_of(layer) == before
    assert list(run.done().missing()) == [0]
    do_missing(run)
    run.finish()
    assert fragments_of(layer) == before


@pytest.mark.parametrize("pattern", ["3:0:*", "*.spatial*"])
@pytest.mark.parametrize("left", [-5, 1, 0])
def test_a_fragment_or_index_that_was_cut_is_named(layer, run, pattern, left):
    file = min(meshes_of(layer).glob(pattern))
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(AuditFailed, match=file.name.removesuffix(".gz")) as failed:
        run.finish()
    assert failed.value.cells == (0,)


@pytest.mark.parametrize("pattern", ["3:0:*.gz", "*.spatial.gz"])
def test_a_fragment_or_index_in_two_compressions_is_named_and_written_once_again(
    layer, run, pattern
):
    file = min(meshes_of(layer).glob(pattern))
    copy = file.with_suffix("")
    copy.write_bytes(file.read_bytes())
    with pytest.raises(AuditFailed, match=copy.name):
        run.finish()
    do_missing(run)
    assert not copy.exists()
    run.finish()


def test_a_file_that_no_task_wrote_proves_nothing(layer, run):
    receipt = run.ledger.receipt(0)
    files = {name: size for name, size in receipt.work.files.items() if ":" not in name}
    run.ledger.withdraw([0])
    bare = receipt.model_copy(update={"work": receipt.work.model_copy(update={"files": files})})
    run.ledger.write_receipt(bare)
    with pytest.raises(AuditFailed, match="1:0:0-16_0-16_0-5"):
        run.finish()


def test_two_runs_of_different_labels_are_both_proved_whichever_ends_first(layer):
    complete(Mesh(layer=layer, shape=SHAPE))
    complete(MeshManifest(layer=layer))
    runs = [Mesh(layer=layer, object_ids=[n], confirm=True).resolved() for n in (3, 4, 99)]
    for stage in runs:
        stage.prepare()
    for stage in runs:
        for block in stage.cells():
            stage.run(block)
    for stage in reversed(runs):
        assert MeshManifest(layer=layer).plan().refusals == ()
        assert stage.finish("tester").outputs == {MESHES: 0 if stage is runs[2] else 3}
    for stage in runs:  # once more, as when a task is cleared
        stage.finish("tester")
    complete(MeshManifest(layer=layer))
    assert len(fragments_of(layer)) == 12


def test_what_vanished_is_removed_though_a_later_run_was_there(layer):
    complete(Mesh(layer=layer, shape=SHAPE))
    opened = Layer.open(layer)
    opened.write(opened.info.scales[0], rods(count=2))
    one, other = (Mesh(layer=layer, object_ids=[n], confirm=True).resolved() for n in (3, 4))
    for stage in (one, other):
        stage.prepare()
    for stage in (one, other):
        for block in stage.cells():
            stage.run(block)
    one.finish("tester")
    assert {name[0] for name in fragments_of(layer)} == {"1", "2", "4"}
    other.finish("tester")
    assert {name[0] for name in fragments_of(layer)} == {"1", "2"}


def test_runs_that_work_on_a_block_at_the_same_time_lose_no_label(layer, monkeypatch):
    complete(Mesh(layer=layer, shape=SHAPE))
    runs = [Mesh(layer=layer, object_ids=[n], confirm=True).resolved() for n in (2, 3, 4)]
    for stage in runs:
        stage.prepare()
    folder = MeshFolder(open_folder(layer), MESHES)
    block = runs[0].cells()[0]
    (index,) = (n for n in folder.names() if n.startswith("0-128_") and n.endswith(".spatial"))
    folder.write_spatial_index(index, {1: [0] * 6}, "auto")

    def slowed(call):
        def slow(*args):
            content = call(*args)
            time.sleep(0.1)  # in which all others have read
            return content

        return slow

    for name in ("read_spatial_index", "read_record"):
        monkeypatch.setattr(MeshFolder, name, slowed(getattr(MeshFolder, name)))
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda stage: stage.run(block), runs):
            pass
    assert set(folder.read_spatial_index(index)) == {1, 2, 3, 4}
    labels = [folder.read_record(block).labels_of(stage._fingerprint()) for stage in runs]
    assert labels == [(2,), (3,), (4,)]


def test_a_record_remembers_runs_of_which_nothing_stays(layer):
    complete(Mesh(layer=layer, shape=SHAPE))
    stages = [Mesh(layer=layer, object_ids=[n], confirm=True).resolved() for n in (99, 3)]
    for stage in stages:
        complete(stage)
    before = snapshot(meshes_of(layer))
    complete(stages[1])
    assert snapshot(meshes_of(layer)) == before
    stages[0].finish("tester")
    complete(Mesh(layer=layer, shape=SHAPE))  # of everything: nothing of earlier runs is left
    with pytest.raises(AuditFailed, match="3 blocks have not been meshed with these parameters"):
        stages[0].finish("tester")
