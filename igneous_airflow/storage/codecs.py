"""Chunk bytes to arrays and back: the encodings of the format and their compression.

The encodings themselves are cloud-volume's. Compression is ours to choose, because it decides the
speed of everything: cloud-volume always gzips at libdeflate's level 9.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from struct import unpack
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import CorruptChunk, InvalidParameter
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.encodings import READ_ONLY, codec_problem, writing_problem
from igneous_airflow.storage.files import Buffer, StoredFile
from igneous_airflow.storage.label_chunks import (
    check_crackle,
    checked_compresso,
    checked_segmentation,
)
from igneous_airflow.storage.picture_chunks import check_jpeg, check_png, decode_jxl
from igneous_airflow.storage.streams import joined, pieces
from igneous_airflow.storage.tuning import Tuning, encoder_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PICTURES = frozenset({"jpeg", "png"})
#: Encodings whose bytes a general compressor still makes smaller.
_COMPRESSIBLE = frozenset({"raw", "compressed_segmentation", "compresso", "crackle"})
_LIBDEFLATE_LEVEL = 6  # labels: a quarter of the time of level 9 for 2 to 16 % more bytes
_BROTLI_HIGHEST = 11
_GZIP_MAGIC = b"\x1f\x8b\x08"  # how a stream begins
_GZIP_WINDOW = 31  # zlib's number for a gzip stream of any window
_LARGE_CHUNK = 1 << 17  # bytes
_MEMORY, _LARGE_MEMORY = 8, 9  # zlib's levels; the latter, of 0.4 MB, makes large chunks faster
_ISAL_START = 8  # bytes; of more than 16 ISA-L takes its usual way
_ISAL_LEVEL = 1  # grey values: a twelfth of the time of libdeflate for 0.1 % more bytes


def _require_codec(encoding: str, channels: int) -> None:
    if problem := codec_problem(encoding, channels):
        raise InvalidParameter(problem)


def compression_for(compress: str, encoding: str) -> str:
    """The compression that `compress` ("auto", "none" or a name) means for an encoding."""
    if compress == "auto":
        return "gzip" if encoding in _COMPRESSIBLE else ""
    return "" if compress == "none" else compress


def compress_bytes(
    content: Buffer, compression: str, *, grey: bool, level: int | None = None
) -> StoredFile:
    """Compress a chunk; `grey` chooses the fast encoder that suits noisy grey values."""
    if compression == "":
        return StoredFile(content)
    if compression == "gzip":
        if grey and level is None:
            return StoredFile(_gzip_greys(content), "gzip")
        import deflate

        packed = deflate.gzip_compress(content, _LIBDEFLATE_LEVEL if level is None else level)
        return StoredFile(packed, "gzip")
    from cloudfiles import compression as cloud_compression

    if compression == "br" and level is not None:
        level = min(level, _BROTLI_HIGHEST)
    return StoredFile(
        cloud_compression.compress(content, method=compression, compress_level=level), compression
    )


def _gzip_greys(content: Buffer) -> bytes:
    """Compress noisy grey values fast.

    ISA-L files the third byte of a stream under a number that it takes from the stream's address in
    memory: now and then the same input would give other bytes. What is flushed by itself at the
    start it handles elsewhere, and rightly.
    """
    from isal import isal_zlib

    data = memoryview(content).cast("B")
    memory = _LARGE_MEMORY if len(data) >= _LARGE_CHUNK else _MEMORY
    packer = isal_zlib.compressobj(_ISAL_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW, memory)
    start = packer.compress(data[:_ISAL_START]) + packer.flush(isal_zlib.Z_SYNC_FLUSH)
    return b"".join((start, packer.compress(data[_ISAL_START:]), packer.flush()))


def decompress_bytes(file: StoredFile, most: int) -> Buffer:
    """Undo a file's compression; the content may have `most` bytes.

    Raises CorruptChunk when it has more, without taking memory for them, or when the bytes are
    damaged.
    """
    if file.compression == "":
        return _bounded(file.content, "file", most)
    with _named_if_damaged(file):
        content = _only_gzip_stream(file.content, most) if file.compression == "gzip" else None
        if content is None:
            content = joined(pieces(file.content, file.compression), most)
    return _bounded(content, f"{file.compression} stream", most)


def _bounded(content: Buffer, what: str, most: int) -> Buffer:
    if len(content) > most:
        raise _too_long(what, f"at least {len(content):,}", most)
    return content


def _too_long(what: str, size: str, most: int) -> CorruptChunk:
    return CorruptChunk(
        f"the {what} holds {size} bytes, but at most {most:,} are expected: restore the file, or "
        "write it again"
    )


def _only_gzip_stream(content: Buffer, most: int) -> Buffer | None:
    """Undo gzip at full speed, by libdeflate; None where that cannot be trusted.

    libdeflate reads only the first stream of several, and takes as much memory as the last 4 bytes
    say. Raises CorruptChunk when these say more than `most`.
    """
    import deflate

    checksum, size = unpack("<II", bytes(content[-8:]).rjust(8, b"\0"))
    if size > most:
        raise _too_long("gzip stream", f"{size:,}", most)
    # Noise of the expected size is spared the search, which would take a twelfth of the time.
    is_noise = size >> 1 < len(content) <= size + (size >> 10) and 2 * size > most
    if size == 0 or (not is_noise and _holds_streams_of(size, content)):
        return None
    try:
        undone: Buffer = deflate.gzip_decompress(content, size)
    except deflate.DeflateError:
        return None
    is_last = len(undone) == size and (not is_noise or deflate.crc32(undone) == checksum)
    return undone if is_last else None


def _holds_streams_of(size: int, content: Buffer) -> bool:
    """Whether a stream of gzip may follow one that says that it is of this size."""
    return bytes(content).rfind(size.to_bytes(4, "little") + _GZIP_MAGIC) >= 0


def decompress_first(file: StoredFile, count: int) -> Buffer:
    """The first bytes of a file without its compression, fewer where it has no more.

    The rest is neither decoded nor checked. Raises CorruptChunk when the bytes are damaged.
    """
    if file.compression == "":
        return memoryview(file.content)[:count]
    with _named_if_damaged(file):
        if file.compression == "gzip":
            from isal import isal_zlib

            decoder = isal_zlib.decompressobj(_GZIP_WINDOW)
            content: Buffer = decoder.decompress(file.content, count)
            if len(content) == count:
                return content
        return memoryview(joined(pieces(file.content, file.compression), count - 1))[:count]


@contextmanager
def _named_if_damaged(file: StoredFile) -> Iterator[None]:
    try:
        yield
    except CorruptChunk:
        raise
    except Exception as error:
        raise CorruptChunk(f"the {file.compression} stream is damaged: {error}") from error


def inflate(content: Buffer, most: int) -> Buffer:
    """Undo a zlib stream that holds `most` bytes at most; raises CorruptChunk for any other."""
    import deflate

    try:
        unpacked: Buffer = deflate.zlib_decompress(content, most)
    except Exception as error:
        raise CorruptChunk(
            f"the zlib stream is damaged, or longer than it should be: {error}"
        ) from error
    return unpacked


def encode(
    array: "NDArray[Any]",
    encoding: str,
    *,
    block_size: Vec3 | None = None,
    tuning: Tuning = (),
) -> Buffer:
    """Encode an (x, y, z, channel) array; raises InvalidParameter when the encoding cannot.

    The bytes may be a view of the array.
    """
    import numpy as np

    if encoding == "raw":
        return np.asfortranarray(array).reshape(-1, order="F").view(np.uint8).data
    _require_codec(encoding, array.shape[3])
    if problem := writing_problem(encoding):
        raise InvalidParameter(problem)
    from cloudvolume import chunks

    try:
        return bytes(
            chunks.encode(
                np.require(array, requirements="W"),  # compresso refuses read-only memory
                encoding,
                block_size=tuple(block_size) if block_size else None,
                compression_params=encoder_options(encoding, tuning),
            )
        )
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise InvalidParameter(
            f"cannot encode {array.dtype} voxels as {encoding}: {error}"
        ) from error


def decode(
    content: Buffer,
    encoding: str,
    *,
    shape: tuple[int, int, int, int],
    dtype: "np.dtype[Any]",
    block_size: Vec3 | None = None,
) -> "NDArray[Any]":
    """Decode a chunk to an (x, y, z, channel) array in Fortran order; raises CorruptChunk.

    The array may be a read-only view of `content`. Raises InvalidParameter where the encoding
    cannot be read here, whatever the bytes.
    """
    import numpy as np

    _require_codec(encoding, shape[3])
    try:
        if encoding == "raw":
            return np.frombuffer(content, dtype=dtype.newbyteorder("<")).reshape(shape, order="F")
        if not content:  # cloud-volume would read zeros
            raise ValueError("the file is empty")
        array = _decoded(bytes(content), encoding, shape, dtype, block_size)
        if not np.can_cast(array.dtype, dtype):
            raise ValueError(f"the file holds {array.dtype}")
        if encoding in _PICTURES and shape[3] > 1:  # cloud-volume takes pixels for planes
            pixels = array.reshape(-1, order="F").reshape(shape[2], shape[1], shape[0], shape[3])
            array = pixels.transpose(2, 1, 0, 3)
        return np.asarray(array, dtype=dtype, order="F").reshape(shape, order="F")
    except Exception as error:
        raise CorruptChunk(f"cannot decode as {encoding} {dtype} {shape}: {error}") from error


def _decoded(
    content: bytes,
    encoding: str,
    shape: tuple[int, int, int, int],
    dtype: "np.dtype[Any]",
    block_size: Vec3 | None,
) -> "NDArray[Any]":
    """Decode what was checked first, since decoders believe whatever they read."""
    size = Vec3.of(shape[:3])
    if encoding in READ_ONLY:
        from igneous_airflow.storage import float_chunks

        return float_chunks.decode(content, encoding, shape, dtype)
    if encoding == "jxl":
        return decode_jxl(content, size.product).reshape(-1).reshape(shape, order="F")
    if encoding == "jpeg":
        check_jpeg(content, size.product)
    elif encoding == "png":
        check_png(content, size.product)
    elif encoding == "compressed_segmentation":
        content = checked_segmentation(content, size, dtype, block_size)
    elif encoding == "compresso":
        content = checked_compresso(content, size, dtype)
    elif encoding == "crackle":
        check_crackle(content, size, dtype)
    from cloudvolume import chunks

    block = tuple(block_size) if block_size else None
    array: NDArray[Any] = chunks.decode(
        content, encoding, shape=shape, dtype=dtype, block_size=block
    )
    return array
