"""Transfer: its contract, and what arrives, as independent readers see it."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tinybrain
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AuditFailed, CorruptChunk, MissingChunk
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.storage.layer import Layer
from igneous_airflow.testing.layers import (
    LayerSpec,
    assert_mips,
    info_of,
    random_voxels,
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

PLANE = Vec3(2, 2, 1)


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        spec = LayerSpec(voxel_offset=(3, -7, 11), chunk_size=(65, 33, 1))
        src = write_layer(tmp_path / "src", random_voxels(Vec3(65, 33, 9)), spec)
        return Transfer(
            src=src,
            dest=f"{tmp_path}/dest",
            mip=-1,
            chunk_size=(8, 8, 8),
            max_mips=1,
            shape=(32, 16, 8),
            translate=(-4, 5, 0),
        )


class TestContractOfCopies(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        src = write_layer(tmp_path / "src", random_voxels(Vec3(33, 17, 9)))
        dest = f"{tmp_path}/dest"
        return Transfer(src=src, dest=dest, skip_downsamples=True, shape=(16, 16, 8))


@pytest.fixture
def send(tmp_path):
    """Write a source, transfer it to `tmp_path/dest`, and return the audit."""

    def write_and_transfer(voxels, spec=None, **wishes):
        src = write_layer(tmp_path / "src", voxels, spec)
        return complete(Transfer(src=src, dest=f"{tmp_path}/dest", **wishes))

    return write_and_transfer


def write_with_cloudvolume(path, voxels, spec):
    info = CloudVolume.create_new_info(
        voxels.shape[3],
        spec.layer_type,
        voxels.dtype.name,
        "raw",
        spec.resolution,
        spec.voxel_offset,
        voxels.shape[:3],
        chunk_size=spec.chunk_size,
    )
    volume = CloudVolume(f"file://{path}", info=info, progress=False)
    volume.commit_info()
    volume[:] = voxels
    return f"file://{path}"


def test_single_sections_become_deep_chunks(tmp_path, send):
    """Read each section once, write each chunk once."""
    voxels = random_voxels(Vec3(256, 192, 70))
    spec = LayerSpec(chunk_size=(256, 192, 1), voxel_offset=(7, 0, -3))
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        read_chunk = Layer.read_chunk
        patch.setattr(
            Layer,
            "read_chunk",
            lambda self, s, box, *more: (reads.append(box), read_chunk(self, s, box, *more))[1],
        )
        audit = send(voxels, spec, chunk_size=(64, 64, 64), max_mips=2, compress="none")
    assert len(reads) == len(set(reads)) == 70
    assert audit.outputs == {"8_8_40": 4 * 3 * 2, "16_16_40": 2 * 2 * 2, "32_32_40": 2}
    averages = tinybrain.downsample_with_averaging(voxels, (2, 2, 1), num_mips=2)
    assert_mips(tmp_path / "dest", [voxels, *averages])
    assert_mips(tmp_path / "dest", [voxels, *averages], read=read_with_cloudvolume)
    assert info_of(tmp_path / "dest")["scales"][0]["chunk_sizes"] == [[64, 64, 64]]


@pytest.mark.real_data
def test_an_image_stack_of_electron_microscopy_becomes_deep_chunks(tmp_path, send, em_voxels):
    spec = LayerSpec(
        chunk_size=(*em_voxels.shape[:2], 1), resolution=(4.6, 4.6, 45), encoding="png"
    )
    send(em_voxels, spec, chunk_size=(64, 64, 16), encoding="raw", max_mips=3)
    averages = tinybrain.downsample_with_averaging(em_voxels, (2, 2, 1), num_mips=3)
    assert_mips(tmp_path / "dest", [em_voxels, *averages], read=read_with_cloudvolume)


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, and how to transfer it."""
    edge = st.integers(1, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    size = draw(sizes(33))
    offset = draw(vectors(-20, 20))
    wishes = {
        "factor": draw(factors()),
        "max_mips": draw(st.integers(0, 2)),
        "method": draw(st.sampled_from(["average", "mode", "max", "striding"])),
        "chunk_size": draw(st.none() | chunks),
        "translate": draw(st.none() | vectors(-9, 9)),
    }
    voxels = random_voxels(size, draw(st.sampled_from(["uint8", "int16", "float32", "uint64"])))
    return voxels, LayerSpec("image", draw(chunks), offset), wishes


@given(works(), st.integers(1, 3), st.randoms(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random, tight):
    voxels, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        src = write_layer(Path(folder, "src"), voxels, spec)
        whole = Transfer(src=src, dest=f"{folder}/whole", compress="none", **wishes)
        made = complete_whole_and_in_parts(whole, blocks, random, smallest_tiles=tight)
        scales = info_of(made)["scales"]
        method, factor = wishes["method"], wishes["factor"]
        assert_mips(made, [voxels, *pool(voxels, factor, len(scales) - 1, method)])
        offset = Vec3.of(scales[0]["voxel_offset"])
        assert offset == Vec3.of(spec.voxel_offset) + (wishes["translate"] or Vec3(0, 0, 0))


@given(works(), st.data())
@settings(deadline=None, max_examples=25)
def test_the_parts_of_a_volume_sent_one_by_one_make_the_whole(work, data):
    voxels, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        src = write_layer(Path(folder, "src"), voxels, spec)
        stage = Transfer(src=src, dest=f"{folder}/whole", **wishes)
        complete(stage)
        route = stage._route()
        shape = route.geometry.unit
        cut = Transfer(src=src, dest=f"{folder}/whole", shape=shape, confirm=True, **wishes)
        boxes = [str(route.source.at_source(cell)) for cell in cut.cells()]
        boxes = boxes[: data.draw(st.integers(1, 6))]
        for bounds in boxes:
            complete(Transfer(src=src, dest=f"{folder}/parts", bounds=bounds, **wishes))
        part, whole = (snapshot(Path(folder, name)) for name in ("parts", "whole"))
        assert part["info"] == whole["info"]
        del part["provenance"]
        assert part.items() <= whole.items()
        assert len(boxes) < len(cut.cells()) or part.keys() == whole.keys() - {"provenance"}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "dtype",
    [
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float32", "float64"),
    ],
)
def test_every_dtype_and_number_of_channels_is_kept(tmp_path, send, monkeypatch, dtype, channels):
    if dtype in ("int64", "float64"):  # which tensorstore does not know
        monkeypatch.setitem(globals(), "write_layer", write_with_cloudvolume)
        monkeypatch.setitem(globals(), "read_with_tensorstore", read_with_cloudvolume)
    voxels = random_voxels(Vec3(21, 19, 5), dtype, channels=channels)
    send(voxels, LayerSpec("other", (21, 19, 1)), chunk_size=(8, 8, 4), compress="none", max_mips=1)
    mips = [voxels, *pool(voxels, PLANE, 1, "striding")]
    assert_mips(tmp_path / "dest", mips, read=read_with_tensorstore)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["num_channels"], info["type"]) == (dtype, channels, "other")


