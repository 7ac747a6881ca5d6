"""TIFF pages, read by the strips or tiles that are needed; used by stacks.

Format: TIFF revision 6.0, and BigTIFF; parsed by tifffile, which decodes with imagecodecs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, TypeVar, cast

import numpy as np

from igneous_airflow.errors import IgneousError, UnreadableSource
from igneous_airflow.sources import embedded
from igneous_airflow.sources.pictures import PictureKind
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    require,
    require_bearable,
    worthwhile_block,
)
from igneous_airflow.sources.raw import RawArray
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage

_Parsed = TypeVar("_Parsed")

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MARGIN = 1 << 16  # bytes that encodings may add to a segment
_MOST_AT_ONCE = 1 << 24  # bytes of neighbouring segments that are fetched together
_JPEGS = (6, 7, 33007, 34892)
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ALPHA = (1, 2)
_PAGES_TOLERATED = 50  # in a file that must hold one, beside smaller copies of it
_REDUCED = 1  # of NewSubfileType: a smaller copy of another page


@dataclass(frozen=True)
class TiffPicture:
    """A page of a TIFF file; `page` knows how segments (strips or tiles) are decoded."""

    file: FileInParts
    kind: PictureKind
    page: "TiffPage"
    offsets: Sequence[int]
    counts: Sequence[int]
    jpegtables: bytes | None = None

    @property
    def _planes(self) -> int:
        """How many planes follow each other, a channel in each."""
        return int(self.page.shaped[0])

    @cached_property
    def _raw(self) -> RawArray | None:
        """The page as an array that lies in the file as it is, where it does.

        A strip at byte 0, where the file's header is, was never written: all of it is 0.
        """
        if not self.page.is_final or self.offsets[0] == 0:
            return None
        height, width, channels = self.kind.height, self.kind.width, self.kind.channels
        planar = self._planes > 1
        shape = (channels, height, width) if planar else (height, width, channels)
        dtype = np.dtype(self.page.parent.byteorder + self.kind.dtype.char)
        return RawArray(ArrayFacts(shape, dtype, shape), self.file, self.offsets[0])

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are best read as a whole."""
        kind, page = self.kind, self.page
        row = kind.width * kind.channels * kind.dtype.itemsize
        if self._raw is not None:
            shape = (kind.height, kind.width, kind.channels)
            block = worthwhile_block(shape, kind.dtype.itemsize, self.file.worthwhile)
            return block[0], block[1]
        if page.is_tiled:
            return min(page.tilelength, kind.height), min(page.tilewidth, kind.width)
        rows = max(page.rowsperstrip, 1)
        while rows < kind.height and rows * row < self.file.worthwhile:
            rows *= 2
        return min(rows, kind.height), kind.width

    @property
    def whole_bytes(self) -> int:
        """Bytes of a strip or tile as it is decoded, where it goes on beyond the picture."""
        page, kind = self.page, self.kind
        if self._raw is not None:
            return 0
        if page.is_tiled:
            pixels = page.tiledepth * page.tilelength * page.tilewidth
        else:
            pixels = min(max(page.rowsperstrip, 1), kind.height) * kind.width
        return pixels * (kind.channels // self._planes) * kind.dtype.itemsize

    @property
    def is_encoded(self) -> bool:
        """Whether strips or tiles must be decoded as a whole."""
        return self._raw is None

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether a viewer would turn its values around."""
        if self.page.photometric != _WHITE_IS_ZERO:
            return ()
        return ("0 means white in the pictures (WhiteIsZero); values are taken as they are stored",)

    def problem(self) -> str | None:
        """Whether the file ends before its voxels do, or nobody can decode it."""
        try:
            self.page.decode(None, 0, jpegtables=self.jpegtables)
        except Exception as error:  # noqa: BLE001 - whatever a library of codecs has to say
            return f"cannot be decoded: {error}"
        ends = [offset + count for offset, count in zip(self.offsets, self.counts, strict=True)]
        if max(ends, default=0) <= self.file.size:
            return None
        return f"is cut off: it has {self.file.size:,} bytes, its voxels end at {max(ends):,}"

    def read_into(self, out: Array, rows: slice, columns: slice) -> None:
        """Read a part; raises UnreadableSource."""
        if self._raw is not None:
            self._read_raw(self._raw, out, rows, columns)
            return
        whole = out.reshape(*out.shape[:2], -1)
        try:
            for index, content in self._fetched(self._segments(rows, columns)):
                if content is not None:
                    self._require_picture(content)
                segment, (plane, _, top, left, _), shape = self.page.decode(
                    content, index, jpegtables=self.jpegtables
                )
                if segment is None:
                    segment = np.zeros(shape, out.dtype)
                _paste(whole, (rows, columns), segment, (plane, top, left))
        except UnreadableSource:
            raise
        except Exception as error:
            raise UnreadableSource(f"{self.file.url} cannot be decoded: {error}") from error

    def _require_picture(self, content: bytes) -> None:
        """Raise ValueError when a segment is a picture of more pixels than a segment has."""
        pixels = embedded.promised_pixels(content, int(self.page.compression))
        bytes_a_pixel = self.kind.channels // self._planes * self.kind.dtype.itemsize
        if pixels is not None and pixels * bytes_a_pixel > 2 * self.whole_bytes + _MARGIN:
            raise ValueError(f"a strip or tile of it holds a picture of {pixels:,} pixels")

    def _read_raw(self, raw: RawArray, out: Array, rows: slice, columns: slice) -> None:
        channels = slice(0, self.kind.channels)
        one_by_one = Overlap(1)
        if self._planes > 1:
            planes = raw.read((channels, rows, columns), one_by_one)
            out[...] = np.moveaxis(planes, 0, -1).reshape(out.shape)
        elif raw.facts.dtype == out.dtype and out.flags.c_contiguous:
            raw.read_into((rows, columns, channels), out, one_by_one)
        else:
            out[...] = raw.read((rows, columns, channels), one_by_one).reshape(out.shape)

    def _segments(self, rows: slice, columns: slice) -> Iterator[int]:
        """The numbers of the segments that a part needs."""
        page, kind = self.page, self.kind
        down, across = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (max(page.rowsperstrip, 1), kind.width)
        )
        many = -(-kind.width // across)
        each = -(-kind.height // down) * many
        for plane in range(self._planes):
            for row in range(rows.start // down, -(-rows.stop // down)):
                for column in range(columns.start // across, -(-columns.stop // across)):
                    yield plane * each + row * many + column

    def _fetched(self, segments: Iterator[int]) -> Iterator[tuple[int, bytes | None]]:
        """Read segments; those that follow each other in the file at once."""
        wanted = sorted((self.offsets[i], self.counts[i], i) for i in segments)
        gap = self.file.worthwhile // 4
        group: list[tuple[int, int, int]] = []
        for offset, count, index in wanted:
            if group:
                begin, end = group[0][0], group[-1][0] + group[-1][1]
                if offset - end > gap or offset + count - begin > _MOST_AT_ONCE:
                    yield from self._fetch(group)
                    group = []
            if count > 2 * self.whole_bytes + _MARGIN and self._raw is None:
                raise ValueError(f"a strip or tile of it is stored in {count:,} bytes")
            if count:
                group.append((offset, count, index))
            else:  # an empty segment
                yield index, None
        yield from self._fetch(group)

    def _fetch(self, group: list[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
        if not group:
            return
        begin = group[0][0]
        end = max(offset + count for offset, count, _ in group)
        content = memoryview(self.file.read(begin, end - begin))
        for offset, count, index in group:
            yield index, bytes(content[offset - begin : offset - begin + count])


def _paste(
    out: Array, part: tuple[slice, slice], segment: Array, place: tuple[int, int, int]
) -> None:
    """Copy what a segment at (plane, row, column) has of a part."""
    rows, columns = part
    plane, top, left = place
    _, height, width, samples = segment.shape
    r0, r1 = max(top, rows.start), min(top + height, rows.stop)
    c0, c1 = max(left, columns.start), min(left + width, columns.stop)
    out[
        r0 - rows.start : r1 - rows.start,
        c0 - columns.start : c1 - columns.start,
        plane : plane + samples,
    ] = segment[0, r0 - top : r1 - top, c0 - left : c1 - left]


def open_page(file: FileInParts, memory: int) -> TiffPicture:
    """Open a TIFF file that holds one section.

    Raises UnreadableSource, for more pages and for kinds that are refused as well, and for strips
    or tiles that are too large to be decoded with so many bytes of memory.
    """
    picture = parsed_tiff(file, partial(_only_page, file))
    require_bearable(file.url, picture.whole_bytes, picture.kind.bytes, memory)
    return picture


def parsed_tiff(file: FileInParts, what: Callable[["TiffFile"], _Parsed]) -> _Parsed:
    """Read something from a TIFF file; raises UnreadableSource naming it."""
    require("tifffile", "TIFF")
    from tifffile import TiffFile

    try:
        with file.stream() as stream, TiffFile(cast("IO[bytes]", stream)) as tiff:
            return what(tiff)
    except IgneousError:
        raise
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no TIFF that can be read: {error}") from error


def _only_page(file: FileInParts, tiff: "TiffFile") -> TiffPicture:
    others = tiff.pages[1:] if len(tiff.pages) < _PAGES_TOLERATED else [None]
    if not all(is_reduced(page) for page in others):
        raise UnreadableSource(
            f"{file.url} has {len(tiff.pages):,} pages, where each file must hold one section: "
            "give it as a source of its own"
        )
    return picture_of(file, tiff.pages.first)


def is_reduced(page: "TiffPage | TiffFrame | None") -> bool:
    """Whether a page is a smaller copy of another one."""
    return bool(getattr(page, "subfiletype", 0) & _REDUCED)


def picture_of(file: FileInParts, page: "TiffPage | TiffFrame") -> TiffPicture:
    """A page of a file; its strips and tiles are those of its keyframe."""
    kind = kind_of(page, file.url)
    keyframe = page.keyframe
    assert keyframe is not None  # noqa: S101 - as `kind_of` has checked
    return TiffPicture(
        file,
        kind,
        keyframe,
        page.dataoffsets,
        page.databytecounts,
        page.jpegtables,
    )


def kind_of(page: "TiffPage | TiffFrame", url: str) -> PictureKind:
    """What a page is; raises UnreadableSource for what has no voxels to offer."""
    keyframe = page.keyframe
    if keyframe is None or keyframe.dtype is None or keyframe.shaped[1] != 1:
        raise UnreadableSource(f"{url}: its pixels cannot be read as a plane of numbers")
    if problem := _colour_problem(keyframe):
        raise UnreadableSource(f"{url}: {problem}")
    planes, _, height, width, samples = keyframe.shaped
    return PictureKind(height, width, planes * samples, keyframe.dtype)


def _colour_problem(page: "TiffPage") -> str | None:
    colours = page.photometric
    if colours == _PALETTE:
        return "it has a palette, so that its pixels are no values: convert it to grey or RGB"
    if any(int(extra) in _ALPHA for extra in page.extrasamples):
        return "it has an alpha channel: remove that first"
    if colours not in (_WHITE_IS_ZERO, _GREY, _RGB) and not (
        colours == _YCBCR and page.compression in _JPEGS
    ):
        return f"its colours are {getattr(colours, 'name', colours)}: convert it to grey or RGB"
    return None
