"""Chunks of HDF5 datasets, unpacked within the bounds that their metadata promise.

HDF5's own filters write as many bytes as a stream holds: a few megabytes may become many gigabytes.
Format: https://docs.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html; filters by
https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.errors import CorruptChunk
from igneous_airflow.storage.codecs import inflate
from igneous_airflow.storage.files import Buffer

if TYPE_CHECKING:
    import h5py

_DEFLATE, _SHUFFLE, _FLETCHER32, _SZIP, _NBIT, _SCALE_OFFSET = range(1, 7)
_LZF, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD = 32000, 32001, 32004, 32008, 32015
_CHECKSUM = 4  # bytes
_HEAD = 64  # bytes of a chunk that hold the header of any filter
_MARGIN = 1 << 16  # bytes that filters may add to a chunk, besides an eighth of it
_WORDS = 1 << 13  # that are summed at once: their weighted sum stays within 64 bits


@dataclass(frozen=True, slots=True)
class Filter:
    """One step in which chunks were packed, by HDF5's number, with its parameters."""

    code: int
    name: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk at `corner` of a dataset: where it lies in the file, and which steps it left out."""

    corner: tuple[int, ...]
    offset: int
    size: int
    left_out: int


@dataclass(frozen=True)
class ChunkCodec:
    """How the chunks of a dataset were packed: their shape, the dtype, and the steps in order."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    filters: tuple[Filter, ...]

    @classmethod
    def of(cls, dataset: "h5py.Dataset") -> Self:
        """The codec of a dataset in chunks; raises ValueError for a step that cannot be undone."""
        properties = dataset.id.get_create_plist()
        steps = [properties.get_filter(i) for i in range(properties.get_nfilters())]
        filters = tuple(
            Filter(int(code), name.decode(errors="replace"), tuple(map(int, values)))
            for code, _, values, name in steps
        )
        for step in filters:
            _require(step)
        return cls(tuple(map(int, properties.get_chunk())), dataset.dtype, filters)

    @property
    def bytes(self) -> int:
        """Bytes of a chunk when it is unpacked."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_ours(self) -> bool:
        """Whether chunks are unpacked here, without HDF5."""
        return all(step.code in _UNDO for step in self.filters)

    @property
    def most(self) -> int:
        """Bytes that a chunk may have in any state."""
        return self.bytes + self.bytes // 8 + _MARGIN

    def chunks(self, dataset: "h5py.Dataset", part: Sequence[slice]) -> Iterator[StoredChunk]:
        """The chunks that a part needs and that were written.

        Raises ValueError for one that is longer than its voxels can make it.
        """
        edges = zip(part, self.shape, strict=True)
        spans = [range(span.start // edge * edge, span.stop, edge) for span, edge in edges]
        for corner in product(*spans):
            found = dataset.id.get_chunk_info_by_coord(corner)
            if found.byte_offset is None:
                continue
            if found.size > self.most:
                raise ValueError(
                    f"its chunk at {corner} is stored in {found.size:,} bytes, though it holds "
                    f"{self.bytes:,}"
                )
            yield StoredChunk(corner, found.byte_offset, found.size, found.filter_mask)

    def unpacked(self, stored: Buffer, left_out: int = 0) -> NDArray[Any] | None:
        """The values of a chunk; None where only HDF5 can unpack it, which then is safe.

        Raises ValueError for a damaged chunk, and for one that would become larger than a chunk.
        """
        content = stored
        for place, step in reversed(list(enumerate(self.filters))):
            if left_out >> place & 1:
                continue
            undo = _UNDO.get(step.code)
            if undo is None:
                self._require_bounded(step, content)
                return None
            content = undo(content, step, self.most)
        if len(content) != self.bytes:
            raise ValueError(f"a chunk holds {len(content):,} bytes, not {self.bytes:,}")
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def _require_bounded(self, step: Filter, content: Buffer) -> None:
        promised = _PROMISES[step.code](bytes(content[:_HEAD]), step)
        if not 0 <= promised <= self.most:
            raise ValueError(
                f"a chunk packed by {step.name} would become {promised:,} bytes, not {self.bytes:,}"
            )


def _require(step: Filter) -> None:
    import h5py

    needs_library = step.code == _LZF and find_spec("imagecodecs") is None
    if step.code in _UNDO and not needs_library:
        return
    if step.code in _PROMISES and h5py.h5z.filter_avail(step.code):
        return
    raise ValueError(
        f"its chunks are packed by filter {step.code} ({step.name or 'no name'}), which cannot be "
        "undone here: store it with gzip, for example by h5repack -f GZIP=4"
    )


def _inflate(content: Buffer, _step: Filter, most: int) -> Buffer:
    try:
        return inflate(content, most)
    except CorruptChunk as error:  # of a file that the caller knows
        raise ValueError(str(error)) from error


def _unshuffle(content: Buffer, step: Filter, _most: int) -> Buffer:
    """Bring the bytes of each value together; what is no whole value stays at the end."""
    size = step.values[0] if step.values else 1
    count = len(content) // size if size > 1 else 0
    if count < 2:
        return content
    whole = count * size
    planes = np.frombuffer(content, np.uint8, whole).reshape(size, count)
    return planes.T.tobytes() + bytes(content[whole:])


def _checked(content: Buffer, _step: Filter, _most: int) -> Buffer:
    """Take the checksum off; raises ValueError when it is another one."""
    values, stored = content[:-_CHECKSUM], bytes(content[-_CHECKSUM:])
    found = fletcher32(values)
    swapped = int.from_bytes(found.to_bytes(4, "big")[i] for i in (1, 0, 3, 2))
    if int.from_bytes(stored, "little") not in (found, swapped):  # HDF5 1.6.2 wrote the latter
        raise ValueError("the checksum of a chunk is wrong")
    return values


def fletcher32(content: Buffer) -> int:
    """HDF5's checksum: sums of 16-bit words, the first byte being the higher one."""
    padded = bytes(content) + bytes(len(content) % 2)
    words = np.frombuffer(padded, ">u2").astype(np.uint64)
    low = high = 0
    for start in range(0, len(words), _WORDS):
        part = words[start : start + _WORDS]
        count = len(part)
        weighted = int((part * np.arange(count, 0, -1, dtype=np.uint64)).sum())
        high += low * count + weighted
        low += int(part.sum())
    return _folded(high) << 16 | _folded(low)


