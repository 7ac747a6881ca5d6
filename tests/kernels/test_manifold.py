"""Mending: closed surfaces stay closed whatever a simplifier did to them."""

import numpy as np
import pytest
from trimesh import Trimesh

from igneous_airflow.kernels.manifold import mended

FAR = np.array([1000, 1000, 1000])
CORNERS = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]], np.float32)
TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.uint32)


def edges_with_other_than_two_faces(vertices, faces):
    """Count edges, of merged vertices, that have not exactly one face on either side."""
    _, places = np.unique(vertices, axis=0, return_inverse=True)
    faces = places.reshape(-1)[faces]
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {}
    for side in map(tuple, sides.tolist()):
        there[side] = there.get(side, 0) + 1
    return sum(count != 1 or there.get(side[::-1]) != 1 for side, count in there.items())


def two_tetrahedra(shared):
    """Two tetrahedra that share so many corners: 2 is an edge with four faces."""
    others = {0: CORNERS + 10, 1: CORNERS[:, [0, 2, 1]] * -1, 2: CORNERS * [1, -1, -1]}
    vertices = np.concatenate([CORNERS, others[shared][shared:]]).astype(np.float32)
    numbers = np.array([*range(shared), *range(4, 8 - shared)])
    return vertices, np.concatenate([TETRAHEDRON, numbers[TETRAHEDRON]]).astype(np.uint32)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_an_edge_of_four_faces_gets_a_vertex_for_two_of_them(shared):
    vertices, faces = two_tetrahedra(shared)
    result = mended(vertices, faces, faces, FAR)
    assert len(result[0]) == len(vertices) + (shared == 2)
    assert edges_with_other_than_two_faces(*result) == 0
    assert Trimesh(*result).is_watertight
    assert Trimesh(*result).volume == pytest.approx(Trimesh(vertices, faces).volume)


def test_an_edge_of_six_faces_is_mended_too():
    turns = [np.roll(np.eye(3), turn, axis=0) for turn in range(3)]
    parts = [np.array([[0, 0, 0], [9, 9, 9], [9, 0, 0], [9, 9, 0]]) @ turn for turn in turns]
    vertices, corners = np.unique(np.concatenate(parts), axis=0, return_inverse=True)
    faces = np.concatenate([corners.reshape(3, 4)[part][TETRAHEDRON] for part in range(3)])
    faces = faces.astype(np.uint32)
    assert edges_with_other_than_two_faces(vertices, faces) > 0
    result = mended(vertices.astype(np.float32), faces, faces, FAR)
    assert edges_with_other_than_two_faces(*result) == 0
    assert Trimesh(*result).volume == pytest.approx(Trimesh(vertices, faces).volume)


def test_faces_that_lie_on_each_other_are_left_out():
    flap = np.array([[1, 2, 4], [4, 2, 1]], np.uint32)
    vertices = np.concatenate([CORNERS, [[5, 5, 5]]]).astype(np.float32)
    faces = np.concatenate([TETRAHEDRON, flap])
    result = mended(vertices, faces, faces, FAR)
    assert len(result[0]) == 4
    assert len(result[1]) == 4
    assert edges_with_other_than_two_faces(*result) == 0


@pytest.mark.parametrize("left", [0, 2])
def test_a_part_that_vanished_or_became_flat_is_put_back(left):
    vertices = np.concatenate([CORNERS, CORNERS + 10])
    faces = np.concatenate([TETRAHEDRON, TETRAHEDRON + 4]).astype(np.uint32)
    flat = np.array([[4, 5, 6], [6, 5, 4]], np.uint32)[:left]
    kept = np.concatenate([TETRAHEDRON, flat]).astype(np.uint32)
    result = Trimesh(*mended(vertices, faces, kept, FAR))
    assert result.body_count == 2
    assert result.is_watertight
    assert result.volume == pytest.approx(Trimesh(vertices, faces).volume)


def test_a_surface_that_ends_keeps_one_face_at_its_end():
    faces = TETRAHEDRON[:3]
    vertices, result = mended(CORNERS, faces, faces, FAR)
    np.testing.assert_array_equal(vertices, CORNERS)
    np.testing.assert_array_equal(result, faces)


def test_blocks_that_connect_the_same_vertices_of_their_common_plane_still_fit_together():
    """Two halves of an octahedron, each with a wall in the plane between two opposite corners."""
    ring = [[0, 0, 4], [4, 0, 4], [4, 4, 4], [0, 4, 4]]
    low = np.array([*ring, [2, 2, 0]], np.float32)
    high = np.array([*ring, [2, 2, 8]], np.float32)
    # the ring's diagonal 0-2 is an edge of both halves
    below = np.array([[0, 1, 2], [0, 2, 4], [2, 3, 4], [3, 0, 4]], np.uint32)
    above = np.array([[2, 1, 0], [0, 4, 2], [3, 2, 4], [0, 3, 4]], np.uint32)
    parts = [
        mended(low, below, below, np.array([1000, 1000, 4])),
        mended(high, above, above, np.array([1000, 1000, 8])),
    ]
    vertices = np.concatenate([part[0] for part in parts])
    faces = np.concatenate([parts[0][1], parts[1][1] + len(parts[0][0])])
    assert edges_with_other_than_two_faces(vertices, faces) == 0
