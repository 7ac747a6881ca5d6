"""The renderer against brute force and against solids whose pictures are known."""

import numpy as np
import pytest
import trimesh

from igneous_airflow.kernels import rendering
from igneous_airflow.kernels.rendering import Surface, render

WHITE = 255


def brute_force(corners, size):
    """The depth of each pixel, by looking at every triangle from every pixel."""
    depth = np.full((size, size), np.inf)
    for a, b, c in corners.astype(float):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        for y, x in np.ndindex(size, size):
            px, py = x + 0.5, y + 0.5
            v = ((px - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (py - a[1])) / area
            w = ((b[0] - a[0]) * (py - a[1]) - (px - a[0]) * (b[1] - a[1])) / area
            if v >= 0 and w >= 0 and v + w <= 1:
                depth[y, x] = min(depth[y, x], a[2] + v * (b[2] - a[2]) + w * (c[2] - a[2]))
    return depth


@pytest.mark.parametrize("seed", range(4))
def test_each_pixel_shows_the_nearest_triangle(seed):
    corners = np.random.default_rng(seed).uniform(-6, 26, (40, 3, 3)).astype(np.float32)
    depth, face = rendering._nearest(corners, 20)
    expected = brute_force(corners, 20)
    assert np.allclose(depth.reshape(20, 20), expected, atol=1e-3)
    assert ((face >= 0) == np.isfinite(expected).ravel()).all()


def test_batches_of_rows_make_no_difference(monkeypatch):
    corners = np.random.default_rng(5).uniform(0, 30, (200, 3, 3)).astype(np.float32)
    whole = rendering._nearest(corners, 30)
    monkeypatch.setattr(rendering, "_ROWS_AT_ONCE", 7)
    parts = rendering._nearest(corners, 30)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


def test_triangles_seen_edge_on_leave_no_spikes():
    corners = np.array([[[5, 0, 1], [5, 9, 1], [5, 9, 3]], [[4.4, 0, 0], [4.6, 9, 9], [4.5, 9, 0]]])
    depth, _ = rendering._nearest(corners.astype(np.float32), 10)
    assert depth.min() >= 0
    assert depth[np.isfinite(depth)].max(initial=0) <= 9


def ball(radius=1.0, centre=(0, 0, 0), colour=(1, 0, 0)):
    solid = trimesh.creation.icosphere(4, radius)
    return Surface(solid.vertices + np.array(centre), solid.faces, colour)


def reddish(picture):
    return picture[..., 0].astype(int) > picture[..., 2].astype(int) + 20


def test_a_ball_is_a_disc_in_its_colour():
    corner = np.full(3, 2.0)
    picture = render([ball()], -corner, corner, 400)
    assert picture.shape == (400, 400, 3)
    assert picture.dtype == np.uint8
    disc = reddish(picture)
    y, x = np.nonzero(disc)
    assert abs(y.mean() - 199.5) < 3
    assert abs(x.mean() - 199.5) < 3
    width = np.ptp(x) + 1
    assert abs((np.ptp(y) + 1) - width) < 6
    assert disc.sum() == pytest.approx(np.pi * width**2 / 4, rel=0.06)  # the frame crosses it
    assert (picture[0] == WHITE).all()


def test_light_comes_from_above():
    corner = np.full(3, 1.2)
    picture = render([ball()], -corner, corner, 200)
    rows = [picture[y][reddish(picture)[y]][:, 0].mean() for y in (60, 140)]
    assert rows[0] > rows[1] + 30


def test_the_box_fits_into_the_picture_and_is_drawn():
    low, high = np.array([100, -50, 7]), np.array([140, 10, 99])
    picture = render([], low, high, 200)
    y, x = np.nonzero((picture < WHITE).any(axis=2))
    assert max(np.ptp(x), np.ptp(y)) == pytest.approx(196, abs=3)
    assert 500 < len(y) < 0.1 * 200**2


def test_what_lies_behind_is_hidden():
    low, high = np.full(3, -3.0), np.full(3, 3.0)
    towards_the_eye = rendering._view().T @ np.array([0, 0, -1])
    front, back = ball(colour=(0, 0, 1), centre=1.5 * towards_the_eye), ball(1.0, -towards_the_eye)
    for order in ([front, back], [back, front]):
        assert not reddish(render(order, low, high, 200)).any()
    assert reddish(render([back], low, high, 200)).any()


def test_no_seam_is_seen_where_two_fragments_meet():
    solid = trimesh.creation.icosphere(3)
    corner = np.full(3, 1.2)
    whole = Surface(solid.vertices, solid.faces, (1, 1, 1))
    halves = solid.triangles_center[:, 0] > 0
    cut = [solid.submesh([halves], append=True), solid.submesh([~halves], append=True)]
    joined = trimesh.util.concatenate(cut)
    assert len(joined.vertices) > len(solid.vertices)
    left = render([whole], -corner, corner, 150).astype(int)
    right = render([Surface(joined.vertices, joined.faces, (1, 1, 1))], -corner, corner, 150)
    assert np.abs(left - right).max() <= 2
