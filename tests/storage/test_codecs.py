"""Encodings and compressions: what was written is read back, what is damaged is refused."""

import gzip
import re
import threading
import zlib
from typing import get_args

import cloudvolume.chunks
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import CorruptChunk, InvalidParameter
from igneous_airflow.fields import Encoding
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.codecs import (
    compress_bytes,
    compression_for,
    decode,
    decompress_bytes,
    decompress_first,
    encode,
    inflate,
)
from igneous_airflow.storage.encodings import encoding_problem
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import sizes

BLOCK = Vec3(8, 8, 8)
CHUNK = Vec3(64, 64, 64)
LABELS = ["uint8", "uint16", "uint32", "uint64"]
INTEGERS = [*LABELS, "int8", "int16", "int32", "int64"]
LOSSLESS = [
    *[
        ("raw", dtype, channels)
        for dtype in (*INTEGERS, "float32", "float64")
        for channels in (1, 3)
    ],
    *[("png", "uint8", channels) for channels in (1, 2, 3, 4)],
    *[("compressed_segmentation", dtype, 1) for dtype in ("uint32", "uint64")],
    *[("compresso", dtype, 1) for dtype in LABELS],
    *[("crackle", dtype, 1) for dtype in LABELS],
]


def there_and_back(array, encoding):
    content = encode(array, encoding, block_size=BLOCK)
    return decode(content, encoding, shape=array.shape, dtype=array.dtype, block_size=BLOCK)


@pytest.mark.parametrize("case", LOSSLESS, ids=str)
def test_lossless_encodings_read_back_what_was_written(case):
    encoding, dtype, channels = case
    assert encoding_problem(*case, CHUNK) is None

    @given(sizes(20))
    @settings(deadline=None, max_examples=15)
    def round_trip(size):
        array = random_voxels(size, dtype, channels=channels)
        back = there_and_back(array, encoding)
        assert back.dtype == array.dtype
        assert back.flags.f_contiguous
        np.testing.assert_array_equal(back, array)

    round_trip()


@pytest.mark.parametrize(
    "encoding", ["raw", "png", "compressed_segmentation", "compresso", "crackle"]
)
@pytest.mark.parametrize("layout", ["C", "sliced", "read-only"])
def test_the_layout_of_an_array_does_not_matter(encoding, layout):
    array = random_voxels(Vec3(16, 12, 10), "uint8" if encoding == "png" else "uint32")
    if layout == "C":
        array = np.ascontiguousarray(array)
    elif layout == "sliced":
        array = array[1:9, 1:, 1:]
    else:
        array.flags.writeable = False
    np.testing.assert_array_equal(there_and_back(array, encoding), array)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close(channels):
    ramps = np.stack(np.meshgrid(*[np.arange(0, 240, 10)] * 3, indexing="ij"), 3).astype(np.uint8)
    array = np.asfortranarray(ramps[:, :, :7, :channels])
    assert encoding_problem("jpeg", "uint8", channels, CHUNK) is None
    difference = np.abs(there_and_back(array, "jpeg").astype(int) - array)
    assert difference.max() < 25
    assert difference.mean() < 4


def test_the_quality_of_jpeg_is_honoured():
    array = random_voxels(Vec3(64, 64, 4))
    small, large = (
        len(encode(array, "jpeg", tuning=(("jpeg_quality", quality),))) for quality in (20, 95)
    )
    assert small < large / 2


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels", "named"),
    [
        ("jpeg", "uint16", 1, "uint8, not uint16"),
        ("jpeg", "uint8", 2, "1, 3 channel"),
        ("png", "float32", 1, "uint8, not float32"),
        ("png", "uint16", 1, "uint8, not uint16"),
        ("compressed_segmentation", "uint8", 1, "uint32, uint64, not uint8"),
        ("compressed_segmentation", "uint32", 2, "1 channel"),
        ("compresso", "float32", 1, "not float32"),
        ("crackle", "int64", 1, "not int64"),
        ("zip", "uint8", 1, "unknown: choose one of compressed_segmentation"),
        ("", "uint8", 1, "unknown"),
    ],
)
def test_an_encoding_that_cannot_hold_the_voxels_is_refused_with_what_it_holds(
    encoding, dtype, channels, named
):
    assert named in str(encoding_problem(encoding, dtype, channels, CHUNK))


def test_a_jpeg_has_a_largest_size():
    assert encoding_problem("jpeg", "uint8", 1, Vec3(512, 512, 64)) is None
    for chunk in (Vec3(512, 512, 128), Vec3(70_000, 1, 1)):
        assert "choose a smaller chunk_size" in str(encoding_problem("jpeg", "uint8", 1, chunk))
        with pytest.raises(InvalidParameter):
            encode(np.zeros((*chunk, 1), np.uint8, "F"), "jpeg")


