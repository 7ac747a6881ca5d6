"""Surfaces of labels, as zmesh and trimesh see them."""

import numpy as np
import pytest
import zmesh
from hypothesis import given, settings
from hypothesis import strategies as st
from trimesh import Trimesh

from igneous_airflow.errors import UnsupportedLayer
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.kernels.meshing import (
    LabelBlock,
    Placement,
    Selection,
    simplified,
    surfaces,
)
from igneous_airflow.testing.layers import random_voxels
from igneous_airflow.testing.strategies import sizes
from igneous_airflow.testing.surfaces import blobs

ALL = Selection()
RESOLUTION = (16.0, 16.0, 40.0)
CLOSED = [(True, True)] * 3
BIG = 2**53 + 1


def labels_of(voxels, **selection):
    """The voxels with each label as it will be meshed."""
    block = LabelBlock.of(voxels.copy(order="F"), Selection(**selection))
    assert block.labels[0] == 0
    return block.labels[block.numbers]


def meshes_of(voxels, error=40.0, ends=CLOSED, origin=(0, 0, 0)):
    """The meshes of all labels, closed at the ends that are the volume's."""
    block = LabelBlock.of(voxels.copy(order="F"), ALL).padded(ends)
    corner = tuple(place - low for place, (low, _) in zip(origin, ends, strict=True))
    return {mesh.label: mesh for mesh in surfaces(block, Placement(corner, RESOLUTION), error)}


