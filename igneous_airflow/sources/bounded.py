"""Compressions of Zarr undone to no more bytes than a chunk can have; used by its codecs.

A short stream may promise, or become, any number of bytes.
"""

import lzma
from collections.abc import Callable, Mapping
from typing import Any

from igneous_airflow.storage.codecs import inflate
from igneous_airflow.storage.files import Buffer
from igneous_airflow.storage.streams import joined, pieces

_LZMA_MEMORY = 1 << 28  # bytes; four times what lzma's highest level needs
_ZSTD_WINDOW = 1 << 27  # bytes; what its highest level needs


def unpacked(name: str, content: Buffer, most: int, options: Mapping[str, Any]) -> Buffer:
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


def _lzma(content: Buffer, most: int, options: Mapping[str, Any]) -> bytes:
    kind, filters = options.get("format", lzma.FORMAT_XZ), options.get("filters")
    if kind == lzma.FORMAT_RAW:
        if any(step.get("dict_size", 0) > _LZMA_MEMORY for step in filters or ()):
            raise ValueError("its dictionary is too large")
        decoder = lzma.LZMADecompressor(kind, filters=filters)
    else:
        decoder = lzma.LZMADecompressor(kind, memlimit=_LZMA_MEMORY)
    found = decoder.decompress(content, most + 1)
    if len(found) <= most and not decoder.eof:
        raise EOFError("it is cut off")
    return found


def _zstd(content: Buffer, most: int) -> bytes:
    """Not by pieces, which take no window of more than 8 MiB: chunks may be larger."""
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with library.stream_reader(content, read_across_frames=True) as stream:
        found: bytes = stream.read(most + 1)
    return found


_UNPACK: dict[str, Callable[[Buffer, int, Mapping[str, Any]], Buffer]] = {
    "gzip": lambda content, most, _: joined(pieces(content, "gzip"), most),
    "bz2": lambda content, most, _: joined(pieces(content, "bz2"), most),
    "zlib": lambda content, most, _: inflate(content, most),
    "lzma": _lzma,
    "zstd": lambda content, most, _: _zstd(content, most),
}
UNPACKED = frozenset(_UNPACK)
PROMISED = frozenset({"blosc", "lz4"})