@pytest.mark.parametrize("size", [Vec3(24, 20, 6), Vec3(64, 64, 64), Vec3(7, 1, 3)], ids=str)
def test_jxl_is_close_to_what_was_written_for_us_and_for_others(size):
    x, y, z = np.meshgrid(*map(np.arange, size), indexing="ij")
    voxels = np.asfortranarray((3 * x + y + 2 * z)[..., np.newaxis].astype(np.uint8))
    assert encoding_problem("jxl", "uint8", 1, size) is None
    content = encode(voxels, "jxl")
    pixels = imagecodecs.jpegxl_decode(content)  # x across, y and then z down
    assert pixels.shape == (size.y * size.z, size.x)
    decoded = pixels.reshape(size.z, size.y, size.x).T[..., np.newaxis]
    for back in (decoded, there_and_back(voxels, "jxl")):
        difference = np.abs(back.astype(int) - voxels)
        assert difference.max() < 25
        assert difference.mean() < 2


def test_jxl_of_three_channels_is_refused_since_it_would_be_garbled():
    voxels = random_voxels(Vec3(24, 20, 6), channels=3)
    refusal = "encoding jxl holds 1 channel.*, not 3: choose raw"
    assert re.search(refusal, str(encoding_problem("jxl", "uint8", 3, CHUNK)))
    with pytest.raises(InvalidParameter, match=refusal):
        encode(voxels, "jxl")
    others = imagecodecs.jpegxl_encode(voxels.T.reshape(3, 120, 24).transpose(1, 2, 0).copy())
    with pytest.raises(InvalidParameter, match=refusal):
        decode(others, "jxl", shape=voxels.shape, dtype=voxels.dtype)


@pytest.mark.parametrize(
    ("encoding", "package"),
    [
        ("fpzip", "'igneous-airflow[floats]'"),
        ("kempressed", "'igneous-airflow[floats]'"),
        ("zfpc", "'igneous-airflow[floats]'"),
        ("jxl", "imagecodecs"),
    ],
)
def test_an_encoding_that_is_not_installed_is_refused_with_the_way_out(
    monkeypatch, encoding, package
):
    library = "fpzip" if encoding == "kempressed" else encoding
    monkeypatch.setitem(cloudvolume.chunks.NEEDS_INSTALL, library, package)
    channels = 1 if encoding == "jxl" else 3
    voxels = np.zeros((8, 8, 8, channels), np.float32, "F")
    refusal = f"encoding {encoding} needs a library that is not installed: pip install {package}"
    dtype = "uint8" if encoding == "jxl" else "float32"
    assert encoding_problem(encoding, dtype, channels, CHUNK) == refusal
    with pytest.raises(InvalidParameter, match=re.escape(refusal)):
        encode(voxels, encoding)
    with pytest.raises(InvalidParameter, match=re.escape(refusal)):
        decode(b"a chunk", encoding, shape=voxels.shape, dtype=voxels.dtype)


def test_every_encoding_of_the_form_is_read_back_here():
    (choices, _) = get_args(get_args(Encoding)[0])
    assert set(get_args(choices)) == {encoding for encoding, _, _ in LOSSLESS} | {"jpeg", "jxl"}


def test_voxels_that_an_encoding_cannot_hold_are_refused():
    with pytest.raises(InvalidParameter, match="float32 voxels as jpeg"):
        encode(np.zeros((4, 4, 4, 1), np.float32), "jpeg")


