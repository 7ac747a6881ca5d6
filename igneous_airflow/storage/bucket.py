"""Folders in buckets, or in memory, through cloud-files."""

import io
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    SourceNotFound,
    StorageUnavailable,
    UnreadableSource,
)
from igneous_airflow.storage.bucket_errors import explain, is_out_of_range
from igneous_airflow.storage.bucket_listing import entries, entry
from igneous_airflow.storage.cloud_files_mended import mend_cloud_files
from igneous_airflow.storage.files import (
    FileEntry,
    StoredFile,
    content_version,
    plain_name,
    require_at_most,
)
from igneous_airflow.storage.place import require_plain

_PART = 1 << 20  # bytes of a file that are fetched ahead
_READ_ONLY = ("http://", "https://", "middleauth+https://", "ngauth+https://")


class BucketFolder:
    """A folder in a bucket (or in memory), through cloud-files."""

    def __init__(self, url: str) -> None:
        from cloudfiles import CloudFiles
        from cloudfiles.exceptions import UnsupportedProtocolError

        mend_cloud_files()
        if "://" not in url or url.split("://", maxsplit=1)[0] not in _protocols():
            known = ", ".join(f"{name}://" for name in sorted(_protocols()))
            raise InvalidParameter(
                f"{url!r} is not an address we can open: it must start with {known}"
            )
        try:
            self._files = CloudFiles(url, progress=False, num_threads=1)
        except UnsupportedProtocolError as error:
            raise InvalidParameter(f"{url!r} is not an address we can open") from error
        self._url = url
        self._in_memory = url.startswith("mem://")  # there each compression is a file, as on disk

    @property
    def url(self) -> str:
        return self._url

    def read(self, name: str, most: int | None = None) -> StoredFile | None:
        # one byte more than there may be tells that there are more; an empty file has no first byte
        wanted = name if most is None else {"path": name, "start": 0, "end": most + 1}
        with self._errors("read", name):
            try:
                (answer,) = self._files.get([wanted], raw=True)
            except Exception as error:
                if most is None or not is_out_of_range(error):
                    raise
                (answer,) = self._files.get([name], raw=True)
        if answer["content"] is None:
            return None
        require_at_most(f"{self._url}/{name}", len(answer["content"]), most)
        return StoredFile(answer["content"], answer["compress"] or "")

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:
        if self._in_memory:
            self.delete(name)
        with self._errors("write", name):
            self._files.puts(
                [{"path": name, "content": bytes(file.content)}],
                content_type=content_type or "application/octet-stream",
                compress=file.compression or None,
                cache_control="no-cache",
                raw=True,
            )

    def delete(self, name: str) -> None:
        # not CloudFiles.delete, which says nothing of what the service refuses to delete
        with self._connected("delete", name) as connection:
            connection.delete_file(name)
            while self._in_memory and self._files.exists(name):
                self._files.delete(name)

    def exists(self, name: str) -> bool:
        with self._connected("look for", name) as connection:
            return bool(connection.exists(name))

    def stream(self, name: str) -> io.BufferedReader | None:
        with self._errors("read", name):
            if not self.exists(name):
                return None
            size = int(self._files.size(name))
        return io.BufferedReader(_FileInBucket(self, name, size), _PART)

    def part(self, name: str, start: int, stop: int) -> bytes:
        """Read some bytes of a file that has them; raises InvalidParameter for a compressed one."""
        with self._errors("read", name):
            (answer,) = self._files.get([{"path": name, "start": start, "end": stop}], raw=True)
            if answer["compress"]:
                raise InvalidParameter(
                    f"{self._url}/{name} is stored with {answer['compress']} compression, so that "
                    "parts of it cannot be read: store it as it is"
                )
        content = answer["content"] or b""
        if len(content) != stop - start:
            raise StorageUnavailable(
                f"{self._url}/{name} gave {len(content):,} bytes where {stop - start:,} were asked "
                "for: it was changed meanwhile, or its server does not give parts of files"
            )
        return bytes(content)

    def version(self, name: str) -> str | None:
        with self._errors("read", name):
            if not self.exists(name):
                return None
            head = self._files.head(name)
        if head.get("ETag"):
            return f"etag:{head['ETag']}"
        stream = self.stream(name)
        return content_version(stream) if stream else None

    def names(self, prefix: str) -> Iterator[str]:
        with self._errors("list", prefix):
            for name in self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True):
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2])

    def folders(self, prefix: str) -> Iterator[str]:
        with self._errors("list", prefix):
            listed = self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True)
            found = (name.rstrip("/").rpartition("/")[2] for name in listed if name.endswith("/"))
            yield from dict.fromkeys(found)

    def names_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[str]:
        return (name for name, _ in self.sizes_starting(prefix, starts))

    def sizes_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[tuple[str, int]]:
        folder = f"{prefix}/" if prefix else ""
        for start in starts:
            with self._errors("list", f"{folder}{start}"):
                for entry in self._files.list(prefix=f"{folder}{start}", flat=True, size=True):
                    path, size = (entry, 0) if isinstance(entry, str) else entry
                    name = path.removeprefix(folder)
                    if "/" not in name:  # which cloud-files lists as well
                        yield plain_name(name), size

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._errors("list", prefix):
            listed = self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True, size=True)
            for entry in listed:
                name, size = (entry, 0) if isinstance(entry, str) else entry  # a folder, or a file
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2]), size

    def entries(self, prefix: str) -> Iterator[FileEntry]:
        with self._connected("list", prefix) as connection:
            yield from entries(connection, f"{prefix}/" if prefix else "")

    def entry(self, name: str) -> FileEntry | None:
        with self._connected("look for", name) as connection:
            return entry(connection, name)

    def read_part(self, name: str, start: int, buffer: memoryview) -> None:
        place = f"{self._url}/{name}"
        part = {"path": name, "start": start, "end": start + len(buffer)}
        with self._errors("read", name):
            (answer,) = self._files.get([part], raw=True)
        content = answer["content"]
        if content is None:
            raise SourceNotFound(f"{place} is not there")
        if answer["compress"]:
            raise UnreadableSource(
                f"{place} is stored with Content-Encoding {answer['compress']}, which cannot be "
                "read in parts: store it without"
            )
        if len(content) != len(buffer):
            raise UnreadableSource(
                f"{place} is cut off: it has no bytes {start:,} to {start + len(buffer):,}, which "
                "it holds by its own account"
            )
        buffer[:] = content

    def delete_folder(self, prefix: str) -> None:
        with self._errors("delete", prefix):
            self._files.delete(list(self._files.list(prefix=f"{prefix}/")))
            left = list(self._files.list(prefix=f"{prefix}/"))
        for name in left:
            self.delete(name)  # says why it could not be deleted

    def remove_empty_folders(self, prefix: str) -> None:
        """Do nothing: a bucket has no folders."""

    @property
    def renames(self) -> bool:
        return False

    def rename(self, old: str, new: str) -> bool:
        raise InvalidParameter(f"{self._url} is a bucket: {old} cannot be moved to {new}")

    def complete_move(self, old: str, new: str) -> None:
        """Do nothing: in a bucket nothing is moved."""

    def check_writable(self, folders: Iterable[str] = ()) -> None:  # noqa: ARG002
        if self._url.startswith(_READ_ONLY):
            raise AccessDenied(f"cannot write to {self._url}: web addresses are read-only")

    def try_writing(self) -> None:
        self.check_writable()
        probe = f".probe.{uuid.uuid4().hex}"
        self.write(probe, StoredFile(b""))
        self.delete(probe)

    @contextmanager
    def _connected(self, action: str, name: str) -> Iterator[Any]:
        """A connection of cloud-files' own, for what CloudFiles itself does in another way."""
        with self._errors(action, name), self._files._get_connection() as connection:  # noqa: SLF001
            yield connection

    @contextmanager
    def _errors(self, action: str, name: str) -> Iterator[None]:
        """Turn the many errors of storage libraries into ours, naming the object.

        Every method asks here, so that no name leads out of the folder.
        """
        place = f"{self._url}/{name}"
        try:
            require_plain(name, is_web=self._url.startswith(_READ_ONLY))
        except InvalidParameter as error:
            raise AccessDenied(f"cannot {action} {place}: {error}") from None
        try:
            yield
        except IgneousError:
            raise
        except Exception as error:
            raise explain(action, place, error) from error


class _FileInBucket(io.RawIOBase):
    """A file that is fetched part by part, wherever its reader seeks to."""

    def __init__(self, folder: BucketFolder, name: str, size: int) -> None:
        super().__init__()
        self._folder = folder
        self._name = name
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._size)
        if stop <= self._place:
            return 0
        content = self._folder.part(self._name, self._place, stop)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _protocols() -> frozenset[str]:
    from cloudfiles import paths

    paths.update_aliases_from_file()
    return frozenset(paths.ALLOWED_PROTOCOLS)
