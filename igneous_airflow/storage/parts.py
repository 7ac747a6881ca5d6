"""Files of any format read in parts, on disk or in a bucket; used by the sources of ingest."""

import io
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.storage.files import FileEntry, Folder
from igneous_airflow.storage.overlap import overlap_width

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 1 << 15  # bytes that a stream fetches at once
_PIECES_KEPT = 64


@dataclass(frozen=True)
class FileInParts:
    """A file whose bytes are read where they are needed; may be used by many threads."""

    folder: Folder
    entry: FileEntry

    @property
    def url(self) -> str:
        """The file's address."""
        return f"{self.folder.url}/{self.entry.name}"

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.entry.size

    @property
    def overlap_width(self) -> int:
        """How many reads to keep under way."""
        return overlap_width(self.folder.url)

    @property
    def worthwhile(self) -> int:
        """How many bytes are worth a read of their own: requests to a bucket take their time."""
        return 1 << (16 if self.folder.url.startswith("file://") else 20)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on.

        Raises SourceNotFound, and UnreadableSource when the file ends too early.
        """
        self._require(start, len(buffer))
        if buffer:
            self.folder.read_part(self.entry.name, start, buffer)

    def _require(self, start: int, length: int) -> None:
        """Raise UnreadableSource for bytes that the file does not have."""
        if start < 0 or length < 0 or start + length > self.size:
            raise UnreadableSource(
                f"{self.url} is cut off: it has {self.size:,} bytes, but {start + length:,} by its "
                "own account"
            )

    def read(self, start: int, length: int) -> bytearray:
        """Read bytes; raises as `read_into` does."""
        self._require(start, length)
        content = bytearray(length)
        self.read_into(start, memoryview(content))
        return content

    def head(self, length: int) -> bytearray:
        """The first bytes, fewer where the file is shorter."""
        return self.read(0, min(length, self.size))

    def stream(self) -> "PartStream":
        """The file as libraries read files."""
        return PartStream(self)


class PartStream(io.RawIOBase):
    """A seekable, read-only stream that keeps the last few pieces; for one thread at a time.

    Libraries read headers byte by byte: each piece is fetched once for many of these. Whatever is
    longer than a piece is fetched as it is.
    """

    def __init__(self, file: FileInParts) -> None:
        super().__init__()
        self._file = file
        self._at = 0
        self._pieces: OrderedDict[int, bytearray] = OrderedDict()
        self._lock = Lock()
        self.name = file.url
        #: Parts of the file that were fetched before somebody reads them, by where they begin.
        self.ahead: dict[int, bytearray] = {}

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Give the memory back."""
        self._pieces.clear()
        self.ahead.clear()
        super().close()

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.name}: there is no byte {start + offset}")
        self._at = start + offset
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Read bytes, fewer where the file ends; no more memory is taken than there are."""
        left = max(self._file.size - self._at, 0)
        return super().read(left if size < 0 else min(size, left)) or b""

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read as many bytes as there are and fit."""
        wanted = memoryview(buffer).cast("B")
        count = min(len(wanted), max(self._file.size - self._at, 0))
        fetched = self.ahead.get(self._at, b"")
        if 0 < count <= len(fetched):
            wanted[:count] = fetched[:count]
        elif count > _PIECE:
            self._file.read_into(self._at, wanted[:count])
        else:
            self._read_pieces(wanted[:count])
        self._at += count
        return count

    def _read_pieces(self, wanted: memoryview) -> None:
        filled = 0
        while filled < len(wanted):
            index, within = divmod(self._at + filled, _PIECE)
            part = self._piece(index)[within : within + len(wanted) - filled]
            wanted[filled : filled + len(part)] = part
            filled += len(part)

    def _piece(self, index: int) -> bytearray:
        with self._lock:
            piece = self._pieces.pop(index, None)
            if piece is None:
                start = index * _PIECE
                piece = self._file.read(start, min(_PIECE, self._file.size - start))
            self._pieces[index] = piece
            while len(self._pieces) > _PIECES_KEPT:
                self._pieces.popitem(last=False)
        return piece
