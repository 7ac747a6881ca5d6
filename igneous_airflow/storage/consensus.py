"""What people agreed on: which segments of which volumes are one cell; used by consensus stages.

Two JSON files: the volume map, `{"x0-x1_y0-y1_z0-z1": volume}`, and the consensus,
`{volume: {cell: [segment, ...]}}`. Segments are numbered in each volume anew, in 16 bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import open_file
from igneous_airflow.storage.strict_json import parse_json

SEGMENTS = 1 << 16  # of a volume, 0 included, which is background
_LARGEST = (1 << 64) - 1
_MOST = 1 << 28  # bytes of a file: 256 MiB, or some million volumes
_FARTHEST = 1 << 62

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Consensus:
    """Volumes that do not overlap, and the cell of each segment that has one.

    `cells` is by volume and segment; `content` changes with the content of the files.
    """

    volumes: dict[BoundingBox, int]
    cells: dict[int, dict[int, int]]
    content: str

    @classmethod
    def open(cls, volume_map: str, consensus_map: str) -> "Consensus":
        """Read both files; raises InvalidParameter naming the file, the entry and the problem."""
        volumes, first = _read(volume_map, _volumes_of)
        cells, second = _read(consensus_map, _cells_of)
        found = cls(volumes, cells, f"{first} {second}")
        for one, other in found._overlapping():
            raise InvalidParameter(f"{volume_map}: the volumes {one} and {other} overlap")
        return found

    @property
    def largest_label(self) -> int:
        """The largest label that a voxel may get."""
        of_segments = (max(self.volumes.values()) << 16) | (SEGMENTS - 1)
        return max([of_segments, *(max(c.values(), default=0) for c in self.cells.values())])

    def table(self, volume: int, dtype: str) -> NDArray[Any]:
        """What becomes of each segment of a volume: its cell, or a label of its own."""
        table: NDArray[Any] = np.arange(SEGMENTS, dtype=dtype) | np.array(volume << 16, dtype)
        cells = self.cells.get(volume, {})
        table[list(cells)] = np.array(list(cells.values()), dtype)
        table[0] = 0
        return table

    def overlapping(self, box: BoundingBox) -> Iterator[tuple[BoundingBox, int]]:
        """The volumes that share voxels with a box."""
        low, high = self._corners
        shared = (low < list(box.max)) & (high > list(box.min))
        boxes = self._boxes
        for index in np.flatnonzero(shared.all(axis=1)):
            yield boxes[index], self.volumes[boxes[index]]

    def ambiguous(self) -> Iterator[tuple[int, int, int]]:
        """Cells that have the label of a segment that is not theirs: cell, volume, segment."""
        known = set(self.volumes.values())
        for cell in sorted({cell for cells in self.cells.values() for cell in cells.values()}):
            volume, segment = cell >> 16, cell & (SEGMENTS - 1)
            if volume in known and segment and self.cells.get(volume, {}).get(segment) != cell:
                yield cell, volume, segment

    @cached_property
    def _boxes(self) -> list[BoundingBox]:
        return sorted(self.volumes, key=lambda box: box.min.x)

    @cached_property
    def _corners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first voxel of each volume, and the one after its last."""
        low = np.array([list(box.min) for box in self._boxes], np.int64)
        return low, np.array([list(box.max) for box in self._boxes], np.int64)

    def _overlapping(self) -> Iterator[tuple[BoundingBox, BoundingBox]]:
        """Pairs of volumes that share voxels."""
        low, high = self._corners
        for index, box in enumerate(self._boxes):
            stop = int(np.searchsorted(low[:, 0], box.max.x))  # all later ones begin after it
            later = slice(index + 1, stop)
            shared = (low[later] < high[index]) & (high[later] > low[index])
            for other in np.flatnonzero(shared.all(axis=1)):
                yield box, self._boxes[index + 1 + int(other)]


def _read(url: str, parse: Callable[[dict[str, Any]], _Parsed]) -> tuple[_Parsed, str]:
    """What a JSON object says, and a hash of it; raises InvalidParameter naming the file."""
    folder, name = open_file(url)
    stored = folder.read(name)
    if stored is None:
        raise InvalidParameter(f"{url} is not there, or no file")
    try:
        content = bytes(decompress_bytes(stored, _MOST))
        found = parse_json(content)
        if not isinstance(found, dict):
            raise InvalidParameter("it is no object with entries")
        return parse(found), f"sha256:{sha256(content).hexdigest()}"
    except ValueError as error:
        raise InvalidParameter(f"{url}: {error}") from error


def _volumes_of(entries: dict[str, Any]) -> dict[BoundingBox, int]:
    if not entries:
        raise InvalidParameter("it has no volumes")
    volumes = {}
    for text, number in entries.items():
        box = BoundingBox.parse(text)
        if not box or max(map(abs, (*box.min, *box.max))) > _FARTHEST:
            raise InvalidParameter(f"the volume {text} holds no voxels, or lies beyond all layers")
        volume = _number(number, 0, _LARGEST >> 16)
        if volume is None:
            raise InvalidParameter(
                f"the volume {text} has the number {number!r}: it must be an integer from 0 to "
                f"{_LARGEST >> 16}"
            )
        volumes[box] = volume
    return volumes


def _cells_of(entries: dict[str, Any]) -> dict[int, dict[int, int]]:
    cells: dict[int, dict[int, int]] = {}
    for text, by_cell in entries.items():
        volume = _number(text, 0, _LARGEST >> 16)
        if volume is None or volume in cells or not isinstance(by_cell, dict):
            raise InvalidParameter(
                f"volume {text!r} is no number with an object of cells, or comes twice"
            )
        cells[volume] = dict(_segments_of(volume, by_cell))
    return cells


def _segments_of(volume: int, by_cell: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Each segment of a volume with its cell."""
    seen: dict[int, str] = {}
    for text, segments in by_cell.items():
        cell = _number(text, 1, _LARGEST)
        if cell is None or not isinstance(segments, list):
            raise InvalidParameter(
                f"cell {text!r} of volume {volume} is no number from 1 to {_LARGEST} with a list "
                "of segments"
            )
        for found in segments:
            segment = _number(found, 1, SEGMENTS - 1)
            if segment is None:
                raise InvalidParameter(
                    f"cell {cell} of volume {volume} has the segment {found!r}: it must be an "
                    f"integer from 1 to {SEGMENTS - 1}"
                )
            if seen.setdefault(segment, text) != text:
                raise InvalidParameter(
                    f"segment {segment} of volume {volume} is in two cells, {seen[segment]} and "
                    f"{text}"
                )
            yield segment, cell


def _number(value: object, lowest: int, highest: int) -> int | None:
    """An integer, also as text, as keys of JSON are; None when it is none, or out of range."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if lowest <= value <= highest else None
