"""Small files that would become gigabytes are refused, with little memory taken."""

import bz2
import gzip
import json
import lzma

import brotli
import numpy as np
import pytest
import zstandard
from little_memory import error_with_little_memory

from igneous_airflow.errors import CorruptChunk, InvalidInfo, InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.run import Run
from igneous_airflow.storage.codecs import decompress_bytes, decompress_first
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import read_info
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.provenance import read_provenance

GIGABYTE = 1 << 30
MOST = 1 << 20


def zstd_of_unknown_size(content):
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(content) + stream.flush()


COMPRESS = {
    "gzip": gzip.compress,
    "br": lambda content: brotli.compress(content, quality=5),
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd of unknown size": zstd_of_unknown_size,
    "bz2": bz2.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
}
SEVERAL = [kind for kind in COMPRESS if kind != "br"]  # which can follow each other in a file


def stored(kind, content):
    return StoredFile(content, kind.partition(" ")[0])


def gigabyte(kind):
    """A gigabyte of zeros; put together from many streams where that can be."""
    if kind == "br":
        return brotli.compress(bytes(GIGABYTE), quality=1)
    return COMPRESS[kind](bytes(1 << 23)) * (GIGABYTE >> 23)


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_stream_that_becomes_too_much_is_refused_with_both_sizes(kind):
    said = error_with_little_memory(decompress_bytes, stored(kind, gigabyte(kind)), MOST)
    assert said.startswith("CorruptChunk"), said
    assert "at most 1,048,576 are expected" in said
    assert "restore the file" in said


@pytest.mark.parametrize("kind", COMPRESS)
def test_of_a_large_stream_the_first_bytes_are_read_with_little_memory(kind):
    file = stored(kind, gigabyte(kind))
    assert error_with_little_memory(decompress_first, file, MOST) == ""
    assert bytes(decompress_first(file, 1000)) == bytes(1000)


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("first", [b"", b"a" * 10, b"b" * 5000])
@pytest.mark.parametrize("last", [b"", b"b" * 5000, bytes(range(256)) * 20])
def test_streams_that_follow_each_other_are_one(kind, first, last):
    file = stored(kind, COMPRESS[kind](first) + COMPRESS[kind](last))
    whole = first + last
    assert bytes(decompress_bytes(file, len(whole))) == whole
    assert bytes(decompress_first(file, 5001)) == whole[:5001]
    if whole:
        with pytest.raises(CorruptChunk, match=f"at most {len(whole) - 1:,} are expected"):
            decompress_bytes(file, len(whole) - 1)


@pytest.mark.parametrize("copies", [2, 3, 200])
@pytest.mark.parametrize("content", [bytes(70_000), bytes(range(256)) * 99, b"x"])
def test_equal_streams_of_gzip_are_all_read(content, copies):
    file = StoredFile(gzip.compress(content) * copies, "gzip")
    assert bytes(decompress_bytes(file, len(content) * copies)) == content * copies
    with pytest.raises(CorruptChunk, match="are expected"):
        decompress_bytes(file, len(content))


def test_noise_in_two_streams_of_one_size_is_more_than_one_of_them():
    """Of which libdeflate reads the first, whose size is that of the last."""
    noise = np.random.default_rng(1).integers(0, 5, (2, 100_000), dtype=np.uint8)
    file = StoredFile(b"".join(gzip.compress(part.tobytes()) for part in noise), "gzip")
    assert 50_000 < len(file.content) < 100_000
    assert bytes(decompress_bytes(file, 200_000)) == noise.tobytes()
    with pytest.raises(CorruptChunk, match="at most 100,000 are expected"):
        decompress_bytes(file, 100_000)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("size", [0, 1, 1000, MOST])
def test_as_much_as_is_expected_is_read(kind, size):
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    file = stored(kind, COMPRESS[kind](content))
    assert bytes(decompress_bytes(file, size)) == content
    if size:
        with pytest.raises(CorruptChunk, match=rf"the .* holds .* at most {size - 1:,} are"):
            decompress_bytes(file, size - 1)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:6], lambda c: c + b"junk!junk"])
