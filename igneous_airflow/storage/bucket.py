"""Folders in buckets, or in memory, through cloud-files."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from igneous_airflow.errors import AccessDenied, IgneousError, InvalidParameter
from igneous_airflow.storage.bucket_errors import explain, mend_cloud_files
from igneous_airflow.storage.files import StoredFile, plain_name

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
            # not CloudFiles.delete, which says nothing of what the service refuses to delete
            with self._files._get_connection() as connection:  # noqa: SLF001
                connection.delete_file(name)
            while self._in_memory and self._files.exists(name):
                self._files.delete(name)

    def exists(self, name: str) -> bool:
        with self._errors("look for", name), self._files._get_connection() as connection:  # noqa: SLF001
            return bool(connection.exists(name))

    def names(self, prefix: str) -> Iterator[str]:
        with self._errors("list", prefix):
            for name in self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True):
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2])

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._errors("list", prefix):
            listed = self._files.list(prefix=f"{prefix}/" if prefix else "", flat=True, size=True)
            for entry in listed:
                name, size = (entry, 0) if isinstance(entry, str) else entry  # a folder, or a file
                if not name.endswith("/"):
                    yield plain_name(name.rpartition("/")[2]), size

    def delete_folder(self, prefix: str) -> None:
        with self._errors("delete", prefix):
            self._files.delete(list(self._files.list(prefix=f"{prefix}/")))
            left = list(self._files.list(prefix=f"{prefix}/"))
        for name in left:
            self.delete(name)  # says why it could not be deleted

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
            raise explain(action, place, error) from error


def _protocols() -> frozenset[str]:
    from cloudfiles import paths

    paths.update_aliases_from_file()
    return frozenset(paths.ALLOWED_PROTOCOLS)