@pytest.mark.parametrize(
    ("layer_type", "method"),
    [("image", "average"), ("segmentation", "mode"), ("affinities", "striding")],
)
def test_the_type_of_a_layer_chooses_the_method(tmp_path, send, layer_type, method):
    voxels = random_voxels(Vec3(16, 16, 8), "uint32")
    send(voxels, LayerSpec(layer_type), max_mips=1, compress="none")
    assert_mips(tmp_path / "dest", [voxels, *pool(voxels, PLANE, 1, method)])


@pytest.mark.parametrize("compress", ["auto", "gzip", "br", "zstd", "none"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation", "compresso", "crackle"])
def test_encoding_and_compression_can_be_changed_there_and_back(tmp_path, encoding, compress):
    voxels = random_voxels(Vec3(33, 20, 9), "uint64")
    src = write_layer(tmp_path / "src", voxels, LayerSpec("segmentation", (16, 16, 16)))
    there, back = f"{tmp_path}/there", f"{tmp_path}/back"
    complete(Transfer(src=src, dest=there, encoding=encoding, compress=compress, max_mips=1))
    assert [scale["encoding"] for scale in info_of(tmp_path / "there")["scales"]] == [encoding] * 2
    expected = [voxels, *pool(voxels, PLANE, 1, "mode")]
    assert_mips(tmp_path / "there", expected, read=read_with_cloudvolume)
    complete(Transfer(src=there, dest=back, encoding="raw", compress="none", max_mips=1))
    assert_mips(tmp_path / "back", expected)
    assert "compressed_segmentation_block_size" not in info_of(tmp_path / "back")["scales"][0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_can_become_jpegs(tmp_path, send, channels):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    voxels = np.asfortranarray(smooth[:, :, None, None].repeat(8, 2).repeat(channels, 3))
    send(voxels, encoding="jpeg", max_mips=0)
    result = read_with_tensorstore(tmp_path / "dest", 0)
    assert np.abs(result.astype(int) - voxels).max() <= 3


def test_images_can_become_jxl(tmp_path, send):
    smooth = np.add.outer(np.arange(64), np.arange(40)).astype(np.uint8)
    voxels = np.asfortranarray(smooth[:, :, None, None].repeat(8, 2))
    send(voxels, encoding="jxl", chunk_size=(32, 32, 8), max_mips=0)
    result = read_with_cloudvolume(tmp_path / "dest", 0)
    assert np.abs(result.astype(int) - voxels).max() <= 3


def test_the_source_is_never_written_to_and_the_destination_names_it(tmp_path, send):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(16, 16, 8)))
    before = snapshot(tmp_path / "src")
    stage = Transfer(src=src, dest=f"{tmp_path}/dest")
    complete(stage)
    assert snapshot(tmp_path / "src") == before
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {"task": "TransferTask", **stage.parameters()}
    assert provenance["sources"] == [src]


@pytest.fixture
def without_decoding(monkeypatch):
    """Make decoding and encoding impossible."""
    monkeypatch.setattr("igneous_airflow.storage.layer.decode", None)
    monkeypatch.setattr("igneous_airflow.storage.layer.encode", None)


@pytest.mark.parametrize(
    ("wishes", "same_names"),
    [
        ({}, True),
        ({"chunk_size": (8, 8, 8)}, True),
        ({"encoding": "raw"}, True),
        ({"translate": (0, 0, 0)}, True),
        ({"translate": (-8, 16, 800)}, False),
        ({"translate": (1, 2, 3)}, False),
        ({"bounds": "11-19_-7-9_11-20"}, True),
        ({"bounds": "11-19_-7-9_11-20", "cutout": True}, True),
        ({"bounds": "11-36_-7-10_11-20", "cutout": True, "dest_voxel_offset": (0, 0, 0)}, False),
    ],
    ids=str,
)
def test_files_are_copied_without_being_decoded_when_nothing_changes_but_the_place(
    tmp_path, send, wishes, same_names, request
):
    voxels = random_voxels(Vec3(33, 17, 9), "uint16")
    src = write_layer(tmp_path / "src", voxels, LayerSpec(voxel_offset=(3, -7, 11)))
    request.getfixturevalue("without_decoding")
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", skip_downsamples=True, **wishes))
    copied, every = (snapshot(tmp_path / name / "8_8_40") for name in ("dest", "src"))
    assert len(copied) > 1
    if same_names:
        assert copied.items() <= every.items()
    box = BoundingBox.parse(wishes.get("bounds", "3-36_-7-10_11-20"))
    part = voxels[box.slices_within(BoundingBox.parse("3-36_-7-10_11-20"))]
    whole = read_with_tensorstore
    if "bounds" not in wishes or "cutout" in wishes:
        np.testing.assert_array_equal(whole(tmp_path / "dest", 0), part)


@pytest.mark.parametrize(
    "wishes",
    [
        {"chunk_size": (8, 8, 4)},
        {"encoding": "png"},
        {"bounds": "1-33_0-17_0-9", "cutout": True},
        {"bounds": "0-9_0-17_0-9", "cutout": True},
        {"skip_empty": "skip"},
    ],
    ids=str,
)
def test_files_are_not_copied_when_more_changes_than_the_place(tmp_path, wishes):
    voxels = random_voxels(Vec3(33, 17, 9)) | 1
    src = write_layer(tmp_path / "src", voxels)
    wishes = {"skip_downsamples": True, "compress": "none", **wishes}
    stage = Transfer(src=src, dest=f"{tmp_path}/dest", **wishes)
    assert not stage._route().copies
    complete(stage)
    box = BoundingBox.parse(wishes.get("bounds", "0-33_0-17_0-9"))
    part = voxels[box.slices_within(BoundingBox.parse("0-33_0-17_0-9"))]
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path / "dest", 0), part)


