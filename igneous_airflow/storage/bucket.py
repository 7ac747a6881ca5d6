"""Folders in buckets, or in memory, through cloud-files."""

import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    PermanentError,
    StorageUnavailable,
)
from igneous_airflow.storage.files import StoredFile, content_version, plain_name

_PART = 1 << 20  # bytes of a file that are fetched ahead
_READ_ONLY = ("http://", "https://", "middleauth+https://", "ngauth+https://")


class BucketFolder:
    """A folder in a bucket (or in memory), through cloud-files."""

    def __init__(self, url: str) -> None:
        from cloudfiles import CloudFiles
        from cloudfiles.exceptions import UnsupportedProtocolError

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

    def read(self, name: str) -> StoredFile | None:
        with self._errors("read", name):
            (answer,) = self._files.get([name], raw=True)
        if answer["content"] is None:
            return None
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
        with self._errors("delete", name):
            self._files.delete(name)
            while self._in_memory and self._files.exists(name):
                self._files.delete(name)

    def exists(self, name: str) -> bool:
        with self._errors("look for", name):
            return bool(self._files.exists(name))

    def stream(self, name: str) -> io.BufferedReader | None:
        with self._errors("read", name):
            if not self._files.exists(name):
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
            if not self._files.exists(name):
                return None
            head = self._files.head(name)
        if head["ETag"]:
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
            found = {name.rstrip("/").rpartition("/")[2] for name in listed if name.endswith("/")}
        yield from sorted(found)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._errors("list", prefix):
            listed = self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True, size=True)
            for name, size in listed:
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2]), size

    def delete_folder(self, prefix: str) -> None:
        with self._errors("delete", prefix):
            self._files.delete(list(self._files.list(prefix=f"{prefix}/")))

    def check_writable(self) -> None:
        if self._url.startswith(_READ_ONLY):
            raise AccessDenied(f"cannot write to {self._url}: web addresses are read-only")
        probe = f".probe.{uuid.uuid4().hex}"
        self.write(probe, StoredFile(b""))
        self.delete(probe)

    @contextmanager
    def _errors(self, action: str, name: str) -> Iterator[None]:
        """Turn the many errors of storage libraries into ours, naming the object."""
        place = f"{self._url}/{name}"
        try:
            yield
        except IgneousError:
            raise
        except Exception as error:
            raise _storage_error(action, place, error) from error


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
    from cloudfiles.paths import ALLOWED_PROTOCOLS

    return frozenset(ALLOWED_PROTOCOLS)


def _storage_error(
    action: str, place: str, error: Exception
) -> PermanentError | StorageUnavailable:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    details = response.get("Error", {}) if isinstance(response, dict) else {}
    code = str(details.get("Code") or getattr(error, "code", ""))
    denied = {
        "403",
        "401",
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
    }
    if code in denied or type(error).__name__ in {
        "AuthorizationError",
        "Forbidden",
        "NoCredentialsError",
    }:
        return AccessDenied(
            f"cannot {action} {place}: access denied ({error}); check the credentials and the "
            "bucket's permissions"
        )
    return StorageUnavailable(f"cannot {action} {place}: {type(error).__name__}: {error}")
