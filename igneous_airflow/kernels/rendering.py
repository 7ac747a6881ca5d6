"""Triangles to pixels: a small software renderer of surfaces; called by the command `picture`.

Orthographic, with a depth buffer, light from the upper left and shaded hollows. There is no loop
over triangles: all of them become rows at once, and the rows become pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS_AT_ONCE = 100_000
_TURN, _TILT = 32, 24  # degrees
_LIGHT = (-0.42, -0.62, -0.66)  # the way to it: left, up, and towards the eye
_AMBIENT = 0.45
_HOLLOW = 0.018  # of the picture's width: how far around a point its surroundings shade it
_MARGIN = 0.98  # of the picture is filled
_THICK = 0.003  # of a frame's longest side
#: The sides of a box, by the numbers of its corners, which count z first.
_SIDES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))


@dataclass(frozen=True, slots=True)
class Surface:
    """Triangles of one colour: vertices (n, 3), faces (m, 3) into them, RGB from 0 to 1."""

    vertices: "NDArray[Any]"
    faces: "NDArray[Any]"
    colour: tuple[float, float, float]


def _frame(low: "NDArray[Any]", high: "NDArray[Any]") -> Surface:
    """The twelve edges of a box, as thin bars."""
    import numpy as np

    corners = np.array(list(product((0, 1), repeat=3)))
    edges = [(p, q) for p, q in combinations(corners, 2) if (p != q).sum() == 1]
    thick = _THICK * np.max(high - low)
    bars = [
        low + (p + corners * (q - p)) * (high - low) + (corners - 0.5) * thick for p, q in edges
    ]
    faces = np.array([[[a, b, c], [a, c, d]] for a, b, c, d in _SIDES]).reshape(-1, 3)
    return Surface(
        np.concatenate(bars),
        np.concatenate([faces + len(corners) * bar for bar in range(len(bars))]),
        (0.5, 0.5, 0.5),
    )


def render(
    surfaces: Sequence[Surface], low: "NDArray[Any]", high: "NDArray[Any]", size: int
) -> "NDArray[np.uint8]":
    """Draw surfaces and the box around them into a square of `size` pixels, the rest white.

    Places are x to the right, y down, z away from the eye, which looks from the upper left. The box
    between the corners `low` and `high` just fits in.
    """
    import numpy as np

    surfaces = [*surfaces, _frame(low, high)]
    shown = surfaces[-1].vertices @ _view().T
    left, right = shown.min(0), shown.max(0)
    scale = _MARGIN * size / max((right - left)[:2])
    shift = size / 2 - scale * (left + right) / 2
    placed = [
        Surface(scale * (s.vertices @ _view().T) + shift, s.faces, s.colour) for s in surfaces
    ]
    corners = np.concatenate([s.vertices[s.faces] for s in placed]).astype(np.float32)
    normals = np.concatenate([_normals(s)[s.faces] for s in placed])
    colours = np.repeat([s.colour for s in surfaces], [len(s.faces) for s in surfaces], axis=0)
    depth, face = _nearest(corners, size)
    seen = np.flatnonzero(face >= 0)
    y, x = np.divmod(seen, size)
    weights = _weights(corners[face[seen]], x + 0.5, y + 0.5)
    normal = (weights[..., np.newaxis] * normals[face[seen]]).sum(1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    normal *= np.where(normal[:, 2:] > 0, -1, 1)  # what is seen faces the eye
    lit = _AMBIENT + (1 - _AMBIENT) * np.clip(normal @ np.array(_LIGHT), 0, None)
    shade = lit * _openness(depth.reshape(size, size)).ravel()[seen]
    picture = np.ones((size * size, 3))
    picture[seen] = np.clip(colours[face[seen]] * shade[:, np.newaxis], 0, 1)
    return (picture * 255).astype(np.uint8).reshape(size, size, 3)


def _view() -> "NDArray[Any]":
    """The matrix that turns the world around y and then tilts it towards the eye."""
    import numpy as np

    a, b = np.cos(np.radians(_TURN)), np.sin(np.radians(_TURN))
    c, d = np.cos(np.radians(_TILT)), np.sin(np.radians(_TILT))
    tilt, turn = [[1, 0, 0], [0, c, -d], [0, d, c]], [[a, 0, b], [0, 1, 0], [-b, 0, a]]
    matrix: NDArray[Any] = np.matmul(tilt, turn)
    return matrix


def _normals(surface: Surface) -> "NDArray[Any]":
    """The normal of each vertex: the mean of its faces', by their areas.

    Vertices at one place have one normal, so that no seam is seen where fragments meet.
    """
    import numpy as np

    vertices = np.ascontiguousarray(surface.vertices, np.float32)
    _, place = np.unique(vertices.view("V12").ravel(), return_inverse=True)
    corners = place[surface.faces]
    a, b, c = (surface.vertices[surface.faces[:, i]].astype(np.float64) for i in range(3))
    of_faces = np.cross(b - a, c - a)
    sums = [
        sum(np.bincount(corners[:, i], of_faces[:, axis], len(place)) for i in range(3))
        for axis in range(3)
    ]
    return np.stack(sums, axis=1)[place]


def _nearest(corners: "NDArray[Any]", size: int) -> "tuple[NDArray[Any], NDArray[np.int64]]":
    """The depth of each pixel, infinite where there is nothing, and its triangle, else -1."""
    import numpy as np

    depth = np.full(size * size, np.inf, np.float32)
    face = np.full(size * size, -1, np.int64)
    planes, front, back = _planes(corners), corners[..., 2].min(1), corners[..., 2].max(1)
    triangle, row = _spread(*_inside(corners[..., 1].min(1), corners[..., 1].max(1), size))
    for start in range(0, len(row), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        spans = _inside(*_crossings(corners[triangle[part]], row[part] + 0.5), size)
        line, x = _spread(*spans)
        here, y = triangle[part][line], row[part][line]
        slope_x, slope_y, base = planes[here].T
        # where a triangle is seen edge on, its plane leads far away from it
        found = np.clip(slope_x * (x + 0.5) + slope_y * (y + 0.5) + base, front[here], back[here])
        pixel = y * size + x
        better = np.flatnonzero(found < depth[pixel])
        # of several values assigned to a pixel the last one stays: the nearest
        better = better[np.argsort(-found[better], kind="stable")]
        depth[pixel[better]] = found[better]
        face[pixel[better]] = here[better]
    return depth, face


def _inside(
    low: "NDArray[Any]", high: "NDArray[Any]", size: int
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """First pixel and number of pixels whose middles lie between two places."""
    import numpy as np

    first = np.clip(np.ceil(low - 0.5), 0, size).astype(np.int64)
    after = np.clip(np.ceil(high - 0.5), 0, size).astype(np.int64)
    return first, np.maximum(after - first, 0)


def _spread(
    first: "NDArray[np.int64]", count: "NDArray[np.int64]"
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """All numbers of ranges, and which range each belongs to."""
    import numpy as np

    owner = np.repeat(np.arange(len(first)), count)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner, first[owner] + offset


def _crossings(corners: "NDArray[Any]", y: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """Where a horizontal line enters and leaves each triangle."""
    import numpy as np

    low, high = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for i in range(3):
        a, b = corners[:, i], corners[:, (i + 1) % 3]
        rise = b[:, 1] - a[:, 1]
        crosses = (np.minimum(a[:, 1], b[:, 1]) <= y) & (y < np.maximum(a[:, 1], b[:, 1]))
        x = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / np.where(crosses, rise, 1)
        low = np.where(crosses, np.minimum(low, x), low)
        high = np.where(crosses, np.maximum(high, x), high)
    return low, np.maximum(high, low)


def _planes(corners: "NDArray[Any]") -> "NDArray[Any]":
    """Each triangle's depth as slope in x, slope in y and depth at the origin."""
    import numpy as np

    a, b, c = (corners[:, i].astype(np.float64) for i in range(3))
    normal = np.cross(b - a, c - a)
    steep = np.where(np.abs(normal[:, 2]) < 1e-9, 1e-9, normal[:, 2])
    slopes = -normal[:, :2] / steep[:, np.newaxis]
    base = a[:, 2] - (slopes * a[:, :2]).sum(1)
    return np.column_stack([slopes, base])


