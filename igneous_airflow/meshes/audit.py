"""Whether every fragment that should be there is; used when the stage of meshes finishes."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from igneous_airflow.errors import AuditFailed
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.meshes import MeshFolder, read_name
from igneous_airflow.storage.overlap import Overlap

_NAMED_AT_MOST = 10


def audit_fragments(
    folder: MeshFolder, expected: Mapping[str, Sequence[int]], others: Iterable[str]
) -> int:
    """Check that each cell has a fragment of each of its labels, and remove those of other labels.

    Cells are boxes as text, labels in ascending order; `others` are files that must be there as
    well. The directory is listed once. Returns the number of fragments. Raises AuditFailed naming
    what is missing.
    """
    seen = {cell: bytearray(len(labels)) for cell, labels in expected.items()}
    unseen = set(others)
    obsolete = []
    for name in folder.names():
        label, cell = read_name(name)
        if cell not in expected:
            unseen.discard(name)
            continue
        place = bisect_left(expected[cell], label)
        if expected[cell][place : place + 1] == (label,):
            seen[cell][place] = True
        else:
            obsolete.append(name)
    missing = [
        f"{label}:0:{cell}"
        for cell, labels in expected.items()
        for label, is_seen in zip(labels, seen[cell], strict=True)
        if not is_seen
    ]
    if missing := missing + sorted(unseen):
        raise AuditFailed(
            f"{len(missing):,} files in {folder.url} are missing although every task reported "
            f"success: {', '.join(missing[:_NAMED_AT_MOST])}. Start the stage again to write them."
        )
    folder.delete(obsolete)
    return sum(map(len, expected.values()))


def recorded_labels(
    folder: MeshFolder, cells: Iterable[BoundingBox], parameters: str, overlap: Overlap
) -> dict[str, tuple[int, ...]]:
    """The labels that each cell left fragments of, by its text.

    Raises AuditFailed for cells that have not been meshed, or not with these parameters.
    """
    labels, undone = {}, []
    for cell, record in overlap.map(folder.read_record, cells):
        if record is None or record.parameters != parameters:
            undone.append(str(cell))
        else:
            labels[str(cell)] = record.labels
    if undone:
        raise AuditFailed(
            f"{len(undone):,} cells of {folder.url} have not been meshed with these parameters "
            f"although every task reported success: {', '.join(undone[:_NAMED_AT_MOST])}. Start "
            "the stage again."
        )
    return labels