@pytest.mark.parametrize("case", sorted({(encoding, dtype) for encoding, dtype, _ in LOSSLESS}))
def test_a_chunk_that_is_cut_off_is_refused_and_never_read_as_something_else(case):
    encoding, dtype = case
    array = random_voxels(Vec3(24, 24, 8), dtype)
    content = bytes(encode(array, encoding, block_size=BLOCK))
    for length in (0, 1, 10, len(content) // 3, len(content) // 2):
        with pytest.raises(CorruptChunk):
            decode(
                content[:length], encoding, shape=array.shape, dtype=array.dtype, block_size=BLOCK
            )


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "png", "compressed_segmentation"])
@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_bytes_give_an_array_of_the_right_form_or_an_error(encoding, data):
    array = random_voxels(Vec3(16, 16, 8), "uint32" if encoding[0] == "c" else "uint8")
    content = bytearray(encode(array, encoding, block_size=BLOCK))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(
            st.integers(0, min(len(content), data.draw(st.sampled_from([16, 64, 9**9]))) - 1)
        )
        content[place] = data.draw(st.integers(0, 255))
    try:
        back = decode(content, encoding, shape=array.shape, dtype=array.dtype, block_size=BLOCK)
    except CorruptChunk:
        return
    assert (back.shape, back.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(
    "encoding", ["raw", "jpeg", "png", "compressed_segmentation", "compresso", "crackle"]
)
def test_a_chunk_of_another_size_or_of_nonsense_is_refused(encoding):
    dtype = "uint8" if encoding in ("jpeg", "png") else "uint32"
    content = encode(random_voxels(Vec3(16, 16, 8), dtype), encoding, block_size=BLOCK)
    for wrong in (content, b"nonsense that is no chunk at all"):
        with pytest.raises(CorruptChunk, match=encoding):
            decode(wrong, encoding, shape=(64, 64, 32, 1), dtype=np.dtype(dtype), block_size=BLOCK)


@pytest.mark.parametrize("encoding", ["compresso", "crackle"])
def test_labels_that_do_not_fit_the_layer_are_refused(encoding):
    array = random_voxels(Vec3(16, 16, 8), "uint64")
    with pytest.raises(CorruptChunk, match="voxels of 8 bytes"):
        decode(encode(array, encoding), encoding, shape=array.shape, dtype=np.dtype("uint32"))


@pytest.mark.parametrize("level", [None, 0, 1, 9, 12])
@pytest.mark.parametrize("compression", ["", "gzip", "br", "zstd"])
@pytest.mark.parametrize("grey", [False, True])
def test_compressions_read_back_what_was_written(compression, grey, level):
    content = bytes(range(256)) * 20
    stored = compress_bytes(content, compression, grey=grey, level=level)
    assert stored.compression == compression
    assert bytes(decompress_bytes(stored, len(content))) == content
    empty = compress_bytes(b"", compression, grey=grey, level=level)
    assert bytes(decompress_bytes(empty, 0)) == b""


@pytest.mark.parametrize("compression", ["", "gzip", "br", "zstd"])
def test_the_first_bytes_are_those_of_the_whole(compression):
    content = bytes(range(256)) * 100
    stored = compress_bytes(content, compression, grey=False)
    for count in (1, 1000, 25_599, 25_600):
        assert bytes(decompress_first(stored, count)) == content[:count]
    assert bytes(decompress_first(stored, 30_000)) == content


@pytest.mark.parametrize("compression", ["gzip", "br", "zstd"])
def test_a_damaged_compressed_chunk_is_refused(compression):
    content = bytes(compress_bytes(bytes(range(256)) * 20, compression, grey=False).content)
    for damaged in (b"", b"junk", content[: len(content) // 2], content[:-1]):
        with pytest.raises(CorruptChunk, match=compression):
            decompress_bytes(StoredFile(damaged, compression), len(content) * 100)


def test_auto_compresses_what_a_compressor_still_makes_smaller():
    assert compression_for("auto", "raw") == "gzip"
    assert compression_for("auto", "compressed_segmentation") == "gzip"
    assert compression_for("auto", "jpeg") == ""
    assert compression_for("auto", "png") == ""
    assert compression_for("none", "raw") == ""
    assert compression_for("br", "jpeg") == "br"


@pytest.mark.parametrize("spare", [0, 1, 1000])
def test_a_zlib_stream_is_inflated_when_it_is_no_longer_than_said(spare):
    content = b"voxels" * 1000
    stream = zlib.compress(content)
    assert inflate(stream, len(content) + spare) == content
    for damaged, most in ((stream, len(content) - 1), (stream[:-9], 9999), (b"no stream", 99)):
        with pytest.raises(CorruptChunk, match="damaged, or longer"):
            inflate(damaged, most)


@pytest.mark.parametrize("size", [1, (1 << 17) - 1, 1 << 17, 1 << 20])
def test_grey_values_are_gzip_that_anything_reads_however_large_the_chunk(size):
    content = np.random.default_rng(3).normal(130, 30, size).astype(np.uint8).data
    stored = compress_bytes(content, "gzip", grey=True)
    assert gzip.decompress(stored.content) == bytes(content)
    assert len(stored.content) < size * 1.01 + 60


def test_the_same_grey_values_give_the_same_bytes_wherever_they_are_in_memory():
    """Threads have their stacks, where ISA-L keeps its state, at addresses of their own."""
    random = np.random.default_rng(5)
    sizes = [*range(20), *random.integers(20, 1000, 480)]
    contents = [
        np.repeat(random.integers(0, 2**40, size // 32 + 1), 4).tobytes()[:size] for size in sizes
    ]
    made = [set() for _ in contents]
    all_are_there = threading.Barrier(40)

    def compress():
        all_are_there.wait()
        for seen, content in zip(made, contents, strict=True):
            seen.add(compress_bytes(content, "gzip", grey=True).content)

    threads = [threading.Thread(target=compress) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(seen) for seen in made] == [1] * len(contents)
    for (packed,), content in zip(made, contents, strict=True):
        assert gzip.decompress(packed) == content
