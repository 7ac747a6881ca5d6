"""What each encoding can hold, and how large its chunks may be; used by plans and codecs."""

from igneous_airflow.geometry.bbox import Vec3

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
READ_ONLY = frozenset({"fpzip", "kempressed", "zfpc"})  # which are read, but not written
_LARGEST_PICTURE = 65_500  # pixels along an edge of a jpeg, which has x across and y * z down
_HEADER_BYTES = 1 << 16  # of headers, remarks and color profiles in a chunk file


def encoding_problem(encoding: str, data_type: str, channels: int, chunk_size: Vec3) -> str | None:
    """Say why an encoding cannot hold such voxels in such chunks, or None when it can."""
    if encoding not in _LIMITS:
        return f"encoding {encoding!r} is unknown: choose one of {', '.join(sorted(_LIMITS))}"
    data_types, _ = _LIMITS[encoding]
    if data_types and data_type not in data_types:
        allowed = ", ".join(sorted(data_types))
        return f"encoding {encoding} holds {allowed}, not {data_type}: choose raw"
    if problem := codec_problem(encoding, channels):
        return problem
    return _picture_problem(chunk_size) if encoding == "jpeg" else None


def writing_problem(encoding: str) -> str | None:
    """Say why chunks are not written in an encoding that can be read, or None when they are.

    fpzip's encoder writes beyond its memory where noise makes a chunk longer than its voxels, and
    cloud-volume garbles kempressed sections and reads all of zfpc as float32.
    """
    if encoding not in READ_ONLY:
        return None
    return f"encoding {encoding} can be read, but not written: set encoding to raw"


def codec_problem(encoding: str, channels: int) -> str | None:
    """Say why chunks of so many channels can be neither written nor read here."""
    _, channel_counts = _LIMITS.get(encoding, (frozenset(), frozenset()))
    if channel_counts and channels not in channel_counts:
        allowed = ", ".join(map(str, sorted(channel_counts)))
        return f"encoding {encoding} holds {allowed} channel(s), not {channels}: choose raw"
    if encoding == "raw":
        return None
    from cloudvolume.chunks import NEEDS_INSTALL  # takes seconds to import

    missing = NEEDS_INSTALL.get("fpzip" if encoding == "kempressed" else encoding)
    if missing and encoding in READ_ONLY:
        missing = "'igneous-airflow[floats]'"
    if missing:
        return f"encoding {encoding} needs a library that is not installed: pip install {missing}"
    return None


def _picture_problem(chunk_size: Vec3) -> str | None:
    across, down = chunk_size.x, chunk_size.y * chunk_size.z
    if max(across, down) <= _LARGEST_PICTURE:
        return None
    return (
        f"encoding jpeg: a chunk of {chunk_size} voxels is a picture of {across} by {down} pixels, "
        f"and {_LARGEST_PICTURE} are the most: choose a smaller chunk_size"
    )


def most_bytes(encoding: str, size: Vec3, voxel_bytes: int, block_size: Vec3 | None = None) -> int:
    """The most bytes that a chunk file of `size` voxels has, before its compression.

    Noise makes files larger than its voxels: by up to a third in blocks of 8 on each axis (tried
    for all encodings), so there is room for twice as much.
    """
    if encoding == "raw":
        return size.product * voxel_bytes
    if encoding == "compressed_segmentation":
        block = block_size or Vec3.full(8)
        blocks = size.ceil_div(block).product
        values = blocks * block.product * 4  # of 32 bits at most
        return blocks * 8 + values + size.product * voxel_bytes + _HEADER_BYTES
    padded = Vec3(*(-(-edge // 8) * 8 for edge in size))
    return 2 * padded.product * voxel_bytes + _HEADER_BYTES
