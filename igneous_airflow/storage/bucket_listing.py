"""Files of a bucket with what tells when one was written again, which cloud-files does not list.

That is S3's ETag, which is of the content, or Google's generation, which each write makes anew; in
other places none is known. The connections are cloud-files' own.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

from igneous_airflow.storage.files import FileEntry

_S3, _GOOGLE = "S3Interface", "GoogleCloudStorageInterface"


def entries(connection: Any, folder: str) -> Iterator[FileEntry]:
    """List the files directly in a folder, which ends with a slash or is empty."""
    kind = type(connection).__name__
    if kind == _S3:
        listed = _in_s3(connection, connection.get_path_to_file(folder))
    elif kind == _GOOGLE:
        listed = _in_google(connection, connection.get_path_to_file(folder))
    else:
        names = connection.list_files(folder, flat=True, size=True)
        listed = (FileEntry(name, size) for name, size in names)
    for file in listed:
        if not file.name.endswith("/"):  # a folder, or the file that stands for one
            yield FileEntry(posixpath.basename(file.name), file.size, file.state)


def entry(connection: Any, name: str) -> FileEntry | None:
    """A file by its full name; None when there is none."""
    kind = type(connection).__name__
    if kind == _S3:
        head = connection.head(name)
        return head and FileEntry(name, head["Content-Length"], head["ETag"] or "")
    if kind == _GOOGLE:
        blob = connection._bucket.get_blob(connection.get_path_to_file(name))  # noqa: SLF001
        return blob and FileEntry(name, blob.size, str(blob.generation))
    return FileEntry(name, connection.size(name)) if connection.exists(name) else None


def _in_s3(connection: Any, prefix: str) -> Iterator[FileEntry]:
    pages = connection._conn.get_paginator("list_objects_v2").paginate(  # noqa: SLF001
        Bucket=connection._path.bucket,  # noqa: SLF001
        Prefix=prefix,
        Delimiter="/",
        **connection._additional_attrs,  # noqa: SLF001
    )
    for page in pages:
        for item in page.get("Contents", []):
            yield FileEntry(item["Key"], item["Size"], item.get("ETag", ""))


def _in_google(connection: Any, prefix: str) -> Iterator[FileEntry]:
    blobs = connection._bucket.list_blobs(  # noqa: SLF001
        prefix=prefix, delimiter="/", fields="items(name,size,generation),nextPageToken"
    )
    for blob in blobs:
        yield FileEntry(blob.name, blob.size, str(blob.generation))
