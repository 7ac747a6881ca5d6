"""Whether every fragment that should be there is, as records and files of the cells tell."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial

from igneous_airflow.errors import AuditFailed, InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.meshes.scope import Scope
from igneous_airflow.proof import Account
from igneous_airflow.storage.mesh_info import SPATIAL_INDEX, spatial_index_name
from igneous_airflow.storage.meshes import MeshFolder, Record, read_name
from igneous_airflow.storage.overlap import Overlap

_NAMED_AT_MOST = 10


@dataclass(slots=True)
class _Found:
    """What a listing of the directory has, compared with the records of cells."""

    missing: dict[str, str] = field(default_factory=dict)  # files, and their cells
    obsolete: dict[int, list[str]] = field(default_factory=dict)  # cells, by label
    unwanted: set[str] = field(default_factory=set)  # files of the spatial index


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """The bytes that tasks say they wrote: of fragments by cell and label, of index files by name.

    Eight bytes a fragment; 0 where a task does not tell.
    """

    fragments: "Mapping[str, array[int]]"
    others: Mapping[str, int]

    @classmethod
    def recorded(
        cls, folder: MeshFolder, account: Account | None, records: Mapping[str, Record]
    ) -> "StoredSizes":
        """Read them from the receipts; none without an account. Records are by cells, in order."""
        fragments, others = dict[str, "array[int]"](), dict[str, int]()
        cells = list(records)
        for task in account.tasks() if account else ():
            for block in task.blocks:
                cell = cells[block]
                names = (folder.fragment_name(label, cell) for label in records[cell].labels)
                fragments[cell] = array("q", [(task.files or {}).get(name, 0) for name in names])
            start = f"{folder.directory}/"
            others |= {
                name.removeprefix(start): size
                for name, size in (task.files or {}).items()
                if name.endswith(SPATIAL_INDEX)
            }
        return cls(fragments, others)

    def is_whole(self, cell: str, index: int, size: int) -> bool:
        """Whether a fragment, by its place among the labels of its cell, has the right size."""
        recorded = self.fragments[cell][index] if cell in self.fragments else 0
        return size == recorded if recorded else size > 0


def audit_fragments(
    place: MeshPlace,
    records: Mapping[str, Record],
    stored: StoredSizes,
    scope: Scope,
    *,
    spatial_index: bool,
) -> int:
    """Check that each cell has a fragment of each of its labels; remove what the run has replaced.

    That are fragments of labels in its scope which the cell does not have any more; they leave
    their manifests first. Records are by cells, boxes as text, in their order. Each cell has a file
    of the spatial index if there is to be one; index files that are stale are removed. The
    directory is listed once. Returns the number of fragments. Raises AuditFailed naming what is
    missing, and the cells that lack it.
    """
    folder = place.folder
    indices = {spatial_index_name(cell, place.scale): str(cell) for cell in place.cells}
    found = _compare(folder, records, stored, scope, indices if spatial_index else {})
    if missing := found.missing:
        lacking = set(missing.values())
        raise AuditFailed(
            f"{len(missing):,} files missing, empty or cut in {folder.url} although every task "
            f"reported success: {', '.join([*missing][:_NAMED_AT_MOST])}.",
            [number for number, cell in enumerate(records) if cell in lacking],
        )
    with Overlap(place.layer.overlap_width) as overlap:
        for label, cells in found.obsolete.items():
            overlap.submit(partial(folder.drop_fragments, label, cells))
    stale = _stale_indices(place, found.unwanted, indices.keys())
    # those of cells of which some labels were meshed tell of the others as well
    folder.delete(stale if scope.is_everything else stale - indices.keys())
    return sum(len(record.labels) for record in records.values())


def _compare(
    folder: MeshFolder,
    records: Mapping[str, Record],
    stored: StoredSizes,
    scope: Scope,
    indices: Mapping[str, str],
) -> _Found:
    """Compare what is there with the records; `indices` are the index files that should be."""
    seen = {cell: bytearray(len(record.labels)) for cell, record in records.items()}
    dust = {cell: frozenset(record.left_out) for cell, record in records.items()}
    unseen, found = dict(indices), _Found()
    for name, size in folder.sizes():
        if name.endswith(SPATIAL_INDEX):
            if name not in indices:
                found.unwanted.add(name)
            elif size and size == stored.others.get(name, size):
                unseen.pop(name, None)
            continue
        label, cell = read_name(name)
        if cell not in records:
            continue
        labels = records[cell].labels
        index = bisect_left(labels, label)
        if labels[index : index + 1] == (label,):
            seen[cell][index] = stored.is_whole(cell, index, size)
        elif scope.replaces(label, dust[cell]):
            found.obsolete.setdefault(label, []).append(cell)
    found.missing = {
        f"{label}:0:{cell}": cell
        for cell, record in records.items()
        for label, is_seen in zip(record.labels, seen[cell], strict=True)
        if not is_seen
    } | unseen
    return found


def _stale_indices(place: MeshPlace, found: set[str], own: Set[str]) -> set[str]:
    """Which files of the spatial index are to go, of those that this region does not want.

    These are the region's own, and, where the grid is new, all that lie in none of its parts.
    """
    # read after the listing: parts that others have begun meanwhile are in it
    info = place.folder.read_info()
    if not place.request.new_grid or info is None or not info.has_grid_of(place.info):
        return found & own
    grid = Grid(place.scale.bounds, info.cell)
    alive = {
        spatial_index_name(cell, place.scale)
        for part in info.parts
        for cell in grid.overlapping(part)
    }
    return found - (alive - own)


def recorded_labels(
    folder: MeshFolder, cells: Iterable[BoundingBox], parameters: str, overlap: Overlap
) -> dict[str, Record]:
    """What each cell left, by its text.

    Raises AuditFailed for cells that have not been meshed, or not with these parameters.
    """
    records: dict[str, Record] = {}
    undone: dict[int, str] = {}
    for number, (cell, record) in enumerate(overlap.map(folder.readable_record, cells)):
        if record is None or record.parameters != parameters:
            undone[number] = str(cell)
        else:
            records[str(cell)] = record
    if undone:
        raise AuditFailed(
            f"{len(undone):,} cells of {folder.url} have not been meshed with these parameters "
            f"although every task reported success: "
            f"{', '.join([*undone.values()][:_NAMED_AT_MOST])}.",
            list(undone),
        )
    return records


def remove_other_records(
    folder: MeshFolder, cells: Iterable[BoundingBox], parameters: str, overlap: Overlap
) -> None:
    """Remove records of cells that were not made with these parameters.

    Without its record a cell counts as not meshed, so that no manifest mixes old and new fragments.
    """
    recorded = folder.recorded()

    def is_other(cell: BoundingBox) -> bool:
        try:
            record = folder.read_record(cell)
        except InvalidInfo:  # broken, and written again by the cell's task
            return True
        return record is not None and record.parameters != parameters

    there = (cell for cell in cells if str(cell) in recorded)
    folder.delete_records(cell for cell, other in overlap.map(is_other, there) if other)
