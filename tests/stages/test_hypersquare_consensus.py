"""Hypersquare consensus: its contract, and the labels that arrive, against a loop over voxels."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tinybrain
from hypothesis import given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import CorruptChunk, InvalidParameter, MissingChunk, PlanRefused
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.kernels.pooling import pool
from igneous_airflow.stages.hypersquare_consensus import HypersquareConsensus
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
)
from igneous_airflow.testing.strategies import sizes, vectors

SIZE, OFFSET = Vec3(40, 24, 16), Vec3(3, -7, 11)
BOUNDS = BoundingBox.at(OFFSET, SIZE)
EDGE = Vec3(13, 12, 9)
SEGMENTATION = LayerSpec("segmentation", voxel_offset=OFFSET)


def segments_of(size, dtype="uint16"):
    """Few segments, so that each comes in every volume, the largest of 16 bits among them."""
    random = np.random.default_rng(3)
    known = np.array([0, 1, 2, 7, 12, 65535], np.uint16).astype(dtype)
    blobs = known[random.integers(0, 6, (-(-size.x // 3), -(-size.y // 3), size.z, 1))]
    voxels = blobs.repeat(3, axis=0).repeat(3, axis=1)[: size.x, : size.y]
    return np.asfortranarray(voxels)


def volumes_of(bounds=BOUNDS, edge=EDGE, first=1):
    """Cut a box into volumes whose borders are not those of chunks."""
    return {str(box): first + i for i, box in enumerate(Grid(bounds, edge))}


CELLS = {"1": {"45": [7, 12], "46": [65535]}, "2": {"45": [1]}, "5": {"99": [2, 7]}}


def expected(segments, bounds, volumes, cells, dtype="uint32"):
    """The rule of the specification, voxel by voxel."""
    result = np.zeros(segments.shape, dtype)
    cell_of = {
        (int(volume), segment): int(cell)
        for volume, by_cell in cells.items()
        for cell, members in by_cell.items()
        for segment in members
    }
    for text, volume in volumes.items():
        box = BoundingBox.parse(text).intersection(bounds)
        if not box:
            continue
        part = box.slices_within(bounds)
        values = segments[part].tolist()
        result[part] = [
            [
                [[cell_of.get((volume, s), (volume << 16) | s) if s else 0 for s in c] for c in z]
                for z in y
            ]
            for y in values
        ]
    return result


def join(folder, segments=None, volumes=None, cells=None, spec=SEGMENTATION, **wishes):
    """Write a source and both maps, and return the stage that joins its segments."""
    if segments is not None:
        write_layer(folder / "src", segments, spec)
    (folder / "volumes.json").write_text(json.dumps(volumes_of() if volumes is None else volumes))
    (folder / "cells.json").write_text(json.dumps(CELLS if cells is None else cells))
    wishes = {"dest": f"{folder}/dest", "compress": "none", **wishes}
    return HypersquareConsensus(
        src=f"{folder}/src",
        volume_map_path=f"{folder}/volumes.json",
        consensus_map_path=f"{folder}/cells.json",
        **wishes,
    )


class TestContract(StageTests):
    @pytest.fixture
    def example(self, tmp_path):
        return join(tmp_path, segments_of(SIZE), max_mips=1, shape=(16, 16, 16))


@pytest.mark.parametrize("source", ["uint8", "uint16", "uint32", "uint64"])
def test_segments_become_cells_or_labels_of_their_own(tmp_path, source):
    segments = segments_of(SIZE, source) if source != "uint8" else segments_of(SIZE) % 200
    segments = segments.astype(source)
    complete(join(tmp_path, segments, max_mips=1))
    labels = expected(segments, BOUNDS, volumes_of(), CELLS)
    coarse = tinybrain.downsample_segmentation(labels, (2, 2, 1), num_mips=1)[0]
    for read in (read_with_tensorstore, read_with_cloudvolume):
        assert_mips(tmp_path / "dest", [labels, coarse], read=read)
    info = info_of(tmp_path / "dest")
    assert (info["data_type"], info["type"]) == ("uint32", "segmentation")


@pytest.mark.parametrize(
    ("first", "cells"),
    [(70_000, {}), (2**47, {}), (1, {"1": {str(2**53 + 1): [7], str(2**64 - 1): [12]}})],
)
def test_labels_that_need_64_bits_get_them(tmp_path, first, cells):
    segments, volumes = segments_of(SIZE), volumes_of(first=first)
    complete(join(tmp_path, segments, volumes, cells, max_mips=0))
    assert info_of(tmp_path / "dest")["data_type"] == "uint64"
    labels = expected(segments, BOUNDS, volumes, cells, "uint64")
    assert_mips(tmp_path / "dest", [labels])


def test_more_bits_can_be_asked_for_and_an_existing_layer_keeps_its_own(tmp_path):
    segments = segments_of(SIZE)
    complete(join(tmp_path, segments, max_mips=0, data_type="uint64"))
    assert info_of(tmp_path / "dest")["data_type"] == "uint64"
    complete(join(tmp_path, max_mips=0))
    labels = expected(segments, BOUNDS, volumes_of(), CELLS, "uint64")
    assert_mips(tmp_path / "dest", [labels])


@st.composite
def works(draw):
    """Draw a small volume, its place and chunks, volumes that do not fill it, and cells."""
    edge = st.integers(3, 16)
    chunks = st.builds(Vec3, edge, edge, edge)
    size, offset = draw(sizes(25)), draw(vectors(-20, 20))
    around = BoundingBox(offset - 5, offset + size + 5)
    volumes = volumes_of(around, draw(chunks))
    kept = draw(st.sets(st.sampled_from(sorted(volumes)), min_size=1))
    wishes = {
        "max_mips": draw(st.integers(0, 2)),
        "chunk_size": draw(st.none() | chunks),
        "translate": draw(st.none() | vectors(-9, 9)),
    }
    spec = LayerSpec("segmentation", draw(chunks), offset)
    return segments_of(size), {text: volumes[text] for text in kept}, spec, wishes


@given(works(), st.integers(1, 3), st.randoms())
@settings(deadline=None, max_examples=25)
def test_the_result_does_not_depend_on_the_cut(work, blocks, random):
    segments, volumes, spec, wishes = work
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = join(folder, segments, volumes, spec=spec, dest=f"{folder}/whole", **wishes)
        made = complete_whole_and_in_parts(whole, blocks, random)
        bounds = BoundingBox.at(Vec3.of(spec.voxel_offset), Vec3(*segments.shape[:3]))
        labels = expected(segments, bounds, volumes, CELLS)
        levels = len(info_of(made)["scales"]) - 1
        assert_mips(made, [labels, *pool(labels, Vec3(2, 2, 1), levels, "mode")])


def test_voxels_outside_of_all_volumes_become_background_and_are_counted(tmp_path):
    segments = segments_of(SIZE)
    volumes = {"3-23_-7-17_11-27": 1, "500-600_0-1_0-1": 2}
    stage = join(tmp_path, segments, volumes, max_mips=0)
    assert "7,680 voxels are in no volume and become 0" in stage.plan().notes
    complete(stage)
    assert_mips(tmp_path / "dest", [expected(segments, BOUNDS, volumes, CELLS)])


def test_missing_chunks_are_background_unless_it_is_asked_for_them(tmp_path):
    segments = segments_of(SIZE)
    stage = join(tmp_path, segments, max_mips=0)
    (tmp_path / "src/8_8_40/11-19_1-9_11-19").unlink()
    with pytest.raises(MissingChunk, match="11-19_1-9_11-19"):
        complete(stage.model_copy(update={"fill_missing": False}))
    complete(stage)
    segments[8:16, 8:16, :8] = 0
    assert_mips(tmp_path / "dest", [expected(segments, BOUNDS, volumes_of(), CELLS)])


def test_damaged_chunks_are_never_taken_for_background(tmp_path):
    """Igneous makes zeros of whatever cannot be read."""
    stage = join(tmp_path, segments_of(SIZE), max_mips=0)
    chunk = tmp_path / "src/8_8_40/11-19_1-9_11-19"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(CorruptChunk, match="11-19_1-9_11-19"):
        complete(stage)


def test_a_segment_of_more_than_16_bits_is_named_with_its_place(tmp_path):
    segments = segments_of(SIZE, "uint32")
    segments[20, 13, 4] = 65536
    place = r"voxel 23,6,15 of .*src, mip 0 has segment 65536, .* up to 65535"
    with pytest.raises(InvalidParameter, match=place):
        complete(join(tmp_path, segments, max_mips=0))


def refusals_of(stage):
    """The reasons of a plan; what is refused must not start, whatever is called."""
    refusals = stage.plan().refusals
    assert refusals
    with pytest.raises(PlanRefused):
        stage.plan().require_accepted()
    with pytest.raises(InvalidParameter):
        stage.prepare()
    return "\n".join(refusals)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    stage = join(tmp_path, segments_of(SIZE), volumes_of(first=70_000), data_type="uint32")
    assert "uint32 cannot hold all labels, up to 4588568575: set data_type" in refusals_of(stage)
    write_layer(tmp_path / "dest", segments_of(SIZE), SEGMENTATION)
    refusals = refusals_of(join(tmp_path))
    assert "uint16 cannot hold all labels, up to 1114111: choose a destination of ui" in refusals


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_a_source_without_labels_is_refused(tmp_path, dtype):
    stage = join(tmp_path, np.ones((8, 8, 8, 1), dtype, order="F"))
    assert f"the source holds {dtype}, but labels are unsigned" in refusals_of(stage)


@pytest.mark.parametrize(
    ("maps", "named"),
    [
        ({"volumes": {"0-8_0-8_0-8": 1, "7-9_7-9_7-9": 2}}, "overlap"),
        ({"volumes": {"nonsense": 1}}, "not a box"),
        ({"cells": {"1": {"45": [7], "46": [7]}}}, "in two cells"),
    ],
)
def test_maps_that_make_no_sense_are_refused_by_the_plan(tmp_path, maps, named):
    assert named in refusals_of(join(tmp_path, segments_of(SIZE), **maps))


def test_doubtful_maps_are_noted(tmp_path):
    cells = {"1": {str((2 << 16) + 9): [7]}, "500": {"45": [1]}}
    notes = "\n".join(join(tmp_path, segments_of(SIZE), cells=cells).plan().notes)
    assert "cell 131081 cannot be told from segment 9 of volume 2" in notes
    assert "1 volumes of the consensus are not in the volume map" in notes


def test_maps_that_change_under_a_run_are_refused_by_its_tasks(tmp_path):
    stage = join(tmp_path, segments_of(SIZE)).resolved()
    stage.prepare()
    (tmp_path / "cells.json").write_text("{}")
    again = HypersquareConsensus.model_validate(stage.parameters())
    with pytest.raises(InvalidParameter, match="not those that this run was launched with"):
        again.cells()


def test_the_provenance_names_the_maps_and_their_content(tmp_path):
    stage = join(tmp_path, segments_of(SIZE))
    complete(stage)
    provenance = json.loads((tmp_path / "dest/provenance").read_text())
    (entry,) = provenance["processing"]
    assert entry["method"] == {"task": "HypersquareConsensusTask", **stage.resolved().parameters()}
    assert entry["method"]["fingerprint"].count("sha256:") == 2
    assert provenance["sources"] == [f"file://{tmp_path}/src"]


def test_a_task_stays_within_the_memory_that_its_plan_names(tmp_path):
    size = Vec3(256, 128, 64)
    bounds = BoundingBox.at(Vec3(0, 0, 0), size)
    spec = LayerSpec("segmentation", (256, 128, 1))
    volumes = volumes_of(bounds, Vec3(100, 100, 100))
    wishes = {"chunk_size": (32, 32, 32), "max_mips": 0}
    stage = join(tmp_path, segments_of(size), volumes, spec=spec, **wishes).resolved()
    plan = stage.plan().require_accepted()
    stage.prepare()
    assert peak_memory(stage, stage.cells()[0]) < plan.memory + 4_000_000  # tables of the volumes


@pytest.mark.real_data
def test_neurons_cut_into_volumes_are_joined_to_cells(tmp_path, neurons):
    segments = np.unique(neurons[100:180, 200:260, 300:320], return_inverse=True)[1]
    segments = np.asfortranarray(segments.reshape(80, 60, 20, 1), np.uint16)
    spec = LayerSpec("segmentation", (32, 32, 10), OFFSET, (16, 16, 40))
    bounds = BoundingBox.at(OFFSET, Vec3(80, 60, 20))
    volumes = volumes_of(bounds, Vec3(33, 60, 20))
    known = np.unique(segments).tolist()[1:]
    cells = {"1": {"45": known[::2]}, "3": {"45": known[:3], "46": known[3:]}}
    complete(join(tmp_path, segments, volumes, cells, spec, max_mips=1))
    labels = expected(segments, bounds, volumes, cells)
    assert 45 in labels
    mips = [labels, *pool(labels, Vec3(2, 2, 1), 1, "mode")]
    assert_mips(tmp_path / "dest", mips, read=read_with_cloudvolume)
