"""Folders of files on disk or in a bucket, by URL; used by layers, the ledger and runs.

Buckets and `mem://` go through cloud-files. Local disk does not: cloud-files writes in place, so a
kill or a full disk would leave half a file under its final name. Here a file appears whole or not
at all. Both keep a file's compression the way every reader of the format expects it: as a suffix
of the name on disk (`.gz`, `.br`, `.zstd`), as `Content-Encoding` in a bucket.
"""

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    PermanentError,
    StorageUnavailable,
)

Buffer = bytes | bytearray | memoryview
SUFFIXES: dict[str, str] = {"gzip": ".gz", "br": ".br", "zstd": ".zstd"}
_PARTIAL = ".partial"
_PARTIAL_NAME = re.compile(r"\..+\.([^.]+)-([0-9]{1,9})-[0-9a-f]+\.partial", re.DOTALL)
_PARTIAL_LIFETIME = 24 * 3600.0  # seconds; for partial files of other machines
_READ_ONLY = ("http://", "https://", "middleauth+https://", "ngauth+https://")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The bytes of a file as stored, and how they are compressed ("" when they are not)."""

    content: Buffer
    compression: str = ""


class Folder(Protocol):
    """Files under one URL; names may contain slashes and carry no compression suffix.

    Every method raises AccessDenied or StorageUnavailable when the storage refuses or fails.
    """

    @property
    def url(self) -> str:
        """The folder's address."""

    def read(self, name: str) -> StoredFile | None:
        """Read a file as stored; None when there is none."""

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:
        """Write a file, whole or not at all, in place of any file of that name."""

    def delete(self, name: str) -> None:
        """Remove a file in all its compressions; it may be absent."""

    def exists(self, name: str) -> bool:
        """Whether a file is there in any compression."""

    def names(self, prefix: str) -> Iterator[str]:
        """Names of the files directly in the folder `prefix/`, without compression suffixes."""

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Files directly in the folder `prefix/`: names as `names` gives them, and stored bytes."""

    def delete_folder(self, prefix: str) -> None:
        """Remove every file below `prefix/`."""

    def check_writable(self) -> None:
        """Raise AccessDenied when files cannot be written here; leaves nothing behind."""


def open_folder(url: str) -> Folder:
    """Open a folder by its URL: `file:///abs/path`, `s3://`, `gs://`, `mem://` ...

    Raises InvalidParameter for an address that is not understood.
    """
    if url.startswith("file://"):
        return LocalFolder(Path(url.removeprefix("file://")))
    return BucketFolder(url)


def plain_name(name: str) -> str:
    """A file's name without its compression suffix."""
    for suffix in SUFFIXES.values():
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


@contextmanager
def _disk_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn the operating system's errors into ours, naming the path."""
    try:
        yield
    except PermissionError as error:
        raise AccessDenied(f"cannot {action} {path}: permission denied") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise AccessDenied(f"cannot {action} {path}: the file system is read-only") from error
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise InvalidParameter(f"cannot {action} {path}: {error.strerror}") from error
        raise StorageUnavailable(f"cannot {action} {path}: {error.strerror or error}") from error


class LocalFolder:
    """A folder on this machine's disks."""

    def __init__(self, root: Path) -> None:
        if not root.is_absolute():
            raise InvalidParameter(
                f"{root} is not an absolute path: write it from the root, as /data/layer"
            )
        self._root = root

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    def read(self, name: str) -> StoredFile | None:
        path = f"{self._root}/{name}"
        with _disk_errors("read", path):
            for compression, suffix in (
                ("gzip", ".gz"),
                ("", ""),
                ("br", ".br"),
                ("zstd", ".zstd"),
            ):
                try:
                    # plain open: pathlib costs a tenth of the time of a small read
                    with open(f"{path}{suffix}", "rb", buffering=0) as stream:  # noqa: PTH123
                        return StoredFile(stream.read(), compression)
                except (FileNotFoundError, IsADirectoryError):
                    continue
        return None

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:  # noqa: ARG002
        # os functions: pathlib would cost a third of the time of a small write
        path = f"{self._root}/{name}"
        folder, _, base = path.rpartition("/")
        final = path + SUFFIXES.get(file.compression, "")
        partial = f"{folder}/.{base}.{_owner()}-{threading.get_ident():x}{_PARTIAL}"
        with _disk_errors("write", final):
            try:
                with self._create(folder, partial) as stream:
                    stream.write(file.content)
                os.replace(partial, final)  # noqa: PTH105
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(partial)  # noqa: PTH108
                raise
            for other in self._variants(path):
                if other != final and os.path.lexists(other):
                    os.unlink(other)  # noqa: PTH108

    @staticmethod
    def _create(folder: str, path: str) -> BinaryIO:
        try:
            return open(path, "wb")  # noqa: PTH123
        except FileNotFoundError:  # seldom, so that it costs nothing to ask afterwards
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            return open(path, "wb")  # noqa: PTH123

    @staticmethod
    def _variants(path: str) -> list[str]:
        return [path, *(path + suffix for suffix in SUFFIXES.values())]

    def delete(self, name: str) -> None:
        for path in self._variants(f"{self._root}/{name}"):
            with _disk_errors("delete", path), suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)  # noqa: PTH108

    def exists(self, name: str) -> bool:
        return any(map(os.path.isfile, self._variants(f"{self._root}/{name}")))

    def names(self, prefix: str) -> Iterator[str]:
        return (plain_name(entry.name) for entry in self._files(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for entry in self._files(prefix):
            with suppress(FileNotFoundError):  # removed meanwhile
                yield plain_name(entry.name), entry.stat().st_size

    def _files(self, prefix: str) -> Iterator["os.DirEntry[str]"]:
        folder = self._root / prefix
        with _disk_errors("list", folder):
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return
            with entries:
                for entry in entries:
                    if entry.name.endswith(_PARTIAL):
                        _remove_if_abandoned(Path(entry.path))
                    elif entry.is_file():
                        yield entry

    def delete_folder(self, prefix: str) -> None:
        folder = self._root / prefix
        with _disk_errors("delete", folder):
            for parent, _, files in os.walk(folder, topdown=False):
                for file in files:
                    (Path(parent) / file).unlink(missing_ok=True)
                with suppress(OSError):  # somebody may write there again
                    Path(parent).rmdir()

    def check_writable(self) -> None:
        with _disk_errors("write to", self._root):
            existing = next(p for p in (self._root, *self._root.parents) if p.exists())
            if not existing.is_dir():
                raise AccessDenied(f"cannot write below {existing}: it is not a folder")
            probe = existing / f".probe.{_owner()}-0{_PARTIAL}"
            probe.touch()
            probe.unlink()


def _owner() -> str:
    return f"{socket.gethostname().replace('.', '_')}-{os.getpid()}"


def _remove_if_abandoned(partial: Path) -> None:
    """Remove what a killed process left half written, and nothing that somebody still writes."""
    ours = _PARTIAL_NAME.fullmatch(partial.name)
    if ours is None:  # a file of somebody else's
        return
    host, pid = ours.groups()
    with suppress(FileNotFoundError):
        if host == _owner().rpartition("-")[0]:
            abandoned = not _is_alive(int(pid))
        else:
            abandoned = time.time() - partial.stat().st_mtime > _PARTIAL_LIFETIME
        if abandoned:
            partial.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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

    def names(self, prefix: str) -> Iterator[str]:
        with self._errors("list", prefix):
            for name in self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True):
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2])

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
        probe = f".probe.{_owner()}-0{_PARTIAL}"
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
