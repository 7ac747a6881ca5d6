"""Compressed bytes undone piece by piece, so that their reader decides how many become of them.

A short stream may promise, or become, any number of bytes. Used by codecs.
"""

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Protocol

from igneous_airflow.storage.files import Buffer

_PIECE = 1 << 20  # bytes of a piece at most; zstd cannot be limited but by its input
_ZSTD_INPUT = 1 << 8  # bytes, which become 8 MiB at most
_ZSTD_WINDOW = 1 << 23  # bytes that every reader should be able to hold: RFC 8878, 3.1.1.1.2
_LZMA_MEMORY = 1 << 28  # bytes; four times what lzma's highest level needs


class _Decoder(Protocol):
    """What the standard library's decompressors of one stream have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def pieces(content: Buffer, compression: str) -> Iterator[bytes]:
    """Undo a compression, where several streams follow each other as well.

    Pieces have 1 MiB at most, those of zstd 8 MiB. Raises ValueError for an unknown compression,
    and the libraries' own errors for bytes that are damaged or cut off.
    """
    if compression not in _KINDS:
        raise ValueError(f"only {', '.join(_KINDS)} can be undone")
    if not content:
        raise EOFError("it is empty")
    return _KINDS[compression](content)


def joined(parts: Iterable[bytes], most: int) -> bytearray:
    """Join pieces until they have more than `most` bytes, or none is left."""
    content = bytearray()
    for part in parts:
        content += part
        if len(content) > most:
            break
    return content


def _gzip(content: Buffer) -> Iterator[bytes]:
    import gzip

    with gzip.GzipFile(fileobj=BytesIO(content)) as stream:
        yield from iter(lambda: stream.read(_PIECE), b"")


def _brotli(content: Buffer) -> Iterator[bytes]:
    import brotli

    decoder, rest = brotli.Decompressor(), bytes(content)
    while not decoder.is_finished():
        part = decoder.process(rest, output_buffer_limit=_PIECE)
        if not part and not rest and not decoder.is_finished():
            raise EOFError("it is cut off")
        rest = b""  # the decoder holds it
        yield part


def _zstd(content: Buffer) -> Iterator[bytes]:
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame, rest = library.decompressobj(), bytes(content)
    while rest:
        part, rest = rest[:_ZSTD_INPUT], rest[_ZSTD_INPUT:]
        yield frame.decompress(part)
        while frame.eof and (part := frame.unused_data or b""):
            frame = library.decompressobj()
            yield frame.decompress(part)
        if frame.eof and rest:
            frame = library.decompressobj()
    if not frame.eof:
        raise EOFError("it is cut off")


def _bzip2(content: Buffer) -> Iterator[bytes]:
    import bz2

    return _streams(bz2.BZ2Decompressor, content)


def _xz(content: Buffer) -> Iterator[bytes]:
    import lzma

    return _streams(lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY), content)


def _streams(make: Callable[[], _Decoder], content: Buffer) -> Iterator[bytes]:
    decoder, rest = make(), bytes(content)
    while rest or not decoder.eof:
        if decoder.eof:
            decoder = make()
        part = decoder.decompress(rest, _PIECE)
        if not part and not rest and not decoder.eof:
            raise EOFError("it is cut off")
        rest = decoder.unused_data
        yield part


_KINDS: dict[str, Callable[[Buffer], Iterator[bytes]]] = {
    "gzip": _gzip,
    "br": _brotli,
    "zstd": _zstd,
    "bz2": _bzip2,
    "bzip2": _bzip2,
    "xz": _xz,
    "lzma": _xz,
}
