"""TIFF files of many pages that make up one array; used when a source is a single TIFF file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.protocol import ArrayFacts, Findings, VoxelArray
from igneous_airflow.sources.raw import raw_array
from igneous_airflow.sources.stack import PictureStack
from igneous_airflow.sources.tiff import TiffPicture, kind_of, parsed_tiff, picture_of
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

_LETTERS = {"X": "x", "Y": "y", "Z": "z", "T": "t", "C": "c", "S": "c"}
_OF_A_PAGE = "YXS"


@dataclass(frozen=True)
class TiffPages(Sequence[TiffPicture]):
    """The pages of a file, in the order of the array that they make up."""

    file: FileInParts
    keyframe: "TiffPage"
    pages: Sequence["TiffPage | TiffFrame"]

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> TiffPicture:  # type: ignore[override] # no slices
        return picture_of(self.file, self.keyframe, self.pages[index])

    def look(self) -> Findings:
        """Whether the file ends before its voxels do."""
        problems = filter(None, (page.problem() for page in self))
        return Findings(tuple(f"{self.file.url} {problem}" for problem in problems)[:1])


def open_tiff(file: FileInParts) -> VoxelArray:
    """Open a TIFF file of one page or many.

    Raises UnreadableSource when its pages are of several kinds, or lie in several files.
    """
    return parsed_tiff(file, partial(_array, file))


def _array(file: FileInParts, tiff: "TiffFile") -> VoxelArray:
    series, *others = tiff.series
    if others:
        images = ", ".join(f"{'x'.join(map(str, one.shape))} {one.dtype}" for one in tiff.series)
        raise UnreadableSource(
            f"{file.url} holds {len(tiff.series)} images, or pages of several kinds: {images}. "
            "Split it, so that all pages of a file are alike"
        )
    kind = kind_of(series.keyframe, file.url)
    axes, shape = series.get_axes(squeeze=True), series.get_shape(squeeze=True)
    if series.dataoffset is not None:
        dtype = np.dtype(tiff.byteorder + series.dtype.char)
        facts = ArrayFacts(shape, dtype, shape, _letters(axes), overlap_width=file.overlap_width)
        return raw_array(file, series.dataoffset, facts, file.worthwhile)
    leading = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in _OF_A_PAGE}
    pages = [page for page in series.pages if page is not None]
    if not _are_all_there(series, pages) or len(pages) != math.prod(leading.values()):
        raise UnreadableSource(
            f"{file.url} holds {len(pages)} of the pages of an array of {shape}; the others lie in "
            "other files, or its metadata are wrong: convert it to a file of its own"
        )
    pictures = TiffPages(file, series.keyframe, pages)
    first = pictures[0]
    facts = ArrayFacts(
        (*leading.values(), *kind.shape),
        kind.dtype,
        (*(1 for _ in leading), *first.block, *kind.shape[2:]),
        _letters("".join(leading) + _OF_A_PAGE[: len(kind.shape)]),
        overlap_width=file.overlap_width,
        notes=(first.note,) if first.note else (),
    )
    return PictureStack(facts, pictures, kind, pictures.look)


def _are_all_there(series: "TiffPageSeries", pages: Sequence["TiffPage | TiffFrame"]) -> bool:
    alone = not getattr(series, "is_multifile", False) and series.transform is None
    return alone and bool(pages) and len(pages) == len(series.pages)


def _letters(axes: str) -> str | None:
    """The axes by our letters; a sequence of pages without a name is z where there is no other."""
    others = [axis for axis in axes if axis not in _LETTERS]
    if len(others) > 1 or (others and "Z" in axes):
        return None
    letters = "".join(_LETTERS.get(axis, "z") for axis in axes)
    return letters if len(set(letters)) == len(letters) else None
