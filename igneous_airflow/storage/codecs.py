"""Chunk bytes to arrays and back: the encodings of the format and their compression.

The encodings themselves are cloud-volume's. Compression is ours to choose, because it decides the
speed of everything: cloud-volume always gzips at libdeflate's level 9.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import CorruptChunk, InvalidParameter
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.files import Buffer, StoredFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What each encoding can hold: data types (empty: any) and numbers of channels (empty: any).
_LIMITS: dict[str, tuple[frozenset[str], frozenset[int]]] = {
    "raw": (frozenset(), frozenset()),
    "jpeg": (frozenset({"uint8"}), frozenset({1, 3})),
    "jxl": (frozenset({"uint8"}), frozenset({1})),  # cloud-volume garbles three channels
    "png": (frozenset({"uint8"}), frozenset({1, 2, 3, 4})),
    "compressed_segmentation": (frozenset({"uint32", "uint64"}), frozenset({1})),
    "compresso": (frozenset({"uint8", "uint16", "uint32", "uint64"}), frozenset({1})),
    "crackle": (frozenset({"uint8", "uint16", "uint32", "uint64"}), frozenset({1})),
    "fpzip": (frozenset({"float32", "float64"}), frozenset()),
    "kempressed": (frozenset({"float32"}), frozenset({3})),
    "zfpc": (frozenset({"float32", "float64", "int32", "int64"}), frozenset()),
}
_PICTURES = frozenset({"jpeg", "png"})
#: Encodings whose bytes a general compressor still makes smaller.
_COMPRESSIBLE = frozenset({"raw", "compressed_segmentation", "compresso", "crackle"})
_LIBDEFLATE_LEVEL = 6  # labels: a quarter of the time of level 9 for 2 to 16 % more bytes
_LARGEST_PICTURE = 65_500  # pixels along an edge of a jpeg, which has x across and y * z down
_BROTLI_HIGHEST = 11
_GZIP_WINDOW = 31  # zlib's number for a gzip stream of any window
_LARGE_CHUNK = 1 << 17  # bytes
_PIECE, _PIECE_STORED = 1 << 20, 1 << 10  # bytes
_ISAL_LEVEL = 1  # grey values: a twelfth of the time of libdeflate for 0.1 % more bytes


def encoding_problem(encoding: str, data_type: str, channels: int, chunk_size: Vec3) -> str | None:
    """Say why an encoding cannot hold such voxels in such chunks, or None when it can."""
    if encoding not in _LIMITS:
        return f"encoding {encoding!r} is unknown: choose one of {', '.join(sorted(_LIMITS))}"
    data_types, _ = _LIMITS[encoding]
    if data_types and data_type not in data_types:
        allowed = ", ".join(sorted(data_types))
        return f"encoding {encoding} holds {allowed}, not {data_type}: choose raw"
    if problem := _codec_problem(encoding, channels):
        return problem
    return _picture_problem(chunk_size) if encoding == "jpeg" else None


def _codec_problem(encoding: str, channels: int) -> str | None:
    """Say why chunks of so many channels can be neither written nor read here."""
    _, channel_counts = _LIMITS.get(encoding, (frozenset(), frozenset()))
    if channel_counts and channels not in channel_counts:
        allowed = ", ".join(map(str, sorted(channel_counts)))
        return f"encoding {encoding} holds {allowed} channel(s), not {channels}: choose raw"
    if encoding == "raw":
        return None
    from cloudvolume.chunks import NEEDS_INSTALL  # takes seconds to import

    missing = NEEDS_INSTALL.get("fpzip" if encoding == "kempressed" else encoding)
    if missing:
        return f"encoding {encoding} needs a library that is not installed: pip install {missing}"
    return None


def _require_codec(encoding: str, channels: int) -> None:
    if problem := _codec_problem(encoding, channels):
        raise InvalidParameter(problem)


def _picture_problem(chunk_size: Vec3) -> str | None:
    across, down = chunk_size.x, chunk_size.y * chunk_size.z
    if max(across, down) <= _LARGEST_PICTURE:
        return None
    return (
        f"encoding jpeg: a chunk of {chunk_size} voxels is a picture of {across} by {down} pixels, "
        f"and {_LARGEST_PICTURE} are the most: choose a smaller chunk_size"
    )


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
            from isal import igzip_lib

            # a large buffer, of 0.4 MB, makes it a fifth faster still for 0.2 % more bytes
            is_large = len(content) >= _LARGE_CHUNK
            memory = igzip_lib.MEM_LEVEL_EXTRA_LARGE if is_large else igzip_lib.MEM_LEVEL_DEFAULT
            how = _ISAL_LEVEL, igzip_lib.COMP_GZIP, memory
            return StoredFile(igzip_lib.compress(content, *how), "gzip")
        import deflate

        packed = deflate.gzip_compress(content, _LIBDEFLATE_LEVEL if level is None else level)
        return StoredFile(packed, "gzip")
    from cloudfiles import compression as cloud_compression

    if compression == "br" and level is not None:
        level = min(level, _BROTLI_HIGHEST)
    return StoredFile(
        cloud_compression.compress(content, method=compression, compress_level=level), compression
    )


def decompress_bytes(file: StoredFile, most: int | None = None) -> Buffer:
    """Undo a file's compression; the content may have `most` bytes.

    Raises CorruptChunk when it has more, or when its bytes are damaged.
    """
    if most is not None:
        return _decompress_at_most(file, most)
    if file.compression == "":
        return file.content
    with _named_if_damaged(file):
        if file.compression == "gzip":
            import deflate

            return deflate.gzip_decompress(file.content)
        from cloudfiles import compression as cloud_compression

        return bytes(cloud_compression.decompress(file.content, file.compression))


def _decompress_at_most(file: StoredFile, most: int) -> Buffer:
    """Undo a compression piece by piece, so that a short stream cannot become a long one."""
    content = bytearray()
    with _named_if_damaged(file):
        for piece in _pieces(file):
            content += piece
            if len(content) > most:
                break
    if len(content) > most:
        raise CorruptChunk(f"it holds more than the {most:,} bytes that are expected")
    return content


def _pieces(file: StoredFile) -> Iterator[Buffer]:
    if file.compression == "":
        yield file.content
    elif file.compression == "gzip":
        with gzip.GzipFile(fileobj=BytesIO(file.content)) as stream:
            yield from iter(lambda: stream.read(_PIECE), b"")
    elif file.compression == "br":
        import brotli

        decoder = brotli.Decompressor()
        for start in range(0, len(file.content), _PIECE_STORED):
            yield decoder.process(bytes(file.content[start : start + _PIECE_STORED]))
    else:
        import zstandard

        yield from zstandard.ZstdDecompressor().read_to_iter(bytes(file.content))


def decompress_first(file: StoredFile, count: int) -> Buffer:
    """The first bytes of a file without its compression, fewer where it has no more.

    The rest of a gzip stream is neither decoded nor checked. Raises CorruptChunk when the bytes are
    damaged.
    """
    if file.compression != "gzip":
        return memoryview(decompress_bytes(file))[:count]
    from isal import isal_zlib

    with _named_if_damaged(file):
        return isal_zlib.decompressobj(_GZIP_WINDOW).decompress(file.content, count)


@contextmanager
def _named_if_damaged(file: StoredFile) -> Iterator[None]:
    try:
        yield
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
    quality: int | None = None,
) -> Buffer:
    """Encode an (x, y, z, channel) array; raises InvalidParameter when the encoding cannot.

    The bytes may be a view of the array.
    """
    import numpy as np

    if encoding == "raw":
        return np.asfortranarray(array).reshape(-1, order="F").view(np.uint8).data
    _require_codec(encoding, array.shape[3])
    from cloudvolume import chunks

    try:
        return bytes(
            chunks.encode(
                np.require(array, requirements="W"),  # compresso refuses read-only memory
                encoding,
                block_size=tuple(block_size) if block_size else None,
                compression_params={} if quality is None else {"level": quality},
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
        from cloudvolume import chunks

        content = bytes(content)  # some decoders take no other buffer
        if not content:  # cloud-volume would read zeros
            raise ValueError("the file is empty")
        if encoding == "compressed_segmentation":
            content = _checked_segmentation(content, Vec3.of(shape[:3]), dtype, block_size)
        array = chunks.decode(
            content,
            encoding,
            shape=shape,
            dtype=dtype,
            block_size=tuple(block_size) if block_size else None,
        )
        if not np.can_cast(array.dtype, dtype):
            raise ValueError(f"the file holds {array.dtype}")
        if encoding in _PICTURES and shape[3] > 1:  # cloud-volume takes pixels for planes
            pixels = array.reshape(-1, order="F").reshape(shape[2], shape[1], shape[0], shape[3])
            array = pixels.transpose(2, 1, 0, 3)
        return np.asarray(array, dtype=dtype, order="F").reshape(shape, order="F")
    except Exception as error:
        raise CorruptChunk(f"cannot decode as {encoding} {dtype} {shape}: {error}") from error


def _checked_segmentation(
    content: Buffer, size: Vec3, dtype: "np.dtype[Any]", block_size: Vec3 | None
) -> bytes:
    """Check the offsets in a compressed_segmentation chunk: its decoder reads wherever they point.

    The zeros added at the end keep indices into the last table of labels inside. Raises ValueError.
    Format: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation
    """
    import numpy as np

    block = block_size or Vec3.full(8)
    blocks = size.ceil_div(block).product
    words = np.frombuffer(content, "<u4", len(content) // 4)
    start = int(words[0])
    headers = words[start : start + 2 * blocks].reshape(blocks, 2).astype(np.int64)
    bits, tables = headers[:, 0] >> 24, headers[:, 0] & 0xFFFFFF
    values_end = np.where(bits > 0, headers[:, 1] + -(-block.product * bits // 32), 0)
    ends = start + np.maximum(tables + dtype.itemsize // 4, values_end)
    if bits.max() > 16 or ends.max() > len(words):
        raise ValueError("it is cut off or damaged")
    return bytes(content) + bytes(dtype.itemsize << int(bits.max()))
