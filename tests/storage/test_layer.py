"""Layers read and written by chunk, against tensorstore and cloud-volume."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import (
    AlignmentError,
    CorruptChunk,
    InvalidParameter,
    LayerNotFound,
    MissingChunk,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    read_with_tensorstore,
    write_layer,
)

SIZE, OFFSET = Vec3(33, 20, 9), Vec3(-5, 3, 0)
SPEC = LayerSpec(voxel_offset=OFFSET, chunk_size=(8, 16, 4))
BOX = BoundingBox.parse


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    voxels = random_voxels(SIZE, "uint16", channels=2)
    path = tmp_path_factory.mktemp("layer")
    return Layer.open(write_layer(path, voxels, SPEC)), voxels, path


@pytest.fixture
def damaged(whole, tmp_path):
    """Return a copy of the layer without one chunk, and with one that is cut off."""
    _layer, _voxels, path = whole
    copy = tmp_path / "damaged"
    shutil.copytree(path, copy)
    (copy / "8_8_40/3-11_3-19_4-8").unlink()
    cut = copy / "8_8_40/-5-3_3-19_0-4"
    cut.write_bytes(cut.read_bytes()[:-1])
    return Layer.open(f"file://{copy}")


def test_a_layer_has_the_dtype_of_its_voxels(whole):
    layer, voxels, _ = whole
    assert layer.dtype == voxels.dtype
    assert layer.info.channels == 2
    assert layer.scale(0) == layer.scale(-1)


@pytest.mark.parametrize(
    ("resolutions", "coarsest"),
    [
        ([(8, 8, 40), (16, 16, 40), (32, 32, 40)], 2),
        ([(32, 32, 40), (8, 8, 40), (16, 16, 40)], 0),
        ([(8, 8, 40), (32, 32, 40), (16, 16, 80), (16, 16, 40)], 1),  # of 2,2,1 and of 2,2,2
        ([(8, 8, 40), (16, 16, 80), (16, 16, 40)], 1),
        ([(8, 8, 40), (16, 8, 40), (8, 16, 40)], 2),  # none is coarser: the last
        ([(8, 8, 0.5), (4.5, 4.5, 1)], 0),
    ],
    ids=str,
)
def test_mip_minus_1_is_that_with_the_largest_voxels_wherever_it_stands(
    whole, tmp_path, resolutions, coarsest
):
    info = whole[0].info
    (scale,) = info.scales
    entries = [
        replace(scale, key=f"s{number}", resolution=tuple(map(float, resolution))).entry()
        for number, resolution in enumerate(resolutions)
    ]
    (tmp_path / "info").write_text(json.dumps({**info.data, "scales": entries}))
    layer = Layer.open(f"file://{tmp_path}")
    assert layer.scale(-1) == layer.scale(coarsest)
    assert layer.scale(-1).key == f"s{coarsest}"


@pytest.mark.parametrize("mip", [-2, 1, 99])
def test_a_mip_that_does_not_exist_is_refused_with_those_that_do(whole, mip):
    with pytest.raises(InvalidParameter, match="mips 0 to 0"):
        whole[0].scale(mip)


def test_a_layer_without_scales_has_no_mip(whole, tmp_path):
    (tmp_path / "info").write_text(json.dumps({**whole[0].info.data, "scales": []}))
    for mip in (-1, 0):
        with pytest.raises(InvalidParameter, match="has no scales"):
            Layer.open(f"file://{tmp_path}").scale(mip)


def test_a_layer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LayerNotFound, match=f"{tmp_path}/no/info"):
        Layer.open(f"file://{tmp_path}/no")


def test_a_box_of_any_alignment_is_read_as_cloud_volume_reads_it(whole):
    layer, voxels, path = whole
    theirs = CloudVolume(f"file://{path}", progress=False)
    scale = layer.scale(0)

    @given(st.data())
    @settings(deadline=None, max_examples=40)
    def cut_out(data):
        edges = [
            sorted(data.draw(st.lists(st.integers(a, b), min_size=2, max_size=2, unique=True)))
            for a, b in zip(scale.bounds.min, scale.bounds.max, strict=True)
        ]
        box = BoundingBox(Vec3(*(a for a, _ in edges)), Vec3(*(b for _, b in edges)))
        ours = layer.read(scale, box)
        assert ours.flags.f_contiguous
        np.testing.assert_array_equal(ours, voxels[box.slices_within(scale.bounds)])
        if box.voxels > 1:  # cloud-volume turns the axes of a single voxel
            np.testing.assert_array_equal(ours, theirs[tuple(slice(a, b) for a, b in edges)])

    cut_out()


@pytest.mark.parametrize("box", ["-6-3_3-19_0-4", "-5-29_3-23_0-9", "100-108_3-19_0-4"])
def test_a_box_outside_of_the_bounds_is_refused(whole, box):
    layer = whole[0]
    with pytest.raises(InvalidParameter, match="-5-28_3-23_0-9"):
        layer.read(layer.scale(0), BOX(box))


def test_a_missing_chunk_is_named_with_the_way_out(damaged):
    for box in (BOX("3-11_3-19_4-8"), damaged.scale(0).bounds.intersection(BOX("0-9_3-9_5-9"))):
        with pytest.raises(MissingChunk, match=r"3-11_3-19_4-8 .* is missing") as caught:
            damaged.read(damaged.scale(0), box)
        assert "fill_missing" in str(caught.value)
        assert damaged.folder.url in str(caught.value)
    assert damaged.read_chunk(damaged.scale(0), BOX("3-11_3-19_4-8")) is None


def test_missing_chunks_can_be_filled(damaged, whole):
    scale, box = damaged.scale(0), BOX("0-9_3-9_5-9")
    expected = whole[1][box.slices_within(scale.bounds)].copy()
    expected[3:, :, :3] = 7
    np.testing.assert_array_equal(damaged.read(scale, box, missing=7), expected)
    hole = damaged.read(scale, BOX("3-11_3-19_4-8"), missing=7)
    np.testing.assert_array_equal(hole, np.full((8, 16, 4, 2), 7, np.uint16))


def test_a_chunk_that_is_cut_off_is_named_and_never_filled(damaged):
    with pytest.raises(CorruptChunk, match=f"{damaged.folder.url}/8_8_40/-5-3_3-19_0-4"):
        damaged.read(damaged.scale(0), BOX("-5-0_3-9_0-2"), missing=0)


@pytest.mark.parametrize(
    "box",
    [
        "-5-4_3-19_0-4",
        "-4-4_3-19_0-4",
        "-5-11_3-19_0-4",
        "27-35_19-35_8-12",
        "-13--5_3-19_0-4",
        "-5--5_3-19_0-4",
    ],
)
def test_a_write_of_anything_but_one_chunk_is_refused(damaged, box):
    scale, box = damaged.scale(0), BOX(box)
    with pytest.raises(AlignmentError, match=str(box)):
        damaged.write_chunk(scale, box, np.zeros((*box.size, 2), np.uint16))


@pytest.mark.parametrize(
    "voxels",
    [
        np.zeros((8, 16, 4, 2), np.uint8),
        np.zeros((8, 16, 4, 2), ">u2"),
        np.zeros((8, 16, 4, 1), np.uint16),
        np.zeros((8, 16, 4), np.uint16),
        np.zeros((16, 8, 4, 2), np.uint16),
    ],
    ids=lambda voxels: f"{voxels.dtype} {voxels.shape}",
)
def test_voxels_of_another_dtype_or_shape_are_refused(damaged, voxels):
    with pytest.raises(InvalidParameter, match=r"the layer holds uint16 \(8, 16, 4, 2\)"):
        damaged.write_chunk(damaged.scale(0), BOX("3-11_3-19_4-8"), voxels)


def test_a_damaged_layer_is_whole_again_when_its_chunks_are_written(damaged, whole):
    scale = damaged.scale(0)
    for chunk in (BOX("3-11_3-19_4-8"), BOX("-5-3_3-19_0-4")):
        part = whole[1][chunk.slices_within(scale.bounds)]
        damaged.write_chunk(scale, chunk, np.asfortranarray(part), compress="none")
    np.testing.assert_array_equal(damaged.read(scale, scale.bounds), whole[1])


def test_a_deleted_chunk_is_missing(damaged):
    for _ in range(2):
        damaged.delete_chunk(damaged.scale(0), BOX("11-19_3-19_0-4"))
    assert damaged.read_chunk(damaged.scale(0), BOX("11-19_3-19_0-4")) is None


@pytest.mark.parametrize("compress", ["auto", "gzip", "br", "zstd", "none"])
@pytest.mark.parametrize(
    ("encoding", "layer_type", "dtype", "channels"),
    [
        ("raw", "image", "uint8", 1),
        ("raw", "image", "float32", 3),
        ("raw", "segmentation", "uint64", 1),
        ("png", "image", "uint8", 1),
        ("compressed_segmentation", "segmentation", "uint64", 1),
        ("compresso", "segmentation", "uint32", 1),
        ("crackle", "segmentation", "uint64", 1),
    ],
)
def test_others_read_back_what_we_write(tmp_path, encoding, layer_type, dtype, channels, compress):
    voxels = random_voxels(SIZE, dtype, channels=channels)
    stated = LayerSpec(layer_type, (16, 16, 16), OFFSET)
    layer = Layer.open(write_layer(tmp_path, voxels * 0, stated))
    shutil.rmtree(tmp_path / "8_8_40")
    data = json.loads((tmp_path / "info").read_text())
    data["scales"][0]["encoding"] = encoding
    if encoding == "compressed_segmentation":
        data["scales"][0]["compressed_segmentation_block_size"] = [8, 8, 8]
    (tmp_path / "info").write_text(json.dumps(data))
    layer = Layer.open(layer.folder.url)
    scale = layer.scale(0)
    for chunk in scale.chunks:
        part = np.asfortranarray(voxels[chunk.slices_within(scale.bounds)])
        size = layer.write_chunk(scale, chunk, part, compress=compress)
        (path,) = (tmp_path / scale.key).glob(f"{chunk}*")
        assert path.stat().st_size == size
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path, 0), voxels)
    np.testing.assert_array_equal(layer.read(scale, scale.bounds), voxels)
    if compress == "none" and encoding not in ("compresso", "crackle"):
        np.testing.assert_array_equal(read_with_tensorstore(tmp_path, 0), voxels)


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_colours_are_those_that_tensorstore_reads_and_writes(tmp_path, encoding):
    ramps = np.stack(np.meshgrid(*[np.arange(0, 240, 10)] * 3, indexing="ij"), 3).astype(np.uint8)
    spec = LayerSpec(encoding=encoding, chunk_size=(16, 16, 16))
    layer = Layer.open(write_layer(tmp_path, ramps, spec))
    scale, tolerance = layer.scale(0), 40 if encoding == "jpeg" else 0
    read = layer.read(scale, scale.bounds)
    assert np.abs(read.astype(int) - ramps).max() <= tolerance
    for chunk in scale.chunks:
        part = np.asfortranarray(ramps[chunk.slices_within(scale.bounds)])
        layer.write_chunk(scale, chunk, part)
    theirs = read_with_tensorstore(tmp_path, 0)
    assert np.abs(theirs.astype(int) - ramps).max() <= tolerance


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("compress", ["none", "gzip", "br", "zstd"])
def test_one_channel_is_read_alone(tmp_path, encoding, compress):
    voxels = random_voxels(SIZE, "uint8", channels=3)
    src = write_layer(tmp_path / "all", voxels, SPEC)
    layer, scale = Layer.open(src), Layer.open(src).scale(0)
    scale = replace(scale, encoding=encoding)
    for chunk in scale.chunks:
        block = np.asfortranarray(voxels[chunk.slices_within(scale.bounds)])
        layer.write_chunk(scale, chunk, block, compress=compress)
    for channel in range(3):
        for box in (scale.bounds, next(iter(scale.chunks)), BOX("-3-9_4-20_3-9")):
            part = voxels[box.slices_within(scale.bounds)][..., channel : channel + 1]
            np.testing.assert_array_equal(layer.read(scale, box, channel=channel), part)


def test_one_channel_of_a_missing_chunk_is_filled(damaged):
    scale = damaged.scale(0)
    filled = damaged.read(scale, BOX("3-11_3-19_4-8"), missing=5, channel=1)
    assert filled.shape == (8, 16, 4, 1)
    assert (filled == 5).all()


def test_an_empty_file_is_a_damaged_chunk_and_not_background(damaged):
    damaged.folder.write("8_8_40/11-19_3-19_0-4", StoredFile(b""))
    with pytest.raises(CorruptChunk, match="11-19_3-19_0-4"):
        damaged.read_chunk(damaged.scale(0), BOX("11-19_3-19_0-4"))
