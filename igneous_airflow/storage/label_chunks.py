"""Chunks of labels, checked before they are decoded: their decoders follow any offset they read.

All functions raise ValueError for bytes that are cut off or damaged.
compressed_segmentation: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation
compresso: https://github.com/seung-lab/compresso. crackle: https://github.com/seung-lab/crackle
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from struct import Struct
from typing import TYPE_CHECKING, Any, Self

from igneous_airflow.geometry.bbox import Vec3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DAMAGED = "it is cut off or damaged"
_COMPRESSO = Struct("<4s2B3H3BQIQB")
_WIDTHS = (1, 2, 4, 8)
_CRACKLE_FLAT = 0


def checked_segmentation(
    content: bytes, size: Vec3, dtype: "np.dtype[Any]", block_size: Vec3 | None
) -> bytes:
    """A compressed_segmentation chunk whose offsets lie inside of it.

    The zeros added at the end keep indices into the last table of labels inside.
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
        raise ValueError(_DAMAGED)
    return content + bytes(dtype.itemsize << int(bits.max()))


@dataclass(frozen=True, slots=True)
class _CompressoParts:
    """A compresso file: labels of components, windows of edges, and labels where those touch.

    `windows` counts runs of empty ones, and holds numbers of `values`, one bit for each voxel.
    """

    header: tuple[Any, ...]
    ids: bytes
    values: "NDArray[Any]"
    locations: bytes
    windows: "NDArray[Any]"

    @classmethod
    def read(cls, content: bytes, size: Vec3, most_width: int) -> Self:
        """Take a file apart; labels have `most_width` bytes at most."""
        import numpy as np

        if len(content) < _COMPRESSO.size:
            raise ValueError(_DAMAGED)
        header = _COMPRESSO.unpack_from(content)
        magic, version, width, *numbers, connectivity = header
        shape, step = Vec3(*numbers[:3]), Vec3(*numbers[3:6])
        if (magic, shape) != (b"cpso", size) or width not in _WIDTHS or width > most_width:
            raise ValueError(f"its header says {shape} voxels of {width} bytes")
        if version > 1 or connectivity not in (4, 6) or not 1 <= step.product <= 64:
            raise ValueError(_DAMAGED)
        window = next(size for size in _WIDTHS if step.product <= 8 * size)
        parts = zip(numbers[6:], (width, window, width), strict=True)
        ends = [*accumulate((count * each for count, each in parts), initial=_COMPRESSO.size)]
        ends.append(len(content) - (2 * size.z * _index_width(size) if version else 0))
        if ends[-1] < ends[-2] or (ends[-1] - ends[-2]) % window:
            raise ValueError(_DAMAGED)
        ids, values, locations, windows = (content[start:end] for start, end in pairwise(ends))
        kind = np.dtype(f"<u{window}")
        return cls(
            header, ids, np.frombuffer(values, kind), locations, np.frombuffer(windows, kind)
        )

    def edge_voxels(self, size: Vec3) -> int:
        """How many voxels are edges, at most; checks that windows fill a chunk, and have values."""
        import numpy as np

        blocks = size.ceil_div(Vec3(*self.header[6:9])).product
        is_run, numbers = (self.windows & 1).astype(bool), self.windows >> 1
        repeats = np.where(is_run, numbers, 1)
        used = np.where(is_run, 0, numbers)
        if max(repeats.max(initial=0), used.max(initial=0)) > max(blocks, len(self.values)):
            raise ValueError(_DAMAGED)  # before anything overflows
        if repeats.sum(dtype=np.int64) != blocks or used.max(initial=0) >= len(self.values):
            raise ValueError(_DAMAGED)
        edges = np.bitwise_count(self.values).astype(np.int64)
        return int((edges[used.astype(np.int64)] * repeats.astype(np.int64)).sum())


def _index_width(size: Vec3) -> int:
    """Bytes of a number in the index of sections."""
    import compresso

    return int(compresso.zindex_byte_width(size.x, size.y))


def checked_compresso(content: bytes, size: Vec3, dtype: "np.dtype[Any]") -> bytes:
    """A compresso chunk whose windows fill it, with zeros for labels that it may lack.

    The index of sections is left out: it only helps to decode some of them.
    """
    parts = _CompressoParts.read(content, size, dtype.itemsize)
    edges = parts.edge_voxels(size)
    magic, _, width, *numbers = parts.header
    components = min(size.product, size.z + 5 * edges)  # an edge voxel parts 6 of them at most
    ids = parts.ids.ljust(components * width, b"\0")
    locations = parts.locations + bytes((edges + 1) * width)
    numbers[6], numbers[8] = len(ids) // width, len(locations) // width
    header = _COMPRESSO.pack(magic, 0, width, *numbers)
    return b"".join([header, ids, parts.values.tobytes(), locations, parts.windows.tobytes()])


def check_crackle(content: bytes, size: Vec3, dtype: "np.dtype[Any]") -> None:
    """Raise ValueError unless a crackle chunk is whole, of this size, and its labels are sound."""
    import crackle

    header = crackle.header(content)
    shape = Vec3(header.sx, header.sy, header.sz)
    if shape != size or header.data_width > dtype.itemsize:
        raise ValueError(f"its header says {shape} voxels of {header.data_width} bytes")
    index_at = header.header_bytes
    labels_at = index_at + header.grid_index_bytes
    codes_at = labels_at + header.num_label_bytes + _markov_bytes(header.markov_model_order)
    end = len(content) - (4 * (size.z + 1) if header.format_version else 0)
    if codes_at > end or header.grid_size < max(size.x, size.y):
        raise ValueError(_DAMAGED)
    codes = sum(Struct(f"<{size.z}I").unpack_from(content, index_at))
    labels = content[labels_at : labels_at + header.num_label_bytes]
    if codes_at + codes != end:
        raise ValueError(_DAMAGED)
    if header.format_version:
        import google_crc32c

        if google_crc32c.value(labels) != int.from_bytes(content[end : end + 4], "little"):
            raise ValueError(f"{_DAMAGED}: the checksum of its labels is another one")
    if header.label_format == _CRACKLE_FLAT:
        _check_flat_labels(labels, size, header.stored_data_width)


def _markov_bytes(order: int) -> int:
    """Bytes of a model of edges: five bits for each context of so many moves, of four each."""
    return -(-5 * 4**order // 8) if order else 0


def _check_flat_labels(labels: bytes, size: Vec3, width: int) -> None:
    """Check a list of labels, of how many components there are in each section, and of theirs."""
    import numpy as np

    count = int.from_bytes(labels[:8], "little")
    components_at = 8 + count * width
    component_width = _width_of(size.x * size.y)
    keys_at = components_at + size.z * component_width
    if len(labels) < 8 or keys_at > len(labels):
        raise ValueError(_DAMAGED)
    kind = f"<u{component_width}"
    components = np.frombuffer(labels, kind, size.z, components_at).sum(dtype=np.int64)
    key_width = _width_of(count)
    if keys_at + components * key_width != len(labels):
        raise ValueError(_DAMAGED)
    if np.frombuffer(labels, f"<u{key_width}", offset=keys_at).max(initial=0) >= max(count, 1):
        raise ValueError(_DAMAGED)


def _width_of(number: int) -> int:
    """Bytes of the smallest integer that holds a number."""
    return next(width for width in _WIDTHS if number < 1 << 8 * width)
