"""A picture of the histograms of sections, with the grey values that become black and white.

Above, all sections side by side, so that one that came out dim or washed out is seen at once.
Below, some of them as curves, with a bar that shows what becomes of each grey value. Used by
`levels plot`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from igneous_airflow.errors import InvalidLevels
from igneous_airflow.kernels.histogram import Counts, clip_values, stretch_table
from igneous_airflow.storage.levels import LevelsFolder

_COLUMNS = 3  # curves in a row
_CURVES = 6  # where nobody says which
_CURVE = (360, 150)  # pixels, without margins
_OVERVIEW = 240  # pixels high
_LEFT, _RIGHT, _ABOVE, _BELOW, _BAR = 54, 22, 46, 44, 12  # pixels
_FINEST = 4096  # bins kept of a histogram
_SIDE_BY_SIDE = 1_000  # sections, at most
_TICKS = 5
_INK, _QUIET, _FAINT, _RULE = "#222a33", "#5a646e", "#ccd5de", "#8a949e"
_BLACK_POINT, _WHITE_POINT = "#1f5fbf", "#d9601a"


@dataclass
class Histograms:
    """What is drawn: of each section its clip points, of some the counts as well."""

    bins: int
    together: bool
    curves: list[int | None]  # sections, None for the sum of all
    clips: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    counts: dict[int | None, Counts] = field(default_factory=dict)
    covered: dict[int | None, float] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        folder: LevelsFolder,
        fractions: tuple[float, float],
        wanted: list[int] | None,
        *,
        together: bool,
    ) -> "Histograms":
        """Read all levels that are there, `together` for clip points of their sum.

        `wanted` are the sections to draw as curves. Raises InvalidLevels when there are none.
        """
        present = sorted(folder.sizes())
        if not present:
            raise InvalidLevels(
                f"there are no levels in {folder.place}: run luminance-levels first"
            )
        if missing := sorted(set(wanted or ()) - set(present)):
            listed = ", ".join(map(str, missing))
            raise InvalidLevels(f"z: there are no levels of section {listed} in {folder.place}")
        some = wanted or _spread(present, _CURVES - together)
        found = cls(folder.bins, together, [*([None] if together else []), *some])
        kept = {*_spread(present, _SIDE_BY_SIDE), *some}
        total = np.zeros(folder.bins, np.int64)
        for z, levels in folder.read_all(present):
            total += levels.counts
            found.clips[z] = clip_values(levels.counts, *fractions)
            if z in kept:
                found.counts[z], found.covered[z] = _coarse(levels.counts), levels.coverage_ratio
        found.counts[None] = _coarse(total)
        if together:
            found.clips = dict.fromkeys((None, *present), clip_values(total, *fractions))
        return found

    @property
    def sections(self) -> list[int]:
        """Every section that has levels, in order."""
        return sorted(z for z in self.clips if z is not None)

    @property
    def end(self) -> int:
        """The grey value where pictures end: of uint16 only as far as there are any."""
        if self.bins == 256:
            return self.bins
        last = np.flatnonzero(self.counts[None]).max(initial=0)
        return (int(last) + 1) * (self.bins // len(self.counts[None]))

    def heights(self, z: int | None, width: int) -> NDArray[np.float64]:
        """Spread a histogram over columns, as parts of the highest; padding is left out."""
        counts = self.counts[z].astype(np.float64)
        counts[0] = 0
        shown = counts[: self.end * len(counts) // self.bins]
        below = np.r_[0, np.cumsum(shown)]
        columns = np.diff(
            np.interp(np.linspace(0, len(shown), width + 1), range(len(below)), below)
        )
        heights: NDArray[np.float64] = columns / max(columns.max(), 1e-9)
        return heights


def _spread(sections: list[int], count: int) -> list[int]:
    """At most `count` of the sections, evenly spread, the first and the last among them."""
    if len(sections) <= count:
        return sections
    return [sections[round(i * (len(sections) - 1) / (count - 1))] for i in range(count)]


def _coarse(counts: Counts) -> Counts:
    coarse: Counts = counts.reshape(min(len(counts), _FINEST), -1).sum(axis=1)
    return coarse


def draw_histograms(found: Histograms, title: str) -> Image.Image:
    """Draw the overview of all sections, and the curves below it."""
    width, height = _LEFT + _CURVE[0] + _RIGHT, _ABOVE + _CURVE[1] + _BELOW
    above = _ABOVE + _OVERVIEW + _BELOW
    rows = -(-len(found.curves) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * width, above + rows * height), "white")
    place = (_LEFT, _ABOVE, _COLUMNS * width - _LEFT - _RIGHT, _OVERVIEW)
    _draw_overview(_Plot(canvas, place), found, title)
    for number, z in enumerate(found.curves):
        row, column = divmod(number, _COLUMNS)
        place = (column * width + _LEFT, above + row * height + _ABOVE, *_CURVE)
        _draw_curve(_Plot(canvas, place), found, z)
    return canvas


@dataclass
class _Plot:
    """A frame on a canvas: left, top, width and height in pixels."""

    canvas: Image.Image
    place: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.canvas)

    def paste(self, pixels: NDArray[Any], down: int = 0) -> None:
        """Put pixels into the frame, or below it."""
        left, top, _, _ = self.place
        self.canvas.paste(Image.fromarray(pixels), (left, top + down))

    def frame(self, title: str, detail: str) -> None:
        """Draw the frame and what is written above it."""
        left, top, width, height = self.place
        self.pen.rectangle((left - 1, top - 1, left + width, top + height), outline=_RULE)
        self.write((left, top - 26), title, size=15)
        self.write((left, top - 8), detail, colour=_QUIET)

    def write(
        self,
        place: tuple[float, float],
        text: str,
        *,
        size: float = 12,
        anchor: str = "ls",
        colour: str = _INK,
    ) -> None:
        """Write text at a place of the canvas."""
        self.pen.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def ticks_across(self, first: int, end: int, down: int = 0) -> None:
        """Write round numbers from `first` up to `end` below the frame."""
        left, top, width, height = self.place
        for value in _round_numbers(first, end):
            x = left + (value - first + 0.5) * width / (end - first)
            self.pen.line((x, top + height + down, x, top + height + down + 4), fill=_RULE)
            self.write((x, top + height + down + 6), f"{value}", anchor="mt", size=11)

    def ticks_up(self, end: int) -> None:
        """Write round numbers from 0 up to `end` at the left of the frame."""
        left, top, _, height = self.place
        for value in _round_numbers(0, end):
            y = top + height - (value + 0.5) * height / end
            self.pen.line((left - 5, y, left - 1, y), fill=_RULE)
            self.write((left - 8, y), f"{value}", anchor="rm", size=11)


def _round_numbers(first: int, end: int) -> Sequence[int]:
    """Numbers from `first` up to `end` that are easily read."""
    rough = max((end - first) / _TICKS, 1)
    power = 10 ** floor(log10(rough))
    step = next(int(power * f) for f in (1, 2, 5, 10) if power * f >= rough)
    return range(-(-first // step) * step, end, step)


def _draw_overview(plot: _Plot, found: Histograms, title: str) -> None:
    """Draw each section as a column, the darker the more voxels, with its clip points."""
    left, top, width, height = plot.place
    first, end = found.sections[0], found.sections[-1] + 1
    pixels = np.full((height, width, 3), 255, np.uint8)
    lines = []
    for z in _spread(found.sections, _SIDE_BY_SIDE):
        start, stop = ((edge - first) * width // (end - first) for edge in (z, z + 1))
        shade = 255 - 205 * np.sqrt(found.heights(z, height)[::-1])
        pixels[:, start : stop + 1] = shade.astype(np.uint8)[:, np.newaxis, np.newaxis]
        for value, colour in zip(found.clips[z], (_BLACK_POINT, _WHITE_POINT), strict=True):
            y = top + height - (value + 0.5) * height / found.end
            lines.append(((left + start, y, left + stop, y), colour))
    plot.paste(pixels)
    for line, colour in lines:
        plot.pen.line(line, fill=colour, width=2)
    plot.frame(title, "every section from left to right, darker where more of its voxels are")
    plot.write((left + width, top - 8), "becomes white", colour=_WHITE_POINT, anchor="rs")
    plot.write((left + width - 96, top - 8), "becomes black", colour=_BLACK_POINT, anchor="rs")
    plot.ticks_across(first, end)
    plot.ticks_up(found.end)
    below = top + height + 34
    plot.write((left + width, below), "section z", anchor="rs")
    told = (
        "below: how often each grey value occurs, and pale its logarithm; 0 is left out as padding"
    )
    plot.write((left, below), told, colour=_QUIET)


def _draw_curve(plot: _Plot, found: Histograms, z: int | None) -> None:
    """Draw a histogram: in front as it is, behind it its logarithm, for rare grey values."""
    left, top, width, height = plot.place
    heights = found.heights(z, width)
    logarithms = np.log1p(heights * 1000) / np.log1p(1000)
    for parts, colour in ((logarithms, _FAINT), (heights, _INK)):
        for column in np.flatnonzero(parts):
            x, bottom = left + int(column), top + height - 1
            plot.pen.line((x, bottom - round(parts[column] * (height - 6)), x, bottom), fill=colour)
    lower, upper = found.clips[z]
    _draw_bar(plot, found, (lower, upper))
    for value, colour in ((lower, _BLACK_POINT), (upper, _WHITE_POINT)):
        middle = left + (value + 0.5) * width / found.end
        plot.pen.line((middle, top, middle, top + height + _BAR + 2), fill=colour, width=2)
    name = "all sections" if z is None else f"section {z}"
    white = found.bins - 1
    change = "stays as it is" if lower == upper else f"{lower} to {upper} become 0 to {white}"
    covered = "" if z is None else f"; {100 * found.covered[z]:.3g} % counted"
    plot.frame(name, change + covered)
    plot.ticks_across(0, found.end, _BAR + 4)


def _draw_bar(plot: _Plot, found: Histograms, clip: tuple[int, int]) -> None:
    """Show below a histogram what becomes of each grey value."""
    left, top, width, height = plot.place
    dtype = np.dtype(np.uint8 if found.bins == 256 else np.uint16)
    table = stretch_table(dtype, clip, (0, found.bins - 1))
    shades = table[np.arange(width) * found.end // width] // (found.bins // 256)
    plot.paste(np.repeat(shades.astype(np.uint8)[np.newaxis], _BAR, axis=0), height + 3)
    upper_left, lower_right = (left - 1, top + height + 2), (left + width, top + height + 3 + _BAR)
    plot.pen.rectangle((*upper_left, *lower_right), outline=_RULE)
