"""How many pixels a picture inside of a TIFF promises, read from its first bytes.

Libraries make room for what such a picture says of itself, whatever the strip or tile is that it
should fill. Numbers of compressions: https://www.awaresystems.be/imaging/tiff/tifftags/compression.html
"""

from collections.abc import Callable

_JPEGS = frozenset({6, 7, 33007, 34892})
_JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
_PNGS = frozenset({34933})
_WEBP = frozenset({34927, 50001})
_LERC = frozenset({34887})
_JXL = frozenset({50002, 52546})
_JPEG_XR = frozenset({22610, 34934})
_NO_SIZE = frozenset({0xC4, 0xC8, 0xCC})  # markers of JPEG among those that begin a frame
_MOST = 1 << 62  # pixels of a picture that says nothing


def promised_pixels(content: bytes, compression: int) -> int | None:
    """The pixels of a picture in a segment; None for compressions that are no pictures.

    Raises ValueError for a picture whose size cannot be found.
    """
    for kinds, read in _SIZES.items():
        if compression in kinds:
            try:
                return read(content)
            except (IndexError, ValueError) as error:
                raise ValueError(
                    f"the size of an embedded picture is not to be found: {error}"
                ) from error
    return None


def _jpeg(content: bytes) -> int:
    at = 2
    while True:
        while content[at] != 0xFF:
            at += 1
        while content[at] == 0xFF:
            at += 1
        marker = content[at]
        if (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE) or marker == 0xF7:
            return _number(content, at + 4, 2) * _number(content, at + 6, 2)
        at += 1 + (0 if 0xD0 <= marker <= 0xD9 or marker == 1 else _number(content, at + 1, 2))


def _png(content: bytes) -> int:
    return _number(content, 16, 4) * _number(content, 20, 4)


def _jpeg_2000(content: bytes) -> int:
    at = content.index(b"\xff\x4f\xff\x51") + 8
    right, bottom, left, top = (_number(content, at + 4 * i, 4) for i in range(4))
    return max(right - left, 0) * max(bottom - top, 0)


def _webp(content: bytes) -> int:
    kind, at = content[12:16], 20
    if kind == b"VP8X":
        width, height = (_number(content, at + i, 3, "little") for i in (4, 7))
        return (width + 1) * (height + 1)
    if kind == b"VP8L":
        bits = _number(content, at + 1, 4, "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    width, height = (_number(content, at + i, 2, "little") & 0x3FFF for i in (6, 8))
    return width * height


def _lerc(content: bytes) -> int:
    at = content.index(b"Lerc2 ") + 6
    version = _number(content, at, 4, "little")
    at += 8 if version >= 3 else 4
    pixels = _number(content, at, 4, "little") * _number(content, at + 4, 4, "little")
    return pixels * (max(_number(content, at + 8, 4, "little"), 1) if version >= 4 else 1)


def _jxl(content: bytes) -> int:
    """The bits after the signature, the lowest of each byte first."""
    at = content.index(b"\xff\x0a") + 2
    bits, place = int.from_bytes(content[at : at + 16], "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> place - count & (1 << count) - 1

    is_small = take(1)

    def length() -> int:
        return (take(5) + 1) * 8 if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    height = length()
    ratio = take(3)
    numerator, denominator = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[
        ratio
    ]
    width = height * numerator // denominator if ratio else length()
    return height * width


def _unknown(_content: bytes) -> int:
    raise ValueError("JPEG XR is not read: store it with another compression")


def _number(content: bytes, at: int, size: int, order: str = "big") -> int:
    if at + size > len(content):
        raise IndexError("it is cut off")
    return int.from_bytes(content[at : at + size], "little" if order == "little" else "big")


_SIZES: dict[frozenset[int], Callable[[bytes], int]] = {
    _JPEGS: _jpeg,
    _JPEG_2000: _jpeg_2000,
    _PNGS: _png,
    _WEBP: _webp,
    _LERC: _lerc,
    _JXL: _jxl,
    _JPEG_XR: _unknown,
}