def _weights(corners: "NDArray[Any]", x: "NDArray[Any]", y: "NDArray[Any]") -> "NDArray[Any]":
    """How much each corner of a triangle counts at a place in it: barycentric coordinates."""
    import numpy as np

    (ax, ay), (bx, by), (cx, cy) = (corners[:, i, :2].T.astype(np.float64) for i in range(3))
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    area = np.where(np.abs(area) < 1e-9, 1e-9, area)
    of_b = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
    of_c = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
    weights: NDArray[Any] = np.column_stack([1 - of_b - of_c, of_b, of_c])
    return weights.clip(0, 1)


def _openness(depth: "NDArray[Any]") -> "NDArray[Any]":
    """How little each pixel lies behind its surroundings: 1 in the open, less in hollows.

    Method: Luft, Colditz, Deussen, Image enhancement by unsharp masking the depth buffer, 2006.
    """
    import numpy as np

    size = len(depth)
    radius = max(round(_HOLLOW * size), 1)
    far = np.where(np.isfinite(depth), depth, np.nan)
    behind = np.nan_to_num(far, nan=float(np.nanmax(far)))
    around = behind
    for _ in range(2):  # twice a box is nearly a bell
        around = _mean_around(_mean_around(around, radius).T, radius).T
    hollow = np.clip((behind - around) / (4 * radius), 0, 1)
    openness: NDArray[Any] = 1 - 0.6 * np.sqrt(hollow)
    return openness


def _mean_around(values: "NDArray[Any]", radius: int) -> "NDArray[Any]":
    """The mean of the values in a window on the first axis."""
    import numpy as np

    padded = np.pad(values.astype(np.float64), ((radius + 1, radius), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0)
    return (total[2 * radius + 1 :] - total[: -2 * radius - 1]) / (2 * radius + 1)
