"""What a simplifier may break in a surface, found and mended; called by `meshing.py`.

A closed surface has two faces at each edge, which run through it in opposite directions; where it
ends, one. Collapsing edges keeps the difference of both directions, but may pile up more faces at
an edge, fold faces onto each other, and remove small parts as a whole.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Faces = NDArray[np.uint32]

_ODD = 0x9E3779B97F4A7C15  # golden ratio: multiplying by it mixes the bits


def without_folds(faces: "Faces", vertex_count: int) -> "Faces":
    """Leave out pairs of faces that lie on each other with opposite sides."""
    import numpy as np

    mixed = np.arange(1, vertex_count + 1, dtype=np.uint64) * np.uint64(_ODD)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(_ODD)
    key = mixed[faces[:, 0]] + mixed[faces[:, 1]] + mixed[faces[:, 2]]  # the same in any order
    repeated = _repeated(key, 2)
    if len(repeated) == 0:
        return faces
    open_faces: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    folded = []
    for index in np.flatnonzero(np.isin(key, repeated)).tolist():
        a, b, c = faces[index].tolist()
        if opposite := next((o for o in _turned(a, c, b) if open_faces.get(o)), None):
            folded += [index, open_faces[opposite].pop()]
        else:
            open_faces[a, b, c].append(index)
    return np.delete(faces, folded, axis=0)


def _turned(a: int, b: int, c: int) -> tuple[tuple[int, int, int], ...]:
    return (a, b, c), (b, c, a), (c, a, b)


def _repeated(keys: "NDArray[Any]", times: int) -> "NDArray[Any]":
    """The keys that occur at least so many times."""
    import numpy as np

    ordered = np.sort(keys)
    return np.unique(ordered[: 1 - times][ordered[: 1 - times] == ordered[times - 1 :]])


def unreached(faces: "Faces", kept: "Faces", vertex_count: int) -> "Faces":
    """The faces of those connected parts of a surface of which no vertex was kept."""
    import numpy as np

    reached = np.zeros(vertex_count, bool)
    reached[kept.reshape(-1)] = True
    while len(faces):
        a, b, c = faces.T
        near = reached[a] | reached[b] | reached[c]
        if not near.any():
            break
        reached[faces[near].reshape(-1)] = True
        faces = faces[~near]
    return faces


def mended(
    vertices: "NDArray[np.float32]", faces: "Faces", ends: "NDArray[np.int64]"
) -> "tuple[NDArray[Any], Faces]":
    """Let each edge have two faces, or one where the surface ends, without moving anything.

    Of more faces, pairs get a vertex of their own in the middle of the edge. The neighbouring block
    may connect the same two vertices of the plane where both surfaces end: so edges that run inside
    of this plane, at the high `ends` of the block, get vertices of their own as well.
    """
    import numpy as np

    start, stop = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    low, high = np.minimum(start, stop).astype(np.uint64), np.maximum(start, stop)
    key = low << np.uint64(32) | high
    planes = (vertices == ends) @ np.array([1, 2, 4])
    common = planes[start] & planes[stop]
    crowded = np.union1d(_repeated(key, 3), _repeated(key[common > 0], 2))
    if len(crowded) == 0:
        return vertices, faces
    sides = np.flatnonzero(np.isin(key, crowded))
    return _Seams(vertices, faces, planes).split(start[sides], stop[sides], sides // 3)


class _Seams:
    """Splits edges one by one."""

    def __init__(
        self, vertices: "NDArray[np.float32]", faces: "Faces", planes: "NDArray[np.int64]"
    ) -> None:
        self._vertices = vertices
        self._faces = faces
        self._planes = planes
        self._changed: dict[int, list[int]] = {}  # faces by index; those beyond the end are new
        self._count = len(faces)
        self._middles: list[list[float]] = []
        self._owners: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def split(
        self, start: "NDArray[Any]", stop: "NDArray[Any]", owners: "NDArray[Any]"
    ) -> "tuple[NDArray[Any], Faces]":
        """Split the edges that these sides of faces belong to; return vertices and faces."""
        import numpy as np

        for a, b, face in zip(start.tolist(), stop.tolist(), owners.tolist(), strict=True):
            self._owners[a, b].append(face)
            self._changed[face] = self._faces[face].tolist()
        for a, b in sorted({(min(edge), max(edge)) for edge in self._owners}):
            self._split_edge(a, b)
        faces = np.empty((self._count, 3), np.uint32)
        faces[: len(self._faces)] = self._faces
        faces[list(self._changed)] = list(self._changed.values())
        return np.concatenate((self._vertices, np.array(self._middles).reshape(-1, 3))), faces

    def _split_edge(self, a: int, b: int) -> None:
        there, back = self._owners[a, b], self._owners[b, a]
        plane = int(self._planes[a] & self._planes[b])
        stays = len(there) == len(back) and not plane  # one pair keeps the edge
        pairs = list(zip(sorted(there), sorted(back), strict=False))[stays:]
        for turn, (one, other) in enumerate(pairs):
            middle = self._middle(a, b, plane, turn)
            self._insert(one, (a, b), middle)
            self._insert(other, (b, a), middle)

    def _middle(self, a: int, b: int, plane: int, turn: int) -> int:
        """Make a vertex on an edge, at a place that no other pair or block chooses."""
        first, last = sorted((self._vertices[a].tolist(), self._vertices[b].tolist()))
        share = plane / 9 + turn / 100 if plane else (5 + turn) / 11
        self._middles.append([p + share * (q - p) for p, q in zip(first, last, strict=True)])
        return len(self._vertices) + len(self._middles) - 1

    def _insert(self, face: int, edge: tuple[int, int], middle: int) -> None:
        """Cut a face in two by a line from the middle of an edge to the corner opposite."""
        corners = self._changed[face]
        a, b = edge
        (c,) = set(corners) - {a, b}
        self._changed[face] = [a, middle, c]
        self._changed[self._count] = [middle, b, c]
        if face in (others := self._owners.get((b, c), [])):
            others[others.index(face)] = self._count
        self._count += 1
