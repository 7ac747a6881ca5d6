"""Chunk files that are empty, cut or garbage are neither copied nor proved."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.errors import AuditFailed, CorruptChunk
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.receipts import Receipt
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.codecs import compress_bytes, encode
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.possible import least_bytes, require_possible, stored_range
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.testing.stages import complete, do_missing, worked_run

CHUNK = "0-8_0-8_0-8"  # of 512 bytes
OTHER = random_voxels(Vec3(8, 8, 8)).tobytes(order="F")


@pytest.fixture
def layer(tmp_path):
    """A layer whose first chunk may be replaced."""
    return write_layer(tmp_path / "layer", random_voxels(Vec3(32, 32, 16)))


def replace(layer, key, suffix, content):
    """Write the first chunk of a scale again, in one compression only."""
    folder = Path(layer.removeprefix("file://")) / key
    for path in folder.glob(f"{CHUNK}*"):
        path.unlink()
    (folder / f"{CHUNK}{suffix}").write_bytes(content)


def as_of_format_1(run):
    """Write the receipts of a run again, as they were when they told of no files."""
    folder = open_folder(run.url)
    for task in range(run.planned):
        receipt = run.ledger.receipt(task)
        older = receipt.model_copy(update={"work": receipt.work.in_numbers()})
        name = f"done/{task:010d}-{run.launch_id}"
        folder.write(name, StoredFile(older.model_dump_json().encode()))


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        ("", b"", "it has 0 bytes, not 512"),
        ("", OTHER[:256], "it has 256 bytes, not 512"),
        ("", OTHER * 2, "it has 1,024 bytes, not 512"),
        (".gz", b"", "it has 0 bytes, not 21 to"),
        (".gz", gzip.compress(b"", mtime=0), "it has 20 bytes, not 21 to"),
        (".gz", bytes(compress_bytes(b"", "gzip", grey=True).content), "it holds 0 bytes, not 512"),
        (".gz", bytes(100), "it does not begin as gzip"),
        (".gz", gzip.compress(OTHER[:256]), "it holds 256 bytes, not 512"),
        (".gz", gzip.compress(OTHER)[:-5], "gzip stream"),
        (".gz", bytes(10_000), "it has 10,000 bytes, not 21 to"),
        (".zstd", b"", "it has 0 bytes, not 10 to"),
        (".zstd", bytes(100), "it does not begin as zstd"),
        (".br", b"\x06", "it has 1 bytes, not 5 to"),
    ],
)
@pytest.mark.parametrize("compress", ["auto", "none"])
def test_a_chunk_that_cannot_be_one_is_not_copied(
    tmp_path, layer, suffix, content, words, compress
):
    replace(layer, "8_8_40", suffix, content)
    stage = Transfer(src=layer, dest=str(tmp_path / "dest"), max_mips=0, compress=compress)
    assert stage._route().copies
    with pytest.raises(CorruptChunk) as refused:
        complete(stage)
    assert f"chunk {layer}/8_8_40/{CHUNK} is damaged: " in str(refused.value)
    assert words in str(refused.value)
    assert "Restore it, or delete it and set fill_missing" in str(refused.value)


def test_a_chunk_of_several_gzip_streams_is_copied(tmp_path, layer):
    replace(layer, "8_8_40", ".gz", gzip.compress(OTHER[:100]) + gzip.compress(OTHER[100:]))
    complete(Transfer(src=layer, dest=str(tmp_path / "dest"), max_mips=0))


def test_a_raw_chunk_that_was_cut_is_named_though_receipts_of_format_1_tell_no_sizes(
    tmp_path, layer
):
    stage = Downsample(layer=layer, num_mips=1, compress="none")
    run = worked_run(stage, tmp_path)
    as_of_format_1(run)
    replace(layer, "16_16_40", "", OTHER[:256])
    with pytest.raises(AuditFailed, match=r"16_16_40/0-8_0-8_0-8 \(256 bytes, not 512\)"):
        run.finish()


@pytest.mark.parametrize(
    ("suffix", "content", "is_fine"),
    [("", OTHER, True), ("", OTHER[1:], False), (".gz", gzip.compress(b"", mtime=0), False)],
)
def test_without_an_account_sizes_must_be_possible(layer, suffix, content, is_fine):
    stage = Downsample(layer=layer, num_mips=1).resolved()
    complete(stage)
    replace(layer, "16_16_40", suffix, content)
    if is_fine:
        stage.finish("tester")
    else:
        with pytest.raises(AuditFailed, match=f"16_16_40/{CHUNK}"):
            stage.finish("tester")


def test_a_receipt_that_names_nothing_proves_nothing(tmp_path, layer):
    run = worked_run(Downsample(layer=layer, num_mips=1), tmp_path)
    run.ledger.withdraw([0])
    run.ledger.write_receipt(Receipt(task=0, attempt=1, seconds=1, worker="w"))
    with pytest.raises(AuditFailed, match="its task did not write it"):
        run.finish()
    assert list(run.done().missing()) == [0]


@pytest.mark.parametrize("content", [b"", gzip.compress(OTHER)])
@pytest.mark.parametrize("compress", ["none", "gzip"])
def test_a_chunk_in_two_compressions_is_named_and_written_once_again(
    tmp_path, layer, compress, content
):
    run = worked_run(Downsample(layer=layer, num_mips=1, compress=compress), tmp_path)
    folder = Path(layer.removeprefix("file://")) / "16_16_40"
    suffix = ".gz" if compress == "none" else ""
    (folder / f"{CHUNK}{suffix}").write_bytes(content)
    with pytest.raises(AuditFailed, match=f"{CHUNK} .there in two compressions"):
        run.finish()
    do_missing(run)
    run.finish()
    assert len(list(folder.glob(f"{CHUNK}*"))) == 1


@pytest.mark.parametrize("compression", ["", "gzip", "br", "zstd"])
@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [
        ("raw", "uint8"),
        ("raw", "uint64"),
        ("jpeg", "uint8"),
        ("png", "uint8"),
        ("jxl", "uint8"),
        ("compressed_segmentation", "uint32"),
        ("compresso", "uint64"),
        ("crackle", "uint8"),
        ("crackle", "uint64"),
    ],
)
@pytest.mark.parametrize("size", [Vec3(1, 1, 1), Vec3(64, 33, 9)])
@pytest.mark.parametrize("level", [None, 1])
def test_every_chunk_that_is_written_is_possible(encoding, dtype, compression, size, level):
    block = Vec3(8, 8, 8)
    for voxels in (np.zeros((*size, 1), dtype, order="F"), random_voxels(size, dtype)):
        content = encode(voxels, encoding, block_size=block)
        stored = compress_bytes(content, compression, grey=dtype == "uint8", level=level)
        least = least_bytes(encoding, size, voxels.dtype.itemsize, block)
        assert least <= len(content)
        require_possible(stored, encoding, least, len(content))
        low, high = stored_range(None, least, len(content))
        assert low <= len(stored.content) <= high
