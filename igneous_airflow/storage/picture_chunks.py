"""Chunks that are pictures: how many pixels their headers promise, read before they are decoded.

A picture of a few bytes may promise any number of pixels, and its decoder takes memory for them.
All functions raise ValueError, also where a header cannot be read.
PNG: https://www.w3.org/TR/png-3/. JPEG XL: ISO/IEC 18181-1, annex D, and 18181-2.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_JXL_BOXES = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_JXL_STREAM = b"\xff\x0a"
_JXL_HEADER = 16  # bytes, which hold its size
_SIZE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height


def check_jpeg(content: bytes, voxels: int) -> None:
    """Raise ValueError unless a JPEG has a pixel for each voxel."""
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    _check_pixels(width, height, voxels)


def check_png(content: bytes, voxels: int) -> None:
    """Raise ValueError unless a PNG has a pixel for each voxel."""
    if not content.startswith(_PNG_START):
        raise ValueError("it is not a PNG file")
    at = len(_PNG_START)
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (at, at + 4))
    _check_pixels(width, height, voxels)


def decode_jxl(content: bytes, voxels: int) -> "NDArray[np.uint8]":
    """Decode a grey JPEG XL file to an array of pixels, with a pixel for each voxel."""
    import imagecodecs
    import numpy as np

    width, height = _jxl_size(content)
    _check_pixels(width, height, voxels)
    # into an array of that size, which a file of several pictures or channels does not fit
    pixels: NDArray[Any] = np.empty((height, width), np.uint8)
    imagecodecs.jpegxl_decode(content, numthreads=1, out=pixels)
    return pixels


def _check_pixels(width: int, height: int, voxels: int) -> None:
    if width * height != voxels:
        raise ValueError(
            f"its header says that it is {width:,} by {height:,} pixels, but the chunk has "
            f"{voxels:,} voxels"
        )


def _jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height that a JPEG XL file says, with or without a container."""
    stream = _jxl_stream(content) if content.startswith(_JXL_BOXES) else content
    if not stream.startswith(_JXL_STREAM):
        raise ValueError("it is not a JPEG XL file")
    bits = int.from_bytes(stream[len(_JXL_STREAM) : _JXL_HEADER], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def take_length(is_small: int) -> int:
        return 8 * (take(5) + 1) if is_small else take(_SIZE_BITS[take(2)]) + 1

    is_small = take(1)
    height = take_length(is_small)
    ratio = take(3)
    if ratio == 0:
        return take_length(is_small), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _jxl_stream(content: bytes) -> bytes:
    """The beginning of the code stream in a container of boxes."""
    at = 0
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        start = at + 8
        if size == 1:  # 64 bits follow
            size, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0  # the number of the part
            return content[start : start + _JXL_HEADER]
        if size < start - at:
            break
        at += size
    raise ValueError("it holds no JPEG XL code stream")
