"""The pyramid writer: chunks written when they are whole, within the memory that was planned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AlignmentError, InvalidParameter
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.pyramid.layout import Pyramid, ScaleWishes, coarser_scales
from igneous_airflow.pyramid.writer import PyramidWriter, WriteOptions
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.info import Info
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.testing.stages import peak_memory

PLANE = Vec3(2, 2, 1)


class MemoryLayer:
    """Takes chunks as a layer does, and keeps them."""

    def __init__(self):
        self.chunks = {}

    def write_chunk(self, scale, chunk, voxels, **options):
        assert (scale.key, chunk) not in self.chunks, "a chunk is written once"
        self.chunks[scale.key, chunk] = voxels.copy()
        return voxels.nbytes

    def delete_chunk(self, scale, chunk):
        self.chunks[scale.key, chunk] = None


def pyramid_of(size, offset, chunk, levels, factor=PLANE):
    info = Info.parse(
        b'{"data_type": "uint8", "num_channels": 1, "type": "image", "scales": [{"key": "s", '
        b'"resolution": [1, 1, 1], "encoding": "raw", "size": %s, "voxel_offset": %s, '
        b'"chunk_sizes": [%s]}]}'
        % tuple(str(list(vector)).encode() for vector in (size, offset, chunk)),
        "place",
    )
    scales, conflicts = coarser_scales(info, info.scales[0], factor, levels, ScaleWishes())
    assert conflicts == []
    return Pyramid(info.scales[0], scales, factor)


@given(st.randoms(), st.sampled_from([Vec3(40, 24, 6), Vec3(33, 17, 5)]))
@settings(deadline=None, max_examples=30)
def test_tiles_may_come_in_any_order(random, size):
    voxels = random_voxels(size)
    pyramid = pyramid_of(size, Vec3(-7, 5, 1), Vec3(8, 8, 4), 2)
    layer = MemoryLayer()
    with Overlap(1) as overlap:
        writer = PyramidWriter(layer, pyramid, WriteOptions("average"), overlap)
        tiles = pyramid.tiles(pyramid.source.bounds)
        random.shuffle(tiles)
        for tile in tiles:
            writer.push(tile, voxels[tile.slices_within(pyramid.source.bounds)])
        writer.close()
    assert writer.chunks_written == len(layer.chunks)
    for scale, level in zip(pyramid.levels, pool(voxels, PLANE, 2, "average"), strict=True):
        for chunk in scale.chunks:
            part = level[chunk.slices_within(scale.bounds)]
            np.testing.assert_array_equal(layer.chunks[scale.key, chunk], part)


def test_a_chunk_that_did_not_get_all_of_its_voxels_is_named():
    pyramid = pyramid_of(Vec3(32, 32, 8), Vec3(0, 0, 0), Vec3(8, 8, 8), 2)
    layer = MemoryLayer()
    with Overlap(1) as overlap:
        writer = PyramidWriter(layer, pyramid, WriteOptions("average"), overlap)
        for tile in pyramid.tiles(pyramid.source.bounds)[:-1]:
            writer.push(tile, np.ones((*tile.size, 1), np.uint8))
        with pytest.raises(AlignmentError, match="did not get all of its voxels") as caught:
            writer.close()
    assert "chunk 0-8_0-8_0-8 of scale 4_4_1" in str(caught.value)
    assert all(chunk.size == Vec3(8, 8, 8) for _, chunk in layer.chunks)


@pytest.mark.parametrize(("skip_empty", "left"), [("write", 4), ("skip", 2), ("delete", 2)])
def test_empty_chunks_are_written_skipped_or_deleted(skip_empty, left):
    pyramid = pyramid_of(Vec3(32, 32, 8), Vec3(0, 0, 0), Vec3(8, 8, 8), 1)
    layer = MemoryLayer()
    with Overlap(2) as overlap:
        options = WriteOptions("average", skip_empty=skip_empty, background=5)
        writer = PyramidWriter(layer, pyramid, options, overlap)
        for tile in pyramid.tiles(pyramid.source.bounds):
            value = 5 if tile.min.x < 16 else 6
            writer.push(tile, np.full((*tile.size, 1), value, np.uint8))
        writer.close()
    written = [voxels for voxels in layer.chunks.values() if voxels is not None]
    assert len(written) == writer.chunks_written == left
    assert writer.chunks_written + writer.chunks_skipped == 4
    left_out = [] if skip_empty == "write" else ["2_2_1/0-8_0-8_0-8", "2_2_1/0-8_8-16_0-8"]
    assert sorted(writer.left_out) == left_out
    assert (len(layer.chunks) == 4) == (skip_empty != "skip")


def test_an_error_of_a_write_reaches_the_task():
    class Broken(MemoryLayer):
        def write_chunk(self, scale, chunk, voxels, **options):
            raise InvalidParameter("no")

    pyramid = pyramid_of(Vec3(32, 32, 8), Vec3(0, 0, 0), Vec3(8, 8, 8), 1)
    for width in (1, 4):
        with pytest.raises(InvalidParameter), Overlap(width) as overlap:  # noqa: PT012
            writer = PyramidWriter(Broken(), pyramid, WriteOptions("average"), overlap)
            writer.push(pyramid.source.bounds, np.ones((32, 32, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("dtype", "layer_type", "factor"),
    [
        ("uint8", "image", (2, 2, 1)),
        ("uint8", "image", (4, 2, 1)),
        ("float32", "image", (2, 2, 1)),
        ("uint64", "segmentation", (2, 2, 2)),
    ],
)
def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path, dtype, layer_type, factor):
    voxels = random_voxels(Vec3(256, 128, 64), dtype)
    url = write_layer(tmp_path, voxels, LayerSpec(layer_type, (32, 32, 32)))
    stage = Downsample(layer=url, num_mips=3, factor=factor)
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < stage.plan().memory + 300_000
