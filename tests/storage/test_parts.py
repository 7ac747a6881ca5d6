"""Parts of files, and files as streams: the same on disk and in a bucket."""

import io
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igneous_airflow.errors import SourceNotFound, UnreadableSource
from igneous_airflow.storage import parts
from igneous_airflow.storage.files import FileEntry, StoredFile, open_folder
from igneous_airflow.storage.parts import FileInParts

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(params=["file", "mem"])
def folder(request, tmp_path):
    url = {"file": f"file://{tmp_path}", "mem": f"mem://{uuid.uuid4()}/folder"}[request.param]
    folder = open_folder(url)
    folder.write("data.bin", StoredFile(CONTENT))
    folder.write("deeper/other", StoredFile(b"1"))
    return folder


@pytest.fixture
def file(folder):
    return FileInParts(folder, folder.entry("data.bin"))


def test_entries_are_the_files_of_a_folder_alone(folder):
    (entry,) = folder.entries("")
    assert (entry.name, entry.size) == ("data.bin", len(CONTENT))
    assert folder.entry("data.bin") == entry
    assert [entry.name for entry in folder.entries("deeper")] == ["other"]
    assert list(folder.entries("nothing")) == []


@pytest.mark.parametrize("name", ["nothing", "deeper", "data.bin/x", ""])
def test_what_is_no_file_is_no_entry(folder, name):
    assert folder.entry(name) is None


def test_files_on_disk_know_when_they_were_changed(tmp_path):
    (tmp_path / "a.tif.gz").write_bytes(b"12")
    (entry,) = open_folder(f"file://{tmp_path}").entries("")
    assert entry == FileEntry("a.tif.gz", 2, str((tmp_path / "a.tif.gz").stat().st_mtime_ns))


@pytest.mark.parametrize(("start", "length"), [(0, 10), (1000, 0), (255_990, 10), (3, 200_000)])
def test_a_part_is_the_bytes_from_its_start_on(file, start, length):
    assert file.read(start, length) == CONTENT[start : start + length]


def test_the_head_of_a_short_file_is_all_of_it(file):
    assert file.head(4) == CONTENT[:4]
    assert file.head(10**9) == CONTENT


def test_a_part_beyond_the_end_is_an_error_that_names_the_file(file):
    with pytest.raises(UnreadableSource, match=r"data.bin is cut off: it has 256,000 bytes"):
        file.read(255_999, 2)


def test_a_file_that_has_shrunk_or_gone_meanwhile_is_an_error(folder, file):
    folder.write("data.bin", StoredFile(b"short"))
    with pytest.raises(UnreadableSource, match=r"data.bin is cut off"):
        file.read(3, 100)
    folder.delete("data.bin")
    with pytest.raises(SourceNotFound, match=r"data.bin is not there"):
        file.read(0, 1)


def test_what_a_bucket_stores_compressed_cannot_be_read_in_parts():
    folder = open_folder(f"mem://{uuid.uuid4()}/folder")
    folder.write("data.bin", StoredFile(b"x" * 20, "gzip"))
    with pytest.raises(UnreadableSource, match="stored with Content-Encoding gzip"):
        folder.read_part("data.bin", 0, memoryview(bytearray(3)))


@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 40_000)), max_size=20))
def test_a_stream_reads_what_the_file_holds(reads):
    content = CONTENT[:70_001]
    folder = open_folder(f"mem://{uuid.uuid4()}/folder")
    folder.write("f", StoredFile(content))
    ours, theirs = FileInParts(folder, folder.entry("f")).stream(), io.BytesIO(content)
    for place, length in reads:
        assert ours.seek(place) == theirs.seek(place)
        assert ours.read(length) == theirs.read(length)
        assert ours.tell() == theirs.tell()


def test_a_stream_knows_its_end_and_refuses_to_go_before_its_start(file):
    stream = file.stream()
    assert stream.seek(-2, io.SEEK_END) == len(CONTENT) - 2
    assert stream.seek(1, io.SEEK_CUR) == len(CONTENT) - 1
    assert stream.read() == CONTENT[-1:]
    assert stream.read(5) == b""
    assert stream.seekable()
    assert stream.readable()
    assert not stream.writable()
    with pytest.raises(ValueError, match="there is no byte -1"):
        stream.seek(-1)


def test_a_stream_fetches_a_piece_once_for_many_short_reads(file, monkeypatch):
    fetched = []
    read_into = FileInParts.read_into
    monkeypatch.setattr(
        FileInParts,
        "read_into",
        lambda self, start, buffer: (fetched.append(start), read_into(self, start, buffer))[1],
    )
    stream = file.stream()
    for place in (*range(0, 50_000, 7), *range(0, 50_000, 11)):
        stream.seek(place)
        stream.read(3)
    assert fetched == [0, parts._PIECE]
    stream.seek(100)
    assert stream.read(parts._PIECE + 1) == CONTENT[100 : 101 + parts._PIECE]
    assert fetched[2:] == [100]
    stream.ahead = {7: bytearray(b"ahead")}
    stream.seek(7)
    assert stream.read(5) == b"ahead"
    stream.close()
    assert not stream.ahead


def test_a_stream_keeps_a_bounded_number_of_pieces(file, monkeypatch):
    monkeypatch.setattr(parts, "_PIECE", 100)
    stream = file.stream()
    for place in range(0, len(CONTENT), 50):
        stream.seek(place)
        assert stream.read(60) == CONTENT[place : place + 60]
    assert len(stream._pieces) == parts._PIECES_KEPT
