"""Quantize affinities: its contract, and the greys that arrive, against numpy on the volume."""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tinybrain
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from igneous_airflow.errors import CorruptChunk, InvalidParameter, MissingChunk, PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.run import Run
from igneous_airflow.stages.quantize_affinities import QuantizeAffinities
from igneous_airflow.testing.layers import (
    LayerSpec,
    assert_mips,
    info_of,
    read_with_cloudvolume,
    read_with_tensorstore,
    write_layer,
)
from igneous_airflow.testing.stages import (
    StageTests,
    complete,
    complete_whole_and_in_parts,
    peak_memory,
    snapshot,
)
from igneous_airflow.testing.strategies import factors, sizes, vectors
from igneous_airflow.worker.loop import Worker, WorkerOptions

AFFINITIES = LayerSpec("affinities", voxel_offset=(3, -7, 11))


def affinities(size, dtype="float32", channels=3):
    """Values around and beyond 0 to 1."""
    values = np.random.default_rng(4).normal(0.5, 0.3, (*size, channels))
    return np.asfortranarray(values.astype(dtype))


def expected(values, channel=0):
    return (values[..., channel : channel + 1].clip(0, 1) * 255).astype(np.uint8)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        src = write_layer(tmp_path / "src", affinities(Vec3(33, 17, 9)), AFFINITIES)
        return QuantizeAffinities(src=src, dest=f"{tmp_path}/dest", max_mips=1, shape=(16, 16, 16))


@pytest.fixture
def make(tmp_path):
    """Write a source and return the stage that quantizes it."""

    def write_and_make(values, spec=AFFINITIES, **wishes):
        src = write_layer(tmp_path / "src", values, spec)
        return QuantizeAffinities(src=src, dest=f"{tmp_path}/dest", **wishes)

    return write_and_make


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_channel_becomes_an_image_with_averaged_mips(tmp_path, make, channel):
    """The oldest pipeline made a segmentation of it, and took modes of greys."""
    values = affinities(Vec3(40, 24, 9))
    complete(make(values, channel=channel, max_mips=2, compress="none"))
    grey = expected(values, channel)
    averages = tinybrain.downsample_with_averaging(grey, (2, 2, 1), num_mips=2)
    for read in (read_with_tensorstore, read_with_cloudvolume):
        assert_mips(tmp_path / "dest", [grey, *averages], read=read)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["num_channels"], info["type"]) == ("uint8", 1, "image")


@pytest.mark.parametrize(("dtype", "precision"), [("float16", "float32"), ("float64", "float64")])
def test_layers_of_other_precision_that_cloudvolume_writes_are_quantized(
    tmp_path, dtype, precision
):
    values = affinities(Vec3(16, 16, 8), dtype)
    info = CloudVolume.create_new_info(
        3, "image", dtype, "raw", (4, 4, 40), (0, 0, 0), (16, 16, 8), chunk_size=(8, 8, 8)
    )
    volume = CloudVolume(f"file://{tmp_path}/src", info=info, progress=False)
    volume.commit_info()
    volume[:] = values
    stage = QuantizeAffinities(src=f"{tmp_path}/src", dest=f"{tmp_path}/dest", compress="none")
    complete(stage)
    grey = expected(values.astype(precision))
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), grey)


def test_another_range_is_stretched_over_all_greys(tmp_path, make):
    values = affinities(Vec3(16, 16, 8), channels=1)
    values[:3, 0, 0, 0] = -0.25, 0.25, 0.75
    complete(make(values, low=-0.25, high=0.75, max_mips=0, compress="none"))
    result = read_with_tensorstore(tmp_path / "dest", 0)
    assert result[:3, 0, 0, 0].tolist() == [0, 127, 255]
    np.testing.assert_array_equal(result, ((values.clip(-0.25, 0.75) + 0.25) * 255).astype("u1"))


def test_nan_become_0_and_are_counted_in_the_summary(tmp_path, make):
    values = affinities(Vec3(40, 24, 9))
    values[5:9, 3, 2, 0] = np.nan
    values[20, 20, 8, 0] = np.nan
    values[30, :, :, 1] = np.nan  # of another channel
    stage = make(values, max_mips=1, compress="none", shape=(16, 16, 8))
    run, _ = Run.launch(
        stage, url=f"file://{tmp_path}/run", queue=f"sqlite://{tmp_path}/q.db", by="tester"
    )
    run.prepare()
    run.enqueue()
    queue = run.open_queue()
    Worker(
        queue, run.runs_folder, WorkerOptions(idle_seconds=0, until_done=True), lambda _: None
    ).work()
    queue.close()
    summary = run.finish()
    assert summary.work.counts == {"voxels were NaN and became 0": 5}
    assert "  5 voxels were NaN and became 0\n" in summary.describe() + "\n"
    grey = expected(np.nan_to_num(values))
    grey[5:9, 3, 2] = grey[20, 20, 8] = 0
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), grey)