def _folded(total: int) -> int:
    """A sum in ones' complement: 65,535 stays what it is, other than a remainder."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _lzf(content: Buffer, _step: Filter, most: int) -> Buffer:
    import imagecodecs

    try:
        unpacked = bytes(imagecodecs.lzf_decode(bytes(content), header=False, out=most))
    except RuntimeError as error:
        raise ValueError(
            f"a chunk packed by lzf is damaged, or longer than a chunk: {error}"
        ) from error
    return unpacked


def _zstd_promise(head: bytes, _step: Filter) -> int:
    import zstandard

    return zstandard.frame_content_size(head)


_UNDO: dict[int, Callable[[Buffer, Filter, int], Buffer]] = {
    _DEFLATE: _inflate,
    _SHUFFLE: _unshuffle,
    _FLETCHER32: _checked,
    _LZF: _lzf,
}
#: How many bytes HDF5 will make room for, by the first bytes of a chunk and the parameters.
_PROMISES: dict[int, Callable[[bytes, Filter], int]] = {
    _SZIP: lambda head, _: int.from_bytes(head[:4], "little"),
    _NBIT: lambda _, step: step.values[2] * step.values[4],
    _SCALE_OFFSET: lambda _, step: step.values[2] * step.values[4],
    _BLOSC: lambda head, _: int.from_bytes(head[4:8], "little"),
    _LZ4: lambda head, _: int.from_bytes(head[:8], "big"),
    _BITSHUFFLE: lambda head, step: (
        int.from_bytes(head[:8], "big") if any(step.values[4:5]) else len(head)
    ),
    _ZSTD: _zstd_promise,
}
