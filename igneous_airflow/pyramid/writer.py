"""Coarser mips made from blocks of voxels as they pass; used by tasks.

A task never holds its whole cell: tiles go through one by one, pooled into all levels at once, and
a chunk is written as soon as its last voxel has arrived.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import AlignmentError
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.kernels.pooling import Method, pool
from igneous_airflow.pyramid.layout import Pyramid
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.overlap import Overlap

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How pooled chunks are made and stored."""

    method: Method
    sparse: bool = False
    compress: str = "auto"
    compress_level: int | None = None
    skip_empty: str = "write"
    background: float = 0


def method_for(layer_type: str) -> Method:
    """How voxels are pooled where nobody says: by the layer's type."""
    by_type: dict[str, Method] = {"image": "average", "segmentation": "mode"}
    return by_type.get(layer_type, "striding")


@dataclass(slots=True)
class _OpenChunk:
    voxels: Array
    missing: int


@dataclass
class PyramidWriter:
    """Takes the blocks of one cell, in any order, and writes the chunks of every level.

    With `finest`, the blocks themselves are written too, as chunks of the pyramid's source.
    """

    layer: Layer
    pyramid: Pyramid
    options: WriteOptions
    overlap: Overlap
    finest: bool = False
    files: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _open: dict[tuple[int, BoundingBox], _OpenChunk] = field(default_factory=dict)
    _scales: tuple[Scale, ...] = field(init=False)
    _grids: list[Grid] = field(init=False)
    _latest: list[BoundingBox | None] = field(init=False)

    def __post_init__(self) -> None:
        self._scales = (self.pyramid.source, *self.pyramid.levels)
        self._grids = [scale.chunks for scale in self._scales]
        self._latest = [None] * len(self._grids)

    @property
    def chunks_written(self) -> int:
        """How many chunks were written."""
        return len(self.files)

    @property
    def bytes_written(self) -> int:
        """Stored bytes of the chunks that were written."""
        return sum(self.files.values())

    @property
    def chunks_skipped(self) -> int:
        """How many chunks were left out, all background."""
        return len(self.left_out)

    def push(self, box: BoundingBox, voxels: Array) -> None:
        """Pool a block that starts on a window of the coarsest level, in voxels of the source."""
        if self.finest:
            self._place(0, box, voxels)
        pooled = pool(
            voxels,
            self.pyramid.factor,
            len(self.pyramid.levels),
            self.options.method,
            sparse=self.options.sparse,
        )
        for level, array in enumerate(pooled, start=1):
            self._place(level, self.pyramid.level_box(level, box), array)

    def close(self) -> None:
        """Check that every chunk was completed; raises AlignmentError naming one that was not."""
        for level, box in self._open:
            key = self._scales[level].key
            raise AlignmentError(f"chunk {box} of scale {key} did not get all of its voxels")

    def _place(self, level: int, box: BoundingBox, array: Array) -> None:
        """Copy a pooled block into the chunks that it touches, and write those it completes."""
        latest = self._latest[level]
        if latest is not None and latest.contains(box):  # nearly always, and a search costs more
            self._fill(level, latest, box, array)
            return
        if self._grids[level].is_cell(box):
            self._write(self._scales[level], box, np.asfortranarray(array))
            return
        for chunk in self._grids[level].overlapping(box):
            self._latest[level] = chunk
            self._fill(
                level,
                chunk,
                chunk.intersection(box),
                array[chunk.intersection(box).slices_within(box)],
            )

    def _fill(self, level: int, chunk: BoundingBox, part: BoundingBox, array: Array) -> None:
        place = (level, chunk)
        unfinished = self._open.get(place)
        if unfinished is None:
            voxels = np.empty((*chunk.size, array.shape[3]), array.dtype, "F")
            unfinished = self._open[place] = _OpenChunk(voxels, chunk.voxels)
        unfinished.voxels[part.slices_within(chunk)] = array
        unfinished.missing -= part.voxels
        if unfinished.missing == 0:
            del self._open[place]
            self._write(self._scales[level], chunk, unfinished.voxels)

    def _write(self, scale: Scale, chunk: BoundingBox, voxels: Array) -> None:
        options = self.options
        if options.skip_empty != "write" and _is_all(voxels, options.background):
            self.left_out.append(f"{scale.key}/{chunk}")
            if options.skip_empty == "delete":
                self.overlap.submit(partial(self.layer.delete_chunk, scale, chunk))
            return
        self.overlap.submit(partial(self._write_chunk, scale, chunk, voxels))

    def _write_chunk(self, scale: Scale, chunk: BoundingBox, voxels: Array) -> None:
        # one assignment to a key of its own, which needs no lock
        self.files[f"{scale.key}/{chunk}"] = self.layer.write_chunk(
            scale, chunk, voxels, compress=self.options.compress, level=self.options.compress_level
        )


def _is_all(voxels: Array, value: float) -> bool:
    # as a number of the same type: compared with a float, large labels would be rounded
    return bool((voxels == voxels.dtype.type(value)).all())
