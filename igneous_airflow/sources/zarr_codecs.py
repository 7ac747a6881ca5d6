"""Codecs of Zarr within bounds: only known ones, none of which makes more bytes than a chunk has.

Any codec that is installed could be named in an array's metadata, one that runs pickled code too.
"""

import asyncio
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import zarr
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.bounded import PROMISED, UNPACKED, promised, unpacked

#: Codecs that make about as many bytes as they get, or as many as a chunk has.
_HARMLESS = frozenset(
    {
        *("bytes", "transpose"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
        *("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle"),
    }
)
_KNOWN = _HARMLESS | UNPACKED | PROMISED | {"sharding_indexed"}
_LARGEST_ITEM = 16  # bytes that filters may make of a value
_MARGIN = 1 << 16  # bytes that encodings may add
_INDEX_ENTRY = 16  # bytes, for each chunk of a shard


def bounded(array: "zarr.Array[Any]", url: str) -> "zarr.Array[Any]":
    """The same array, read within bounds; raises UnreadableSource for codecs that are not read."""
    metadata: Any = array.metadata
    try:
        if metadata.zarr_format == 2:
            changed = _bounded_2(metadata)
        else:
            changed = replace(metadata, codecs=_bounded_3(metadata.codecs, besides=0))
    except _UnknownCodec as error:
        raise UnreadableSource(
            f"{url} is packed by the codec {error}, which is not read: store it with one of "
            f"{', '.join(sorted(UNPACKED | PROMISED))}"
        ) from error
    return zarr.Array(zarr.AsyncArray(metadata=changed, store_path=array.store_path))


class _UnknownCodec(ValueError):
    """A codec that is not read, by its name."""


def _bounded_2(metadata: Any) -> Any:
    """Metadata of Zarr 2; numcodecs' codecs know nothing of the chunk, so that they are told."""
    filters = metadata.filters or ()
    for step in filters:
        if step.codec_id not in _HARMLESS:
            raise _UnknownCodec(step.codec_id)
    if metadata.compressor is None:
        return metadata
    item = metadata.dtype.to_native_dtype().itemsize
    values = prod(metadata.chunks)
    most = _most(values * (max(item, _LARGEST_ITEM) if filters else item))
    return replace(metadata, compressor=BoundedCompressor(metadata.compressor, most))


def _bounded_3(codecs: tuple[Codec, ...], besides: int) -> tuple[Codec, ...]:
    """Codecs of Zarr 3; `besides` are bytes that a chunk may have beside its voxels."""
    made: list[Codec] = []
    for codec in codecs:
        name = _name(codec)
        if isinstance(codec, ShardingCodec):
            inner = _bounded_3(codec.codecs, besides)
            index = _bounded_3(codec.index_codecs, besides)
            made.append(replace(codec, codecs=inner, index_codecs=index))
            besides = -1  # as many entries as there are values at most
        elif isinstance(codec, BytesBytesCodec) and name not in _HARMLESS:
            made.append(BoundedCodec(codec, name, has_index=besides != 0))
        else:
            made.append(codec)
    return tuple(made)


def _name(codec: Codec) -> str:
    name = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
    if name not in _KNOWN:
        raise _UnknownCodec(name)
    return name


def _most(size: int) -> int:
    return size + size // 8 + _MARGIN


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A compression of Zarr 3 that makes no more bytes than a chunk has, or an indexed shard."""

    inner: BytesBytesCodec
    name: str
    has_index: bool

    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        values = prod(chunk_spec.shape)
        size = values * chunk_spec.dtype.to_native_dtype().itemsize
        most = _most(size + (values * _INDEX_ENTRY if self.has_index else 0))
        content = chunk_bytes.as_numpy_array().data
        if self.name in PROMISED:
            _require_bounded(self.name, content, most)
            return await self.inner._decode_single(chunk_bytes, chunk_spec)  # noqa: SLF001
        options: Any = self.inner.to_dict().get("configuration", {})
        found = await asyncio.to_thread(unpacked, self.name, content, most, options)
        return chunk_spec.prototype.buffer.from_bytes(found)

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Bytes of what was packed; raises NotImplementedError where that is not fixed."""
        return self.inner.compute_encoded_size(input_byte_length, chunk_spec)

    def to_dict(self) -> dict[str, Any]:
        """The metadata of the codec itself."""
        return dict(self.inner.to_dict())


class BoundedCompressor(Numcodec):  # type: ignore[misc] # numcodecs has no types
    """A compressor of Zarr 2 that makes no more than `most` bytes; raises _UnknownCodec."""

    codec_id = "bounded"

    def __init__(self, inner: Any, most: int) -> None:
        if inner.codec_id not in UNPACKED | PROMISED:
            raise _UnknownCodec(inner.codec_id)
        self.codec_id = inner.codec_id
        self._inner = inner
        self._most = most

    def encode(self, buf: Any) -> Any:
        """Refuse to write."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Unpack a chunk; raises ValueError."""
        content = np.asarray(buf).data.cast("B")
        if self.codec_id in PROMISED:
            _require_bounded(self.codec_id, content, self._most)
            return self._inner.decode(buf, out)
        return unpacked(self.codec_id, content, self._most, self._inner.get_config())

    def get_config(self) -> Any:
        """The metadata of the compressor itself."""
        return self._inner.get_config()


def _require_bounded(name: str, content: memoryview, most: int) -> None:
    if (size := promised(name, content)) > most:
        raise ValueError(
            f"its {name} stream promises {size:,} bytes, and a chunk has {most:,} at most"
        )
