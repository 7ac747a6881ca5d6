"""The labels of a cell, with those it shares with its neighbours, ready to be meshed."""

from dataclasses import dataclass

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.kernels.meshing import LabelBlock, Placement, Selection
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.overlap import Overlap


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """Which labels of a cell get a mesh, and whether it is closed where the volume ends."""

    selection: Selection
    fewest_voxels: int
    closed_edges: bool
    fill_missing: bool


def read_labels(
    layer: Layer, scale: Scale, cell: BoundingBox, options: MeshOptions, overlap: Overlap
) -> tuple[LabelBlock, Placement, tuple[int, ...]]:
    """Read the labels of a cell and of the first voxels behind it, and say where they lie.

    The last of what is returned are the labels that are there but left out as dust, sorted. So
    neighbours share a plane of voxels, in whose middle their surfaces meet. Where the volume
    ends, a plane of background closes them, if that is asked for.
    """
    volume = scale.bounds
    box = BoundingBox(cell.min, cell.max + 1).intersection(volume)
    missing = 0 if options.fill_missing else None
    voxels = layer.read(scale, box, missing=missing, overlap=overlap)
    block = LabelBlock.of(voxels[..., 0], options.selection)
    ends = [
        (cell.min[axis] == volume.min[axis], cell.max[axis] == volume.max[axis])
        for axis in range(3)
    ]
    dust: tuple[int, ...] = ()
    if options.fewest_voxels > 1:
        every = set(block.labels.tolist())
        block = block.without_dust(options.fewest_voxels, cell.slices_within(box), ends)
        dust = tuple(sorted(every - set(block.labels.tolist()) - {0}))
    origin = box.min
    if options.closed_edges:
        block = block.padded(ends)
        origin -= Vec3(*(int(low) for low, _ in ends))
    return block, Placement((origin.x, origin.y, origin.z), scale.resolution), dust
