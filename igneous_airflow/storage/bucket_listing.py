"""Files of a bucket with what tells when one was written again, which cloud-files does not list."""

import posixpath
from collections.abc import Iterator
from typing import Any

from igneous_airflow.storage.files import FileEntry


def entries(connection: Any, folder: str) -> Iterator[FileEntry]:
    """List the files directly in a folder, by a connection of cloud-files' own.

    `folder` ends with a slash, or is empty. The state is S3's ETag, which is of the content, or
    Google's generation, which each write makes anew; in other places none is known.
    """
    kind = type(connection).__name__
    if kind == "S3Interface":
        listed = _in_s3(connection, connection.get_path_to_file(folder))
    elif kind == "GoogleCloudStorageInterface":
        listed = _in_google(connection, connection.get_path_to_file(folder))
    else:
        names = connection.list_files(folder, flat=True, size=True)
        listed = (FileEntry(name, size) for name, size in names)
    for entry in listed:
        if not entry.name.endswith("/"):  # a folder, or the file that stands for one
            yield FileEntry(posixpath.basename(entry.name), entry.size, entry.state)


def _in_s3(connection: Any, prefix: str) -> Iterator[FileEntry]:
    pages = connection._conn.get_paginator("list_objects_v2").paginate(  # noqa: SLF001
        Bucket=connection._path.bucket,  # noqa: SLF001
        Prefix=prefix,
        Delimiter="/",
        **connection._additional_attrs,  # noqa: SLF001
    )
    for page in pages:
        for item in page.get("Contents", []):
            yield FileEntry(item["Key"], item["Size"], item["ETag"])


def _in_google(connection: Any, prefix: str) -> Iterator[FileEntry]:
    blobs = connection._bucket.list_blobs(  # noqa: SLF001
        prefix=prefix, delimiter="/", fields="items(name,size,generation),nextPageToken"
    )
    for blob in blobs:
        yield FileEntry(blob.name, blob.size, str(blob.generation))
