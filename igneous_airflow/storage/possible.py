"""Which sizes and beginnings a chunk file can have; used by proofs and where files are copied."""

from igneous_airflow.errors import CorruptChunk
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.wording import size_range

#: Bytes without which no file of an encoding can be read.
_HEADERS = {"jpeg": 96, "png": 57, "jxl": 12, "compresso": 36, "crackle": 24}
#: Bytes of a file that holds something, in each compression.
_FEWEST = {"gzip": 21, "zstd": 10, "br": 5}
_MOST_DEFLATED = 1032  # bytes that become one
_SPARE = 1 << 10  # bytes by which the smallest files may grow
_STARTS = {
    "gzip": b"\x1f\x8b",
    "zstd": b"\x28\xb5\x2f\xfd",
    "jpeg": b"\xff\xd8",
    "png": b"\x89PNG",
    "compresso": b"cpso",
    "crackle": b"crkl",
}


def least_bytes(encoding: str, size: Vec3, voxel_bytes: int, block_size: Vec3 | None) -> int:
    """The fewest bytes that a chunk file of `size` voxels has, before its compression."""
    if encoding == "raw":
        return size.product * voxel_bytes
    if encoding == "compressed_segmentation":
        return 4 + 8 * size.ceil_div(block_size or Vec3.full(8)).product
    return _HEADERS.get(encoding, 1)


def stored_range(compression: str | None, least: int, most: int) -> tuple[int, int]:
    """The fewest and the most bytes of a file of `least` to `most` bytes once it is compressed.

    The compression is "" for none, and None where it is not known.
    """
    if compression == "":
        return least, most
    fewest = _FEWEST[compression] if compression else min(least, *_FEWEST.values())
    if compression == "gzip":
        fewest = max(fewest, 18 + least // _MOST_DEFLATED)
    return fewest, most + most // 16 + _SPARE  # noise grows


def require_possible(stored: StoredFile, encoding: str, least: int, most: int) -> None:
    """Raise CorruptChunk for a file that cannot be a chunk of `least` to `most` bytes.

    It is decompressed only where gzip's own note of the size is another one.
    """
    size, expected = len(stored.content), stored_range(stored.compression, least, most)
    if not expected[0] <= size <= expected[1]:
        raise CorruptChunk(f"it has {size:,} bytes, not {size_range(*expected)}")
    kind = stored.compression or encoding
    if not bytes(stored.content[:4]).startswith(_STARTS.get(kind, b"")):
        raise CorruptChunk(f"it does not begin as {kind}")
    if stored.compression == "gzip":
        size = int.from_bytes(stored.content[-4:], "little")
        if not least <= size <= most:  # cut, or several streams that follow each other
            size = len(decompress_bytes(stored, most))
        if size < least:
            raise CorruptChunk(f"it holds {size:,} bytes, not {size_range(least, most)}")
