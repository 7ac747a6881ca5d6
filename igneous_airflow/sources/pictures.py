"""PNG and JPEG pictures, and what any picture of one section is; used by stacks.

Row 0 of a picture is y = 0, column 0 is x = 0.
"""

import io
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.protocol import ALWAYS_BEARABLE, Array, require_bearable
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MOST_BESIDES = ALWAYS_BEARABLE  # bytes of a file that are no pixels
_PNG_END, _JPEG_END, _TAIL = b"IEND", b"\xff\xd9", 64
#: What the modes of Pillow hold: dtype and channels.
_MODES: dict[str, tuple[str, int]] = {
    "1": ("bool", 1),
    "L": ("uint8", 1),
    "I;16": ("uint16", 1),
    "RGB": ("uint8", 3),
}
_REFUSED = {
    "P": "it has a palette, so that its pixels are no values: convert it to grey or RGB",
    "LA": "it has an alpha channel: remove that first",
    "RGBA": "it has an alpha channel: remove that first",
    "CMYK": "its colours are CMYK: convert it to RGB",
}


@dataclass(frozen=True, slots=True)
class PictureKind:
    """What all the sections of a stack must have in common; `dtype` is in native byte order."""

    height: int
    width: int
    channels: int
    dtype: "np.dtype[Any]"

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns, and channels where there are several."""
        return (self.height, self.width, *([self.channels] if self.channels > 1 else []))

    @property
    def bytes(self) -> int:
        """Bytes of all pixels."""
        return self.height * self.width * self.channels * self.dtype.itemsize

    def __str__(self) -> str:
        channels = f" in {self.channels} channels" if self.channels > 1 else ""
        return f"{self.width} x {self.height} {self.dtype}{channels}"


class Picture(Protocol):
    """One section in a file; may be read by many threads at once."""

    @property
    def kind(self) -> PictureKind:
        """What it is."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are best read as a whole."""

    @property
    def whole_bytes(self) -> int:
        """Bytes of these as they are decoded, where they go on beyond the picture."""

    @property
    def is_encoded(self) -> bool:
        """Whether these must be decoded as a whole, even for a part of them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of it."""

    def problem(self) -> str | None:
        """What is wrong with the file, as far as that can be told without decoding all of it."""

    def read_into(self, out: Array, rows: slice, columns: slice) -> None:
        """Read a part into an array of its shape and the kind's dtype, contiguous.

        Raises UnreadableSource, SourceNotFound and the storage's errors.
        """


@dataclass(frozen=True)
class WholePicture:
    """A PNG or a JPEG, which is decoded as a whole."""

    file: FileInParts
    kind: PictureKind

    @property
    def block(self) -> tuple[int, int]:
        """All of it."""
        return self.kind.height, self.kind.width

    @property
    def whole_bytes(self) -> int:
        """Bytes of all of it."""
        return self.kind.bytes

    @property
    def is_encoded(self) -> bool:
        """Whether it must be decoded as a whole: always."""
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def problem(self) -> str | None:
        """Decode a picture whose end is not there, which seldom is any good; a large one is not."""
        length = min(_TAIL, self.file.size)
        tail = self.file.read(self.file.size - length, length)
        if _PNG_END in tail or _JPEG_END in tail:
            return None
        if self.kind.bytes > ALWAYS_BEARABLE:
            return "is cut off: what ends every PNG and JPEG is not at its end"
        try:
            self.read_into(np.empty(self.kind.shape, self.kind.dtype), slice(None), slice(None))
        except UnreadableSource as error:
            return str(error).removeprefix(f"{self.file.url} ")
        return None

    def read_into(self, out: Array, rows: slice, columns: slice) -> None:
        """Decode the picture and copy a part."""
        content = io.BytesIO(self.file.read(0, self.file.size))
        try:
            with _opened(content) as image:
                if _kind(image, self.file.url) != self.kind:
                    raise ValueError("it is another picture than before")
                out[...] = np.asarray(image)[rows, columns]
        except Exception as error:
            raise UnreadableSource(f"{self.file.url} cannot be decoded: {error}") from error


def open_whole_picture(file: FileInParts, memory: int) -> WholePicture:
    """Read the header of a PNG or JPEG.

    Raises UnreadableSource, also for kinds that are refused, and for pictures that are too large to
    be decoded with so many bytes of memory.
    """
    try:
        with file.stream() as stream, _opened(stream) as image:
            picture = WholePicture(file, _kind(image, file.url))
    except UnreadableSource:
        raise
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no picture that can be read: {error}") from error
    pixels = picture.kind.bytes
    require_bearable(file.url, pixels, pixels, memory)
    if file.size > 2 * pixels + _MOST_BESIDES:
        raise UnreadableSource(
            f"{file.url} has {file.size:,} bytes for {pixels:,} bytes of pixels: it is damaged"
        )
    return picture


def is_whole_picture(head: bytes) -> bool:
    """Whether a file that begins so is a PNG or a JPEG."""
    return head.startswith((_PNG, _JPEG))


def _opened(stream: io.RawIOBase | io.BytesIO) -> "ImageFile":
    """Open a picture without Pillow's limit of pixels, which sections of microscopes exceed."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    is_png = stream.read(8) == _PNG
    stream.seek(0)
    readable = cast("IO[bytes]", stream)
    return PngImageFile(readable) if is_png else JpegImageFile(readable)


def _kind(image: "ImageFile", url: str) -> PictureKind:
    coding = str(image.tile[0].args) if image.tile else ""
    if image.mode == "RGB" and "16" in coding:
        raise UnreadableSource(f"{url}: it has 16 bits a colour: store it as TIFF")
    if image.mode == "L" and coding in ("L;2", "L;4"):
        raise UnreadableSource(f"{url}: it has {coding[-1]} bits a pixel: store it with 8")
    if image.mode not in _MODES:
        reason = _REFUSED.get(image.mode, f"its pixels are of mode {image.mode}")
        raise UnreadableSource(f"{url}: {reason}")
    name, channels = _MODES[image.mode]
    return PictureKind(image.height, image.width, channels, np.dtype(name))
