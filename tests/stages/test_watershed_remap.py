"""Watershed remap: its contract, and the labels that arrive, against numpy on the whole volume."""

import json
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tinybrain
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AuditFailed, InvalidParameter, MissingChunk, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.run import Run
from igneous_airflow.stages.watershed_remap import WatershedRemap
from igneous_airflow.storage.files import StoredFile, open_folder
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
SEGMENTATION = LayerSpec("segmentation", voxel_offset=(3, -7, 11))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def labels_of(size, dtype="uint32", highest=1000, channels=1):
    """Blobs of labels up to the highest, which is among them, and background."""
    labels = random_voxels(size, "uint64", channels=channels) % (highest + 1)
    labels[-1, -1, -1] = highest
    return np.asfortranarray(labels, dtype)


def map_of(highest, dtype="uint64"):
    """Images over the whole range of the dtype; many labels share one, and 0 stays 0."""
    random = np.random.default_rng(5)
    images = random.integers(1, np.iinfo(dtype).max, 300, dtype=dtype, endpoint=True)
    images[:2] = np.iinfo(dtype).max, min(2**53 + 1, np.iinfo(dtype).max - 1)
    values = images[random.integers(0, 300, highest + 1)]
    values[0] = 0
    return values


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        src = write_layer(tmp_path / "src", labels_of(Vec3(33, 17, 9)), SEGMENTATION)
        np.save(tmp_path / "map.npy", map_of(1000))
        return WatershedRemap(
            src=src,
            dest=f"{tmp_path}/dest",
            map_path=f"{tmp_path}/map.npy",
            max_mips=1,
            shape=(16, 16, 16),
        )


