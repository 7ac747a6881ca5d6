"""Triangles to pixels: a small software renderer of surfaces; called by the command `picture`.

Orthographic, with a depth buffer, light from the upper left and shaded hollows. There is no loop
over triangles: all of them become rows at once, and the rows become pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS_AT_ONCE = 100_000
_LIGHT = (-0.42, -0.62, -0.66)  # the way to it: left, up, and towards the eye
_AMBIENT = 0.34
_HOLLOW = 0.018  # of the picture's width: how far around a point its surroundings shade it


@dataclass(frozen=True, slots=True)
class Surface:
    """Triangles of one colour: vertices (n, 3), faces (m, 3) into them, RGB from 0 to 1."""

    vertices: "NDArray[Any]"
    faces: "NDArray[Any]"
    colour: tuple[float, float, float]


def view(turn: float, tilt: float) -> "NDArray[np.float64]":
    """The matrix that turns vectors around y and then tilts them towards the eye, in degrees."""
    import numpy as np

    a, b = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    c, d = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    return np.array([[1, 0, 0], [0, c, -d], [0, d, c]]) @ np.array([[a, 0, b], [0, 1, 0], [-b, 0, a]])


def render(surfaces: Sequence[Surface], size: int) -> "NDArray[np.uint8]":
    """Draw surfaces into a square of `size` pixels, white where there are none.

    Vertices are in pixels: x to the right, y down, z away from the eye.
    """
    import numpy as np

    corners = np.concatenate([s.vertices[s.faces] for s in surfaces]).astype(np.float32)
    normals = np.concatenate([_normals(s)[s.faces] for s in surfaces])
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


def _normals(surface: Surface) -> "NDArray[np.float64]":
    """The normal of each vertex: the mean of its faces', by their areas."""
    import numpy as np

    a, b, c = (surface.vertices[surface.faces[:, i]].astype(np.float64) for i in range(3))
    of_faces = np.cross(b - a, c - a)
    count = len(surface.vertices)
    return np.stack(
        [
            sum(np.bincount(surface.faces[:, i], of_faces[:, axis], count) for i in range(3))
            for axis in range(3)
        ],
        axis=1,
    )


def _nearest(
    corners: "NDArray[np.float32]", size: int
) -> "tuple[NDArray[np.float32], NDArray[np.int64]]":
    """The depth of each pixel, infinite where there is nothing, and its triangle, else -1."""
    import numpy as np

    depth = np.full(size * size, np.inf, np.float32)
    face = np.full(size * size, -1, np.int64)
    planes = _planes(corners)
    triangle, row = _spread(*_inside(corners[..., 1].min(1), corners[..., 1].max(1), size))
    for start in range(0, len(row), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        spans = _inside(*_crossings(corners[triangle[part]], row[part] + 0.5), size)
        line, x = _spread(*spans)
        here, y = triangle[part][line], row[part][line]
        slope_x, slope_y, base = planes[here].T
        found = slope_x * (x + 0.5) + slope_y * (y + 0.5) + base
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


def _crossings(
    corners: "NDArray[np.float32]", y: "NDArray[np.float64]"
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
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


def _planes(corners: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Each triangle's depth as slope in x, slope in y and depth at the origin."""
    import numpy as np

    a, b, c = (corners[:, i].astype(np.float64) for i in range(3))
    normal = np.cross(b - a, c - a)
    steep = np.where(np.abs(normal[:, 2]) < 1e-9, 1e-9, normal[:, 2])
    slopes = -normal[:, :2] / steep[:, np.newaxis]
    base = a[:, 2] - (slopes * a[:, :2]).sum(1)
    return np.column_stack([slopes, base])


def _weights(
    corners: "NDArray[np.float32]", x: "NDArray[np.float64]", y: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    """How much each corner of a triangle counts at a place in it: barycentric coordinates."""
    import numpy as np

    (ax, ay), (bx, by), (cx, cy) = (corners[:, i, :2].T.astype(np.float64) for i in range(3))
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    area = np.where(np.abs(area) < 1e-9, 1e-9, area)
    of_b = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
    of_c = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
    return np.clip(np.column_stack([1 - of_b - of_c, of_b, of_c]), 0, 1)


def _openness(depth: "NDArray[np.float32]") -> "NDArray[np.float64]":
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
    return 1 - 0.6 * np.sqrt(hollow)


def _mean_around(values: "NDArray[Any]", radius: int) -> "NDArray[np.float64]":
    """The mean of the values in a window on the first axis."""
    import numpy as np

    padded = np.pad(values.astype(np.float64), ((radius + 1, radius), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0)
    return (total[2 * radius + 1 :] - total[: -2 * radius - 1]) / (2 * radius + 1)
