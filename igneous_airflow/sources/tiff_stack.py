"""TIFF files of many pages that make up one array; used when a source is a single TIFF file."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.ome import require_one_file
from igneous_airflow.sources.protocol import (
    ArrayFacts,
    Findings,
    VoxelArray,
    named,
    require_bearable,
)
from igneous_airflow.sources.raw import raw_array
from igneous_airflow.sources.stack import PictureStack
from igneous_airflow.sources.tiff import TiffPicture, is_reduced, kind_of, parsed_tiff, picture_of
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage

_LETTERS = {"Z": "z", "T": "t", "C": "c"}
_OF_A_PAGE = "YXS"


@dataclass(frozen=True)
class TiffPages(Sequence[TiffPicture]):
    """The pages of a file, in the order of the array that they make up."""

    file: FileInParts
    pages: Sequence["TiffPage | TiffFrame"]
    memory: int

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> TiffPicture:  # type: ignore[override] # no slices
        picture = picture_of(self.file, self.pages[index])
        require_bearable(self.file.url, picture.whole_bytes, picture.kind.bytes, self.memory)
        return picture

    def look(self) -> Findings:
        """Whether the file ends before its voxels do."""
        problems = filter(None, (page.problem() for page in self))
        return Findings(tuple(f"{self.file.url} {problem}" for problem in problems)[:1])


def open_tiff(file: FileInParts, memory: int) -> VoxelArray:
    """Open a TIFF file of one page or many; a task may use so many bytes of memory.

    Raises UnreadableSource when its pages are of several kinds, or lie in several files.
    """
    return parsed_tiff(file, partial(_array, file, memory))


def _array(file: FileInParts, memory: int, tiff: "TiffFile") -> VoxelArray:
    if tiff.is_ome:
        require_one_file(tiff.ome_metadata or "", file)
    if len(tiff.series) > 1:  # as of programs that write page by page
        pages = [page for page in tiff.pages if not is_reduced(page)]
        _require_alike(file, pages)
        return _stack(TiffPages(file, pages, memory), {"z": len(pages)})
    series = tiff.series[0]
    planes = math.prod(series.shape) // math.prod(kind_of(series.keyframe, file.url).shape)
    leading = _leading(series.axes, series.shape, planes)
    if series.dataoffset:
        return _raw(file, tiff, series.dataoffset, leading)
    there = [page for page in series.pages if page is not None]
    if len(there) != planes or series.transform is not None:
        raise UnreadableSource(
            f"{file.url} holds {len(there):,} of {planes:,} pages; the others lie in other files, "
            "or its metadata are wrong: make it a file of its own"
        )
    return _stack(TiffPages(file, there, memory), leading)


def _require_alike(file: FileInParts, pages: Sequence["TiffPage | TiffFrame"]) -> None:
    kinds = [kind_of(page, file.url) for page in pages]
    ((usual, _),) = Counter(kinds).most_common(1)
    odd = [f"page {i} is {kind}" for i, kind in enumerate(kinds) if kind != usual]
    if odd:
        raise UnreadableSource(
            f"{len(odd):,} of {len(pages):,} pages of {file.url} are not {usual}, as the others "
            f"are: {named(odd)}. Split it, so that all pages of a file are alike"
        )


def _raw(file: FileInParts, tiff: "TiffFile", offset: int, leading: dict[str, int]) -> VoxelArray:
    """All pages, which lie in the file one after the other as they are."""
    series = tiff.series[0]
    kind = kind_of(series.keyframe, file.url)
    page, axes = kind.shape, "yxc"[: len(kind.shape)]
    if int(series.keyframe.shaped[0]) > 1:  # each channel in a plane of its own
        page, axes = (kind.channels, kind.height, kind.width), "cyx"
    shape = (*leading.values(), *page)
    dtype = np.dtype(tiff.byteorder + kind.dtype.char)
    names = "".join(leading) + axes
    facts = ArrayFacts(
        shape,
        dtype,
        shape,
        names,
        overlap_width=file.overlap_width,
        notes=picture_of(file, series.keyframe).notes,
    )
    return raw_array(file, offset, facts, file.worthwhile)


def _stack(pictures: TiffPages, leading: dict[str, int]) -> VoxelArray:
    first = pictures[0]
    kind = first.kind
    facts = ArrayFacts(
        (*leading.values(), *kind.shape),
        kind.dtype,
        (*(1 for _ in leading), *first.block, *kind.shape[2:]),
        "".join(leading) + "yxc"[: len(kind.shape)],
        is_encoded=first.is_encoded,
        overlap_width=pictures.file.overlap_width,
        whole_bytes=first.whole_bytes,
        notes=first.notes,
    )
    return PictureStack(facts, pictures, kind, pictures.look)


def _leading(axes: str, shape: Sequence[int], planes: int) -> dict[str, int]:
    """The axes before rows and columns, by our letters, with their lengths.

    Pages without names for what they are, or with names that do not fit, are sections.
    """
    named = [
        (_LETTERS.get(axis, "z"), length)
        for axis, length in zip(axes, shape, strict=True)
        if axis not in _OF_A_PAGE and length > 1
    ]
    leading = dict(named)
    if len(leading) == len(named) and math.prod(leading.values()) == planes:
        return leading
    return {"z": planes}