def test_copies_keep_their_compression_unless_another_is_asked_for(tmp_path, without_decoding):
    import gzip

    src = write_layer(tmp_path / "src", random_voxels(Vec3(16, 8, 8)))
    for file in (tmp_path / "src/8_8_40").iterdir():
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), 3))
        file.unlink()
    suffixes = {"auto": ".gz", "gzip": ".gz", "br": ".br", "zstd": ".zstd", "none": ""}
    for compress, suffix in suffixes.items():
        dest = tmp_path / compress
        wishes = {"skip_downsamples": True, "compress": compress}
        complete(Transfer(src=src, dest=str(dest), **wishes))
        assert {file.suffix for file in (dest / "8_8_40").iterdir()} == {suffix}
    same = snapshot(tmp_path / "src/8_8_40")
    assert snapshot(tmp_path / "auto/8_8_40") == snapshot(tmp_path / "gzip/8_8_40") == same
    plain = snapshot(tmp_path / "none/8_8_40")
    assert {
        f"{name}.gz": gzip.compress(content, 3, mtime=0)[10:] for name, content in plain.items()
    } == {name: content[10:] for name, content in same.items()}


@pytest.mark.parametrize("skip_downsamples", [False, True])
def test_a_missing_chunk_is_refused_by_name_or_filled(tmp_path, skip_downsamples):
    voxels = random_voxels(Vec3(32, 16, 8), "uint16") | 1
    src = write_layer(tmp_path / "src", voxels)
    (tmp_path / "src/8_8_40/8-16_8-16_0-8").unlink()
    wishes = {"skip_downsamples": skip_downsamples, "max_mips": 1, "compress": "none"}
    with pytest.raises(MissingChunk, match=r"8-16_8-16_0-8 .*fill_missing"):
        complete(Transfer(src=src, dest=f"{tmp_path}/dest", **wishes))
    wishes |= {"fill_missing": True, "background_color": 1000}
    complete(Transfer(src=src, dest=f"{tmp_path}/dest", **wishes))
    voxels[8:16, 8:] = 1000
    mips = [] if skip_downsamples else pool(voxels, PLANE, 1, "average")
    assert_mips(tmp_path / "dest", [voxels, *mips])


