"""Meshes read and judged by software that is not this package; used by tests and benchmarks.

cloud-volume reads them, trimesh judges them, distances are measured exactly from points on one
surface to the triangles of the other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igneous_airflow.geometry.bbox import Vec3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from trimesh import Trimesh

    Points = NDArray[np.float64]

_NEIGHBOURS = 6


def read_mesh(layer: Path, label: int) -> "Trimesh":
    """Read all fragments that a label's manifest names, by cloud-volume; equal vertices are one."""
    from cloudvolume import CloudVolume
    from trimesh import Trimesh

    mesh = CloudVolume(f"file://{layer}", progress=False).mesh.get(label)
    return Trimesh(mesh.vertices, mesh.faces)


def blobs(size: Vec3) -> "NDArray[np.uint64]":
    """Ellipsoids, some of which touch, with labels on both sides of 2^53; shape (x, y, z, 1)."""
    import numpy as np

    axes = np.ogrid[: size.x, : size.y, : size.z]
    voxels = np.zeros((*size, 1), np.uint64, order="F")
    for label, middle, radii in (
        (1, (0.28, 0.30, 0.5), (0.22, 0.24, 0.4)),
        (2**53 + 1, (0.72, 0.33, 0.45), (0.23, 0.20, 0.35)),
        (2**64 - 1, (0.5, 0.72, 0.55), (0.36, 0.20, 0.33)),
    ):
        squares = [
            ((axis + 0.5 - share * edge) / (radius * edge)) ** 2
            for axis, edge, share, radius in zip(axes, size, middle, radii, strict=True)
        ]
        voxels[squares[0] + squares[1] + squares[2] < 1] = label
    return voxels


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances in nm from points on one surface to another."""

    mean: float
    percentile_99: float
    percentile_99_9: float
    largest: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} / {self.percentile_99:.1f} / {self.largest:.0f} nm"


def distances(pairs: "list[tuple[Trimesh, Trimesh]]", points: int) -> Distances:
    """Distances from so many points, spread evenly over all first surfaces, to the second ones."""
    import numpy as np

    random = np.random.default_rng(7)
    areas = np.array([first.area for first, _ in pairs])
    counts = random.multinomial(points, areas / areas.sum())
    found = [
        _to_surface(_points_on(first, count, random), second, random)
        for (first, second), count in zip(pairs, counts, strict=True)
        if count
    ]
    every = np.concatenate(found)
    near, nearly_all = map(float, np.percentile(every, [99, 99.9]))
    return Distances(float(every.mean()), near, nearly_all, float(every.max()))


def _points_on(mesh: "Trimesh", count: int, random: "np.random.Generator") -> "Points":
    area = mesh.area_faces
    chosen = random.choice(len(area), count, p=area / area.sum())
    return _points_in(mesh.triangles[chosen], random)


def _points_in(triangles: "NDArray[Any]", random: "np.random.Generator") -> "Points":
    """One random point in each triangle."""
    import numpy as np

    u, v = random.random((2, len(triangles), 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    corner = triangles[:, 0]
    points: Points = corner + u * (triangles[:, 1] - corner) + v * (triangles[:, 2] - corner)
    return points


def _to_surface(points: "Points", mesh: "Trimesh", random: "np.random.Generator") -> "Points":
    """The distance of each point to the nearest of the triangles that have samples nearby."""
    import numpy as np
    from scipy.spatial import cKDTree
    from trimesh.triangles import closest_point

    area = mesh.area_faces
    wanted = max(20 * len(points), 4 * len(area))
    each = np.ceil(area / area.sum() * wanted).clip(min=2).astype(int)
    owners = np.repeat(np.arange(len(area)), each)
    samples = _points_in(mesh.triangles[owners], random)
    _, nearest = cKDTree(samples).query(points, k=min(_NEIGHBOURS, len(samples)))
    best = np.full(len(points), np.inf)
    for column in nearest.reshape(len(points), -1).T:
        on_triangle = closest_point(mesh.triangles[owners[column]], points)
        best = np.minimum(best, np.linalg.norm(on_triangle - points, axis=1))
    return best
