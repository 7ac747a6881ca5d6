"""A folder of ours as a store of zarr: how its arrays in buckets are read; used by zarr sources."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from igneous_airflow.errors import AccessDenied
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import Folder

_VALUE_BYTES = 1 << 30  # of a value that the bucket compresses: zarr says nothing of its size


class FolderStore(Store):
    """A read-only store; raises the storage's errors."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(read_only=True)
        self._folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FolderStore) and other._folder.url == self._folder.url

    def __hash__(self) -> int:
        return hash(self._folder.url)

    def __repr__(self) -> str:
        return f"FolderStore({self._folder.url!r})"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value or a part of it; None when there is none."""
        content = await asyncio.to_thread(self._read, key, byte_range)
        return None if content is None else prototype.buffer.from_bytes(content)

    def _read(self, key: str, part: ByteRequest | None) -> bytes | None:
        if part is None:
            stored = self._folder.read(key)
            return None if stored is None else bytes(decompress_bytes(stored, _VALUE_BYTES))
        entry = self._folder.entry(key)
        if entry is None:
            return None
        start, end = _range(part, entry.size)
        content = bytearray(end - start)
        if content:
            self._folder.read_part(key, start, memoryview(content))
        return bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of many values."""
        reads = [self.get(key, prototype, part) for key, part in key_ranges]
        return list(await asyncio.gather(*reads))

    async def exists(self, key: str) -> bool:
        """Whether there is a value."""
        return await asyncio.to_thread(self._folder.exists, key)

    @property
    def supports_writes(self) -> bool:
        """Whether values can be written: never."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """Whether values can be removed: never."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Whether names can be listed: chunks are far too many."""
        return False

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse to write."""
        raise AccessDenied(f"{self._folder.url}/{key} is a source: it is not written to")

    async def delete(self, key: str) -> None:
        """Refuse to remove."""
        raise AccessDenied(f"{self._folder.url}/{key} is a source: it is not written to")

    def list(self) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError


def _range(part: ByteRequest, size: int) -> tuple[int, int]:
    match part:
        case RangeByteRequest(start, end):
            return min(start, size), min(end, size)
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(size - suffix, 0), size