@pytest.fixture
def remap(tmp_path):
    """Write a source and a map, and return remaps of the one by the other."""

    def make(labels, values, spec=SEGMENTATION, **wishes):
        if not (tmp_path / "src").exists():
            write_layer(tmp_path / "src", labels, spec)
        np.save(tmp_path / "map.npy", values)
        places = {"src": f"{tmp_path}/src", "dest": f"{tmp_path}/dest"}
        return WatershedRemap(map_path=f"{tmp_path}/map.npy", **places, **wishes)

    return make


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("source", ["uint8", "uint16", "uint32", "uint64"])
def test_every_label_becomes_its_image_at_every_mip(tmp_path, remap, source, dtype):
    labels = labels_of(Vec3(40, 24, 9), source, highest=255)
    values = map_of(255, dtype)
    complete(remap(labels, values, compress="none", max_mips=2))
    first = tinybrain.downsample_segmentation(values[labels], (2, 2, 1), num_mips=1)[0]
    second = tinybrain.downsample_segmentation(first, (2, 2, 1), num_mips=1)[0]
    for read in (read_with_tensorstore, read_with_cloudvolume):
        assert_mips(tmp_path / "dest", [values[labels], first, second], read=read)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["type"]) == (dtype, "segmentation")


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, a map, and how to remap it."""
    edge = st.integers(3, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    highest = draw(st.integers(0, 300))
    labels = labels_of(draw(sizes(33)), draw(st.sampled_from(["uint16", "uint64"])), highest)
    wishes = {
        "factor": draw(factors()),
        "max_mips": draw(st.integers(0, 2)),
        "chunk_size": draw(st.none() | chunks),
        "translate": draw(st.none() | vectors(-9, 9)),
        "encoding": draw(st.sampled_from(["raw", "compressed_segmentation"])),
    }
    spec = LayerSpec("segmentation", draw(chunks), draw(vectors(-20, 20)))
    return labels, map_of(highest, draw(st.sampled_from(["uint32", "uint64"]))), spec, wishes


@given(works(), st.integers(1, 3), st.randoms())
@settings(deadline=None, max_examples=25)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random):
    labels, values, spec, wishes = work
    with tempfile.TemporaryDirectory() as folder:
        src = write_layer(Path(folder, "src"), labels, spec)
        np.save(f"{folder}/map.npy", values)
        same = {"src": src, "map_path": f"{folder}/map.npy", "compress": "none", **wishes}
        whole = WatershedRemap(dest=f"{folder}/whole", **same)
        made = complete_whole_and_in_parts(whole, blocks, random)
        levels = len(info_of(made)["scales"]) - 1
        mips = [values[labels], *pool(values[labels], wishes["factor"], levels, "mode")]
        assert_mips(made, mips, read=read_with_cloudvolume)


@pytest.mark.parametrize("block_of_its_own", [0, 512], ids=["plain", "as MATLAB writes it"])
def test_hdf5_counts_from_1_and_background_stays(tmp_path, block_of_its_own):
    labels, values = labels_of(Vec3(20, 20, 9)), map_of(1000)
    src = write_layer(tmp_path / "src", labels, SEGMENTATION)
    with h5py.File(tmp_path / "map.h5", "w", userblock_size=block_of_its_own) as file:
        file["main"] = values[1:]
    wishes = {"map_path": f"{tmp_path}/map.h5", "max_mips": 0, "compress": "none"}
    stage = WatershedRemap(src=src, dest=f"{tmp_path}/dest", **wishes)
    assert f"copies the map, {values.nbytes:,} bytes," in "\n".join(stage.plan().notes)
    run, plan = Run.launch(stage, url=f"file://{tmp_path}/run", queue="memory://unused", by="me")
    assert run.scratch == plan.scratch == values.nbytes
    complete(stage)
    assert_mips(tmp_path / "dest", [values[labels]])


def test_a_map_in_a_bucket_is_used(tmp_path):
    labels, values = labels_of(Vec3(20, 20, 9)), map_of(1000, "uint32")
    src = write_layer(tmp_path / "src", labels, SEGMENTATION)
    np.save(tmp_path / "map.npy", values)
    bucket = open_folder("mem://watershed/maps")
    bucket.write("map.npy", StoredFile((tmp_path / "map.npy").read_bytes()))
    wishes = {"map_path": f"{bucket.url}/map.npy", "max_mips": 0, "compress": "none"}
    complete(WatershedRemap(src=src, dest=f"{tmp_path}/dest", **wishes))
    assert_mips(tmp_path / "dest", [values[labels]])


def test_labels_above_2_to_the_53_survive_as_keys_of_json_would_not(tmp_path, remap):
    labels = labels_of(Vec3(16, 16, 8), highest=2)
    values = np.array([0, 2**53 + 1, 2**64 - 1], np.uint64)
    complete(remap(labels, values, max_mips=0, encoding="compressed_segmentation"))
    result = read_with_cloudvolume(tmp_path / "dest", 0)
    assert set(np.unique(result).tolist()) == {0, 2**53 + 1, 2**64 - 1}


@pytest.mark.parametrize("channels", [1, 2])
def test_a_label_beyond_the_map_is_an_error_that_names_it_and_its_place(tmp_path, remap, channels):
    labels = labels_of(Vec3(32, 16, 8), highest=50, channels=channels)
    labels[19, 9, 4] = 2**32 - 1
    stage = remap(labels, map_of(50), max_mips=0)
    place = r"voxel 22,2,15 of .*src, mip 0, has label 4294967295, but .*0 to 50 "
    with pytest.raises(InvalidParameter, match=place):
        complete(stage)
    written = {path.name for path in (tmp_path / "dest/8_8_40").iterdir()}
    assert not {name for name in written if name.startswith("19-27_1-9_11-19")}
    with pytest.raises(AuditFailed, match="19-27_1-9_11-19"):
        stage.finish("tester")


def test_the_largest_label_of_64_bits_is_beyond_the_map_too(remap):
    labels = labels_of(Vec3(8, 8, 8), "uint64", 50)
    labels[1, 2, 3] = 2**64 - 1
    with pytest.raises(InvalidParameter, match=r"voxel 4,-5,14 .* label 18446744073709551615,"):
        complete(remap(labels, map_of(50), max_mips=0))


def test_a_missing_chunk_is_refused_by_name_or_filled(tmp_path, remap):
    labels, values = labels_of(Vec3(32, 16, 8)), map_of(1000)
    values[7] = 77
    write_layer(tmp_path / "src", labels, SEGMENTATION)
    (tmp_path / "src/8_8_40/11-19_1-9_11-19").unlink()
    with pytest.raises(MissingChunk, match=r"11-19_1-9_11-19 .*fill_missing"):
        complete(remap(labels, values, max_mips=0))
    wishes = {"fill_missing": True, "background_color": 7, "compress": "none"}
    complete(remap(labels, values, max_mips=0, **wishes))
    labels[8:16, 8:] = 7
    assert_mips(tmp_path / "dest", [values[labels]])


def test_meshes_and_skeletons_are_not_those_of_the_new_labels(tmp_path, remap):
    labels = labels_of(Vec3(16, 16, 8))
    stage = remap(labels, map_of(1000))
    old = info_of(tmp_path / "src") | {
        "mesh": "mesh_mip_3_err_40",
        "skeletons": "skeletons_mip_3",
        "segment_properties": "properties",
    }
    (tmp_path / "src/info").write_text(json.dumps(old))
    before = snapshot(tmp_path / "src")
    complete(stage)
    assert info_of(tmp_path / "dest").keys() == {
        "@type", "data_type", "num_channels", "scales", "type",
    }  # fmt: skip
    assert snapshot(tmp_path / "src") == before


def test_the_provenance_names_the_source_and_the_content_of_the_map(tmp_path, remap):
    import hashlib

    stage = remap(labels_of(Vec3(16, 16, 8)), map_of(1000))
    content = hashlib.sha256((tmp_path / "map.npy").read_bytes()).hexdigest()
    stage.prepare()
    for cell in stage.cells():
        stage.run(cell)
    stage.finish("tester")  # not resolved, as in a notebook
    complete(stage)
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    expected = stage.parameters() | {"fingerprint": f"sha256:{content}"}
    assert entry["method"] == {"task": "WatershedRemapTask", **expected}
    assert provenance["sources"] == [f"file://{tmp_path}/src"]


def test_a_map_that_changes_under_a_run_is_refused_by_its_tasks(tmp_path, remap):
    labels = labels_of(Vec3(16, 16, 8))
    stage = remap(labels, map_of(1000))
    queue = f"sqlite://{tmp_path}/queue.db"
    run, _ = Run.launch(stage, url=f"file://{tmp_path}/run", queue=queue, by="tester")
    run.prepare()
    np.save(tmp_path / "map.npy", map_of(1000)[::-1])
    with pytest.raises(InvalidParameter, match=r"not those that this run was launched with"):
        run.make_stage().cells()
    np.save(tmp_path / "map.npy", map_of(1000))
    assert len(run.make_stage().cells()) > 0


def test_a_fingerprint_asks_for_a_certain_map(remap):
    stage = remap(labels_of(Vec3(16, 16, 8)), map_of(1000), fingerprint="sha256:abc")
    assert "sha256:abc" in "".join(stage.plan().refusals)


def test_a_copy_of_the_stage_with_another_map_uses_that_one(tmp_path, remap):
    labels, values = labels_of(Vec3(16, 16, 8)), map_of(1000)
    stage = remap(labels, values, max_mips=0, compress="none")
    stage.plan().require_accepted()
    np.save(tmp_path / "other.npy", values // 2)
    complete(stage.model_copy(update={"map_path": f"file://{tmp_path}/other.npy"}))
    assert_mips(tmp_path / "dest", [(values // 2)[labels]])


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    with pytest.raises(InvalidParameter):
        stage.prepare()
    return "\n".join(refusals)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (map_of(9).astype(np.int64), "int64"),
        (map_of(9).astype(np.float32), "float32"),
        (map_of(9)[None], "one axis"),
        (map_of(9)[:0], "empty"),
    ],
)
def test_a_map_of_the_wrong_kind_is_refused_by_the_plan(tmp_path, remap, values, named):
    stage = remap(labels_of(Vec3(8, 8, 8)), values)
    assert named in refusals_of(stage)
    assert f"{tmp_path}/map.npy" in refusals_of(stage)


def test_an_absent_map_is_refused_by_the_plan(tmp_path, remap):
    stage = remap(labels_of(Vec3(8, 8, 8)), map_of(9))
    (tmp_path / "map.npy").unlink()
    assert "map.npy is not there" in refusals_of(stage)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_a_source_without_labels_is_refused(remap, dtype):
    stage = remap(labels_of(Vec3(8, 8, 8), dtype, 9), map_of(9))
    assert f"the source holds {dtype}, but labels are unsigned" in refusals_of(stage)


def test_a_destination_of_another_kind_is_refused(tmp_path, remap):
    stage = remap(labels_of(Vec3(16, 16, 8)), map_of(1000, "uint64"))
    write_layer(tmp_path / "dest", labels_of(Vec3(16, 16, 8)), SEGMENTATION)
    assert "holds uint32 in 1 channel(s), but would get uint64" in refusals_of(stage)
    (tmp_path / "dest/info").unlink()
    images = LayerSpec("image", voxel_offset=(3, -7, 11))
    write_layer(tmp_path / "dest", labels_of(Vec3(16, 16, 8), "uint64"), images)
    assert "type image, but its voxels would be those of type segmentation" in refusals_of(stage)


def test_a_destination_that_exists_keeps_its_chunks(tmp_path, remap):
    labels, values = labels_of(Vec3(16, 16, 8)), map_of(1000, "uint64")
    stage = remap(labels, values, max_mips=0, compress="none")
    there = LayerSpec("segmentation", (4, 16, 8), voxel_offset=(3, -7, 11))
    write_layer(tmp_path / "dest", np.zeros((16, 16, 8, 1), np.uint64), there)
    complete(stage)
    assert_mips(tmp_path / "dest", [values[labels]])
    assert info_of(tmp_path / "dest")["scales"][0]["chunk_sizes"] == [[4, 16, 8]]


def test_a_map_that_gives_background_a_label_is_noted(remap):
    values = map_of(1000)
    values[0] = 123
    stage = remap(labels_of(Vec3(16, 16, 8)), values)
    notes = "\n".join(stage.plan().notes)
    assert "background, 0, into label 123" in notes
    assert "labels 0 to 1,000" in notes
    assert stage.plan().scratch == 0
    assert "copies the map" not in notes  # it is mapped into memory where it lies


def test_encodings_that_cannot_hold_the_new_labels_become_raw(tmp_path):
    labels, values = labels_of(Vec3(16, 16, 8), "uint8", 200), map_of(200, "uint64")
    spec = LayerSpec("segmentation", encoding="png")
    src = write_layer(tmp_path / "src", labels, spec)
    np.save(tmp_path / "map.npy", values)
    stage = WatershedRemap(src=src, dest=f"{tmp_path}/dest", map_path=f"{tmp_path}/map.npy")
    complete(stage)
    assert info_of(tmp_path / "dest")["scales"][0]["encoding"] == "raw"
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path / "dest", 0), values[labels])


def test_a_part_of_a_coarser_mip_can_be_remapped(tmp_path, remap):
    labels, values = labels_of(Vec3(32, 16, 8)), map_of(1000)
    wishes = {"bounds": "11-27_1-9_11-19", "max_mips": 0, "skip_empty": "skip"}
    complete(remap(labels, values, **wishes))
    volume = CloudVolume(f"file://{tmp_path}/dest", progress=False, fill_missing=True)
    box = BoundingBox.parse(wishes["bounds"])
    part = box.slices_within(BoundingBox.parse("3-35_-7-9_11-19"))
    np.testing.assert_array_equal(volume[tuple(map(slice, box.min, box.max))], values[labels][part])


@pytest.mark.parametrize("source", ["uint16", "uint64"])
def test_a_task_stays_within_the_memory_that_its_plan_names(remap, source):
    labels = labels_of(Vec3(256, 128, 64), source)
    spec = LayerSpec("segmentation", (256, 128, 1))
    stage = remap(labels, map_of(1000), spec, chunk_size=(32, 32, 32), max_mips=2).resolved()
    plan = stage.plan().require_accepted()
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + 1_000_000  # indices of one piece


@pytest.mark.real_data
def test_a_real_segmentation_is_agglomerated(tmp_path, remap, neurons):
    known, labels = np.unique(neurons[100:356, 200:456, 300:364], return_inverse=True)
    labels = np.asfortranarray(labels.reshape(256, 256, 64, 1), np.uint32)
    values = map_of(len(known))
    spec = LayerSpec("segmentation", (64, 64, 64), resolution=(16, 16, 40))
    complete(remap(labels, values, spec, max_mips=1, encoding="compressed_segmentation"))
    coarse = tinybrain.downsample_segmentation(values[labels], (2, 2, 1), num_mips=1)[0]
    assert_mips(tmp_path / "dest", [values[labels], coarse], read=read_with_cloudvolume)
