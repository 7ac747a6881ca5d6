"""Whether every fragment that should be there is, as records and files of the blocks tell."""

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
from igneous_airflow.storage.mesh_record import Record
from igneous_airflow.storage.meshes import MeshFolder, read_name
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.wording import counted

_NAMED_AT_MOST = 10
_MISSING, _WHOLE, _WRONG = range(3)  # what a listing tells of a file
_NOT_TOLD = -1  # bytes, where receipts do not tell


@dataclass(frozen=True, slots=True)
class MeshedBlock:
    """What a block has of a run: its labels, in order, and whether no later run was there."""

    record: Record
    labels: tuple[int, ...]
    is_latest: bool

    @classmethod
    def of(cls, record: Record | None, parameters: str) -> "MeshedBlock | None":
        """What a record tells of the run of some parameters; None when it was not there."""
        labels = None if record is None else record.labels_of(parameters)
        if record is None or labels is None:
            return None
        return cls(record, labels, record.parameters == parameters)

    def lacks(self, label: int, scope: Scope) -> bool:
        """Whether the run has found that there is no such label here any more."""
        if self.record.names(label) or (scope.dust and not self.is_latest):
            return False  # of a later run it is not known what was dust for this one
        return scope.replaces(label, self.record.left_out)


@dataclass(slots=True)
class _Listed:
    """What a listing of the directory has, compared with the blocks of a run."""

    fragments: dict[str, bytearray]  # by block, in the order of its labels
    indices: dict[str, int] = field(default_factory=dict)  # files of the spatial index
    obsolete: dict[int, list[str]] = field(default_factory=dict)  # blocks, by label
    unwanted: set[str] = field(default_factory=set)  # files of the spatial index


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """The bytes that tasks say they wrote: of fragments by block and label, of index files by name.

    Eight bytes a fragment. `unrecorded` are fragments that tasks wrote and that no record names,
    with their blocks.
    """

    fragments: "dict[str, array[int]]"
    indices: dict[str, int]
    unrecorded: dict[str, str]

    @classmethod
    def told(
        cls, folder: MeshFolder, account: Account | None, blocks: Mapping[str, MeshedBlock]
    ) -> "StoredSizes":
        """Read them from the receipts; none without an account. Blocks are in their order."""
        sizes = cls({}, {}, {})
        boxes, start = list(blocks), f"{folder.directory}/"
        for task in account.tasks() if account else ():
            if task.files is not None:
                files = {name.removeprefix(start): size for name, size in task.files.items()}
                sizes._add(files, [boxes[block] for block in task.blocks], blocks)
        return sizes

    def _add(
        self, files: Mapping[str, int], boxes: Iterable[str], blocks: Mapping[str, MeshedBlock]
    ) -> None:
        """Take the files of one task, by their names in the directory."""
        for box in boxes:
            names = (f"{label}:0:{box}" for label in blocks[box].labels)
            self.fragments[box] = array("q", [files.get(name, 0) for name in names])
        for name, size in files.items():
            label, box = read_name(name)
            if name.endswith(SPATIAL_INDEX):
                self.indices[name] = size
            elif box in blocks and not blocks[box].record.names(label):
                self.unrecorded[name] = box

    def state_of_fragment(self, box: str, index: int, size: int) -> int:
        """What a size says of a fragment, by its place among the labels of its block."""
        told = self.fragments[box][index] if box in self.fragments else _NOT_TOLD
        return _state(size, told)

    def state_of_index(self, name: str, size: int, *, is_latest: bool) -> int:
        """What a size says of a file of the spatial index, which later runs may have changed."""
        return _state(size, self.indices.get(name, _NOT_TOLD) if is_latest else _NOT_TOLD)


def _state(size: int, told: int) -> int:
    is_whole = size > 0 and told in (size, _NOT_TOLD)
    return _WHOLE if is_whole else _WRONG


