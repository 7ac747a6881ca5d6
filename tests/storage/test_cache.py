"""The machine's cache: made once, whole or not at all, by whoever asks first."""

import multiprocessing
import os
import tempfile
import time

import pytest

from igneous_airflow.errors import AccessDenied, StorageUnavailable
from igneous_airflow.storage.cache import cached_file

WEEK = 7 * 24 * 3600


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def write(content):
    return lambda stream: stream.write(content)


def never(stream):
    raise AssertionError("it is there already")


def test_a_file_is_made_once():
    path = cached_file("a", write(b"one"))
    assert cached_file("a", never) == path
    assert path.read_bytes() == b"one"
    assert cached_file("b", write(b"two")) != path


def test_hostile_words_stay_inside_the_folder(tmp_path):
    for words in ("../../x", "/etc/passwd", "", "a\0b", "é" * 1000):
        path = cached_file(words, write(b"x"))
        assert path.parent.parent == tmp_path


def fail(stream):
    stream.write(b"half")
    raise OSError(28, "No space left on device")


def test_what_fails_leaves_nothing_and_can_be_tried_again(tmp_path):
    with pytest.raises(StorageUnavailable, match="No space left"):
        cached_file("a", fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert cached_file("a", write(b"whole")).read_bytes() == b"whole"


def test_our_own_errors_pass_as_they_are():
    def refuse(stream):
        raise AccessDenied("no")

    with pytest.raises(AccessDenied, match=r"^no$"):
        cached_file("a", refuse)


def make_slowly(folder, made):
    tempfile.tempdir = folder

    def make(stream):
        with made.get_lock():
            made.value += 1
        stream.write(b"x" * 1000)
        stream.flush()
        time.sleep(0.3)
        stream.write(b"y" * 1000)

    assert len(cached_file("a", make).read_bytes()) == 2000


def test_processes_that_ask_at_once_wait_for_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0)
    processes = [context.Process(target=make_slowly, args=(str(tmp_path), made)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert made.value == 1


def test_what_nobody_used_for_a_week_goes_when_something_new_comes():
    old, used = cached_file("old", write(b"1")), cached_file("used", write(b"2"))
    partial = old.with_name("killed.partial")
    partial.write_bytes(b"half")
    for path in (old, used):
        os.utime(path, (time.time() - 2 * WEEK,) * 2)
    cached_file("used", never)
    cached_file("new", write(b"3"))
    assert not old.exists()
    assert not partial.exists()
    assert used.exists()


def test_a_folder_of_somebody_else_is_not_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"igneous_airflow-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AccessDenied, match="somebody else"):
        cached_file("a", write(b"x"))


def test_nobody_else_can_write_into_the_folder():
    folder = cached_file("a", write(b"x")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
