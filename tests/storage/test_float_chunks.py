"""Layers in fpzip, kempressed and zfpc: read as cloud-volume reads them, and written for it."""

import itertools

import cloudvolume.chunks
import numpy as np
import pytest
from cloudvolume import CloudVolume

from igneous_airflow.errors import CorruptChunk, InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.codecs import decode, encode
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import info_of, read_with_cloudvolume
from igneous_airflow.testing.stages import complete, snapshot

OFFSET = (3, -7, 11)
SHAPES = [(17, 9, 5), (33, 20, 1), (1, 1, 1), (8, 8, 8), (1, 30, 2)]


def values(shape, dtype):
    random = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind == "i":
        limits = np.iinfo(dtype)
        # zfp keeps integers that use two bits less
        return random.integers(limits.min // 4, limits.max // 4, shape, dtype=dtype)
    return (random.normal(0, 1e3, shape) * random.integers(0, 2, shape)).astype(dtype)


def write(path, encoding, voxels, tuning=None, chunk_size=(8, 8, 8)):
    """A layer as cloud-volume writes it."""
    info = CloudVolume.create_new_info(
        voxels.shape[3],
        "image",
        voxels.dtype.name,
        encoding,
        (8, 8, 40),
        OFFSET,
        voxels.shape[:3],
        chunk_size=chunk_size,
    )
    info["scales"][0] |= tuning or {}
    volume = CloudVolume(f"file://{path}", info=info, progress=False)
    volume.commit_info()
    volume[:] = voxels
    return f"file://{path}"


def theirs_of(path, shape):
    """What cloud-volume reads; it takes channels for x where there is one voxel."""
    return read_with_cloudvolume(path, 0).reshape(shape)


def theirs(voxels, encoding):
    """A chunk as cloud-volume encodes it."""
    return cloudvolume.chunks.encode(voxels, encoding)


def read(url):
    layer = Layer.open(url)
    return layer.read(layer.scale(0), layer.scale(0).bounds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("precision", [None, 0, 14])
def test_fpzip_is_read_as_cloudvolume_reads_it(tmp_path, shape, channels, dtype, precision):
    voxels = values((*shape, channels), dtype)
    url = write(
        tmp_path, "fpzip", voxels, {} if precision is None else {"fpzip_precision": precision}
    )
    found = read(url)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, theirs_of(tmp_path, found.shape))
    if not precision:
        np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] > 1])
def test_kempressed_is_read_as_cloudvolume_reads_it(tmp_path, shape):
    voxels = values((*shape, 3), "float32") / 1e3
    found = read(write(tmp_path, "kempressed", voxels))
    np.testing.assert_array_equal(found, theirs_of(tmp_path, found.shape))
    np.testing.assert_allclose(found, voxels, atol=1e-5)


DIMENSIONS = [list(kind) for kind in itertools.product([True, False], repeat=4) if any(kind)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_every_voxel_of_lossless_zfpc_is_read(tmp_path, shape, channels, dtype):
    """cloud-volume itself makes float32 of all of them."""
    voxels = values((*shape, channels), dtype)
    found = read(write(tmp_path, "zfpc", voxels))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, voxels)
    others = theirs_of(tmp_path, found.shape)
    np.testing.assert_array_equal(found.astype(np.float32).astype(others.dtype), others)


@pytest.mark.parametrize("dimensions", DIMENSIONS, ids=str)
@pytest.mark.parametrize(
    "tuning", [{}, {"zfpc_tolerance": 0.5}, {"zfpc_precision": 20}, {"zfpc_rate": 9}]
)
def test_zfpc_is_read_as_cloudvolume_reads_it(tmp_path, dimensions, tuning):
    voxels = values((17, 9, 5, 2), "float32")
    url = write(tmp_path, "zfpc", voxels, {"zfpc_correlated_dims": dimensions, **tuning})
    np.testing.assert_array_equal(read(url), read_with_cloudvolume(tmp_path, 0))


