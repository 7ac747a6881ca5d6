"""Pictures that make up an array: the sections of a stack, or the pages of a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from igneous_airflow.sources.pictures import Picture, PictureKind
from igneous_airflow.sources.protocol import Array, ArrayFacts, Findings, Part
from igneous_airflow.storage.overlap import Overlap


@dataclass(frozen=True)
class PictureStack:
    """An array whose last axes are rows, columns, and channels where there are several.

    `pictures` come in the order of the axes before these; None is a picture of background only.
    """

    facts: ArrayFacts
    pictures: Sequence[Picture | None]
    kind: PictureKind
    look: Callable[[], Findings]
    background: float = 0

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part of each picture that it touches, with all channels."""
        of_a_picture = len(self.kind.shape)
        leading, (rows, columns, *_) = part[:-of_a_picture], part[-of_a_picture:]
        lengths = self.facts.shape[:-of_a_picture]
        places = [range(s.start, s.stop) for s in leading]
        size = (rows.stop - rows.start, columns.stop - columns.start, *self.kind.shape[2:])
        array = np.empty((*map(len, places), *size), self.kind.dtype)

        def read(place: tuple[int, ...]) -> None:
            number = 0
            for length, span, step in zip(lengths, places, place, strict=True):
                number = number * length + span[step]
            picture = self.pictures[number]
            if picture is None:
                array[place] = self.background
            else:
                picture.read_into(array[place], rows, columns)

        for _ in overlap.map(read, np.ndindex(*map(len, places))):
            pass
        return array
