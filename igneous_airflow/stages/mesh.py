"""Mesh: the surface of every label of a segmentation, in fragments, a cell at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
    Confirm,
    FillMissing,
    FolderInLayer,
    KeepDeleted,
    LabelList,
    LabelTable,
    LayerUrl,
    MemoryTarget,
    Mip,
    PositiveVec3,
    TrashEntry,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.proof import Account
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.storage.methods import PERMISSIONS

if TYPE_CHECKING:
    from igneous_airflow.meshes.cutout import MeshOptions
    from igneous_airflow.meshes.place import MeshPlace
    from igneous_airflow.meshes.replacing import OldMeshes
    from igneous_airflow.meshes.scope import Scope
    from igneous_airflow.storage.mesh_info import Begun
    from igneous_airflow.storage.trash import Trash

#: Parameters that do not change a fragment.
_NOT_IN_FRAGMENTS = PERMISSIONS | {
    "layer", "bounds", "mesh_dir", "compress", "new_grid", "memory_target"
}  # fmt: skip


class Mesh(Stage):
    """Make the surface of every label of a segmentation, so that a viewer can show it in 3-D.

    Tasks are blocks of the volume. Each leaves a fragment for every label in it; `mesh_manifest`
    puts the fragments of a label together. Fragments of neighbouring blocks meet exactly. A run of
    some labels or of a part leaves all other meshes as they are.
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
            "42; labels not in the table get no mesh, or keep theirs. Empty: names stay.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    object_ids: Annotated[
        LabelList | None,
        Field(
            title="Objects",
            description="Labels to mesh, as 17,42; the meshes of others stay. Empty: all.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    exclude_object_ids: Annotated[
        LabelList | None,
        Field(
            title="Excluded objects",
            description="Labels that get no mesh, as 17,42, or keep the one that they have.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    dust_threshold: Annotated[
        int,
        Field(
            ge=0,
            title="Dust threshold",
            description="Leave out objects of fewer voxels in a task's block, unless they go on in "
            "a neighbouring block. Meshes that they have stay.",
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
            description="Replace the meshes in the directory, those of all labels, although they "
            "are of another mip or task shape. With `keep_deleted` they go to the trash of a layer "
            "on disk; otherwise `mesh_manifest` has to be told to remove the stale fragments, and "
            "the spatial index of the old grid is removed at once.",
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
    confirm: Confirm = False
    keep_deleted: Annotated[
        KeepDeleted,
        Field(
            description="Move meshes that are replaced all together to the folder .trash of the "
            "layer, from where `igneous-airflow trash restore` brings them back: with `new_grid`, "
            "or where all labels of the whole volume are meshed with other parameters. Only on "
            "disks.",
        ),
    ] = True
    trash_entry: TrashEntry = None

    @property
    def output(self) -> str:
        """The layer."""
        return self.layer

    def resolved(self) -> Self:
        """Replace mip -1, and note the directory and the shape, which `prepare` may change.

        Notes as well where meshes are kept that are replaced.
        """
        from igneous_airflow.storage.trash import new_entry_name

        place = self._place()
        found = {"mip": place.info.mip, "shape": place.info.cell}
        entry = self.trash_entry or new_entry_name()
        there = {"mesh_dir": place.folder.directory, "trash_entry": entry}
        return self.model_copy(update=found | there)

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            place = self._place()
            refusals = tuple(place.problems())
            if not refusals:
                if trash := self._trash(place):
                    trash.require_free(self.launch.id)
                place.layer.folder.check_writable([place.folder.directory])
                return self._asking(self._counted(place), place)
        except IgneousError as error:
            refusals = (str(error),)
        return Plan(stage=self.name, refusals=refusals)

    def _counted(self, place: "MeshPlace") -> Plan:
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

    def _asking(self, plan: Plan, place: "MeshPlace") -> Plan:
        """The plan with the meshes that it replaces."""
        from igneous_airflow.confirmation import Replaced, asking
        from igneous_airflow.meshes.replacing import find_old

        old = find_old(place, self._scope())
        if old is None:
            return plan
        directory = place.folder.directory
        method = self.provenance() if self._has_begun(place) else old.method
        replaced = Replaced(directory, old.found, method, kind="fragment", others=old.others)
        plan = asking(plan, self, f"meshes in {place.folder.url}", [replaced])
        return plan.model_copy(update={"notes": (*plan.notes, *self._fate(place, old))})

    def _fate(self, place: "MeshPlace", old: "OldMeshes") -> Iterator[str]:
        """What becomes of meshes that are replaced."""
        from igneous_airflow.meshes.keeping import fate

        yield fate(place, moves=self._moves(place, old), kept=self.keep_deleted)
        if place.has_other_grid and not self._scope().is_everything:
            yield "the meshes of labels that this run does not make go too: their grid is replaced"

    def prepare(self) -> None:
        """Write the mesh directory's info, and its name into the layer's info.

        Cells of the region that were meshed with other parameters count as not meshed from now on.
        Where all meshes are replaced, those that are there go to the trash first, if they are kept.
        """
        from igneous_airflow.meshes.audit import remove_other_records
        from igneous_airflow.meshes.keeping import keys_of_moved, move_meshes
        from igneous_airflow.meshes.replacing import find_old
        from igneous_airflow.storage.info import name_mesh_directory
        from igneous_airflow.storage.mesh_info import spatial_index_entry
        from igneous_airflow.storage.overlap import Overlap
        from igneous_airflow.storage.provenance import count_entries

        place = self._place()
        has_index = self._has_index(place)
        index = spatial_index_entry(place.scale, place.info.cell) if has_index else None
        trash = self._trash(place)
        if trash and self._moves(place, find_old(place, self._scope())):
            move_meshes(place, trash, self.launch.run, self.launch.id)
        elif trash and trash.holds(place.folder.directory):  # it was stopped after that
            trash.complete()
        start = keys_of_moved(place, trash) if trash else {}
        begun = replace(self._begun(place), entries=count_entries(place.layer.folder))
        place.folder.add_part(place.info, index, begun, start)
        if self._scope().is_everything:
            with Overlap(place.layer.overlap_width) as overlap:
                remove_other_records(place.folder, place.cells, self._fingerprint(), overlap)
        name_mesh_directory(place.layer.folder, place.folder.directory)

    def _trash(self, place: "MeshPlace") -> "Trash | None":
        """Where meshes are kept that are replaced; None where they are not."""
        from igneous_airflow.storage.trash import Trash

        if not self.keep_deleted or self.trash_entry is None or not place.layer.folder.renames:
            return None
        return Trash(place.layer.folder, self.trash_entry)

    def _moves(self, place: "MeshPlace", old: "OldMeshes | None") -> bool:
        """Whether the directory goes to the trash: its meshes are others', and all replaced."""
        from igneous_airflow.confirmation import is_own

        trash = self._trash(place)
        if old is None or trash is None or self._has_begun(place):
            return False
        if trash.holds(place.folder.directory):  # moved by this run before
            return False
        if place.has_other_grid:
            return self.new_grid
        return self._scope().is_everything and place.is_whole and not is_own(self, old.method)

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the volume, on one grid whatever the bounds."""
        return self._place().cells

    def run(self, cell: BoundingBox) -> Work:
        """Write the fragment of every label in a block, then a record of which these are."""
        from igneous_airflow.meshes.cells import CellMesher

        place = self._place()
        mesher = CellMesher(
            place,
            self._options(),
            self._scope(),
            parameters=self._fingerprint(),
            error=float(self.max_simplification_error) if self.simplification else None,
            compress=self.compress,
            has_index=self._has_index(place),
        )
        sizes, fragments = mesher.mesh(cell)
        meshes = sizes.keys() - {place.folder.record_name(cell)}
        return Work(
            voxels=cell.voxels,
            chunks_written=fragments,
            bytes_written=sum(sizes[name] for name in meshes),
            files=sizes,
        )

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every fragment exists, remove those that are replaced by none, record it.

        The proof: each cell left a record of its labels, made with these parameters, and a listing
        of the directory has a fragment for each of them, with the bytes that its task wrote.
        """
        from igneous_airflow.confirmation import in_trash
        from igneous_airflow.meshes.audit import StoredSizes, audit_fragments, meshed_blocks
        from igneous_airflow.storage.overlap import Overlap
        from igneous_airflow.storage.provenance import record_processing

        place = self._place()
        folder, cells = place.folder, place.cells
        with Overlap(place.layer.overlap_width) as overlap:
            blocks = meshed_blocks(folder, cells, self._fingerprint(), overlap)
        has_index = self._has_index(place)
        stored = StoredSizes.told(folder, account, blocks)
        count = audit_fragments(place, blocks, stored, self._scope(), spatial_index=has_index)
        written = {folder.directory: place.region}
        record_processing(place.layer.folder, self.provenance(), by, written=written)
        folder.end_part(self._begun(place))  # last: until then these meshes are this run's
        folder.remove_abandoned()
        moved = in_trash(self._trash(place))
        return Audit(outputs={folder.directory: count}, files="fragments", moved=moved)

    def _scope(self) -> "Scope":
        """The labels whose meshes this run makes or replaces."""
        from igneous_airflow.meshes.scope import Scope

        return Scope.of(
            self.remap_table, self.object_ids, self.exclude_object_ids, self.dust_threshold
        )

    def _begun(self, place: "MeshPlace") -> "Begun":
        from igneous_airflow.storage.mesh_info import Begun

        return Begun(self._fingerprint(), place.region, self._scope().is_everything)

    def _has_begun(self, place: "MeshPlace") -> bool:
        """Whether a run of these parameters has begun here, and others have finished none since."""
        from igneous_airflow.storage.provenance import written_since

        present, own = place.present, self._begun(place)
        if present is None or not present.has_grid_of(place.info):
            return False
        folder, directory = place.layer.folder, place.folder.directory
        return any(
            not written_since(folder, directory, place.region, begun.entries)
            for begun in present.unfinished
            if begun == own
        )

    def _has_index(self, place: "MeshPlace") -> bool:
        """Whether cells get a spatial index: a run of some labels goes by what is there."""
        present = place.present
        if self._scope().is_everything or present is None or place.has_other_grid:
            return self.spatial_index
        return "spatial_index" in present.others

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
        parameters = self.model_dump(mode="json", exclude=set(_NOT_IN_FRAGMENTS))
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