def merged(meshes):
    """One mesh of several, in which equal vertices are one."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    vertices = np.concatenate([mesh.vertices for mesh in meshes])
    return Trimesh(
        vertices, np.concatenate([m.faces + n for m, n in zip(meshes, starts, strict=False)])
    )


def meshed_in_cells(voxels, cell, error):
    """The meshes of all labels of a volume that is cut into cells."""
    volume = BoundingBox.at(Vec3(0, 0, 0), Vec3(*voxels.shape))
    parts = {}
    for box in Grid(volume, cell):
        read = BoundingBox(box.min, box.max + 1).intersection(volume)
        ends = [(box.min[i] == 0, box.max[i] == volume.max[i]) for i in range(3)]
        for label, mesh in meshes_of(
            voxels[read.slices_within(volume)], error, ends, tuple(box.min)
        ).items():
            parts.setdefault(label, []).append(mesh)
    return {label: merged(meshes) for label, meshes in parts.items()}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_labels_are_numbered_in_the_smallest_dtype(dtype):
    voxels = np.abs(random_voxels(Vec3(20, 19, 5), dtype)[..., 0] // 2)
    block = LabelBlock.of(voxels.copy(order="F"), ALL)
    assert block.numbers.dtype == np.uint8
    np.testing.assert_array_equal(block.labels[block.numbers], voxels)


def test_labels_are_not_overwritten_where_they_must_not_be():
    voxels = random_voxels(Vec3(9, 9, 9), "uint64")[..., 0]
    voxels.flags.writeable = False
    np.testing.assert_array_equal(LabelBlock.of(voxels, ALL).labels.max(), voxels.max())


def test_negative_labels_are_refused():
    with pytest.raises(UnsupportedLayer, match="label -3 is negative"):
        LabelBlock.of(np.full((2, 2, 2), -3, np.int32), ALL)


def test_labels_are_renamed_then_chosen():
    voxels = np.array([0, 1, 2, 3, BIG, 2**64 - 1], np.uint64).reshape(6, 1, 1)

    def result(**selection):
        return labels_of(voxels, **selection).ravel().tolist()

    assert result() == voxels.ravel().tolist()
    assert result(only=(2, BIG)) == [0, 0, 2, 0, BIG, 0]
    assert result(without=(2, BIG)) == [0, 1, 0, 3, 0, 2**64 - 1]
    assert result(only=(2, 3), without=(3, 4)) == [0, 0, 2, 0, 0, 0]
    table = ((1, 9), (2, 9), (BIG, BIG + 1), (77, 1))
    assert result(table=table) == [0, 9, 9, 0, BIG + 1, 0]
    assert result(table=table, only=(BIG + 1,)) == [0, 0, 0, 0, BIG + 1, 0]
    assert result(table=((1, 0),)) == [0] * 6


def test_dust_is_left_out_unless_it_goes_on_next_door():
    voxels = np.zeros((9, 4, 4), np.uint8)
    voxels[0, 0, 0] = 1  # where the volume ends
    voxels[4, 1, 1] = 2
    voxels[7, 1, 1] = 3  # the last voxel before the shared plane
    voxels[8, 2, 2] = 4  # in the shared plane, in this block's surplus
    voxels[3:5, 3, 3] = 5
    voxels[8, 3, 3] = 5
    ends = [(True, False), (True, True), (True, True)]
    core = (slice(0, 8), slice(0, 4), slice(0, 4))

    def left(fewest):
        block = LabelBlock.of(voxels.copy(order="F"), ALL).without_dust(fewest, core, ends)
        return set(np.unique(block.labels[block.numbers]).tolist()) - {0}

    assert left(1) == {1, 2, 3, 4, 5}
    assert left(2) == {4, 5}
    assert left(3) == {4, 5}
    open_below = [(False, True), *ends[1:]]
    whole = LabelBlock.of(voxels.copy(order="F"), ALL).without_dust(99, core, open_below)
    assert set(np.unique(whole.labels[whole.numbers]).tolist()) == {0, 1}


def test_a_surface_without_simplification_is_that_of_zmesh():
    voxels = blobs(Vec3(40, 36, 30))[..., 0]
    mesher = zmesh.Mesher(RESOLUTION)
    mesher.mesh(np.pad(voxels, 1))
    ours = meshes_of(voxels, error=None)
    assert sorted(ours) == sorted(mesher.ids()) == [1, BIG, 2**64 - 1]
    for label, mesh in ours.items():
        theirs = mesher.get(label, voxel_centered=True)
        np.testing.assert_allclose(mesh.vertices, theirs.vertices - RESOLUTION, atol=1e-3)
        np.testing.assert_array_equal(mesh.faces, theirs.faces)
        assert mesh.vertices.dtype == np.float32
        assert mesh.faces.dtype == np.uint32


def test_the_box_of_a_mesh_is_that_of_its_vertices():
    voxels = np.zeros((9, 9, 9), np.uint8)
    voxels[2:5, 3:7, 4:5] = 1
    mesh = meshes_of(voxels, error=None)[1]
    assert mesh.box == [2 * 16, 3 * 16, 4 * 40, 5 * 16, 7 * 16, 5 * 40]


@given(sizes(14), st.sampled_from([Vec3(4, 5, 6), Vec3(7, 7, 7), Vec3(13, 3, 2)]))
@settings(deadline=None, max_examples=30)
def test_cells_of_noise_without_simplification_are_the_surface_of_the_whole(size, cell):
    voxels = random_voxels(size, "uint8")[..., 0] % 5
    whole = meshes_of(voxels, error=None)
    cut = meshed_in_cells(voxels, cell, None)
    assert cut.keys() == whole.keys()
    for label, mesh in cut.items():
        expected = merged([whole[label]])
        assert len(mesh.faces) == len(expected.faces)
        assert len(mesh.vertices) == len(expected.vertices)
        assert mesh.is_watertight == expected.is_watertight
        assert mesh.area == pytest.approx(expected.area)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([Vec3(8, 8, 8), Vec3(7, 11, 5), Vec3(23, 6, 12)]),
    st.sampled_from([10.0, 40.0, 200.0, 1000.0]),
)
@settings(deadline=None, max_examples=25)
def test_simplified_cells_fit_together_without_a_gap(seed, cell, error):
    """Labels of every shape: sheets, threads and specks, in many small cells."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 4, (6, 6, 6), np.uint8)
    voxels = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    voxels[random.random(voxels.shape) < 0.02] = random.integers(0, 5)
    for label, mesh in meshed_in_cells(voxels, cell, error).items():
        assert mesh.is_watertight, label
        assert mesh.is_winding_consistent, label