def audit_fragments(
    place: MeshPlace,
    blocks: Mapping[str, MeshedBlock],
    stored: StoredSizes,
    scope: Scope,
    *,
    spatial_index: bool,
) -> int:
    """Check that each block has a fragment of each of its labels; remove what the run has replaced.

    That are fragments of labels in its scope which the block does not have any more; they leave
    their manifests first. Blocks are by their boxes as text, in their order. Each has a file of the
    spatial index if there is to be one; index files that are stale are removed. The directory is
    listed once. Returns the number of fragments. Raises AuditFailed naming what is missing, and the
    blocks that lack it; then nothing is removed.
    """
    folder = place.folder
    own = {spatial_index_name(cell, place.scale): str(cell) for cell in place.cells}
    indices = own if spatial_index else {}
    listed = _list(folder, blocks, stored, scope, indices)
    missing = {
        f"{label}:0:{box}": box
        for box, block in blocks.items()
        for label, state in zip(block.labels, listed.fragments[box], strict=True)
        if state != _WHOLE
    }
    missing |= {name: box for name, box in indices.items() if listed.indices.get(name) != _WHOLE}
    unrecorded = {f"{name} (not in its record)": box for name, box in stored.unrecorded.items()}
    _require_none(missing | unrecorded, folder, blocks)
    with Overlap(place.layer.overlap_width) as overlap:
        for label, boxes in listed.obsolete.items():
            overlap.submit(partial(folder.drop_fragments, label, boxes))
    stale = _stale_indices(place, listed.unwanted, own.keys())
    # those of blocks of which some labels were meshed tell of the others as well
    folder.delete(stale if scope.is_everything else stale - own.keys())
    return sum(len(block.labels) for block in blocks.values())


def _require_none(
    missing: Mapping[str, str], folder: MeshFolder, blocks: Mapping[str, MeshedBlock]
) -> None:
    """Raise AuditFailed when files are missing, which are given with their blocks."""
    if missing:
        lacking = set(missing.values())
        raise AuditFailed(
            f"{counted(len(missing), 'file')} missing, empty or cut in {folder.url} although every "
            f"task reported success: {', '.join([*missing][:_NAMED_AT_MOST])}.",
            [number for number, box in enumerate(blocks) if box in lacking],
        )


def _list(
    folder: MeshFolder,
    blocks: Mapping[str, MeshedBlock],
    stored: StoredSizes,
    scope: Scope,
    indices: Mapping[str, str],
) -> _Listed:
    """Compare what is there with the blocks; `indices` are the index files that should be.

    A file that is there twice, in two compressions, is wrong: readers differ in which they take.
    """
    listed = _Listed({box: bytearray(len(block.labels)) for box, block in blocks.items()})
    for name, size in folder.sizes():
        if name.endswith(SPATIAL_INDEX):
            if name not in indices:
                listed.unwanted.add(name)
                continue
            is_latest = blocks[indices[name]].is_latest
            state = stored.state_of_index(name, size, is_latest=is_latest)
            listed.indices[name] = _WRONG if name in listed.indices else state
            continue
        label, box = read_name(name)
        if box not in blocks:
            continue
        labels, states = blocks[box].labels, listed.fragments[box]
        index = bisect_left(labels, label)
        if labels[index : index + 1] == (label,):
            state = stored.state_of_fragment(box, index, size)
            states[index] = state if states[index] == _MISSING else _WRONG
        elif blocks[box].lacks(label, scope):
            listed.obsolete.setdefault(label, []).append(box)
    return listed


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


def meshed_blocks(
    folder: MeshFolder, cells: Iterable[BoundingBox], parameters: str, overlap: Overlap
) -> dict[str, MeshedBlock]:
    """What each block has of a run of these parameters, by its box as text.

    Raises AuditFailed for blocks that have not been meshed, or not with these parameters.
    """
    blocks: dict[str, MeshedBlock] = {}
    undone: dict[int, str] = {}
    for number, (cell, record) in enumerate(overlap.map(folder.readable_record, cells)):
        block = MeshedBlock.of(record, parameters)
        if block is None:
            undone[number] = str(cell)
        else:
            blocks[str(cell)] = block
    if undone:
        raise AuditFailed(
            f"{counted(len(undone), 'block has', 'blocks have')} not been meshed with these "
            f"parameters in {folder.url} although every task reported success: "
            f"{', '.join([*undone.values()][:_NAMED_AT_MOST])}.",
            list(undone),
        )
    return blocks


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
