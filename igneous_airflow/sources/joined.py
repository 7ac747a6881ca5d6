"""Bytes that lie in several files one after the other, as HDF5's external storage does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.reach import companion
from igneous_airflow.storage.parts import FileInParts


@dataclass(frozen=True)
class JoinedFiles:
    """Stretches of files: each with where it begins there, and its bytes."""

    url: str
    stretches: tuple[tuple[FileInParts, int, int], ...]

    @classmethod
    def of(cls, file: FileInParts, named: Sequence[tuple[str, int, int | None]]) -> Self:
        """The files that `file` names, with where each begins and its bytes, None for the rest.

        Raises UnreadableSource for one outside of the folder, SourceNotFound for a missing one.
        """
        by = f"the external storage of {file.url}"
        found = []
        for name, start, size in named:
            other = companion(file, name, by)
            left = max(other.size - start, 0)
            found.append((other, start, left if size is None else size))
            if found[-1][2] > left:  # what comes after it would move
                raise UnreadableSource(
                    f"{by} takes {size:,} bytes of {other.url} from byte {start:,} on, which has "
                    f"{other.size:,}"
                )
        return cls(file.url, tuple(found))

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return sum(size for _, _, size in self.stretches)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on; raises as FileInParts does."""
        begins = 0
        for file, offset, size in self.stretches:
            low, high = max(start, begins), min(start + len(buffer), begins + size)
            if low < high:
                file.read_into(offset + low - begins, buffer[low - start : high - start])
            begins += size
