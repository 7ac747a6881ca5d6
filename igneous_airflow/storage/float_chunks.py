"""Chunks in the encodings fpzip, kempressed and zfpc, checked and decoded.

Their decoders take memory for whatever size a header says, and read on behind the end of a file
that is cut off; that of fpzip crashes as well. All functions raise ValueError for damaged bytes.
fpzip: https://github.com/LLNL/fpzip. zfpc: https://github.com/seung-lab/zfpc
"""

import os
from functools import cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from igneous_airflow.storage.fpzip_process import FpzipProcess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Shape = tuple[int, int, int, int]
_WORD = 0xFFFFFFFF
_FPZIP_START = (ord("f"), ord("p"), ord("z"), 0)
_SPARE = 1 << 10  # bytes


def decode(content: bytes, encoding: str, shape: _Shape, dtype: "np.dtype[Any]") -> "NDArray[Any]":
    """Decode a chunk to an (x, y, z, channel) array."""
    kinds = {"fpzip": _fpzip, "kempressed": _kempressed, "zfpc": _zfpc}
    return kinds[encoding](content, shape, dtype)


def _fpzip(content: bytes, shape: _Shape, dtype: "np.dtype[Any]") -> "NDArray[Any]":
    """Decode an (x, y, z, channel) array of float32 or float64."""
    import numpy as np

    dimensions, itemsize = _fpzip_header(content)
    if (dimensions, itemsize) != (shape, dtype.itemsize):
        raise ValueError(f"its header says {dimensions} voxels of {itemsize} bytes")
    size = prod(shape) * itemsize
    numbers = _fpzip_process(os.getpid()).decode(content, size)
    return np.frombuffer(numbers, dtype).reshape(shape, order="F")


@cache
def _fpzip_process(process: int) -> FpzipProcess:  # noqa: ARG001 - a fork needs its own
    """The decoder of a process."""
    return FpzipProcess()


def _kempressed(content: bytes, shape: _Shape, dtype: "np.dtype[Any]") -> "NDArray[Any]":
    """Decode an (x, y, z, channel) array of float32, kept with z last and 2 added."""
    x, y, z, channels = shape
    voxels = _fpzip(content, (x, y, channels, z), dtype).swapaxes(2, 3).copy("F")
    voxels -= dtype.type(2)
    return voxels


def _fpzip_header(content: bytes) -> tuple[_Shape, int]:
    """The shape that the header says, and the bytes of a number."""
    numbers = _RangeDecoder(content)
    start = tuple(numbers.take(8) for _ in range(4))
    for bits in (16, 8):  # versions of the library and of the format
        numbers.take(bits)
    is_double, precision = numbers.take(1), numbers.take(7)
    x, y, z, channels = (numbers.take(32) for _ in range(4))
    itemsize = 8 if is_double else 4
    if start != _FPZIP_START or precision > 8 * itemsize:
        raise ValueError("it is not an fpzip file")
    return (x, y, z, channels), itemsize


class _RangeDecoder:
    """Numbers of equal likelihood, as fpzip's range coder writes them."""

    def __init__(self, content: bytes) -> None:
        self._content = iter(content)
        self._low, self._range, self._code = 0, _WORD, 0
        self._shift(4)

    def take(self, bits: int) -> int:
        """The next number of so many bits."""
        number = 0
        for at in range(0, bits, 16):
            number |= self._take(min(16, bits - at)) << at
        return number

    def _take(self, bits: int) -> int:
        self._range >>= bits
        number = ((self._code - self._low) & _WORD) // self._range
        self._low = (self._low + number * self._range) & _WORD
        while not (self._low ^ (self._low + self._range)) >> 24 & 0xFF:
            self._shift(1)
            self._range = self._range << 8 & _WORD
        if not self._range >> 16:
            self._shift(2)
            self._range = -self._low & _WORD
        return number

    def _shift(self, count: int) -> None:
        for _ in range(count):
            self._code = (self._code << 8 | next(self._content, 0)) & _WORD
            self._low = self._low << 8 & _WORD


def _zfpc(content: bytes, shape: _Shape, dtype: "np.dtype[Any]") -> "NDArray[Any]":
    """Decode an (x, y, z, channel) array of any of zfp's data types."""
    import numpy as np
    import zfpc
    import zfpy

    header = zfpc.ZfpcHeader.frombytes(content)
    said = tuple(header.shape()), header.data_type
    if said != (shape, dtype):
        raise ValueError(f"its header says {said[0]} voxels of {np.dtype(said[1])}")
    voxels = np.empty(shape, dtype, order="F")
    for part, stream in zip(
        zfpc.compute_slices(header), _zfpc_streams(header, content), strict=True
    ):
        inside = voxels[part]
        says = zfpy.header(stream)
        count = prod(max(says[axis], 1) for axis in ("nx", "ny", "nz", "nw"))
        if (count, says["type"]) != (inside.size, dtype.type):
            raise ValueError("its parts are not of the size that its header says")
        numbers = zfpy.decompress_numpy(stream + bytes(2 * inside.nbytes + _SPARE))
        voxels[part] = numbers.reshape(inside.shape)
    return voxels


def _zfpc_streams(header: Any, content: bytes) -> list[bytes]:
    """The parts of a zfpc file, which its index says the lengths of."""
    import numpy as np

    count = header.num_streams()
    if header.header_size + 8 * (count + 1) > len(content):
        raise ValueError("it is cut off")
    first, *lengths = map(int, np.frombuffer(content, "<u8", count + 1, header.header_size))
    if first + sum(lengths) != len(content):
        raise ValueError("it is cut off, or its index is damaged")
    ends = [first + sum(lengths[:part]) for part in range(count + 1)]
    return [content[start:end] for start, end in pairwise(ends)]