WRITTEN = {"fpzip": "float32", "kempressed": "float32", "zfpc": "float64"}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_float_encodings_are_read_but_not_written(tmp_path, encoding):
    voxels = np.asfortranarray(values((17, 9, 5, 3), WRITTEN[encoding]))
    url = write(tmp_path / "src", encoding, voxels)
    refusal = f"encoding {encoding} can be read, but not written: set encoding to raw"
    stages = [
        Downsample(layer=url, num_mips=1),
        Transfer(src=url, dest=f"{tmp_path}/dest", chunk_size=(17, 9, 5)),
        Transfer(src=url, dest=f"{tmp_path}/dest", skip_downsamples=True, fill_missing=True),
    ]
    for stage in stages:
        assert stage.plan().refusals == (refusal,)
    with pytest.raises(InvalidParameter, match=refusal):
        encode(voxels, encoding)
    complete(Downsample(layer=url, num_mips=1, method="striding", encoding="raw"))
    complete(Transfer(src=url, dest=f"{tmp_path}/dest", max_mips=0, encoding="raw"))
    source = read(url)
    np.testing.assert_array_equal(read(f"file://{tmp_path}/dest"), source)
    layer = Layer.open(url)
    mip = layer.read(layer.scale(1), layer.scale(1).bounds)
    np.testing.assert_array_equal(mip, source[::2, ::2])


@pytest.mark.parametrize("encoding", WRITTEN)
def test_chunks_of_floats_are_copied_as_they_are(tmp_path, encoding):
    tuning = {"zfpc_tolerance": 0.25, "zfpc_correlated_dims": [True, True, False, False]}
    tuning = {"fpzip": {"fpzip_precision": 20}, "zfpc": tuning}.get(encoding, {})
    url = write(tmp_path / "src", encoding, values((17, 9, 5, 3), "float32"), tuning)
    complete(Transfer(src=url, dest=f"{tmp_path}/dest", skip_downsamples=True))
    assert snapshot(tmp_path / "dest/8_8_40") == snapshot(tmp_path / "src/8_8_40")
    assert tuning.items() <= info_of(tmp_path / "dest")["scales"][0].items()


@pytest.mark.parametrize(
    ("encoding", "tuning", "is_lossy"),
    [
        ("fpzip", {}, False),
        ("fpzip", {"fpzip_precision": 0}, False),
        ("fpzip", {"fpzip_precision": 20}, True),
        ("kempressed", {}, True),
        ("zfpc", {}, False),
        ("zfpc", {"zfpc_rate": -1, "zfpc_tolerance": -1}, False),
        ("zfpc", {"zfpc_tolerance": 0.5}, True),
    ],
)
def test_a_plan_says_where_floats_were_rounded(tmp_path, encoding, tuning, is_lossy):
    url = write(tmp_path, encoding, values((8, 8, 8, 3), "float32"), tuning)
    notes = Downsample(layer=url, num_mips=1, encoding="raw").plan().notes
    assert any("artifacts carry over" in note for note in notes) == is_lossy


@pytest.mark.parametrize("encoding", ["fpzip", "kempressed", "zfpc"])
def test_a_float_chunk_of_another_size_or_type_is_refused(encoding):
    voxels = np.asfortranarray(values((9, 8, 7, 3), "float32"))
    content = theirs(voxels, encoding)
    for shape, dtype in (
        ((8, 9, 7, 3), "float32"),
        ((9, 8, 7, 3), "float64"),
        ((18, 4, 7, 3), "float32"),
    ):
        with pytest.raises(CorruptChunk, match="its header says"):
            decode(content, encoding, shape=shape, dtype=np.dtype(dtype))


@pytest.mark.parametrize("encoding", ["fpzip", "kempressed", "zfpc"])
def test_a_float_chunk_that_is_cut_off_anywhere_is_refused_by_name(tmp_path, encoding):
    url = write(tmp_path, encoding, values((8, 8, 8, 3), "float32") + 1)
    layer = Layer.open(url)
    name = "3-11_-7-1_11-19"
    file = tmp_path / "8_8_40" / name
    content = file.read_bytes()
    for length in (0, 1, 20, 40, len(content) // 3, len(content) // 2, len(content) - 40):
        file.write_bytes(content[:length])
        with pytest.raises(CorruptChunk, match=name):
            layer.read_chunk(layer.scale(0), BoundingBox.parse(name))


def test_chunks_are_read_after_a_damaged_one_and_by_many_threads(tmp_path):
    voxels = values((32, 32, 8, 1), "float32")
    url = write(tmp_path, "fpzip", voxels)
    (tmp_path / "8_8_40/3-11_-7-1_11-19").write_bytes(b"fpz")
    layer = Layer.open(url)
    for _ in range(2):
        with pytest.raises(CorruptChunk):
            layer.read(layer.scale(0), layer.scale(0).bounds)
        box = BoundingBox.parse("11-35_1-25_11-19")
        np.testing.assert_array_equal(layer.read(layer.scale(0), box), voxels[8:, 8:])
