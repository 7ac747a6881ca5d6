"""Arrays that lie in a file as they are: `.npy`, and what other formats store uncompressed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.data_types import data_type_for
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    Findings,
    Part,
    checked_shape,
    worthwhile_block,
)
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts


class Bytes(Protocol):
    """Bytes that can be read anywhere: a file, or what was unpacked from one."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def url(self) -> str:
        """Where they come from."""

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on."""


@dataclass(frozen=True)
class RawArray:
    """An array that lies at `offset` in some bytes."""

    facts: ArrayFacts
    content: Bytes
    offset: int

    def look(self) -> Findings:
        """Nothing that opening has not found."""
        return Findings()

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part, run by run of bytes that follow each other."""
        if self.facts.first_fastest:
            part = part[::-1]
        array = np.empty([s.stop - s.start for s in part], self.facts.dtype)
        self.read_into(part, array, overlap)
        return array.T if self.facts.first_fastest else array

    def read_into(self, part: Part, array: Array, overlap: Overlap) -> None:
        """Read a part, its fastest axis last, into a contiguous array of its size and dtype."""
        flat = array.reshape(-1).view(np.uint8).data
        length, runs = self._runs(part)
        if length == 0:
            return

        def read(run: tuple[int, int]) -> None:
            number, start = run
            self.content.read_into(start, flat[number * length : (number + 1) * length])

        for _ in overlap.map(read, enumerate(runs)):
            pass

    def _runs(self, part: Part) -> tuple[int, Iterator[int]]:
        """The bytes of a run, and where each run begins in the file."""
        shape, itemsize = self.facts.shape, self.facts.dtype.itemsize
        if self.facts.first_fastest:
            shape = shape[::-1]
        strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
        axis = len(shape) - 1
        while axis > 0 and part[axis] == slice(0, shape[axis]):
            axis -= 1
        start = self.offset + part[axis].start * strides[axis]
        outer, outer_strides = part[:axis], strides[:axis]
        places = np.ndindex(*(s.stop - s.start for s in outer))
        runs = (
            start
            + sum(
                (s.start + i) * stride
                for s, i, stride in zip(outer, place, outer_strides, strict=True)
            )
            for place in places
        )
        return (part[axis].stop - part[axis].start) * strides[axis], runs


def raw_array(content: Bytes, offset: int, facts: ArrayFacts, worthwhile: int) -> RawArray:
    """An array whose block is what is worth a read; raises UnreadableSource when bytes lack."""
    data_type_for(facts.dtype)  # of others the bytes cannot be counted
    needed = offset + math.prod(facts.shape) * facts.dtype.itemsize
    if content.size < needed:
        raise UnreadableSource(
            f"{content.url} is cut off: it has {content.size:,} bytes, and its voxels need "
            f"{needed:,}"
        )
    order = -1 if facts.first_fastest else 1
    block = worthwhile_block(facts.shape[::order], facts.dtype.itemsize, worthwhile)[::order]
    return RawArray(replace(facts, block=block, is_encoded=False), content, offset)


def open_npy(file: FileInParts) -> RawArray:
    """Open a `.npy` file; raises UnreadableSource.

    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    stream = file.stream()
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read(stream)
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no .npy file that can be read: {error}") from error
    shape = checked_shape(shape, file.url)
    facts = ArrayFacts(
        shape, dtype, shape, first_fastest=is_fortran, overlap_width=file.overlap_width
    )
    return raw_array(file, stream.tell(), facts, file.worthwhile)
