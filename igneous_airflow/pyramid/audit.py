"""What a stage left in the storage, counted; used when a stage finishes."""

from contextlib import suppress

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer


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
