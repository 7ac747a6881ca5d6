"""Blocks of whole chunks of several scales, in one sequence; used by `delete`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid


@dataclass(frozen=True, slots=True)
class Block:
    """A box of whole chunks of one scale."""

    key: str
    box: BoundingBox

    def __str__(self) -> str:
        return f"{self.key}/{self.box}"


@dataclass(frozen=True, slots=True)
class BlocksOfScales(Sequence[Block]):
    """The blocks of several scales, one scale after the other."""

    grids: tuple[tuple[str, Grid], ...]

    def __len__(self) -> int:
        return sum(len(grid) for _, grid in self.grids)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        for key, grid in self.grids:
            if place < len(grid):
                return Block(key, grid[place])
            place -= len(grid)
        raise IndexError(index)

    def number_of(self, chunk: Block) -> int:
        """The number of the block that a chunk is in."""
        before = 0
        for key, grid in self.grids:
            if key == chunk.key:
                return before + next(grid.lines(chunk.box)).start
            before += len(grid)
        raise ValueError(f"{chunk} is in none of these blocks")
