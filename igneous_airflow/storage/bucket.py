"""Folders in buckets, or in memory, through cloud-files."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    PermanentError,
    StorageUnavailable,
)
from igneous_airflow.storage.files import StoredFile, plain_name

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

    def names(self, prefix: str) -> Iterator[str]:
        with self._errors("list", prefix):
            for name in self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True):
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2])

    def names_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[str]:
        folder = f"{prefix}/" if prefix else ""
        with self._errors("list", prefix):
            for start in starts:
                for path in self._files.list(prefix=f"{folder}{start}", flat=True):
                    name = path.removeprefix(folder)
                    if "/" not in name:  # which cloud-files lists as well
                        yield plain_name(name)

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
