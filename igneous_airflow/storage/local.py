"""Folders on this machine's disks.

cloud-files, which serves all buckets, writes local files in place, so that a kill or a full disk
would leave half a file under its final name. Here a file appears whole or not at all.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path

from igneous_airflow.errors import (
    AccessDenied,
    IgneousError,
    InvalidParameter,
    SourceNotFound,
    StorageUnavailable,
    UnreadableSource,
)
from igneous_airflow.storage.files import (
    SUFFIXES,
    Buffer,
    FileEntry,
    Folder,
    StoredFile,
    compression_of,
    content_version,
    plain_name,
    require_at_most,
)
from igneous_airflow.storage.links import AnyLinks, Links
from igneous_airflow.storage.moving import complete_move, move_without_replacing
from igneous_airflow.storage.partials import (
    is_partial,
    partial_path,
    remove_abandoned,
    remove_if_abandoned,
)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@contextmanager
def disk_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn the operating system's errors into ours, naming the path."""
    try:
        yield
    except IgneousError:
        raise
    except PermissionError as error:
        raise AccessDenied(f"cannot {action} {path}: permission denied") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise AccessDenied(f"cannot {action} {path}: the file system is read-only") from error
        if error.errno == errno.EXDEV:
            raise InvalidParameter(
                f"cannot {action} {path}: it lies on another disk than the layer: set keep_deleted "
                "to false"
            ) from error
        if error.errno == errno.EISDIR:
            raise InvalidParameter(
                f"cannot {action} {path}: a folder has that name: move it away, then try again"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise InvalidParameter(f"cannot {action} {path}: {error.strerror}") from error
        raise StorageUnavailable(f"cannot {action} {path}: {error.strerror or error}") from error


class LocalFolder:
    """A folder on this machine's disks.

    Links in it that lead out of it are refused, unless it is opened with `any_links`.
    """

    def __init__(self, root: Path, *, any_links: bool = False) -> None:
        if not root.is_absolute():
            raise InvalidParameter(
                f"{root} is not an absolute path: write it from the root, as /data/layer"
            )
        self._root = root
        self._links = (AnyLinks if any_links else Links)(str(root))

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    def read(self, name: str, most: int | None = None) -> StoredFile | None:
        path = f"{self._root}/{name}"
        with disk_errors("read", path):
            self._links.check_way(path)
            for compression, suffix in (
                ("gzip", ".gz"),
                ("", ""),
                ("br", ".br"),
                ("zstd", ".zstd"),
            ):
                try:
                    with self._links.open(f"{path}{suffix}", os.O_RDONLY) as stream:
                        if most is not None:
                            require_at_most(path, os.fstat(stream.fileno()).st_size, most)
                        return StoredFile(stream.read(), compression)
                except (FileNotFoundError, IsADirectoryError):
                    continue
        return None

    def write(self, name: str, file: StoredFile, *, content_type: str = "") -> None:  # noqa: ARG002
        # os functions: pathlib would cost a third of the time of a small write
        path = f"{self._root}/{name}"
        final = path + SUFFIXES.get(file.compression, "")
        partial = partial_path(path)
        with disk_errors("write", final):
            self._links.check_change(path)
            present = [variant for variant in self._variants(path) if self._links.is_there(variant)]
            try:
                with self._create(partial) as stream:
                    _write_all(stream, file.content)
                os.replace(partial, final)  # noqa: PTH105
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(partial)  # noqa: PTH108
                raise
            for other in present:
                if other != final:
                    with suppress(FileNotFoundError):  # removed meanwhile
                        os.unlink(other)  # noqa: PTH108

    def _create(self, path: str) -> FileIO:
        try:
            return self._links.open(path, _NEW)
        except FileNotFoundError:  # seldom, so that it costs nothing to ask afterwards
            os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
            return self._links.open(path, _NEW)

    @staticmethod
    def _variants(path: str) -> list[str]:
        return [path, *(path + suffix for suffix in SUFFIXES.values())]

    def delete(self, name: str) -> None:
        path = f"{self._root}/{name}"
        with disk_errors("delete", path):
            self._links.check_change(path)
            for variant in self._variants(path):
                if self._links.is_there(variant):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        os.unlink(variant)  # noqa: PTH108

    def exists(self, name: str) -> bool:
        path = f"{self._root}/{name}"
        with disk_errors("look for", path):
            self._links.check_way(path)
            return any(map(self._links.is_file, self._variants(path)))

    def stream(self, name: str) -> BufferedReader | None:
        path = f"{self._root}/{name}"
        with disk_errors("read", path):
            self._links.check_way(path)
            try:
                return BufferedReader(self._links.open(path, os.O_RDONLY))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def version(self, name: str) -> str | None:
        stream = self.stream(name)
        if stream is None:
            return None
        with stream, disk_errors("read", self._root / name):
            return content_version(stream)

    def names(self, prefix: str) -> Iterator[str]:
        return (plain_name(entry.name) for entry in self._files(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        folder = self._root / prefix
        with disk_errors("list", folder), suppress(FileNotFoundError):
            self._links.check_folder(str(folder))
            with os.scandir(folder) as found:
                yield from (entry.name for entry in found if entry.is_dir())

    def names_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[str]:
        wanted, lengths = set(starts), {len(start) for start in starts}
        for entry in self._entries(prefix):
            name = entry.name
            for length in lengths:  # written out: a task looks at millions of names
                if name[:length] in wanted and self._is_finished(entry):
                    yield plain_name(name)
            if name.startswith(".") and is_partial(name):
                remove_if_abandoned(entry.path)

    def sizes_starting(self, prefix: str, starts: Sequence[str]) -> Iterator[tuple[str, int]]:
        begins = tuple(starts)
        return ((name, size) for name, size in self.sizes(prefix) if name.startswith(begins))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for entry in self._files(prefix):
            with suppress(FileNotFoundError):  # removed meanwhile
                yield plain_name(entry.name), entry.stat().st_size

    def entries(self, prefix: str) -> Iterator[FileEntry]:
        for entry in self._entries(prefix):
            with suppress(FileNotFoundError):  # removed meanwhile
                if self._is_finished(entry):
                    state, compression = entry.stat(), compression_of(entry.name)
                    time = str(state.st_mtime_ns)
                    yield FileEntry(entry.name, state.st_size, time, compression)
                elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                    yield FileEntry(entry.name, 0)

    def entry(self, name: str) -> FileEntry | None:
        path = f"{self._root}/{name}"
        with disk_errors("look for", path):
            self._links.check_way(path)
            if not self._links.is_file(path):
                return None
            state = os.stat(path)  # noqa: PTH116
        return FileEntry(name, state.st_size, str(state.st_mtime_ns))

    def read_part(self, name: str, start: int, buffer: memoryview) -> None:
        path = f"{self._root}/{name}"
        with disk_errors("read", path):
            self._links.check_way(path)
            try:
                stream = self._links.open(path, os.O_RDONLY)
            except FileNotFoundError as error:
                raise SourceNotFound(f"{path} is not there") from error
            with stream:
                stream.seek(start)
                filled = 0
                while filled < len(buffer):
                    read = stream.readinto(buffer[filled:])
                    if not read:
                        raise UnreadableSource(
                            f"{path} is cut off: it ends at byte {start + filled:,}, but goes on "
                            f"to byte {start + len(buffer):,} by its own account"
                        )
                    filled += read

    def _files(self, prefix: str) -> Iterator["os.DirEntry[str]"]:
        return filter(self._is_finished, self._entries(prefix))

    def _entries(self, prefix: str) -> Iterator["os.DirEntry[str]"]:
        folder = self._root / prefix
        with disk_errors("list", folder):
            self._links.check_folder(str(folder))
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return
            with entries:
                yield from entries

    def _is_finished(self, entry: "os.DirEntry[str]") -> bool:
        """Whether it is a file, and not one that is being written; what a dead writer left goes."""
        if is_partial(entry.name):
            remove_if_abandoned(entry.path)
            return False
        return self._links.is_finished(entry)

    def delete_folder(self, prefix: str) -> None:
        folder = self._root / prefix
        with disk_errors("delete", folder):
            self._links.check_change(f"{folder}/")
            for parent, files in list(self._links.below(folder)):  # all are looked at first
                for file in files:
                    (Path(parent) / file).unlink(missing_ok=True)
                with suppress(OSError):  # somebody may write there again
                    Path(parent).rmdir()

    def remove_empty_folders(self, prefix: str) -> None:
        folder = self._root / prefix
        with disk_errors("delete", folder):
            self._links.check_change(f"{folder}/")
            for parent, _ in self._links.below(folder):
                with suppress(OSError):  # it has files
                    Path(parent).rmdir()

    @property
    def renames(self) -> bool:
        return True

    def rename(self, old: str, new: str) -> bool:
        source, target = f"{self._root}/{old}", f"{self._root}/{new}"
        with disk_errors("move", source):
            self._links.check_change(source)
            self._links.check_change(target)
            if not self._links.is_there(source):
                return False
            if os.path.isdir(source):  # noqa: PTH112 - for every chunk that is deleted
                self._links.check_change(f"{source}/")
            return move_without_replacing(source, target)

    def complete_move(self, old: str, new: str) -> None:
        source, target = f"{self._root}/{old}", f"{self._root}/{new}"
        with disk_errors("move", source):
            self._links.check_change(source)
            self._links.check_change(target)
            complete_move(source, target)

    def exists_as_folder(self) -> bool:
        """Whether the folder itself is there."""
        return self._root.is_dir()

    def check_writable(self, folders: Iterable[str] = ()) -> None:
        existing = self._existing()
        for folder in folders:
            with disk_errors("write to", self._root / folder):
                self._links.check_change(f"{self._root / folder}/")
        # root may write anywhere but to a read-only file system
        as_whom = {"effective_ids": os.access in os.supports_effective_ids}
        with disk_errors("write to", self._root):
            if os.access(existing, os.W_OK | os.X_OK, **as_whom):
                return
            read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if read_only else errno.EACCES, "cannot be written to")

    def try_writing(self) -> None:
        existing = self._existing()
        probe = Path(partial_path(f"{existing}/probe"))
        with disk_errors("write to", self._root):
            probe.unlink(missing_ok=True)
            with probe.open("x"):  # never through a link
                pass
            probe.unlink()
        remove_abandoned(f"file://{existing}")

    def _existing(self) -> Path:
        """The folder itself, or the nearest one above it that is there."""
        with disk_errors("write to", self._root):
            existing = next(p for p in (self._root, *self._root.parents) if p.exists())
        if not existing.is_dir():
            raise AccessDenied(f"cannot write below {existing}: it is not a folder")
        return existing


def _write_all(stream: FileIO, content: Buffer) -> None:
    """Write everything: the system may take less at once, at most 2 GB."""
    size = memoryview(content).nbytes
    written = stream.write(content)
    while written < size:
        written += stream.write(memoryview(content).cast("B")[written:])


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Keep other processes of ours on this machine out of a folder; buckets have no locks."""
    if not isinstance(folder, LocalFolder) or not folder.exists_as_folder():
        yield
        return
    descriptor = os.open(folder.url.removeprefix("file://"), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
