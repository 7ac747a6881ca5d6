"""What a simplifier may break in a surface, found and mended; called by `meshing.py`.

A closed surface has two faces at each edge, which run along it in opposite directions; where it
ends, one. Collapsing edges keeps the difference of both directions, but may pile up more faces at
an edge, fold faces onto each other, and flatten or remove small parts.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Faces = NDArray[np.uint32]
    Vertices = NDArray[np.floating[Any]]


def mended(
    vertices: "Vertices", faces: "Faces", kept: "Faces", ends: "NDArray[np.intp]"
) -> "tuple[Vertices, Faces]":
    """Make a surface of the faces that a simplifier kept of the given one.

    `kept` are faces between the same vertices; of a block that shares the planes at its high `ends`
    with the next one. Connected parts of which nothing with two sides was kept are put back.
    Returns the vertices that are used, and faces between them.
    """
    import numpy as np

    reached = np.zeros(len(vertices), bool)
    reached[kept] = True
    few, kept = _with_mended_edges(*_without_unused(vertices, kept, reached), ends)
    used = np.zeros(len(few), bool)
    used[kept] = True
    if not used.all():  # folded faces have gone
        reached[reached] = used[: np.count_nonzero(reached)]
        few, kept = _without_unused(few, kept, used)
    lost = _unreached(faces, reached)
    if len(lost) == 0:
        return few, kept
    used = np.zeros(len(vertices), bool)
    used[lost] = True
    more, lost = _without_unused(vertices, lost, used)
    return np.concatenate((few, more)), np.concatenate((kept, lost + np.uint32(len(few))))


def _without_unused(
    vertices: "Vertices", faces: "Faces", used: "NDArray[np.bool_]"
) -> "tuple[Vertices, Faces]":
    """Leave out the vertices that belong to no face."""
    import numpy as np

    places = np.cumsum(used, dtype=np.uint32)
    places -= 1
    return vertices[used], places.take(faces)


def _unreached(faces: "Faces", reached: "NDArray[np.bool_]") -> "Faces":
    """The faces from which no way along edges leads to a reached vertex; overwrites `reached`."""
    while len(faces):
        corners = reached.take(faces)
        near = corners[:, 0] | corners[:, 1] | corners[:, 2]
        if not near.any():
            break
        reached[faces.compress(near, axis=0)] = True
        faces = faces.compress(~near, axis=0)
    return faces


def _with_mended_edges(
    vertices: "Vertices", faces: "Faces", ends: "NDArray[np.intp]"
) -> "tuple[Vertices, Faces]":
    """Let each edge have two faces, or one where the surface ends, without moving anything.

    Faces that lie on each other with opposite sides are left out. Of more faces at an edge, pairs
    get a vertex of their own on the edge. The neighbouring block may connect the same two vertices
    of the plane where both surfaces end: edges inside of this plane get vertices of their own too.
    """
    import numpy as np

    start, stop = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    key = np.minimum(start, stop).astype(np.uint64) << np.uint64(32) | np.maximum(start, stop)
    planes = (vertices == ends) @ np.array([1, 2, 4])
    in_plane = planes.take(start) & planes.take(stop) > 0
    crowded = np.union1d(_repeated(key, 3), _repeated(key[in_plane], 2))
    thin = np.bincount(start) == 2  # vertices of parts with two faces, and of borders
    corners = thin.take(faces)
    flat = np.flatnonzero(corners[:, 0] & corners[:, 1] & corners[:, 2])
    if len(crowded) == len(flat) == 0:
        return vertices, faces
    at_edge = np.zeros(len(vertices), bool)
    at_edge[crowded >> np.uint64(32)] = at_edge[crowded & np.uint64(0xFFFFFFFF)] = True
    sides = np.flatnonzero(at_edge.take(start) & at_edge.take(stop))
    sides = sides[np.isin(key[sides], crowded)]
    seams = _Seams(vertices, faces, planes)
    folded = seams.take_folded({*(sides // 3).tolist(), *flat.tolist()})
    vertices, faces = seams.mend(start[sides], stop[sides], sides // 3)
    return vertices, np.delete(faces, folded, axis=0)


def _repeated(keys: "NDArray[Any]", times: int) -> "NDArray[Any]":
    """The keys that occur at least so many times."""
    import numpy as np

    ordered = np.sort(keys)
    return np.unique(ordered[: 1 - times][ordered[: 1 - times] == ordered[times - 1 :]])


class _Seams:
    """Mends edges one by one: there are few. Faces are numbered, the new ones after the others."""

    def __init__(self, vertices: "Vertices", faces: "Faces", planes: "NDArray[np.intp]") -> None:
        self._vertices = vertices
        self._faces = faces
        self._planes = planes
        self._count = len(faces)
        self._changed: dict[int, tuple[int, int, int]] = {}
        self._folded: list[int] = []
        self._owners: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self._middles: list[list[float]] = []

    def take_folded(self, candidates: set[int]) -> list[int]:
        """Find pairs of faces with the same corners in opposite order; they are left alone."""
        alone: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for face in candidates:
            a, b, c = self._changed[face] = tuple(self._faces[face].tolist())
            first = min((a, b, c), (b, c, a), (c, a, b))
            if opposite := alone.get((first[0], first[2], first[1])):
                self._folded += [face, opposite.pop()]
            else:
                alone[first].append(face)
        for face in self._folded:
            del self._changed[face]
        return self._folded

    def mend(
        self, start: "NDArray[Any]", stop: "NDArray[Any]", owners: "NDArray[Any]"
    ) -> "tuple[Vertices, Faces]":
        """Mend the edges with these sides of faces; returns all vertices and faces."""
        import numpy as np

        for a, b, face in zip(start.tolist(), stop.tolist(), owners.tolist(), strict=True):
            if face in self._changed:
                self._owners[a, b].append(face)
        for a, b in sorted({(min(edge), max(edge)) for edge in self._owners}):
            self._split(a, b)
        faces = np.empty((self._count, 3), np.uint32)
        faces[: len(self._faces)] = self._faces
        for face, corners in self._changed.items():
            faces[face] = corners
        middles = np.array(self._middles, self._vertices.dtype).reshape(-1, 3)
        return np.concatenate((self._vertices, middles)), faces

    def _split(self, a: int, b: int) -> None:
        there, back = self._owners[a, b], self._owners[b, a]
        plane = int(self._planes[a] & self._planes[b])
        stays = len(there) == len(back) and not plane  # then one pair keeps the edge
        pairs = list(zip(sorted(there), sorted(back), strict=False))[stays:]
        for turn, (one, other) in enumerate(pairs):
            middle = self._middle(a, b, plane, turn)
            self._insert(one, a, b, middle)
            self._insert(other, b, a, middle)

    def _middle(self, a: int, b: int, plane: int, turn: int) -> int:
        """Make a vertex on an edge, at a place that no other pair and no other block chooses."""
        first, last = sorted((self._vertices[a].tolist(), self._vertices[b].tolist()))
        share = plane / 9 + turn / 100 if plane else (5 + turn) / 11
        self._middles.append([p + share * (q - p) for p, q in zip(first, last, strict=True)])
        return len(self._vertices) + len(self._middles) - 1

    def _insert(self, face: int, a: int, b: int, middle: int) -> None:
        """Cut a face in two by a line from a vertex on its edge to the corner opposite."""
        (c,) = set(self._changed[face]) - {a, b}
        new, self._count = self._count, self._count + 1
        self._changed[face], self._changed[new] = (a, middle, c), (middle, b, c)
        if face in (owners := self._owners.get((b, c), [])):
            owners[owners.index(face)] = new
