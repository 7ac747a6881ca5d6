"""What a stage left in the storage, counted; used when a stage finishes."""

from collections.abc import Iterable
from contextlib import suppress

from igneous_airflow.errors import AuditFailed
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer

_NAMED_AT_MOST = 10


def count_written(
    layer: Layer, written: Iterable[tuple[Scale, BoundingBox]], *, may_be_absent: bool
) -> tuple[dict[str, int], int]:
    """Chunk files of each scale's region by the scale's key, and how many chunks have none.

    Raises AuditFailed naming the absent ones, unless they may be absent.
    """
    outputs: dict[str, int] = {}
    absent: list[str] = []
    for scale, region in written:
        outputs[scale.key], missing = present_chunks(layer, scale, region)
        absent += [f"{scale.key}/{chunk}" for chunk in missing]
    if absent and not may_be_absent:
        raise AuditFailed(
            f"{len(absent):,} chunks of {layer.folder.url} are missing although every task "
            f"reported success: {', '.join(absent[:_NAMED_AT_MOST])}. Start the stage again to "
            "write them."
        )
    return outputs, len(absent)


def present_chunks(
    layer: Layer, scale: Scale, region: BoundingBox
) -> tuple[int, list[BoundingBox]]:
    """How many chunk files of a region exist, and the boxes of those that do not.

    Lists the scale's folder once, and holds one byte a chunk.
    """
    grid = scale.chunks
    seen = bytearray(len(grid))
    for name in layer.folder.names(scale.key):
        with suppress(ValueError):  # a file of somebody else's
            seen[grid.index_of(BoundingBox.parse(name))] = 1
    present = 0
    missing = []
    for box in grid.overlapping(region):
        if seen[grid.index_of(box)]:
            present += 1
        else:
            missing.append(box)
    return present, missing
