"""Surfaces of labels: which labels count, marching cubes, simplification; called by `mesh`.

zmesh makes the surfaces of all labels of a block in one pass. Simplifying them decides the time:
meshoptimizer does it ten times faster than zmesh, but does not see to it that the result stays a
surface; `manifold.py` does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import UnsupportedLayer
from igneous_airflow.kernels.manifold import mended

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Faces are reduced to a hundredth at most, as by Igneous; the error is what stops it before.
_REDUCTION = 100
#: meshoptimizer bounds a mean distance, and 99 of 100 points stay within it; the farthest are tips
#: of threads, about four times as far.
_MEAN_OF_ERROR = 0.26
#: An error of many voxels is not used up, so that shapes are kept: this gives about as many
#: triangles as Igneous makes with the same number.
_MEAN_OF_VOXELS = 0.345
_LOCK_BORDER, _ERROR_ABSOLUTE = 1, 4
_FEW_FACES = 64  # objects of a few voxels, which would become flat


#: For each axis, whether the volume ends at the low and at the high end of a block.
Ends = Sequence[tuple[bool, bool]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which labels of a block get a mesh: they are renamed first, then chosen."""

    table: tuple[tuple[int, int], ...] | None = None  # old to new; labels not in it are background
    only: tuple[int, ...] | None = None
    without: tuple[int, ...] | None = None

    def renamed(self, labels: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
        """The label that each label becomes; 0 for those that get no mesh."""
        import numpy as np

        if self.table is not None:
            old, new = np.array(sorted(self.table), np.uint64).T
            place = np.searchsorted(old, labels).clip(max=len(old) - 1)
            labels = np.where(old[place] == labels, new[place], 0)
        if self.only is not None:
            labels = np.where(np.isin(labels, np.array(self.only, np.uint64)), labels, 0)
        if self.without is not None:
            labels = np.where(np.isin(labels, np.array(self.without, np.uint64)), 0, labels)
        return labels


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """Labels of a block, numbered from 1 as they come: `labels[numbers]` are the labels.

    `numbers` is (x, y, z), of the smallest dtype that holds them, 0 being background.
    """

    numbers: "NDArray[Any]"
    labels: "NDArray[np.uint64]"

    @classmethod
    def of(cls, voxels: "NDArray[Any]", selection: Selection) -> "LabelBlock":
        """Number the chosen labels of (x, y, z) voxels, which may be overwritten.

        Raises UnsupportedLayer for negative labels.
        """
        import fastremap
        import numpy as np

        if voxels.dtype.kind == "i":
            if voxels.min(initial=0) < 0:
                raise UnsupportedLayer(f"label {voxels.min()} is negative: labels start at 1")
            voxels = voxels.view(f"u{voxels.dtype.itemsize}")
        numbers, table = fastremap.renumber(voxels, in_place=bool(voxels.flags.writeable))
        labels = np.zeros(len(table) + (0 not in table), np.uint64)
        places = np.array(list(table.values()), np.intp)
        labels[places] = np.array(list(table.keys()), np.uint64)
        return cls(numbers, labels).relabelled(selection.renamed(labels))

    def relabelled(self, labels: "NDArray[np.uint64]") -> "LabelBlock":
        """Give each number another label, which several may share."""
        import numpy as np

        if np.array_equal(labels, self.labels):
            return self
        kept, numbers = np.unique(labels, return_inverse=True)
        return LabelBlock(numbers.astype(self.numbers.dtype)[self.numbers], kept)

    def without_dust(
        self, fewest: int, core: tuple[slice, slice, slice], ends: Ends
    ) -> "LabelBlock":
        """Leave out labels of fewer voxels, unless they go on in a neighbouring block.

        Voxels are counted in `core`, the block without what it shares with the next ones. Labels
        that go on touch a face where the volume does not end: without them surfaces had holes.
        """
        import fastremap
        import numpy as np

        numbers = self.numbers
        small = np.ones(len(self.labels), bool)
        present, counts = fastremap.unique(numbers[core], return_counts=True)
        small[present[counts >= fewest]] = False
        for axis, (ends_low, ends_high) in enumerate(ends):
            for place, is_end in ((0, ends_low), (-1, ends_high)):
                if not is_end:
                    small[fastremap.unique(numbers.take(place, axis))] = False
        return self.relabelled(np.where(small, 0, self.labels).astype(np.uint64))

    def padded(self, ends: Ends) -> "LabelBlock":
        """Add a plane of background where the volume ends, so that surfaces are closed."""
        import numpy as np

        widths = [(int(low), int(high)) for low, high in ends]
        return LabelBlock(np.pad(self.numbers, widths), self.labels)


@dataclass(frozen=True, slots=True)
class LabelMesh:
    """The surface of one label: vertices (n, 3) float32 in nm, faces (m, 3) uint32."""

    label: int
    vertices: "NDArray[np.float32]"
    faces: "NDArray[np.uint32]"

    @property
    def box(self) -> list[int]:
        """Lowest and highest corner in nm, rounded outward to whole numbers."""
        low = map(math.floor, self.vertices.min(axis=0).tolist())
        high = map(math.ceil, self.vertices.max(axis=0).tolist())
        return [*low, *high]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a block lies: the place of its first voxel, in voxels, and the resolution in nm."""

    origin: tuple[int, int, int]
    resolution: tuple[float, float, float]

    def in_nm(self, vertices: "NDArray[Any]") -> "NDArray[np.float32]":
        """Vertices counted in voxels from the middle of the first one, in nm.

        Rounded once, so that neighbouring blocks get the same numbers for the same place.
        """
        import numpy as np

        centred = vertices.astype(np.float64) + self.origin + 0.5
        return (centred * self.resolution).astype(np.float32)

    def tolerance(self, error: float) -> float:
        """The mean distance in nm to allow for an error."""
        voxel = math.prod(self.resolution) ** (1 / 3)
        return min(error * _MEAN_OF_ERROR, math.sqrt(error * voxel) * _MEAN_OF_VOXELS)


def surfaces(block: LabelBlock, place: Placement, error: float | None) -> Iterator[LabelMesh]:
    """Make the surface of every label of a block, in order, by marching cubes.

    The surface runs half way between the middles of voxels; at the ends of the block it is open.
    `error` is how far, in nm, a simplified surface may be from it; None leaves it as it is.
    Vertices at the ends of the block stay, so that surfaces of blocks that share a plane of voxels
    meet. Marching cubes: Lorensen and Cline, SIGGRAPH 1987.
    """
    import numpy as np
    import zmesh

    mesher = zmesh.Mesher((1, 1, 1))
    mesher.mesh(block.numbers)
    labels, ends = block.labels, np.array(block.numbers.shape) - 1
    del block
    for number in sorted(mesher.ids(), key=lambda number: int(labels[number])):
        mesh = mesher.get(number)
        vertices, faces = mesh.vertices, mesh.faces
        if faces is None or len(faces) == 0:
            continue
        if error is not None:
            kept = faces
            if len(faces) > _FEW_FACES:
                scaled = vertices * np.array(place.resolution, np.float32)
                kept = simplified(scaled, faces, place.tolerance(error))
            vertices, faces = mended(vertices, faces, kept, ends)
        yield LabelMesh(int(labels[number]), place.in_nm(vertices), faces)


def simplified(
    vertices: "NDArray[np.float32]", faces: "NDArray[np.uint32]", tolerance: float
) -> "NDArray[np.uint32]":
    """Leave out vertices where the surface stays, in the mean, within `tolerance` of the given one.

    Returns faces between those of the vertices that are left; border vertices all are. Small parts
    may vanish. Method: Garland and Heckbert, SIGGRAPH 1997, by meshoptimizer.
    """
    import numpy as np
    from meshoptimizer import simplify

    kept = np.empty(faces.size, np.uint32)
    count = simplify(
        kept,
        faces.reshape(-1),
        vertices,
        target_index_count=3 * (len(faces) // _REDUCTION),
        target_error=tolerance,
        options=_LOCK_BORDER | _ERROR_ABSOLUTE,
    )
    return kept[:count].reshape(-1, 3)
