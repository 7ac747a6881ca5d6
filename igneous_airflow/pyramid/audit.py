"""What a stage left in the storage, chunk by chunk; used when a stage finishes."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.proof import FoundFile
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer

_ABSENT = -1


class ChunkAudit:
    """The chunk files that the cells of a stage should have written, as they are in the storage.

    `written` gives the scales that a box of cells writes, each with the box of whole chunks there.
    Lists the folder of each scale once, and holds eight bytes a chunk: its stored bytes.
    """

    def __init__(
        self,
        layer: Layer,
        cells: Grid,
        written: Callable[[BoundingBox], Iterable[tuple[Scale, BoundingBox]]],
    ) -> None:
        self._cells = cells
        self._written = written
        self._seen = {
            scale.key: _stored_bytes(layer, scale, Grid(box, scale.chunk_size))
            for scale, box in written(cells.box)
        }

    @property
    def outputs(self) -> dict[str, int]:
        """How many chunk files of each scale are there, by the scale's key."""
        return {key: len(sizes) - sizes.count(_ABSENT) for key, (_, sizes) in self._seen.items()}

    def files_of(self, block: int) -> Iterator[FoundFile]:
        """The files that a cell should have, by its number."""
        for scale, box in self._written(self._cells[block]):
            grid, sizes = self._seen[scale.key]
            for line in grid.lines(box):
                for place in line:
                    name, size = f"{scale.key}/{grid[place]}", sizes[place]
                    yield FoundFile(name, None if size == _ABSENT else size)


def _stored_bytes(layer: Layer, scale: Scale, chunks: Grid) -> "tuple[Grid, array[int]]":
    """The sizes of those of a scale's chunks that have files."""
    sizes = array("q", [_ABSENT]) * len(chunks)
    for name, size in layer.folder.sizes(scale.key):
        with suppress(ValueError):  # a file of somebody else's, or of another part
            sizes[chunks.index_of(BoundingBox.parse(name))] = size
    return chunks, sizes