def test_a_damaged_chunk_is_refused_by_name_and_never_filled(tmp_path):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(32, 16, 8)))
    chunk = tmp_path / "src/8_8_40/8-16_0-8_0-8"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(CorruptChunk, match="8-16_0-8_0-8"):
        complete(Transfer(src=src, dest=f"{tmp_path}/dest", fill_missing=True))


@pytest.mark.parametrize("skip_empty", ["skip", "delete"])
def test_background_can_be_left_out(tmp_path, send, skip_empty):
    voxels = random_voxels(Vec3(32, 32, 8)) | 8
    voxels[16:] = 7
    wishes = {"max_mips": 1, "background_color": 7, "skip_empty": skip_empty}
    audit = send(voxels, **wishes)
    assert audit.outputs == {"8_8_40": 8, "16_16_40": 2}
    assert audit.absent == 8 + 2


def test_every_chunk_is_missed_when_it_is_lost_after_its_task(tmp_path):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(33, 20, 9)))
    stage = Transfer(src=src, dest=f"{tmp_path}/dest", max_mips=1, translate=(-3, 0, 5))
    complete(stage)
    files = [f for key in ("8_8_40", "16_16_40") for f in (tmp_path / "dest" / key).iterdir()]
    assert len(files) == 5 * 3 * 2 + 3 * 2 * 2
    for file in files:
        content = file.read_bytes()
        file.unlink()
        name = f"{file.parent.name}/{file.name.removesuffix('.gz')}"
        with pytest.raises(AuditFailed, match=rf"1 file missing.* {name}\."):
            stage.finish("tester")
        file.write_bytes(content)


def test_buckets_are_worked_on_by_several_threads(tmp_path):
    from igneous_airflow.storage.files import StoredFile, open_folder

    voxels = random_voxels(Vec3(65, 33, 9), "uint16")
    write_layer(tmp_path, voxels, LayerSpec(chunk_size=(65, 33, 1)))
    bucket = open_folder(f"mem://{tmp_path.name}/src")
    for name, content in snapshot(tmp_path).items():
        bucket.write(name, StoredFile(content))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "overlap_width", 8)
        dest, copy = f"mem://{tmp_path.name}/dest", f"mem://{tmp_path.name}/copy"
        complete(Transfer(src=bucket.url, dest=dest, chunk_size=(8, 8, 8), max_mips=2))
        complete(Transfer(src=dest, dest=copy, skip_downsamples=True))
    layer = Layer.open(dest)
    for mip, expected in enumerate([voxels, *pool(voxels, PLANE, 2, "average")]):
        scale = layer.scale(mip)
        np.testing.assert_array_equal(layer.read(scale, scale.bounds), expected)
    layer = Layer.open(copy)
    np.testing.assert_array_equal(layer.read(layer.scale(0), layer.scale(0).bounds), voxels)


@pytest.mark.parametrize(
    ("spec", "wishes"),
    [
        (LayerSpec(chunk_size=(256, 128, 1)), {"chunk_size": (32, 32, 32), "max_mips": 3}),
        (LayerSpec(chunk_size=(256, 128, 1)), {"chunk_size": (32, 32, 32), "max_mips": 0}),
        (LayerSpec(chunk_size=(48, 48, 48)), {"chunk_size": (32, 32, 32), "max_mips": 2}),
        (LayerSpec(chunk_size=(64, 64, 64)), {"max_mips": 0, "encoding": "png"}),
        (
            LayerSpec(chunk_size=(256, 128, 1)),
            {"chunk_size": (32, 32, 32), "max_mips": 1, "memory_target": 1_000_000},
        ),
    ],
    ids=str,
)
def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path, spec, wishes):
    src = write_layer(tmp_path / "src", random_voxels(Vec3(256, 128, 64)), spec)
    stage = Transfer(src=src, dest=f"{tmp_path}/dest", **wishes)
    plan = stage.plan().require_accepted()
    assert plan.memory <= plan.memory_target
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + 300_000