@pytest.mark.parametrize("cell", [Vec3(90, 80, 60), Vec3(32, 32, 32), Vec3(31, 17, 9)], ids=str)
def test_the_volume_of_blobs_is_kept(cell):
    voxels = blobs(Vec3(90, 80, 60))[..., 0]
    for label, mesh in meshed_in_cells(voxels, cell, 40.0).items():
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert mesh.body_count == 1
        voxel_volume = np.count_nonzero(voxels == label) * np.prod(RESOLUTION)
        assert mesh.volume == pytest.approx(voxel_volume, rel=0.02)


def test_the_ends_of_a_surface_do_not_move():
    voxels = blobs(Vec3(60, 50, 40))[:30, ..., 0]
    ends = [(True, False), (True, True), (True, True)]
    raw, few = (meshes_of(voxels, error, ends) for error in (None, 200.0))
    for label, mesh in raw.items():
        borders = [border_edges(m) for m in (mesh, few[label])]
        assert borders[0] == borders[1]
        assert len(borders[0]) > 10
    count = [sum(len(mesh.faces) for mesh in meshes.values()) for meshes in (raw, few)]
    assert count[1] < count[0] / 5


def border_edges(mesh):
    """The edges with one face, as pairs of places."""
    sides = np.concatenate([mesh.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    edges, counts = np.unique(np.sort(sides, axis=1), axis=0, return_counts=True)
    return {tuple(sorted(map(tuple, mesh.vertices[edge].tolist()))) for edge in edges[counts == 1]}


def test_specks_of_an_object_do_not_vanish():
    voxels = blobs(Vec3(60, 50, 40))[..., 0]
    specks = [(2, 2, 2), (55, 3, 3), (3, 45, 36), (57, 47, 37)]
    for speck in specks:
        voxels[speck] = BIG
    voxels[57, 2:4, 36:38] = BIG
    raw, few = (merged([meshes_of(voxels, error)[BIG]]) for error in (None, 40.0))
    assert raw.body_count == few.body_count == 6
    vertices, faces = raw.vertices.astype(np.float32), raw.faces.astype(np.uint32)
    kept = simplified(vertices, faces, Placement((0, 0, 0), RESOLUTION).tolerance(40))
    assert Trimesh(vertices, kept).body_count < 6  # what happens without care


def test_an_object_of_one_voxel_keeps_its_shape():
    voxels = np.zeros((3, 3, 3), np.uint8)
    voxels[1, 1, 1] = 7
    raw, few = (meshes_of(voxels, error)[7] for error in (None, 10_000.0))
    np.testing.assert_array_equal(raw.vertices, few.vertices)
    assert len(few.faces) == 8


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 1), (1, 4, 3)])
def test_a_layer_of_one_voxel_has_a_surface(shape):
    mesh = merged([meshes_of(np.ones(shape, np.uint8))[1]])
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_a_block_of_background_has_no_surface():
    assert meshes_of(np.zeros((4, 4, 4), np.uint64)) == {}


def test_far_from_the_origin_neighbours_still_get_the_same_numbers():
    """Coordinates of a whole brain: float32 is coarse there, but equally coarse on both sides."""
    origin = (700_001, 500_003, 90_007)
    voxels = blobs(Vec3(40, 36, 30))[..., 0]
    ends = [(True, False), (True, True), (True, True)], [(False, True), (True, True), (True, True)]
    low = meshes_of(voxels[:21], 40.0, ends[0], origin)
    high = meshes_of(voxels[20:], 40.0, ends[1], (origin[0] + 20, *origin[1:]))
    for label in low.keys() & high.keys():
        assert border_edges(low[label]) == border_edges(high[label])


def test_the_error_is_shared_between_voxels_and_nm():
    fine, coarse = Placement((0, 0, 0), (8, 8, 8)), Placement((0, 0, 0), (64, 64, 64))
    assert coarse.tolerance(40) == pytest.approx(0.26 * 40)
    assert 4 < fine.tolerance(40) < 10
    assert fine.tolerance(400) > 2 * fine.tolerance(40)
