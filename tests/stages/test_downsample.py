"""Downsample: its contract, and its results against the whole volume pooled at once."""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tinybrain
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AuditFailed, CorruptChunk, MissingChunk
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import (
    LayerSpec,
    assert_mips,
    random_voxels,
    read_with_cloudvolume,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import StageTests, complete, snapshot
from igneous_airflow.testing.strategies import factors, sizes, vectors

PLANE, CUBE = Vec3(2, 2, 1), Vec3(2, 2, 2)
assert_new_mips = partial(assert_mips, first=1)
METHODS = ["average", "mode", "min", "max", "striding"]


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        spec = LayerSpec(voxel_offset=(3, -7, 11))
        url = write_layer(tmp_path / "layer", random_voxels(Vec3(65, 33, 9)), spec)
        return Downsample(layer=url, mip=-1, num_mips=2)


def scales_of(path):
    return json.loads((path / "info").read_text())["scales"]


@pytest.mark.parametrize("factor", [PLANE, CUBE], ids=str)
def test_an_image_becomes_what_tinybrain_makes_of_the_whole(tmp_path, factor):
    voxels = random_voxels(Vec3(128, 96, 32))
    url = write_layer(tmp_path, voxels, LayerSpec(chunk_size=(32, 32, 8)))
    complete(Downsample(layer=url, num_mips=5, factor=factor, compress="none"))
    assert_new_mips(
        tmp_path, tinybrain.downsample_with_averaging(voxels, tuple(factor), num_mips=5)
    )


@pytest.mark.parametrize("factor", [PLANE, CUBE], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_labels_become_what_tinybrain_makes_of_the_whole(tmp_path, dtype, factor):
    voxels = random_voxels(Vec3(64, 96, 32), dtype)
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (16, 32, 8)))
    complete(Downsample(layer=url, num_mips=3, factor=factor, compress="none"))
    expected = tinybrain.downsample_segmentation(voxels, tuple(factor), num_mips=3)
    assert_new_mips(tmp_path, expected)
    assert_new_mips(tmp_path, expected, read=read_with_cloudvolume)


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, and how to downsample it."""
    edge = st.integers(4, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    wishes = {
        "factor": draw(factors()),
        "num_mips": draw(st.integers(1, 3)),
        "method": draw(st.sampled_from(METHODS)),
        "sparse": draw(st.booleans()),
        "chunk_size": draw(st.none() | chunks),
        "preserve_chunk_size": draw(st.booleans()),
    }
    spec = LayerSpec("image", draw(chunks), draw(vectors(-20, 20)))
    return random_voxels(draw(sizes(33)), draw(st.sampled_from(["uint8", "uint64"]))), spec, wishes


@given(works(), st.randoms())
@settings(deadline=None, max_examples=60)
def test_the_result_does_not_depend_on_the_cut(work, random):
    voxels, spec, wishes = work
    levels = pool(
        voxels, wishes["factor"], wishes["num_mips"], wishes["method"], sparse=wishes["sparse"]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        stage = Downsample(layer=write_layer(path, voxels, spec), compress="none", **wishes)
        plan = stage.plan()
        if plan.refusals:
            assert all("nothing left to pool" in refusal for refusal in plan.refusals)
            return
        stage.prepare()
        cells = list(stage.cells())
        random.shuffle(cells)
        for cell in cells:
            stage.run(cell)
        audit = stage.finish("tester")
        made = len(audit.outputs)
        assert_new_mips(path, levels[:made])
        assert made == wishes["num_mips"] or all(
            n == 1 or f == 1 for n, f in zip(levels[made - 1].shape, wishes["factor"], strict=False)
        )
        assert sum(audit.outputs.values()) == sum(
            len(list((path / scale["key"]).iterdir())) for scale in scales_of(path)[1:]
        )


@given(works(), st.data())
@settings(deadline=None, max_examples=25)
def test_the_parts_of_a_volume_done_one_by_one_make_the_whole(work, data):
    voxels, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        stage = Downsample(layer=write_layer(whole, voxels, spec), **wishes)
        if stage.plan().refusals:
            return
        complete(stage)
        write_layer(parts, voxels, spec)
        cells = list(stage.cells())
        middle = data.draw(st.integers(0, len(cells) - 1))
        boxes = [str(cell) for cell in (cells[middle:] + cells[:middle])]
        for bounds in boxes:
            complete(Downsample(layer=f"file://{parts}", bounds=bounds, **wishes))
        for path in (whole, parts):
            (path / "provenance").unlink()
        assert snapshot(whole) == snapshot(parts)


@pytest.mark.parametrize(
    ("size", "chunk", "factor"),
    [
        (Vec3(1025, 512, 2), Vec3(64, 64, 64), PLANE),
        (Vec3(1, 1, 50), Vec3(8, 8, 8), CUBE),
        (Vec3(100, 1, 1), Vec3(8, 8, 8), PLANE),
        (Vec3(7, 5, 3), Vec3(8, 8, 8), Vec3(4, 4, 1)),
        (Vec3(67, 3, 5), Vec3(16, 16, 16), Vec3(4, 2, 1)),
        (Vec3(2, 1, 1), Vec3(64, 64, 64), PLANE),
    ],
    ids=str,
)
def test_every_chunk_of_an_odd_or_narrow_volume_exists_and_constants_stay(
    tmp_path, size, chunk, factor
):
    voxels = np.full((*size, 1), 100, np.uint8, order="F")
    url = write_layer(tmp_path, voxels, LayerSpec(chunk_size=chunk))
    audit = complete(Downsample(layer=url, num_mips=9, factor=factor, compress="none"))
    for mip, (key, files) in enumerate(audit.outputs.items(), start=1):
        size = size.ceil_div(factor)
        expected = np.full((*size, 1), 100, np.uint8)
        assert files == size.ceil_div(chunk).product
        assert scales_of(tmp_path)[mip]["key"] == key
        np.testing.assert_array_equal(read_with_tensorstore(tmp_path, mip), expected)
    assert all(n == 1 for n, f in zip(size, factor, strict=True) if f > 1) or mip == 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"],
)
def test_every_dtype_is_pooled_by_the_method_asked_for(tmp_path, dtype, method):
    voxels = random_voxels(Vec3(21, 19, 5), dtype, channels=2)
    url = write_layer(tmp_path, voxels, LayerSpec("other", voxel_offset=(-9, 5, 1)))
    complete(Downsample(layer=url, num_mips=2, method=method, compress="none"))
    assert_new_mips(tmp_path, pool(voxels, PLANE, 2, method))


@pytest.mark.parametrize(
    ("layer_type", "method"),
    [("image", "average"), ("segmentation", "mode"), ("affinities", "striding")],
)
def test_the_type_of_a_layer_chooses_the_method(tmp_path, layer_type, method):
    voxels = random_voxels(Vec3(16, 16, 8), "uint32")
    url = write_layer(tmp_path, voxels, LayerSpec(layer_type))
    complete(Downsample(layer=url, num_mips=1, compress="none"))
    assert_new_mips(tmp_path, pool(voxels, PLANE, 1, method))


@pytest.mark.parametrize(
    ("axis", "factor"), [("x", Vec3(1, 2, 2)), ("y", Vec3(2, 1, 2)), ("z", PLANE)]
)
def test_an_axis_can_be_kept(tmp_path, axis, factor):
    voxels = random_voxels(Vec3(20, 18, 17))
    url = write_layer(tmp_path, voxels)
    complete(Downsample(layer=url, num_mips=2, axis=axis, compress="none"))
    assert_new_mips(tmp_path, pool(voxels, factor, 2, "average"))
    assert scales_of(tmp_path)[1]["resolution"] == [8 * factor.x, 8 * factor.y, 40 * factor.z]


@pytest.mark.parametrize(
    ("encoding", "layer_type", "dtype", "channels"),
    [
        ("raw", "image", "float32", 2),
        ("jpeg", "image", "uint8", 1),
        ("jpeg", "image", "uint8", 3),
        ("png", "image", "uint8", 1),
        ("png", "image", "uint8", 3),
        ("compressed_segmentation", "segmentation", "uint32", 1),
        ("compressed_segmentation", "segmentation", "uint64", 1),
    ],
)
def test_new_mips_are_encoded_as_the_one_that_is_read(
    tmp_path, encoding, layer_type, dtype, channels
):
    voxels = random_voxels(Vec3(33, 20, 9), dtype, channels=channels)
    spec = LayerSpec(layer_type, (16, 16, 16), encoding=encoding)
    url = write_layer(tmp_path, voxels, spec)
    stored = read_with_tensorstore(tmp_path, 0)
    complete(Downsample(layer=url, num_mips=1, compress="none"))
    assert scales_of(tmp_path)[1]["encoding"] == encoding
    expected = pool(stored, PLANE, 1, "average" if layer_type == "image" else "mode")[0]
    result = read_with_tensorstore(tmp_path, 1)
    if encoding == "jpeg":
        assert np.abs(result.astype(int) - expected).mean() < 20
    else:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("compress", ["auto", "gzip", "br", "zstd", "none"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation", "compresso", "crackle"])
def test_the_encoding_can_be_changed_and_read_again(tmp_path, encoding, compress):
    voxels = random_voxels(Vec3(33, 20, 9), "uint64")
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (16, 16, 16)))
    wishes = {"num_mips": 1, "compress": compress}
    complete(Downsample(layer=url, encoding=encoding, **wishes))
    complete(Downsample(layer=url, mip=-1, **wishes))
    assert [scale["encoding"] for scale in scales_of(tmp_path)] == ["raw", encoding, encoding]
    assert_new_mips(tmp_path, pool(voxels, PLANE, 2, "mode"), read=read_with_cloudvolume)


def test_labels_above_2_53_survive(tmp_path):
    labels = np.array([2**64 - 1, 2**64 - 2, 2**53 + 1, 2**53], np.uint64)
    voxels = labels[np.random.default_rng(2).integers(0, 4, (8, 8, 8, 1))]
    fine = np.asfortranarray(voxels.repeat(4, 0).repeat(4, 1))
    url = write_layer(tmp_path, fine, LayerSpec("segmentation"))
    stage = Downsample(layer=url, num_mips=2, skip_empty="skip", background_color=2**53)
    complete(stage)
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path, 2), voxels)


def test_a_chunk_of_labels_next_to_a_large_background_value_is_not_background(tmp_path):
    voxels = np.full((16, 16, 8, 1), 2**53 + 1, np.uint64)
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation"))
    stage = Downsample(layer=url, num_mips=1, skip_empty="skip", background_color=2**53)
    assert complete(stage).absent == 0


def test_a_pyramid_can_be_made_in_several_runs(tmp_path):
    voxels = random_voxels(Vec3(64, 64, 8), "uint32")
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation"))
    for _ in range(3):
        complete(Downsample(layer=url, mip=-1, num_mips=1, compress="none"))
    assert_new_mips(tmp_path, pool(voxels, PLANE, 3, "mode"))
    provenance = json.loads((tmp_path / "provenance").read_text())
    assert [entry["method"]["mip"] for entry in provenance["processing"]] == [0, 1, 2]


def test_what_was_done_is_recorded_with_every_parameter(tmp_path):
    url = write_layer(tmp_path, random_voxels(Vec3(16, 16, 8)))
    stage = Downsample(layer=url, num_mips=1)
    complete(stage)
    (entry,) = json.loads((tmp_path / "provenance").read_text())["processing"]
    assert entry["method"] == {"task": "DownsampleTask", **stage.parameters()}
    assert entry["by"] == "tester"


@pytest.fixture
def with_a_hole(tmp_path):
    """Return a layer without one chunk, and the voxels that remain."""
    voxels = random_voxels(Vec3(32, 16, 8), "uint16") | 1
    url = write_layer(tmp_path / "layer", voxels, LayerSpec(voxel_offset=(-8, 0, 0)))
    (tmp_path / "layer/8_8_40/0-8_8-16_0-8").unlink()
    return url, voxels, tmp_path / "layer"


def test_a_missing_chunk_is_refused_by_name(with_a_hole):
    with pytest.raises(MissingChunk, match=r"0-8_8-16_0-8 .*fill_missing"):
        complete(Downsample(layer=with_a_hole[0], num_mips=1))


@pytest.mark.parametrize("background", [0, 1000])
def test_a_missing_chunk_can_be_filled_with_background(with_a_hole, background):
    url, voxels, path = with_a_hole
    wishes = {"fill_missing": True, "background_color": background, "compress": "none"}
    complete(Downsample(layer=url, num_mips=2, **wishes))
    voxels[8:16, 8:] = background
    assert_new_mips(path, pool(voxels, PLANE, 2, "average"))


def test_a_damaged_chunk_is_refused_by_name_and_never_filled(with_a_hole):
    url, _, path = with_a_hole
    chunk = path / "8_8_40/8-16_0-8_0-8"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(CorruptChunk, match="8-16_0-8_0-8"):
        complete(Downsample(layer=url, num_mips=1, fill_missing=True))


@pytest.fixture
def half_empty(tmp_path):
    """Return a layer whose second half is background, 7."""
    voxels = random_voxels(Vec3(32, 32, 8)) | 8
    voxels[16:] = 7
    return write_layer(tmp_path, voxels), tmp_path


def test_background_is_written_unless_asked_otherwise(half_empty):
    url, _ = half_empty
    audit = complete(Downsample(layer=url, num_mips=1, background_color=7))
    assert audit.outputs == {"16_16_40": 4}
    assert audit.absent == 0


@pytest.mark.parametrize("skip_empty", ["skip", "delete"])
def test_background_can_be_left_out(half_empty, skip_empty):
    url, path = half_empty
    wishes = {"num_mips": 1, "background_color": 7, "skip_empty": skip_empty}
    stage = Downsample(layer=url, **wishes)
    audit = complete(stage)
    assert audit.outputs == {"16_16_40": 2}
    assert audit.absent == 2
    names = {file.name.removesuffix(".gz") for file in (path / "16_16_40").iterdir()}
    assert names == {"0-8_0-8_0-8", "0-8_8-16_0-8"}
    assert sum(stage.run(cell).chunks_skipped for cell in stage.cells()) == 2


def test_background_of_an_earlier_run_is_deleted_when_asked_for(half_empty):
    url, path = half_empty
    complete(Downsample(layer=url, num_mips=1, background_color=7))
    complete(Downsample(layer=url, num_mips=1, background_color=7, skip_empty="skip"))
    assert len(list((path / "16_16_40").iterdir())) == 4
    complete(Downsample(layer=url, num_mips=1, background_color=7, skip_empty="delete"))
    assert len(list((path / "16_16_40").iterdir())) == 2


def test_zeros_stay_out_of_sparse_averages_and_modes(tmp_path):
    voxels = np.zeros((16, 16, 8, 1), np.uint8, order="F")
    voxels[::2, 1::2] = 8
    for layer_type, expected in [("image", 8), ("segmentation", 8)]:
        path = tmp_path / layer_type
        url = write_layer(path, voxels, LayerSpec(layer_type))
        complete(Downsample(layer=url, num_mips=1, sparse=True, compress="none"))
        assert (read_with_tensorstore(path, 1) == expected).all()


def test_new_chunks_take_the_divisor_nearest_64_when_not_preserved(tmp_path):
    url = write_layer(tmp_path, random_voxels(Vec3(60, 50, 3)), LayerSpec(chunk_size=(128, 100, 7)))
    complete(Downsample(layer=url, num_mips=1, preserve_chunk_size=False))
    assert scales_of(tmp_path)[1]["chunk_sizes"] == [[64, 50, 7]]


def test_every_chunk_is_missed_when_it_is_lost_after_its_task(tmp_path):
    voxels = random_voxels(Vec3(33, 20, 9))
    url = write_layer(tmp_path / "layer", voxels, LayerSpec(voxel_offset=(-3, 0, 5)))
    stage = Downsample(layer=url, num_mips=2)
    complete(stage)
    files = [f for key in ("16_16_40", "32_32_40") for f in (tmp_path / "layer" / key).iterdir()]
    assert len(files) == 3 * 2 * 2 + 2 * 1 * 2
    provenance = (tmp_path / "layer/provenance").read_bytes()
    for file in files:
        content = file.read_bytes()
        file.unlink()
        name = f"{file.parent.name}/{file.name.removesuffix('.gz')}"
        with pytest.raises(AuditFailed, match=rf"1 file missing.* {name}\."):
            stage.finish("tester")
        file.write_bytes(content)
    assert (tmp_path / "layer/provenance").read_bytes() == provenance
    shutil.rmtree(tmp_path / "layer/16_16_40")
    with pytest.raises(AuditFailed, match="12 files missing"):
        stage.finish("tester")


def test_files_of_others_do_not_count_as_chunks(tmp_path):
    url = write_layer(tmp_path, random_voxels(Vec3(16, 16, 8)))
    stage = Downsample(layer=url, num_mips=1)
    complete(stage)
    (chunk,) = (tmp_path / "16_16_40").iterdir()
    for name in ("00-8_0-8_0-8.gz", "0-8_0-8_0-8.tmp", "0-8_0-8_0-9", "notes.txt", "9-8_0-8_0-8"):
        shutil.copy(chunk, chunk.with_name(name))
    chunk.unlink()
    with pytest.raises(AuditFailed, match="0-8_0-8_0-8"):
        stage.finish("tester")


def test_layers_in_a_bucket_are_worked_on_by_several_threads(tmp_path):
    from igneous_airflow.storage.files import StoredFile, open_folder
    from igneous_airflow.storage.layer import Layer

    voxels = random_voxels(Vec3(65, 33, 9), "uint16")
    write_layer(tmp_path, voxels)
    bucket = open_folder(f"mem://{tmp_path.name}/layer")
    for name, content in snapshot(tmp_path).items():
        bucket.write(name, StoredFile(content))

    class Wide(Layer):
        overlap_width = 8

    stage = Downsample(layer=bucket.url, num_mips=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igneous_airflow.storage.layer.Layer", Wide)
        complete(stage)
    layer = Layer.open(bucket.url)
    for mip, expected in enumerate(pool(voxels, PLANE, 2, "average"), start=1):
        np.testing.assert_array_equal(
            layer.read(layer.scale(mip), layer.scale(mip).bounds), expected
        )


@pytest.mark.real_data
def test_an_electron_microscopy_image(tmp_path, em_voxels):
    voxels = np.asfortranarray(em_voxels[:640, :512])
    spec = LayerSpec(
        chunk_size=(128, 128, 16), voxel_offset=(64, -32, 5), resolution=(4.6, 4.6, 45)
    )
    url = write_layer(tmp_path, voxels, spec)
    complete(Downsample(layer=url, num_mips=4))
    expected = tinybrain.downsample_with_averaging(voxels, (2, 2, 1), num_mips=4)
    assert_new_mips(tmp_path, expected, read=read_with_cloudvolume)
    assert scales_of(tmp_path)[1]["key"] == "9.2_9.2_45"


@pytest.mark.real_data
@pytest.mark.parametrize("factor", [PLANE, CUBE], ids=str)
def test_a_segmentation_of_neurons(tmp_path, neurons, factor):
    labels = np.asarray(neurons[100:356, 100:356, 200:264])
    voxels = np.asfortranarray(labels.reshape(256, 256, 64, 1).astype(np.uint64) << np.uint64(40))
    url = write_layer(tmp_path, voxels, LayerSpec("segmentation", (64, 64, 64), (100, 100, 200)))
    complete(Downsample(layer=url, num_mips=3, factor=factor, encoding="compressed_segmentation"))
    expected = tinybrain.downsample_segmentation(voxels, tuple(factor), num_mips=3)
    assert_new_mips(tmp_path, expected, read=read_with_cloudvolume)