def test_without_nan_the_summary_counts_nothing(make):
    stage = make(affinities(Vec3(16, 16, 8)))
    stage.prepare()
    assert stage.run(stage.cells()[0]).counts == {}


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, and how to quantize it."""
    edge = st.integers(3, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    channels = draw(st.integers(1, 4))
    wishes = {
        "channel": draw(st.integers(0, channels - 1)),
        "factor": draw(factors()),
        "max_mips": draw(st.integers(0, 2)),
        "chunk_size": draw(st.none() | chunks),
        "translate": draw(st.none() | vectors(-9, 9)),
    }
    spec = LayerSpec("image", draw(chunks), draw(vectors(-20, 20)))
    return affinities(draw(sizes(33)), channels=channels), spec, wishes


@given(works(), st.integers(1, 3), st.booleans(), st.randoms())
@settings(deadline=None, max_examples=25)
def test_the_result_does_not_depend_on_the_cut(work, blocks, zipped, random):
    values, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        src = write_layer(Path(folder, "src"), values, spec)
        if zipped:
            zip_chunks(Path(folder, "src/8_8_40"))
        same = {"src": src, "compress": "none", **wishes}
        whole = QuantizeAffinities(dest=f"{folder}/whole", **same)
        made = complete_whole_and_in_parts(whole, blocks, random)
        grey = expected(values, wishes["channel"])
        levels = len(info_of(made)["scales"]) - 1
        assert_mips(made, [grey, *pool(grey, wishes["factor"], levels, "average")])


def zip_chunks(folder):
    for file in folder.iterdir():
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), 6))
        file.unlink()


def test_of_gzipped_chunks_only_the_channels_up_to_the_chosen_one_are_decoded(make, monkeypatch):
    import isal.isal_zlib

    decoded = []

    class Watched:
        def __init__(self, window):
            self.stream = real(window)

        def decompress(self, content, count):
            decoded.append(count)
            return self.stream.decompress(content, count)

    real = isal.isal_zlib.decompressobj
    monkeypatch.setattr(isal.isal_zlib, "decompressobj", Watched)
    values = affinities(Vec3(16, 16, 8))
    stage = make(values, max_mips=0, compress="none", channel=1)
    source = Path(stage.src.removeprefix("file://")) / "8_8_40"
    zip_chunks(source)
    complete(stage)
    assert decoded == [8 * 8 * 8 * 4 * 2] * 4
    dest = Path(stage.dest.removeprefix("file://"))
    np.testing.assert_array_equal(read_with_tensorstore(dest, 0), expected(values, 1))
    assert stage.plan().bytes_read == 16 * 16 * 8 * 4 * 2


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_chunk_that_is_cut_off_is_refused_by_name(make, channel, zipped):
    stage = make(affinities(Vec3(16, 16, 8)), channel=channel, max_mips=0, fill_missing=True)
    folder = Path(stage.src.removeprefix("file://")) / "8_8_40"
    if zipped:
        zip_chunks(folder)
    (chunk,) = folder.glob("11-19_-7-1_11-19*")
    chunk.write_bytes(chunk.read_bytes()[:1500])
    with pytest.raises(CorruptChunk, match="11-19_-7-1_11-19"):
        complete(stage)


def test_damaged_gzip_is_refused_by_name(make):
    stage = make(affinities(Vec3(16, 16, 8)), max_mips=0)
    folder = Path(stage.src.removeprefix("file://")) / "8_8_40"
    zip_chunks(folder)
    chunk = folder / "11-19_-7-1_11-19.gz"
    chunk.write_bytes(chunk.read_bytes()[:20] + b"\xff" * 2000)
    with pytest.raises(CorruptChunk, match=r"11-19_-7-1_11-19.*gzip stream is damaged"):
        complete(stage)


@pytest.mark.parametrize("compress", ["br", "zstd"])
def test_other_compressions_of_the_source_are_read(tmp_path, compress):
    values = affinities(Vec3(16, 16, 8))
    info = CloudVolume.create_new_info(
        3, "image", "float32", "raw", (4, 4, 40), (0, 0, 0), (16, 16, 8), chunk_size=(8, 8, 8)
    )
    volume = CloudVolume(f"file://{tmp_path}/src", info=info, compress=compress, progress=False)
    volume.commit_info()
    volume[:] = values
    src, dest = f"{tmp_path}/src", f"{tmp_path}/dest"
    complete(QuantizeAffinities(src=src, dest=dest, channel=1, compress="none"))
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), expected(values, 1))


def test_a_missing_chunk_is_refused_by_name_or_filled(tmp_path, make):
    values = affinities(Vec3(16, 16, 8))
    stage = make(values, max_mips=0, compress="none")
    (tmp_path / "src/8_8_40/11-19_-7-1_11-19").unlink()
    with pytest.raises(MissingChunk, match=r"11-19_-7-1_11-19 .*fill_missing"):
        complete(stage)
    complete(stage.model_copy(update={"fill_missing": True}))
    grey = expected(values)
    grey[8:, :8] = 0
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), grey)


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    with pytest.raises(InvalidParameter):
        stage.prepare()
    return "\n".join(refusals)


def test_a_channel_that_is_not_there_is_refused(make):
    stage = make(affinities(Vec3(8, 8, 8)), channel=3)
    assert "channel: 3, but the source has the channels 0 to 2" in refusals_of(stage)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64"])
def test_integers_are_refused(make, dtype):
    stage = make(np.ones((8, 8, 8, 1), dtype, order="F"))
    assert f"the source holds {dtype}, but affinities are float16" in refusals_of(stage)


@pytest.mark.parametrize(("low", "high"), [(1, 1 + 1e-12), (-3e38, 3e38), (1e300, 2e300)])
def test_a_range_that_the_dtype_cannot_hold_is_refused(make, low, high):
    stage = make(affinities(Vec3(8, 8, 8)), low=low, high=high)
    assert "no range of float32" in refusals_of(stage)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 0), (0, -1)])
def test_an_empty_range_is_refused_by_the_form(make, low, high):
    with pytest.raises(ValidationError, match="must be below high"):
        QuantizeAffinities(src="/a", dest="/b", low=low, high=high)


def test_a_segmentation_is_not_written_into(tmp_path, make):
    """A destination of that type would get modes of grey values as its mips."""
    stage = make(affinities(Vec3(16, 16, 8)))
    there = LayerSpec("segmentation", voxel_offset=(3, -7, 11))
    write_layer(tmp_path / "dest", np.zeros((16, 16, 8, 1), np.uint8), there)
    assert "type segmentation, but its voxels would be those of type image" in refusals_of(stage)


def test_the_info_of_a_destination_that_exists_is_not_overwritten(tmp_path, make):
    """Igneous overwrites it whatever it says."""
    values = affinities(Vec3(16, 16, 8))
    stage = make(values, max_mips=0, compress="none")
    there = LayerSpec("image", (16, 4, 8), voxel_offset=(3, -7, 11))
    write_layer(tmp_path / "dest", np.zeros((16, 16, 8, 1), np.uint8), there)
    before = info_of(tmp_path / "dest")
    complete(stage)
    assert info_of(tmp_path / "dest") == before
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path / "dest", 0), expected(values))


def test_the_provenance_names_source_and_parameters(tmp_path, make):
    stage = make(affinities(Vec3(16, 16, 8)), channel=2, low=0.25)
    before = snapshot(tmp_path / "src")
    complete(stage)
    assert snapshot(tmp_path / "src") == before
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {"task": "QuantizeAffinitiesTask", **stage.parameters()}
    assert provenance["sources"] == [stage.src]


@pytest.mark.parametrize("channel", [0, 2])
def test_a_task_stays_within_the_memory_that_its_plan_names(make, channel):
    spec = LayerSpec("image", (128, 128, 1))
    wishes = {"chunk_size": (32, 32, 32), "max_mips": 2, "channel": channel}
    stage = make(affinities(Vec3(128, 128, 64)), spec, **wishes)
    plan = stage.plan().require_accepted()
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + 1_000_000  # floats of one piece


@pytest.mark.real_data
def test_gradients_of_electron_microscopy_as_affinities(tmp_path, make, em_voxels):
    grey = em_voxels[:300, :200, :, 0].astype(np.float32) / 255
    values = np.stack(np.gradient(grey), axis=3) * 4  # some beyond 0 to 1
    spec = LayerSpec("affinities", (64, 64, 10), (100, 50, 7), (4.6, 4.6, 45))
    complete(make(np.asfortranarray(values), spec, channel=1, max_mips=2))
    greys = expected(values, 1)
    averages = tinybrain.downsample_with_averaging(greys, (2, 2, 1), num_mips=2)
    assert_mips(tmp_path / "dest", [greys, *averages], read=read_with_cloudvolume)
    assert np.ptp(greys) == 255