def test_a_stream_that_is_cut_off_or_followed_by_anything_else_is_refused(kind, damage):
    content = COMPRESS[kind](bytes(range(256)) * 20)
    with pytest.raises(CorruptChunk):
        decompress_bytes(stored(kind, damage(content)), MOST)


@pytest.mark.parametrize("said", [0, 1, 999, 1001, MOST, MOST + 1, (1 << 32) - 1])
def test_the_size_that_gzip_says_is_not_believed(said):
    content = gzip.compress(b"a" * 1000)[:-4] + said.to_bytes(4, "little")
    error = error_with_little_memory(decompress_bytes, StoredFile(content, "gzip"), MOST)
    assert error.startswith("CorruptChunk"), error
    if said > MOST:
        assert f"holds {said:,} bytes, but at most 1,048,576 are expected" in error


def test_the_size_that_zstd_says_is_not_believed():
    content = bytearray(zstandard.ZstdCompressor().compress(bytes(100_000)))
    assert int.from_bytes(content[5:9], "little") == 100_000
    for said in (0, 99_999, 100_001, MOST, MOST + 1, (1 << 32) - 1):
        content[5:9] = said.to_bytes(4, "little")
        file = StoredFile(bytes(content), "zstd")
        error = error_with_little_memory(decompress_bytes, file, MOST)
        assert error.startswith("CorruptChunk"), (said, error)


def test_a_stream_of_zstd_or_xz_that_wants_a_huge_window_is_refused():
    options = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    content = stream.compress(bytes(1000)) + stream.flush()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": (1 << 30) + (1 << 29)}]
    header = lzma.compress(b"x" * 10, lzma.FORMAT_XZ, filters=filters)
    for file, named in (
        (StoredFile(content, "zstd"), "too much memory"),
        (StoredFile(header, "xz"), "limit"),
    ):
        error = error_with_little_memory(decompress_bytes, file, MOST)
        assert error.startswith("CorruptChunk"), error
        assert named in error


def test_an_uncompressed_file_is_bounded_as_well():
    with pytest.raises(CorruptChunk, match="the file holds at least 11 bytes, but at most 10"):
        decompress_bytes(StoredFile(b"x" * 11), 10)
    assert decompress_bytes(StoredFile(b"x" * 10), 10) == b"x" * 10


def test_an_unknown_compression_is_named():
    for undo in (decompress_bytes, decompress_first):
        with pytest.raises(CorruptChunk, match=r"the lz4 stream .* only gzip, br, zstd"):
            undo(StoredFile(b"x", "lz4"), 10)


@pytest.fixture
def layer(tmp_path):
    scale = {
        "key": "8_8_8",
        "resolution": [8, 8, 8],
        "size": [64, 64, 64],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[64, 64, 64]],
        "encoding": "raw",
    }
    info = {"data_type": "uint8", "num_channels": 1, "type": "image", "scales": [scale]}
    (tmp_path / "info").write_text(json.dumps(info))
    return tmp_path.as_uri()


def put_bomb(layer, name):
    open_folder(layer).delete(name)
    open_folder(layer).write(name, StoredFile(gigabyte("gzip"), "gzip"))


def test_a_chunk_that_becomes_more_than_its_voxels_is_refused_by_name(layer):
    put_bomb(layer, "8_8_8/0-64_0-64_0-64")
    opened = Layer.open(layer)
    box = BoundingBox.parse("0-64_0-64_0-64")
    error = error_with_little_memory(opened.read_chunk, opened.scale(0), box)
    assert error.startswith(f"CorruptChunk: chunk {layer}/8_8_8/{box}: "), error
    assert "at most 262,144 are expected" in error


def load_run(folder):
    return Run.load(folder.url)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("info", read_info, InvalidInfo),
        ("provenance", read_provenance, InvalidInfo),
        ("run.json", load_run, InvalidParameter),
    ],
)
def test_a_record_that_becomes_too_much_is_refused_by_name(layer, name, read, error):
    put_bomb(layer, name)
    said = error_with_little_memory(read, open_folder(layer))
    assert said.startswith(f"{error.__name__}: {layer}/{name} "), said
    assert "are expected" in said
