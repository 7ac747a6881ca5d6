"""Folders: the same behaviour on disk and in a bucket; files appear whole or not at all."""

import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from igneous_airflow.errors import (
    AccessDenied,
    CorruptChunk,
    InvalidParameter,
    StorageUnavailable,
)
from igneous_airflow.storage.files import StoredFile, open_folder
from igneous_airflow.storage.local import LocalFolder

COMPRESSIONS = ["", "gzip", "br", "zstd"]
OVERWRITE_FOR_EVER = """
import sys
from pathlib import Path
from igneous_airflow.storage.files import StoredFile
from igneous_airflow.storage.local import LocalFolder
folder, size = LocalFolder(Path(sys.argv[1])), int(sys.argv[2])
for turn in range(10**9):
    folder.write("deep/file", StoredFile(bytes([turn % 256]) * size))
    print(turn, flush=True)
"""


@contextmanager
def as_an_ordinary_user():
    """Root may do anything: lay its powers down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all():
    """Return a folder that every user may look into; pytest's own are private."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


@contextmanager
def tiny_disk(path):
    """Leave room for 64 kB: a file system of that size, or else files of at most that size."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", path], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(params=["file", "mem"])
def folder(request, tmp_path):
    places = {"file": f"file://{tmp_path}/layer", "mem": f"mem://{uuid.uuid4()}/layer"}
    return open_folder(places[request.param])


@pytest.fixture
def local(tmp_path):
    return LocalFolder(tmp_path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_is_read_as_it_was_written(folder, compression):
    file = StoredFile(bytes(range(256)), compression)
    assert folder.read("a/0-64_0-64_0-64") is None
    assert not folder.exists("a/0-64_0-64_0-64")
    folder.write("a/0-64_0-64_0-64", file)
    assert folder.read("a/0-64_0-64_0-64") == file
    assert folder.exists("a/0-64_0-64_0-64")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_of_more_bytes_than_its_reader_takes_is_refused(folder, compression):
    file = StoredFile(bytes(range(256)), compression)
    folder.write("a", file)
    assert folder.read("a", 256) == file
    with pytest.raises(CorruptChunk, match="larger than the 255 bytes"):
        folder.read("a", 255)
    assert folder.read("b", 255) is None


@pytest.mark.parametrize(
    "content",
    [b"", bytearray(b"abc"), memoryview(b"abc")],
    ids=["bytes", "bytearray", "memoryview"],
)
def test_any_buffer_can_be_written(folder, content):
    folder.write("name", StoredFile(content))
    assert folder.read("name") == StoredFile(bytes(content))


@pytest.mark.parametrize("later", COMPRESSIONS)
@pytest.mark.parametrize("earlier", COMPRESSIONS)
def test_a_file_replaces_its_other_compressions(folder, earlier, later):
    folder.write("a/b", StoredFile(b"old", earlier))
    folder.write("a/b", StoredFile(b"new", later))
    assert folder.read("a/b") == StoredFile(b"new", later)
    assert list(folder.names("a")) == ["b"]
    folder.delete("a/b")
    assert folder.read("a/b") is None
    assert list(folder.names("a")) == []


def test_names_are_those_directly_in_a_folder_without_suffixes(folder):
    for name, compression in [
        ("a/x", "gzip"),
        ("a/y", ""),
        ("a/z", "br"),
        ("a/b/c", ""),
        ("ab", ""),
    ]:
        folder.write(name, StoredFile(b"1", compression))
    assert sorted(folder.names("a")) == ["x", "y", "z"]
    assert sorted(folder.names("a/b")) == ["c"]
    assert list(folder.names("nothing")) == []
    assert sorted(folder.sizes("a")) == [("x", 1), ("y", 1), ("z", 1)]
    assert list(folder.sizes("nothing")) == []


def test_folders_are_those_directly_in_a_folder(folder):
    for name in ("a/x/1", "a/x/2", "a/y/z/1", "a/file", "b/1"):
        folder.write(name, StoredFile(b"1"))
    assert sorted(folder.folders("")) == ["a", "b"]
    assert sorted(folder.folders("a")) == ["x", "y"]
    assert list(folder.folders("b")) == []
    assert list(folder.folders("nothing")) == []


def test_a_file_can_be_read_in_parts(folder):
    content = bytes(range(256)) * 10_000
    assert folder.stream("a/b") is None
    folder.write("a/b", StoredFile(content))
    assert folder.stream("a") is None
    with folder.stream("a/b") as stream:
        assert stream.read(3) == content[:3]
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == content[-5:]
        assert stream.read(1) == b""
        stream.seek(1_234_567)
        assert stream.read(1_000_000) == content[1_234_567:2_234_567]
        assert stream.tell() == 2_234_567


def test_the_version_of_a_file_goes_by_its_content(folder):
    assert folder.version("a") is None
    versions = []
    for content in (b"1", b"2", b"1"):
        folder.write("a", StoredFile(content))
        versions.append(folder.version("a"))
    assert versions[0] == versions[2] != versions[1]


def test_names_are_found_by_how_they_start(folder):
    for name in ("a/10:0", "a/1:0", "a/12:0", "a/2", "a/1:/x", "a/b", "1:0"):
        folder.write(name, StoredFile(b"1", "gzip"))
    assert sorted(folder.names_starting("a", ["1:", "12"])) == ["12:0", "1:0"]
    assert sorted(folder.names_starting("a", ["1"])) == ["10:0", "12:0", "1:0"]
    assert list(folder.names_starting("a", ["3"])) == []
    assert list(folder.names_starting("a", [])) == []
    assert list(folder.names_starting("nothing", ["1"])) == []
    assert list(folder.names_starting("", ["1"])) == ["1:0"]


def test_deleting_what_is_absent_does_nothing(folder):
    folder.delete("a/b")
    folder.delete_folder("a")
    assert list(folder.names("a")) == []


def test_delete_folder_removes_what_is_below_and_nothing_beside(folder):
    for name in ("a/x", "a/b/c/d", "ab/x", "x"):
        folder.write(name, StoredFile(b"1"))
    folder.delete_folder("a")
    assert [folder.exists(name) for name in ("a/x", "a/b/c/d", "ab/x", "x")] == [0, 0, 1, 1]


def test_a_deleted_folder_can_be_written_again(folder):
    folder.write("a/b/c", StoredFile(b"1"))
    folder.delete_folder("a")
    folder.write("a/b/c", StoredFile(b"2"))
    assert folder.read("a/b/c") == StoredFile(b"2")


def test_trying_to_write_leaves_nothing_behind(folder, tmp_path):
    folder.try_writing()
    assert list(tmp_path.rglob("*")) == []
    folder.write("info", StoredFile(b"1"))
    folder.try_writing()
    assert list(folder.names("")) == ["info"]


def test_whether_a_folder_can_be_written_to_is_seen_without_writing(local, tmp_path):
    os.utime(tmp_path, (0, 0))
    local.check_writable()
    LocalFolder(tmp_path / "new" / "layer").check_writable()
    assert tmp_path.stat().st_mtime == 0
    local.try_writing()
    assert tmp_path.stat().st_mtime > 0


def test_root_itself_cannot_write_to_a_read_only_file_system():
    place = next(_read_only_places(), None) or pytest.skip("there is no read-only file system")
    with pytest.raises(AccessDenied, match="the file system is read-only"):
        LocalFolder(place / "layer").check_writable()


def _read_only_places():
    for line in Path("/proc/mounts").read_text().splitlines():
        place = Path(line.split()[1])
        if place.is_dir() and os.statvfs(place).f_flag & os.ST_RDONLY:
            yield place


def test_a_folder_keeps_its_address(tmp_path):
    for url in (f"file://{tmp_path}/layer", "mem://bucket/layer"):
        assert open_folder(url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data/layer",
        "file://data/layer",
        "ftp://server/layer",
        "s4://bucket/layer",
        "://x",
        "x://",
    ],
)
def test_an_address_that_is_not_understood_is_refused(url):
    with pytest.raises(InvalidParameter, match=r"address|absolute|protocol"):
        open_folder(url)


def test_web_addresses_are_read_only():
    with pytest.raises(AccessDenied, match="read-only"):
        open_folder("https://server/layer").check_writable()


def test_a_file_on_disk_has_the_suffix_of_its_compression(local, tmp_path):
    for compression in COMPRESSIONS:
        local.write(f"a/{compression}.x", StoredFile(b"1", compression))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        ".x",
        "gzip.x.gz",
        "br.x.br",
        "zstd.x.zstd",
    }


def test_a_folder_of_that_name_is_not_a_file(local, tmp_path):
    (tmp_path / "info").mkdir()
    assert local.read("info") is None
    assert not local.exists("info")
    with pytest.raises(InvalidParameter, match="info: a folder has that name"):
        local.write("info", StoredFile(b"1"))
    assert [path.name for path in tmp_path.iterdir()] == ["info"]


def test_a_killed_writer_never_leaves_half_a_file(tmp_path):
    size = 3_000_000
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", OVERWRITE_FOR_EVER, str(tmp_path), str(size)],
            stdout=subprocess.PIPE,
        )
        with process:
            process.stdout.readline()
            time.sleep(0.02)
            process.kill()
        content = (tmp_path / "deep/file").read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1
    assert list(LocalFolder(tmp_path).names("deep")) == ["file"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_abandoned_partial_files_are_removed_when_a_folder_is_listed(local, tmp_path):
    host = os.uname().nodename.replace(".", "_")
    abandoned = tmp_path / f".0-64.{host}-{dead_process()}-7f01.partial"
    alive = tmp_path / f".0-64.{host}-{os.getpid()}-7f01.partial"
    of_another_host = tmp_path / ".0-64.another-host-1-7f01.partial"
    long_abandoned = tmp_path / ".64-128.another-host-1-7f01.partial"
    strange = [
        tmp_path / name for name in ("x.partial", ".partial", "a.b.partial", ".a.b-c-d.partial")
    ]
    for path in (abandoned, alive, of_another_host, long_abandoned, *strange):
        path.touch()
    days_ago = time.time() - 3 * 24 * 3600
    os.utime(long_abandoned, (days_ago, days_ago))
    assert list(local.names("")) == []
    assert set(tmp_path.iterdir()) == {alive, of_another_host, *strange}


def test_a_path_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    folder = LocalFolder(tmp_path / "file" / "layer")
    for action in (
        lambda: folder.read("info"),
        lambda: folder.write("info", StoredFile(b"1")),
        lambda: list(folder.names("a")),
        folder.check_writable,
    ):
        with pytest.raises((InvalidParameter, AccessDenied), match=str(tmp_path / "file")):
            action()
    folder.delete("info")
    assert not folder.exists("info")


def test_a_name_that_is_too_long_is_refused(local):
    with pytest.raises(InvalidParameter, match="too long"):
        local.write("x" * 300, StoredFile(b"1"))
    with pytest.raises(InvalidParameter, match="too long"):
        LocalFolder(Path("/" + "x" * 5000)).read("info")


def test_a_read_only_folder_is_denied_by_name(open_to_all):
    folder = LocalFolder(open_to_all)
    folder.write("info", StoredFile(b"1"))
    open_to_all.chmod(0o555)
    with as_an_ordinary_user():
        assert folder.read("info") == StoredFile(b"1")
        for action in (
            lambda: folder.write("info", StoredFile(b"2")),
            lambda: folder.write("new/chunk", StoredFile(b"2")),
            lambda: folder.delete("info"),
            folder.check_writable,
            folder.try_writing,
            LocalFolder(open_to_all / "new").check_writable,
        ):
            with pytest.raises(AccessDenied, match=str(open_to_all)):
                action()
    assert folder.read("info") == StoredFile(b"1")


def test_a_private_folder_is_denied_by_name(open_to_all):
    private = open_to_all / "private"
    private.mkdir(mode=0o700)
    if os.geteuid() != 0:
        private.chmod(0)
    folder = LocalFolder(private / "layer")
    with as_an_ordinary_user():
        for action in (
            lambda: folder.read("info"),
            lambda: list(folder.names("")),
            folder.check_writable,
        ):
            with pytest.raises(AccessDenied, match=str(private)):
                action()
    private.chmod(0o700)


def test_a_full_disk_is_an_error_that_may_pass_and_leaves_the_old_file(local, tmp_path):
    with tiny_disk(tmp_path):
        local.write("chunk", StoredFile(b"old"))
        with pytest.raises(StorageUnavailable, match="chunk") as caught:
            local.write("chunk", StoredFile(bytes(200_000)))
        assert caught.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
        assert local.read("chunk") == StoredFile(b"old")
        assert [path.name for path in tmp_path.iterdir()] == ["chunk"]


def test_what_a_killed_process_left_of_a_trial_to_write_goes_with_the_next_trial(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname().replace(".", "_")
    (tmp_path / f".probe.{host}-{ended.pid}-a.partial").touch()
    open_folder(f"file://{tmp_path}").try_writing()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[True, False], ids=["with links", "without links"])
def has_links(request, monkeypatch):
    """A disk with hard links, or without them, as some network disks are."""
    if not request.param:

        def refuse(source, *_, **__):
            os.lstat(source)
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_a_file_or_folder_is_moved_and_replaces_none(local, tmp_path, has_links):
    local.write("a/file", StoredFile(b"1"))
    assert local.rename("a/file", "b/c/file")
    assert not local.rename("a/file", "b/c/file")
    local.write("a/file", StoredFile(b"2"))
    for target in ("b/c/file", "b/c"):
        with pytest.raises(InvalidParameter, match="where there is another one: nothing is repl"):
            local.rename("a/file", target)
    with pytest.raises(InvalidParameter, match="nothing is replaced"):
        local.rename("a", "b")
    assert (local.read("a/file").content, local.read("b/c/file").content) == (b"2", b"1")
    assert local.rename("a", "d/e")
    assert local.read("d/e/file").content == b"2"
    assert not local.rename("a", "d/e")


def test_a_file_that_was_half_moved_is_moved_on(local, tmp_path):
    local.write("old", StoredFile(b"1"))
    (tmp_path / "new").hardlink_to(tmp_path / "old")
    assert local.rename("old", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_folders_go_as_far_as_they_are_empty(local, tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    local.write("a/d/file", StoredFile(b"1"))
    local.remove_empty_folders("a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["d"]
    local.delete("a/d/file")
    local.remove_empty_folders("a")
    local.remove_empty_folders("a")
    assert not (tmp_path / "a").exists()
