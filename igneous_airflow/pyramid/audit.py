"""What a stage left in the storage, chunk by chunk; used when a stage finishes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer


class ChunkAudit:
    """The chunk files that the cells of a stage should have written, and those that are not there.

    `written` gives the scales that a box of cells writes, each with the box of whole chunks there.
    Lists the folder of each scale once, and holds one byte a chunk.
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
            scale.key: _present(layer, scale, Grid(box, scale.chunk_size))
            for scale, box in written(cells.box)
        }

    @property
    def outputs(self) -> dict[str, int]:
        """How many chunk files of each scale are there, by the scale's key."""
        return {key: flags.count(1) for key, (_, flags) in self._seen.items()}

    def absent(self) -> Iterator[tuple[int, list[str]]]:
        """Numbers of the cells that lack files, in order, each with the files' names."""
        if all(0 not in flags for _, flags in self._seen.values()):
            return
        for number, cell in enumerate(self._cells):
            names = [
                f"{scale.key}/{chunk}"
                for scale, box in self._written(cell)
                for chunk in self._absent(scale, box)
            ]
            if names:
                yield number, names

    def _absent(self, scale: Scale, box: BoundingBox) -> Iterator[BoundingBox]:
        grid, flags = self._seen[scale.key]
        for line in grid.lines(box):
            place = flags.find(0, line.start, line.stop)
            while place >= 0:
                yield grid[place]
                place = flags.find(0, place + 1, line.stop)


def _present(layer: Layer, scale: Scale, chunks: Grid) -> tuple[Grid, bytearray]:
    """Flag those of a scale's chunks that have files."""
    flags = bytearray(len(chunks))
    for name in layer.folder.names(scale.key):
        with suppress(ValueError):  # a file of somebody else's, or of another part
            flags[chunks.index_of(BoundingBox.parse(name))] = 1
    return chunks, flags
