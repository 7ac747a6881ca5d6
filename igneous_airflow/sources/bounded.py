"""Compressed bytes unpacked to no more than what is expected of them; used by sources of ingest.

A short stream may promise, or become, any number of bytes.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from igneous_airflow.storage.files import Buffer

_LZMA_MEMORY = 1 << 28  # bytes; four times what lzma's highest level needs
_ZSTD_WINDOW = 1 << 27  # bytes; what its highest level needs
_GZIP, _ZLIB = 31, 15  # zlib's numbers for streams of any window


class _Decoder(Protocol):
    """What decompressors of one stream have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Buffer, max_length: int = -1, /) -> bytes: ...


def unpacked(name: str, content: Buffer, most: int, options: Mapping[str, Any]) -> bytes:
    """Undo one of the compressions in UNPACKED; `options` are those that it was packed with.

    Raises ValueError for a damaged stream, and for one that holds more than `most` bytes.
    """
    try:
        found = _UNPACK[name](content, most, options)
    except Exception as error:
        raise ValueError(f"its {name} stream is damaged: {error}") from error
    if len(found) > most:
        raise ValueError(f"its {name} stream holds more than {most:,} bytes")
    return found


def promised(name: str, content: Buffer) -> int:
    """How many bytes one of the compressions in PROMISED will make room for."""
    begin = 4 if name == "blosc" else 0
    return int.from_bytes(bytes(content[begin : begin + 4]), "little")


def _joined(make: Callable[[], _Decoder], content: Buffer, most: int, *, several: bool) -> bytes:
    """Undo a stream, or several one after the other, up to one byte too many."""
    decoder, found = make(), bytearray()
    rest: Buffer = content
    while True:
        found += decoder.decompress(rest, most + 1 - len(found))
        if len(found) > most:
            return bytes(found)
        if not decoder.eof:
            raise EOFError("it is cut off")
        rest = decoder.unused_data
        if not several or not rest.strip(b"\0"):
            return bytes(found)
        decoder = make()


def _zlib(window: int, content: Buffer, most: int) -> bytes:
    return _joined(lambda: zlib.decompressobj(window), content, most, several=window == _GZIP)


def _bz2(content: Buffer, most: int) -> bytes:
    return _joined(bz2.BZ2Decompressor, content, most, several=True)


def _lzma(content: Buffer, most: int, options: Mapping[str, Any]) -> bytes:
    form, filters = options.get("format", lzma.FORMAT_XZ), options.get("filters")
    if form == lzma.FORMAT_RAW:
        if any(step.get("dict_size", 0) > _LZMA_MEMORY for step in filters or ()):
            raise ValueError("its dictionary is too large")
        decoder = lzma.LZMADecompressor(form, filters=filters)
    else:
        decoder = lzma.LZMADecompressor(form, memlimit=_LZMA_MEMORY)
    return _joined(lambda: decoder, content, most, several=False)


def _zstd(content: Buffer, most: int) -> bytes:
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with library.stream_reader(content, read_across_frames=True) as stream:
        found: bytes = stream.read(most + 1)
    return found


_UNPACK: dict[str, Callable[[Buffer, int, Mapping[str, Any]], bytes]] = {
    "gzip": lambda content, most, _: _zlib(_GZIP, content, most),
    "zlib": lambda content, most, _: _zlib(_ZLIB, content, most),
    "bz2": lambda content, most, _: _bz2(content, most),
    "lzma": _lzma,
    "zstd": lambda content, most, _: _zstd(content, most),
}
UNPACKED = frozenset(_UNPACK)
PROMISED = frozenset({"blosc", "lz4"})
