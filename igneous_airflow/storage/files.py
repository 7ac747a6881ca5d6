"""Folders of files on disk or in a bucket, by URL; used by layers, the ledger and runs.

Both kinds keep a file's compression the way every reader of the format expects it: as a suffix of
the name on disk (`.gz`, `.br`, `.zstd`), as `Content-Encoding` in a bucket.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import CorruptChunk
from igneous_airflow.storage.allowed import require_allowed

Buffer = bytes | bytearray | memoryview
SUFFIXES: dict[str, str] = {"gzip": ".gz", "br": ".br", "zstd": ".zstd"}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The bytes of a file as stored, and how they are compressed ("" when they are not)."""

    content: Buffer
    compression: str = ""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file as a listing shows it: its full name, bytes as stored, and a text that is its state.

    The state is another one when the file was written again: on disk its time, in a bucket its ETag
    or generation. It is empty where a listing does not tell. So is the compression None, which only
    names on disk tell.
    """

    name: str
    size: int
    state: str = ""
    compression: str | None = field(default=None, compare=False)  # the state tells files apart


class Folder(Protocol):
    """Files under one URL; names may contain slashes and carry no compression suffix.

    Every method raises AccessDenied or StorageUnavailable when the storage refuses or fails.
    """

    @property
    def url(self) -> str:
        """The folder's address."""

    def read(self, name: str, most: int | None = None) -> StoredFile | None:
        """Read a file as stored; None when there is none.

        Raises CorruptChunk when it has more than `most` bytes as stored; they are not read.
        """

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:
        """Write a file, whole or not at all, in place of any file of that name."""

    def delete(self, name: str) -> None:
        """Remove a file in all its compressions; it may be absent."""

    def exists(self, name: str) -> bool:
        """Whether a file is there in any compression."""

    def stream(self, name: str) -> BufferedReader | None:
        """Open an uncompressed file, to be read in parts; None when there is none."""

    def version(self, name: str) -> str | None:
        """A text that changes when the file's content does; None when there is no file."""

    def names(self, prefix: str) -> Iterator[str]:
        """Names of the files directly in the folder `prefix/`, without compression suffixes."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders directly in `prefix/`, or in this folder when it is empty."""

    def names_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[str]:
        """Names as `names` gives them, of the files whose names start in one of these ways.

        No start may be the beginning of another. A bucket is asked once for each of them, a folder
        on disk is read once.
        """

    def sizes_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[tuple[str, int]]:
        """The files that `names_starting` gives, with their stored bytes."""

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Files directly in the folder `prefix/`: names as `names` gives them, and stored bytes."""

    def entries(self, prefix: str) -> Iterator[FileEntry]:
        """Files directly in the folder `prefix/`, by their full names.

        A link to nothing is a file without bytes: somebody may need to know what is not there.
        """

    def entry(self, name: str) -> FileEntry | None:
        """A file by its full name; None when there is none."""

    def read_part(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a file from `start` on; the name is the full one.

        Raises SourceNotFound when there is no such file, UnreadableSource when it ends too early.
        """

    def delete_folder(self, prefix: str) -> None:
        """Remove every file below `prefix/`."""

    def remove_empty_folders(self, prefix: str) -> None:
        """Remove `prefix/`, and the folders below it, as far as no files are in them."""

    @property
    def renames(self) -> bool:
        """Whether files can be moved within the folder without being copied: not in buckets."""

    def rename(self, old: str, new: str) -> bool:
        """Move a file, by its full name, or a folder; False when there is none.

        Raises InvalidParameter where there is one of the new name. Only where `renames` is true.
        """

    def complete_move(self, old: str, new: str) -> None:
        """Take the old name from a file that a move which was stopped has left with both."""

    def check_writable(self, folders: Iterable[str] = ()) -> None:
        """Raise AccessDenied when files cannot be written here, as far as looking can tell.

        `folders` are those below that will be written to, or emptied: none may be a link.
        """

    def try_writing(self) -> None:
        """Write an empty file and delete it; raises AccessDenied."""


def open_folder(url: str) -> Folder:
    """Open a folder by its URL: `file:///abs/path`, `s3://`, `gs://`, `mem://` ...

    Everything that a run reads or writes is opened here. Raises AccessDenied for an address that
    this process may not open, InvalidParameter for one that is not understood.
    """
    require_allowed(url)
    return open_own_folder(url)


def open_file(url: str) -> tuple[Folder, str]:
    """Open the folder of one file; returns it with the file's name, the only one to be used.

    The file must be allowed, its folder need not be; the file may be a link. Raises as
    `open_folder` does.
    """
    require_allowed(url)
    parent, _, name = url.rpartition("/")
    return _with_any_links("file:///" if parent == "file://" else parent), name


def open_source_folder(url: str) -> Folder:
    """Open a folder to read voxels from that are in no layer yet.

    On disk its files may be links to anywhere, as people gather sections. In a folder that
    `open_folder` opens, a link that leads out of it is refused. Raises as `open_folder` does.
    """
    require_allowed(url)
    return _with_any_links(url)


def _with_any_links(url: str) -> Folder:
    from igneous_airflow.storage.local import LocalFolder
    from igneous_airflow.storage.rehearsal import rehearsed

    if url.startswith("file://"):
        return rehearsed(LocalFolder(Path(url.removeprefix("file://")), any_links=True))
    return open_own_folder(url)


def open_own_folder(url: str) -> Folder:
    """Open a folder of the deployment itself, such as those of runs; whatever is allowed.

    Never for an address that a run's parameters name. Raises InvalidParameter for an address that
    is not understood, or that holds credentials.
    """
    from igneous_airflow.storage.bucket import BucketFolder
    from igneous_airflow.storage.local import LocalFolder
    from igneous_airflow.storage.rehearsal import rehearsed

    refuse_credentials(url)
    if url.startswith("file://"):
        return rehearsed(LocalFolder(Path(url.removeprefix("file://"))))
    return rehearsed(BucketFolder(url))


def content_version(stream: BufferedReader) -> str:
    """The version of a file that only its content tells."""
    return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def require_at_most(place: str, size: int, most: int | None) -> None:
    """Raise CorruptChunk for a file that is stored in more bytes than its reader takes."""
    if most is not None and size > most:
        raise CorruptChunk(f"{place} is larger than the {most:,} bytes that it may have")


def plain_name(name: str) -> str:
    """A file's name without its compression suffix."""
    return name.removesuffix(SUFFIXES.get(compression_of(name), ""))


def compression_of(name: str) -> str:
    """The compression that the name of a file on disk tells, "" for none."""
    for compression, suffix in SUFFIXES.items():
        if name.endswith(suffix):
            return compression
    return ""
