"""Whether every fragment that should be there is, as records and files of the cells tell."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set

from igneous_airflow.errors import AuditFailed, InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.storage.mesh_info import SPATIAL_INDEX, spatial_index_name
from igneous_airflow.storage.meshes import MeshFolder, read_name
from igneous_airflow.storage.overlap import Overlap

_NAMED_AT_MOST = 10


def audit_fragments(
    place: MeshPlace, expected: Mapping[str, Sequence[int]], *, spatial_index: bool
) -> int:
    """Check that each cell has a fragment of each of its labels, and remove those of other labels.

    Cells are boxes as text, in their order, labels in ascending order. Each has a file of the
    spatial index if there is to be one; index files that are stale are removed. The directory is
    listed once. Returns the number of fragments. Raises AuditFailed naming what is missing, and the
    cells that lack it.
    """
    folder = place.folder
    seen = {cell: bytearray(len(labels)) for cell, labels in expected.items()}
    indices = {spatial_index_name(cell, place.scale): str(cell) for cell in place.cells}
    unseen = dict(indices) if spatial_index else {}
    obsolete, unwanted = list[str](), set[str]()
    for name in folder.names():
        if name.endswith(SPATIAL_INDEX):
            if unseen.pop(name, None) is None:
                unwanted.add(name)
            continue
        label, cell = read_name(name)
        if cell not in expected:
            continue
        index = bisect_left(expected[cell], label)
        if expected[cell][index : index + 1] == (label,):
            seen[cell][index] = True
        else:
            obsolete.append(name)
    missing = {
        f"{label}:0:{cell}": cell
        for cell, labels in expected.items()
        for label, is_seen in zip(labels, seen[cell], strict=True)
        if not is_seen
    }
    if missing := missing | unseen:
        lacking = set(missing.values())
        raise AuditFailed(
            f"{len(missing):,} files in {folder.url} are missing although every task reported "
            f"success: {', '.join([*missing][:_NAMED_AT_MOST])}.",
            [number for number, cell in enumerate(expected) if cell in lacking],
        )
    folder.delete([*obsolete, *_stale_indices(place, unwanted, indices.keys())])
    return sum(map(len, expected.values()))


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
) -> dict[str, tuple[int, ...]]:
    """The labels that each cell left fragments of, by its text.

    Raises AuditFailed for cells that have not been meshed, or not with these parameters.
    """
    labels: dict[str, tuple[int, ...]] = {}
    undone: dict[int, str] = {}
    for number, (cell, record) in enumerate(overlap.map(folder.read_record, cells)):
        if record is None or record.parameters != parameters:
            undone[number] = str(cell)
        else:
            labels[str(cell)] = record.labels
    if undone:
        raise AuditFailed(
            f"{len(undone):,} cells of {folder.url} have not been meshed with these parameters "
            f"although every task reported success: "
            f"{', '.join([*undone.values()][:_NAMED_AT_MOST])}.",
            list(undone),
        )
    return labels


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
        except InvalidInfo:  # broken, and written anew by the cell's task
            return True
        return record is not None and record.parameters != parameters

    there = (cell for cell in cells if str(cell) in recorded)
    folder.delete_records(cell for cell, other in overlap.map(is_other, there) if other)
