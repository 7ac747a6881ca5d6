"""Which cells of a layer are meshed, and which directory their fragments go to."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.encodings import encoding_problem
from igneous_airflow.storage.folder_names import shares_files
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.mesh_info import MeshInfo
from igneous_airflow.storage.meshes import MeshFolder, read_name

LARGEST_CELL = Vec3(512, 512, 256)
FASTEST_CELL = Vec3(1020, 1020, 508)  # zmesh needs 64 bits for places in larger ones
_LOOKED_AT = 1000  # names of a directory whose info tells of no grid
_BYTES_A_VOXEL = 24  # beside the labels as they are read: triangles of a dense segmentation


@dataclass(frozen=True, slots=True)
class MeshRequest:
    """What is asked for; None where it is left to us. `error` is in nm, `memory` in bytes."""

    mip: int
    bounds: str | None
    directory: str | None
    error: int
    shape: Vec3 | None
    new_grid: bool
    memory: int


@dataclass(frozen=True)
class MeshPlace:
    """Whole cells of a layer's scale, and the directory of their fragments."""

    request: MeshRequest
    layer: Layer
    scale: Scale
    folder: MeshFolder
    info: MeshInfo  # with the region as its only part
    present: MeshInfo | None  # what the directory's info says now

    @property
    def region(self) -> BoundingBox:
        """All that is meshed."""
        return self.info.parts[0]

    @property
    def cells(self) -> Grid:
        """The pieces of work: all on one grid, whatever the bounds."""
        return Grid(self.region, self.info.cell)

    @cached_property
    def has_other_grid(self) -> bool:
        """Whether the directory holds meshes of another grid, or of one that its info hides."""
        if self.present is not None:
            return not self.present.has_grid_of(self.info)
        return any(read_name(name)[1] for name in islice(self.folder.names(), _LOOKED_AT))

    @property
    def is_whole(self) -> bool:
        """Whether all of the scale is meshed."""
        return self.region == self.scale.bounds

    @property
    def bytes_in_memory(self) -> int:
        """The most that a task needs, for a dense segmentation."""
        return _bytes_in_memory(self.info.cell, self.scale, self.layer)

    def problems(self) -> Iterator[str]:
        """Every reason not to start."""
        info, scale, bounds = self.layer.info, self.scale, self.request.bounds
        if info.layer_type != "segmentation":
            yield f"the layer is of type {info.layer_type!r}: only a segmentation has objects"
        if self.layer.dtype.kind not in "ui" or info.channels != 1:
            yield f"{info.channels} channel(s) of {info.data_type} voxels are not labels"
        if scale.sharded:
            yield f"scale {scale.key} is sharded; only unsharded scales can be read"
        elif problem := encoding_problem(
            scale.encoding, info.data_type, info.channels, scale.chunk_size
        ):
            yield f"scale {scale.key}: {problem}"
        if not scale.bounds:
            yield f"scale {scale.key} has no voxels: its size is {scale.size}"
        elif bounds is not None and not scale.bounds.contains(BoundingBox.parse(bounds)):
            yield f"bounds: {bounds} reaches out of the volume, which is {scale.bounds}"
        if self.bytes_in_memory > self.request.memory:
            yield (
                f"a task needs {self.bytes_in_memory:,} bytes of memory, and memory_target allows "
                f"{self.request.memory:,}: choose a shape smaller than {self.info.cell}"
            )
        yield from self._conflicts(info)

    def _conflicts(self, info: Info) -> Iterator[str]:
        """Name what the layer holds that is in the way of these meshes."""
        directory, named = self.folder.directory, info.mesh_directory
        if named not in (None, directory):
            yield (
                f"mesh_dir: the layer's info names {named}, and viewers look there: leave mesh_dir "
                f"empty, or remove 'mesh' from {self.layer.folder.url}/info to use {directory}"
            )
        if any(shares_files(directory, scale.key) for scale in info.scales):
            yield f"mesh_dir: {directory} holds the chunks of a scale"
        if self.has_other_grid and not self.request.new_grid:
            present = self.present or "a grid that its info does not tell"
            yield (
                f"{self.folder.url} holds meshes of {present}, these would be of {self.info}: "
                "side by side they would overlap. Use that mip and shape, or set new_grid to "
                "replace them"
            )


def find_place(url: str, request: MeshRequest) -> MeshPlace:
    """Find out what is meant for a layer; reads metadata only.

    Raises what `Layer.open` raises, InvalidParameter for a mip that is not there, and InvalidInfo
    for a mesh directory of another format.
    """
    layer = Layer.open(url)
    scale = layer.scale(request.mip)
    mip = layer.info.scales.index(scale)
    default = f"mesh_mip_{mip}_err_{request.error}"
    directory = request.directory or layer.info.mesh_directory or default
    folder = MeshFolder(layer.folder, directory)
    present, cell = folder.read_info(), request.shape
    if cell is None and present is not None and present.mip == mip and not request.new_grid:
        cell = present.cell
    cell = cell or _largest_cell(scale, layer, request.memory)
    region = scale.bounds
    if request.bounds is not None:
        touched = BoundingBox.parse(request.bounds).expanded_to_grid(cell, region.min)
        region = touched.intersection(region)
    return MeshPlace(request, layer, scale, folder, MeshInfo(mip, cell, (region,)), present)


def _bytes_in_memory(cell: Vec3, scale: Scale, layer: Layer) -> int:
    return (cell.minimum(scale.size) + 2).product * (layer.dtype.itemsize + _BYTES_A_VOXEL)


def _largest_cell(scale: Scale, layer: Layer, memory: int) -> Vec3:
    """The largest cell that fits into the memory, halved where it is longest."""
    cell = LARGEST_CELL
    while _bytes_in_memory(cell, scale, layer) > memory and cell != Vec3.full(1):
        used = cell.minimum(scale.size)
        longest = max(range(3), key=lambda axis: used[axis])
        cell = Vec3(*(-(-used[i] // 2) if i == longest else cell[i] for i in range(3)))
    return cell
