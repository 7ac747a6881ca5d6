"""What a stage left in the storage, chunk by chunk; used when a stage finishes."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.proof import FoundFile
from igneous_airflow.storage.files import SUFFIXES, plain_name
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer

_ABSENT = -1
_COMPRESSIONS = (None, "", *SUFFIXES)  # a chunk's is kept as its place among these
_TWICE = len(_COMPRESSIONS)  # or as this where its file is there in several


@dataclass(frozen=True, slots=True)
class _ListedChunks:
    """The files of a scale's chunks, at nine bytes a chunk."""

    grid: Grid
    sizes: "array[int]"  # in stored bytes
    compressions: bytearray

    @classmethod
    def of(cls, layer: Layer, scale: Scale, grid: Grid) -> "_ListedChunks":
        """List the folder of a scale."""
        chunks = cls(grid, array("q", [_ABSENT]) * len(grid), bytearray(len(grid)))
        for entry in layer.folder.entries(scale.key):
            with suppress(ValueError):  # a file of another program, or of another part
                index = grid.index_of(BoundingBox.parse(plain_name(entry.name)))
                is_twice = chunks.sizes[index] != _ABSENT
                chunks.sizes[index] = entry.size
                compression = _COMPRESSIONS.index(entry.compression)
                chunks.compressions[index] = _TWICE if is_twice else compression
        return chunks


class ChunkAudit:
    """The chunk files that the cells of a stage should have written, as they are in the storage.

    `written` gives the scales that a box of cells writes, each with the box of whole chunks there.
    Lists the folder of each scale once.
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
            scale.key: _ListedChunks.of(layer, scale, Grid(box, scale.chunk_size))
            for scale, box in written(cells.box)
        }
        self._ranges = {
            scale.key: cache(partial(layer.stored_range_of, scale))  # most chunks are alike
            for scale, _ in written(cells.box)
        }

    @property
    def outputs(self) -> dict[str, int]:
        """How many chunk files of each scale are there, by the scale's key."""
        return {
            key: len(seen.sizes) - seen.sizes.count(_ABSENT) for key, seen in self._seen.items()
        }

    def files_of(self, block: int) -> Iterator[FoundFile]:
        """The files that a cell should have, by its number."""
        for scale, box in self._written(self._cells[block]):
            grid = self._seen[scale.key].grid
            for line in grid.lines(box):
                for place in line:
                    yield self._found(scale.key, grid[place], place)

    def _found(self, key: str, chunk: BoundingBox, index: int) -> FoundFile:
        seen, name = self._seen[key], f"{key}/{chunk}"
        size, compression = seen.sizes[index], seen.compressions[index]
        if size == _ABSENT:
            return FoundFile(name, None)
        if compression == _TWICE:
            return FoundFile(name, size, is_twice=True)
        return FoundFile(name, size, *self._ranges[key](chunk.size, _COMPRESSIONS[compression]))
