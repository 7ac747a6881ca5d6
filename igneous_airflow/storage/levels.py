"""Levels: the histogram of each section of a layer, a small JSON file for each; used by stages.

They lie at `levels/MIP/Z` in the layer, or in another folder. The keys are Igneous' own, so that
either program reads what the other one wrote.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igneous_airflow.errors import InvalidLevels
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.info import Info
from igneous_airflow.storage.overlap import Overlap, overlap_width

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BINS = {"uint8": 1 << 8, "uint16": 1 << 16}
_RANGES_NAMED = 10
_COUNT_BYTES = 40  # of a count, its comma and its spaces
_OTHER_BYTES = 1 << 20


@dataclass(frozen=True)
class Levels:
    """The histogram of a section; `counts` has an entry for every grey value of its dtype."""

    counts: "NDArray[np.int64]"
    patch_size: tuple[int, int, int]
    num_patches: int
    coverage_ratio: float


def grey_problems(info: Info) -> Iterator[str]:
    """Reasons why the voxels of a layer have no levels: they must be grey values, as counted."""
    if info.layer_type == "segmentation":
        yield "the layer is a segmentation: its values are labels, which have no luminance"
    if info.data_type not in _BINS:
        yield (
            f"the layer holds {info.data_type}: levels are counted for uint8 and uint16, so "
            "convert the image to one of these first"
        )
    if info.channels != 1:
        yield (
            f"the layer has {info.channels} channels: levels are counted for one, so make a layer "
            "of each channel first"
        )


class LevelsFolder:
    """The levels of one mip of voxels of a data type: uint8 or uint16."""

    def __init__(self, url: str, mip: int, data_type: str) -> None:
        self.folder = open_folder(url)
        self.bins = _BINS[data_type]
        self.prefix = f"levels/{mip}"

    @property
    def place(self) -> str:
        """Where the files are."""
        return f"{self.folder.url}/{self.prefix}"

    @property
    def usual_bytes(self) -> int:
        """About how large a file is."""
        return self.bins * 6

    @property
    def overlap_width(self) -> int:
        """How many files to read or write at once."""
        return overlap_width(self.folder.url)

    def name(self, z: int) -> str:
        """The name of the file of a section, below the folder."""
        return f"{self.prefix}/{z}"

    def write(self, z: int, levels: Levels) -> int:
        """Write the levels of a section and return the bytes of the file."""
        text = json.dumps(
            {
                "levels": levels.counts.tolist(),
                "patch_size": list(levels.patch_size),
                "num_patches": levels.num_patches,
                "coverage_ratio": levels.coverage_ratio,
            }
        ).encode()
        self.folder.write(f"{self.prefix}/{z}", StoredFile(text), content_type="application/json")
        return len(text)

    def read(self, z: int) -> Levels:
        """Read the levels of a section; raises InvalidLevels when there are none of that kind."""
        stored = self.folder.read(f"{self.prefix}/{z}")
        if stored is None:
            raise InvalidLevels(
                f"{self.place}/{z} is missing: run luminance_levels on that section"
            )
        try:
            levels = _parsed(
                bytes(decompress_bytes(stored, self.bins * _COUNT_BYTES + _OTHER_BYTES))
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InvalidLevels(
                f"{self.place}/{z} cannot be read ({error}): run luminance_levels on that section "
                "again"
            ) from error
        if len(levels.counts) != self.bins:
            raise InvalidLevels(
                f"{self.place}/{z} has {len(levels.counts):,} grey values, but the layer's voxels "
                f"have {self.bins:,}: it was counted on another layer"
            )
        return levels

    def read_all(self, sections: Iterable[int]) -> Iterator[tuple[int, Levels]]:
        """Read the levels of many sections, in their order, several at once where that helps."""
        with Overlap(self.overlap_width) as overlap:
            yield from overlap.map(self.read, sections)

    def sizes(self) -> dict[int, int]:
        """The sections that have levels, with the bytes of their files, from one listing."""
        found = {}
        for name, size in self.folder.sizes(self.prefix):
            with suppress(ValueError):  # a file of somebody else's
                found[int(name)] = size
        return found

    def problems(self, sections: Sequence[int]) -> Iterator[str]:
        """Reasons why the sections cannot be worked on by their levels, naming sections.

        Lists the folder, and reads no more than one file: the bytes of the others tell of how many
        grey values they are.
        """
        sizes = self.sizes()
        if missing := [z for z in sections if z not in sizes]:
            all_of_them = len(missing) == len(sections)
            lacking = "there are none" if all_of_them else f"those of {named(missing)} are missing"
            yield (
                f"levels: {lacking} in {self.place}: run luminance_levels on the layer at this "
                "mip first, or set levels_path to where they are"
            )
        unlikely = [z for z in sections if z in sizes and not self._is_likely(sizes[z])]
        if not unlikely:
            return
        try:
            self.read(unlikely[0])  # it may be right, but compressed
        except InvalidLevels as error:
            others = f"; so it seems with {named(unlikely[1:])}" if unlikely[1:] else ""
            yield f"levels: {error}{others}"

    def _is_likely(self, size: int) -> bool:
        """Whether that many bytes can be the text of so many numbers: each has a comma at least."""
        return self.bins * 2 <= size and (
            size < _BINS["uint16"] * 2 or self.bins >= _BINS["uint16"]
        )


def _parsed(content: bytes) -> Levels:
    """Read a file's text; raises ValueError and the like for any other."""
    import numpy as np

    data = json.loads(content)
    counts = np.array(data["levels"])
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError("its levels are no counts")
    x, y, z = map(int, data.get("patch_size", (0, 0, 0)))
    return Levels(
        counts.astype(np.int64),
        (x, y, z),
        int(data.get("num_patches", 0)),
        float(data.get("coverage_ratio", 0)),
    )


def named(sections: Sequence[int]) -> str:
    """Name sections, in ascending order, as `sections 3 to 7, 12 and 40 more`."""
    runs: list[list[int]] = []
    for z in sections:
        if runs and runs[-1][1] == z - 1:
            runs[-1][1] = z
        else:
            runs.append([z, z])
    words = [f"{low}" if low == high else f"{low} to {high}" for low, high in runs]
    left = sum(high - low + 1 for low, high in runs[_RANGES_NAMED:])
    text = ", ".join(words[:_RANGES_NAMED]) + (f" and {left:,} more" if left else "")
    return f"section{'s' if len(sections) > 1 else ''} {text}"
