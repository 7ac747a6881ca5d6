"""Mesh: the surface of every label of a segmentation, in fragments, a cell at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from igneous_airflow.errors import AuditFailed, IgneousError
from igneous_airflow.fields import (
    HOW,
    LIMITS,
    WHAT,
    WHERE,
    Bounds,
    Compress,
    FillMissing,
    FolderInLayer,
    LabelList,
    LabelTable,
    LayerUrl,
    MemoryTarget,
    Mip,
    PositiveVec3,
    folder_in_layer,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.stage import Account, Audit, Plan, Stage, Work, human_bytes

if TYPE_CHECKING:
    from igneous_airflow.kernels.meshing import LabelBlock
    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.mesh_info import MeshInfo
    from igneous_airflow.storage.meshes import MeshFolder
    from igneous_airflow.storage.overlap import Overlap

#: zmesh counts places of larger blocks in 64 bits, which takes twice the time.
_LARGEST_CELL = Vec3(512, 512, 448)
_BYTES_A_VOXEL = 30  # beside the labels as they are read: triangles of a dense segmentation
_NAMED_AT_MOST = 10
#: Parameters that do not change a fragment.
_NOT_IN_FRAGMENTS = {"layer", "bounds", "mesh_dir", "compress", "new_grid", "memory_target"}


@dataclass(frozen=True)
class _Job:
    """What is meshed, and where the fragments go."""

    layer: "Layer"
    scale: "Scale"
    meshes: "MeshFolder"
    grid: "MeshInfo"
    region: BoundingBox  # whole cells

    @property
    def cells(self) -> Grid:
        return Grid(self.region, self.grid.cell)


class Mesh(Stage):
    """Make the surface of every label of a segmentation, so that a viewer can show it in 3-D.

    Tasks are blocks of the volume. Each leaves a fragment for every label in it; `mesh_manifest`
    puts the fragments of a label together. Fragments of neighbouring blocks meet exactly.
    """

    name: ClassVar[str] = "mesh"

    layer: LayerUrl
    mip: Annotated[
        Mip,
        Field(
            description="Mip level to mesh: 0 is the finest, -1 the coarsest that exists. Coarser "
            "ones are faster, and their meshes smaller.",
        ),
    ] = 0
    bounds: Annotated[
        Bounds,
        Field(
            description="Mesh a part only: the tasks' blocks that a box in voxels of the chosen "
            "mip touches, written as x0-x1_y0-y1_z0-z1. Empty means all.",
        ),
    ] = None
    mesh_dir: Annotated[
        FolderInLayer | None,
        Field(
            title="Mesh directory",
            description="Folder of the layer for the meshes. Empty: the one that the layer's info "
            "names, else mesh_mip_M_err_E for the mip and the simplification error.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    remap_table: Annotated[
        LabelTable | None,
        Field(
            title="Remap table",
            description="Give labels new names before anything else, as 17:1,42:1 to join 17 and "
            "42; labels not in the table get no mesh. Empty: they keep their names.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    object_ids: Annotated[
        LabelList | None,
        Field(
            title="Objects",
            description="Labels to mesh, as 17,42. Empty: all.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    exclude_object_ids: Annotated[
        LabelList | None,
        Field(
            title="Excluded objects",
            description="Labels that get no mesh, as 17,42.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    dust_threshold: Annotated[
        int,
        Field(
            ge=0,
            title="Dust threshold",
            description="Leave out objects of fewer voxels in a task's block, unless they go on in "
            "a neighbouring block.",
            json_schema_extra=section(WHAT),
        ),
    ] = 0
    simplification: Annotated[
        bool,
        Field(
            title="Simplify",
            description="Leave out vertices where the surface hardly changes: a tenth of the "
            "triangles and of the bytes.",
            json_schema_extra=section(HOW),
        ),
    ] = True
    max_simplification_error: Annotated[
        int,
        Field(
            ge=1,
            title="Simplification error",
            description="How far in nm a simplified surface may be from the one through the "
            "voxels' sides.",
            json_schema_extra=section(HOW),
        ),
    ] = 40
    closed_dataset_edges: Annotated[
        bool,
        Field(
            title="Close at the edges",
            description="Close the surfaces where the volume ends; otherwise they are open there.",
            json_schema_extra=section(HOW),
        ),
    ] = True
    spatial_index: Annotated[
        bool,
        Field(
            title="Spatial index",
            description="Write the box of each label in each block as well, which cloud-volume "
            "uses to find the labels in a region.",
            json_schema_extra=section(HOW),
        ),
    ] = True
    fill_missing: FillMissing = False
    compress: Annotated[
        Compress, Field(description="Compression of fragment files; auto is gzip.")
    ] = "auto"
    new_grid: Annotated[
        bool,
        Field(
            title="New grid",
            description="Mesh anew although the directory holds meshes of another mip or task "
            "shape. `mesh_manifest` then has to be told to remove the stale fragments.",
            json_schema_extra=section(HOW),
        ),
    ] = False
    shape: Annotated[
        PositiveVec3 | None,
        Field(
            title="Task shape",
            description="Voxels of the block of one task, x,y,z. Empty: as the meshes that are "
            "there, else 512,512,448 or what fits into the memory target.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None
    memory_target: MemoryTarget = 3_500_000_000

    def resolved(self) -> Self:
        """Replace mip -1, and note the directory and the shape, which `prepare` may change."""
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.layer)
        mip = layer.info.scales.index(layer.scale(self.mip))
        stage = self.model_copy(update={"mip": mip})
        job = stage._job()  # noqa: SLF001
        return stage.model_copy(update={"mesh_dir": job.meshes.directory, "shape": job.grid.cell})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            job = self._job()
            refusals = list(self._refusals(job))
            if not refusals:
                job.layer.folder.check_writable()
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if refusals:
            return Plan(stage=self.name, refusals=tuple(refusals))
        cells, voxel_bytes = job.cells, job.layer.dtype.itemsize
        block = cells.cell.minimum(job.region.size)
        how = (
            f"within {self.max_simplification_error} nm" if self.simplification else "unsimplified"
        )
        return Plan(
            stage=self.name,
            tasks=len(cells),
            grid=f"a grid of {cells.shape} cells, {block} voxels each",
            voxels=job.region.voxels,
            bytes_read=job.region.voxels * voxel_bytes,
            memory=self._memory(block, voxel_bytes),
            memory_target=self.memory_target,
            outputs=(f"{job.meshes.directory}: fragments, {how}",),
            notes=tuple(self._notes(job)),
        )

    def prepare(self) -> None:
        """Write the mesh directory's info, and its name into the layer's info."""
        from igneous_airflow.storage.info import name_mesh_directory
        from igneous_airflow.storage.mesh_info import spatial_index_entry

        job = self._job()
        index = spatial_index_entry(job.scale, job.grid.cell) if self.spatial_index else None
        job.meshes.add_part(job.grid.with_part(job.region), index)
        name_mesh_directory(job.layer.folder, job.meshes.directory)

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the volume, on one grid whatever the bounds."""
        return self._job().cells

    def run(self, cell: BoundingBox) -> Work:
        """Write the fragment of every label in a block, then say which these are."""
        from igneous_airflow.kernels.meshing import Placement, surfaces
        from igneous_airflow.storage.mesh_info import physical_name
        from igneous_airflow.storage.meshes import Record
        from igneous_airflow.storage.overlap import Overlap

        job = self._job()
        meshes, sizes = job.meshes, list[int]()
        boxes: dict[int, list[float]] = {}
        error = float(self.max_simplification_error) if self.simplification else None
        with Overlap(job.layer.overlap_width) as overlap:
            block, origin = self._block(job, cell, overlap)
            place = Placement((origin.x, origin.y, origin.z), job.scale.resolution)

            def write(label: int, mesh: tuple[Any, Any]) -> None:
                sizes.append(meshes.write_fragment(label, cell, mesh, self.compress))

            for mesh in surfaces(block, place, error):
                boxes[mesh.label] = mesh.box
                overlap.submit(partial(write, mesh.label, (mesh.vertices, mesh.faces)))
        if self.spatial_index:
            name = physical_name(cell, job.scale.resolution)
            sizes.append(meshes.write_spatial_index(name, boxes, self.compress))
        meshes.write_record(cell, Record(self._fingerprint(), tuple(boxes)))
        return Work(voxels=cell.voxels, chunks_written=len(boxes), bytes_written=sum(sizes))

    def finish(self, by: str, account: Account | None = None) -> Audit:  # noqa: ARG002
        """Check that every fragment exists, remove those of earlier parameters, record it.

        The proof: each cell left a record of its labels, made with these parameters, and a listing
        of the directory has a fragment for each of them.
        """
        from igneous_airflow.storage.provenance import record_processing

        job = self._job()
        found, missing, obsolete = job.meshes.compare(self._recorded(job))
        if missing:
            boxes = {BoundingBox.parse(name.rpartition(":")[2]) for name in missing}
            raise AuditFailed(
                f"{len(missing):,} fragments in {job.meshes.url} are missing although every task "
                f"reported success: {', '.join(missing[:_NAMED_AT_MOST])}.",
                sorted(map(job.cells.index_of, boxes)),
            )
        job.meshes.delete(obsolete)
        record_processing(job.layer.folder, self.provenance(), by)
        return Audit(outputs={job.meshes.directory: found}, files="fragments")

    def _job(self) -> _Job:
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.mesh_info import MeshInfo
        from igneous_airflow.storage.meshes import MeshFolder

        layer = Layer.open(self.layer)
        scale = layer.scale(self.mip)
        mip = layer.info.scales.index(scale)
        directory = self.mesh_dir or layer.info.mesh_directory
        default = f"mesh_mip_{mip}_err_{self.max_simplification_error}"
        meshes = MeshFolder(layer.folder, folder_in_layer(directory or default))
        cell, present = self.shape, meshes.read_info()
        if cell is None and present is not None and present.mip == mip and not self.new_grid:
            cell = present.cell
        cell = cell or self._largest_cell(scale, layer.dtype.itemsize)
        region = scale.bounds
        if self.bounds is not None:
            touched = BoundingBox.parse(self.bounds).expanded_to_grid(cell, region.min)
            region = touched.intersection(region)
        return _Job(layer, scale, meshes, MeshInfo(mip, cell), region)

    def _memory(self, cell: Vec3, voxel_bytes: int) -> int:
        return (cell + 2).product * (voxel_bytes + _BYTES_A_VOXEL)

    def _largest_cell(self, scale: "Scale", voxel_bytes: int) -> Vec3:
        """The largest cell that fits into the memory target, halved where it is longest."""
        cell = _LARGEST_CELL
        while self._memory(cell.minimum(scale.size), voxel_bytes) > self.memory_target:
            longest = max(range(3), key=lambda axis: (cell.minimum(scale.size)[axis], axis))
            halves = [edge // 2 if axis == longest else edge for axis, edge in enumerate(cell)]
            cell = Vec3(*halves).maximum(1)
            if cell == Vec3.full(1):
                break
        return cell

    def _refusals(self, job: _Job) -> Iterator[str]:
        info, scale = job.layer.info, job.scale
        if info.layer_type != "segmentation":
            yield f"{self.layer} is of type {info.layer_type!r}: only a segmentation has objects"
        if job.layer.dtype.kind not in "ui" or info.channels != 1:
            yield f"{info.channels} channel(s) of {info.data_type} voxels are not labels"
        if scale.sharded:
            yield f"scale {scale.key} is sharded; only unsharded scales can be read"
        if not scale.bounds:
            yield f"scale {scale.key} has no voxels: its size is {scale.size}"
        if self.bounds is not None and not scale.bounds.contains(BoundingBox.parse(self.bounds)):
            yield f"bounds: {self.bounds} reaches out of the volume, which is {scale.bounds}"
        memory = self._memory(job.grid.cell.minimum(scale.size), job.layer.dtype.itemsize)
        if memory > self.memory_target:
            yield (
                f"a task needs {human_bytes(memory)} of memory, and memory_target allows "
                f"{human_bytes(self.memory_target)}: choose a smaller shape"
            )
        yield from self._conflicts(job)

    def _conflicts(self, job: _Job) -> Iterator[str]:
        """Name what is in the way of these meshes in the layer."""
        directory, named = job.meshes.directory, job.layer.info.mesh_directory
        if named not in (None, directory):
            yield (
                f"mesh_dir: the layer's info names {named}, and viewers look there: leave mesh_dir "
                f"empty, or remove 'mesh' from {self.layer}/info to use {directory}"
            )
        if job.layer.info.scale_in(directory) is not None:
            yield f"mesh_dir: {directory} holds the chunks of a scale"
        present = job.meshes.read_info()
        if present is not None and not present.has_grid_of(job.grid) and not self.new_grid:
            yield (
                f"{job.meshes.url} holds meshes of {present}, these would be of {job.grid}: mixed, "
                "they would overlap. Use that mip and shape, or set new_grid to replace them"
            )

    def _notes(self, job: _Job) -> Iterator[str]:
        if self.bounds is not None and self.bounds != str(job.region):
            yield f"bounds: the cells that {self.bounds} touches are {job.region}"
        if self.mesh_dir is None and job.layer.info.mesh_directory is not None:
            yield f"the layer's info names {job.meshes.directory} for its meshes"
        if max(job.grid.cell - _LARGEST_CELL.maximum(Vec3(1020, 1020, 508))) > 0:
            yield "shape: blocks beyond 1020,1020,508 take twice the time"

    def _block(self, job: _Job, cell: BoundingBox, overlap: "Overlap") -> "tuple[LabelBlock, Vec3]":
        """The numbered labels of a cell, with those it shares with the next ones, and its origin.

        Where the volume ends, a plane of background closes the surfaces.
        """
        from igneous_airflow.kernels.meshing import LabelBlock, Selection

        volume = job.scale.bounds
        box = BoundingBox(cell.min, cell.max + 1).intersection(volume)
        missing = 0 if self.fill_missing else None
        voxels = job.layer.read(job.scale, box, missing=missing, overlap=overlap)
        selection = Selection(self.remap_table, self.object_ids, self.exclude_object_ids)
        block = LabelBlock.of(voxels[..., 0], selection)
        ends = [
            (box.min[axis] == volume.min[axis], box.max[axis] == volume.max[axis])
            for axis in range(3)
        ]
        if self.dust_threshold > 1:
            block = block.without_dust(self.dust_threshold, cell.slices_within(box), ends)
        if not self.closed_dataset_edges:
            return block, box.min
        return block.padded(ends), box.min - Vec3(*(int(low) for low, _ in ends))

    def _recorded(self, job: _Job) -> dict[str, tuple[int, ...]]:
        """The labels that each cell left fragments of; raises AuditFailed for cells undone."""
        from igneous_airflow.storage.overlap import Overlap

        mine, labels, undone = self._fingerprint(), {}, []
        with Overlap(job.layer.overlap_width) as overlap:
            for cell, record in overlap.map(job.meshes.read_record, job.cells):
                if record is None or record.parameters != mine:
                    undone.append(cell)
                else:
                    labels[str(cell)] = record.labels
        if undone:
            raise AuditFailed(
                f"{len(undone):,} cells of {job.meshes.url} have not been meshed with these "
                f"parameters although every task reported success: "
                f"{', '.join(map(str, undone[:_NAMED_AT_MOST]))}.",
                [job.cells.index_of(cell) for cell in undone],
            )
        return labels

    def _fingerprint(self) -> str:
        """The parameters that fragments depend on, in short."""
        parameters = self.model_dump(mode="json", exclude=_NOT_IN_FRAGMENTS)
        return sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
