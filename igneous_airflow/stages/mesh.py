"""Mesh: the surface of every label of a segmentation, in fragments, a cell at a time."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from igneous_airflow.errors import IgneousError
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
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.proof import Account
from igneous_airflow.stage import Audit, Plan, Stage, Work

if TYPE_CHECKING:
    from igneous_airflow.kernels.meshing import LabelMesh
    from igneous_airflow.meshes.cutout import MeshOptions
    from igneous_airflow.meshes.place import MeshPlace

#: Parameters that do not change a fragment.
_NOT_IN_FRAGMENTS = {"layer", "bounds", "mesh_dir", "compress", "new_grid", "memory_target"}


class Mesh(Stage):
    """Make the surface of every label of a segmentation, so that a viewer can show it in 3-D.

    Tasks are blocks of the volume. Each leaves a fragment for every label in it; `mesh_manifest`
    puts the fragments of a label together. Fragments of neighbouring blocks meet exactly.
    """

    name: ClassVar[str] = "mesh"
    followed_by: ClassVar[str] = "mesh_manifest"

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
            description="How far in nm a simplified surface is from the exact one at most, but for "
            "single tips of thin threads. Nearly all points are much nearer.",
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
            "shape. `mesh_manifest` then has to be told to remove the stale fragments; the spatial "
            "index of the old grid is removed at once.",
            json_schema_extra=section(HOW),
        ),
    ] = False
    shape: Annotated[
        PositiveVec3 | None,
        Field(
            title="Task shape",
            description="Voxels of the block of one task, x,y,z. Empty: as the meshes that are "
            "there, else 512,512,256 or what fits into the memory target.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None
    memory_target: MemoryTarget = 3_500_000_000

    @property
    def output(self) -> str:
        """The layer."""
        return self.layer

    def resolved(self) -> Self:
        """Replace mip -1, and note the directory and the shape, which `prepare` may change."""
        place = self._place()
        found = {"mip": place.info.mip, "shape": place.info.cell}
        return self.model_copy(update={**found, "mesh_dir": place.folder.directory})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            place = self._place()
            refusals = list(place.problems())
            if not refusals:
                place.layer.folder.check_writable()
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if refusals:
            return Plan(stage=self.name, refusals=tuple(refusals))
        cells, most = place.cells, self.max_simplification_error
        return Plan(
            stage=self.name,
            writes_to=place.layer.folder.url,
            tasks=len(cells),
            grid=f"a grid of {cells.shape} cells, {_block(place)} voxels each",
            voxels=place.region.voxels,
            bytes_read=place.region.voxels * place.layer.dtype.itemsize,
            memory=place.bytes_in_memory,
            memory_target=self.memory_target,
            outputs=(
                f"{place.folder.directory}: fragments, "
                + (f"within {most} nm but for single tips" if self.simplification else "exact"),
            ),
            notes=tuple(self._notes(place)),
        )

    def prepare(self) -> None:
        """Write the mesh directory's info, and its name into the layer's info.

        Cells of the region that were meshed with other parameters count as not meshed from now on.
        """
        from igneous_airflow.meshes.audit import remove_other_records
        from igneous_airflow.storage.info import name_mesh_directory
        from igneous_airflow.storage.mesh_info import spatial_index_entry
        from igneous_airflow.storage.overlap import Overlap

        place = self._place()
        index = spatial_index_entry(place.scale, place.info.cell) if self.spatial_index else None
        place.folder.add_part(place.info, index)
        with Overlap(place.layer.overlap_width) as overlap:
            remove_other_records(place.folder, place.cells, self._fingerprint(), overlap)
        name_mesh_directory(place.layer.folder, place.folder.directory)

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the volume, on one grid whatever the bounds."""
        return self._place().cells

    def run(self, cell: BoundingBox) -> Work:
        """Write the fragment of every label in a block, then a record of which these are."""
        from igneous_airflow.kernels.meshing import surfaces
        from igneous_airflow.meshes.cutout import read_labels
        from igneous_airflow.storage.mesh_info import spatial_index_name
        from igneous_airflow.storage.meshes import Record, encode_fragment
        from igneous_airflow.storage.overlap import Overlap

        place = self._place()
        layer, scale, folder = place.layer, place.scale, place.folder
        error = float(self.max_simplification_error) if self.simplification else None
        boxes: dict[int, list[int]] = {}
        sizes: list[int] = []

        def write(mesh: "LabelMesh") -> None:
            content = encode_fragment(mesh.vertices, mesh.faces)
            sizes.append(folder.write_fragment(mesh.label, cell, content, self.compress))

        with Overlap(layer.overlap_width) as overlap:
            labels = read_labels(layer, scale, cell, self._options(), overlap)
            for mesh in surfaces(*labels, error):
                boxes[mesh.label] = mesh.box
                overlap.submit(partial(write, mesh))
        if self.spatial_index:
            name = spatial_index_name(cell, scale)
            sizes.append(folder.write_spatial_index(name, boxes, self.compress))
        folder.write_record(cell, Record(self._fingerprint(), tuple(boxes)))
        return Work(voxels=cell.voxels, chunks_written=len(boxes), bytes_written=sum(sizes))

    def finish(self, by: str, account: Account | None = None) -> Audit:  # noqa: ARG002
        """Check that every fragment exists, remove those of earlier parameters, record it.

        The proof: each cell left a record of its labels, made with these parameters, and a listing
        of the directory has a fragment for each of them.
        """
        from igneous_airflow.meshes.audit import audit_fragments, recorded_labels
        from igneous_airflow.storage.overlap import Overlap
        from igneous_airflow.storage.provenance import record_processing

        place = self._place()
        folder, cells = place.folder, place.cells
        with Overlap(place.layer.overlap_width) as overlap:
            labels = recorded_labels(folder, cells, self._fingerprint(), overlap)
        count = audit_fragments(place, labels, spatial_index=self.spatial_index)
        record_processing(place.layer.folder, self.provenance(), by)
        return Audit(outputs={folder.directory: count}, files="fragments")

    def _place(self) -> "MeshPlace":
        from igneous_airflow.meshes.place import MeshRequest, find_place

        request = MeshRequest(
            mip=self.mip,
            bounds=self.bounds,
            directory=self.mesh_dir,
            error=self.max_simplification_error,
            shape=self.shape,
            new_grid=self.new_grid,
            memory=self.memory_target,
        )
        return find_place(self.layer, request)

    def _options(self) -> "MeshOptions":
        from igneous_airflow.kernels.meshing import Selection
        from igneous_airflow.meshes.cutout import MeshOptions

        return MeshOptions(
            selection=Selection(self.remap_table, self.object_ids, self.exclude_object_ids),
            fewest_voxels=self.dust_threshold,
            closed_edges=self.closed_dataset_edges,
            fill_missing=self.fill_missing,
        )

    def _fingerprint(self) -> str:
        """The parameters that fragments depend on, in short."""
        parameters = self.model_dump(mode="json", exclude=_NOT_IN_FRAGMENTS)
        return sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]

    def _notes(self, place: "MeshPlace") -> Iterator[str]:
        from igneous_airflow.meshes.place import FASTEST_CELL

        if self.bounds is not None and self.bounds != str(place.region):
            yield f"bounds: the cells that {self.bounds} touches are {place.region}"
        directory = place.folder.directory
        if directory == place.layer.info.mesh_directory:
            yield f"the layer's info names {directory} for its meshes, so they go there"
        if self.simplification and self.max_simplification_error < max(place.scale.resolution):
            yield (
                f"a simplification error of {self.max_simplification_error} nm is less than a "
                "voxel, so that meshes stay large: a coarser layer asks for a larger error"
            )
        if max(_block(place) - FASTEST_CELL) > 0:
            yield f"shape: blocks of more than {FASTEST_CELL} voxels take twice the time"


def _block(place: "MeshPlace") -> Vec3:
    """The size of the largest cell."""
    return place.info.cell.minimum(place.region.size)
