"""How a file is sent, and the memory that it takes until it is."""

import asyncio
import threading

import pytest

from igneous_airflow.storage.files import FileEntry, StoredFile, open_folder
from igneous_airflow.viewer import files
from igneous_airflow.viewer.files import Answer, FileResponse, TooLarge, Wanted, read_answer
from igneous_airflow.viewer.memory import MemoryBudget, Reservation
from igneous_airflow.viewer.pool import Busy
from igneous_airflow.viewer.ranges import ByteRange
from igneous_airflow.viewer.served import ServedFile

CONTENT = bytes(range(200))


def sent(answer, send=None, when_sent=lambda: None):
    """What a response sends."""
    messages = []

    async def keep(message):
        messages.append(message)

    async def receive():
        return {"type": "http.disconnect"}

    response = FileResponse(answer, when_sent)
    asyncio.run(response({"type": "http", "method": "GET"}, receive, send or keep))
    return messages


def test_an_answer_is_sent_in_pieces_and_whole():
    content = bytes(i % 251 for i in range(1_000_000))
    start, *parts = sent(Answer(content, 206, {"Content-Range": "bytes 0-999999/2000000"}))
    headers = dict(start["headers"])
    assert start["status"] == 206
    assert headers[b"content-length"] == b"1000000"
    assert headers[b"content-range"] == b"bytes 0-999999/2000000"
    assert headers[b"content-type"] == b"application/octet-stream"
    assert b"".join(part["body"] for part in parts) == content
    assert max(len(part["body"]) for part in parts) <= 1 << 18
    assert [part.get("more_body", False) for part in parts] == [True] * 4 + [False]


def test_a_client_has_a_few_minutes_to_take_an_answer():
    assert 60 <= files._SENDING_SECONDS <= 300


def test_a_client_that_takes_nothing_is_left_and_its_memory_given_back(monkeypatch):
    monkeypatch.setattr(files, "_SENDING_SECONDS", 0.05)
    ended = []

    async def never(message):
        await asyncio.sleep(3600)

    sent(Answer(CONTENT, 200, {}), never, lambda: ended.append(True))
    assert ended == [True]


def test_memory_is_given_back_when_the_client_is_gone():
    ended = []

    async def gone(message):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        sent(Answer(CONTENT, 200, {}), gone, lambda: ended.append(True))
    assert ended == [True]


def test_a_reservation_takes_what_it_says_and_gives_it_back():
    budget = MemoryBudget(100)
    one, two = Reservation(budget), Reservation(budget)
    one.resize(60)
    with pytest.raises(Busy):
        two.resize(41)
    assert budget.taken == 60
    two.resize(40)
    one.resize(10)
    assert budget.taken == 50
    one.close()
    two.close()
    assert budget.taken == 0
    one.close()
    assert budget.taken == 0


def test_an_abandoned_call_can_take_no_more_memory():
    budget = MemoryBudget(100)
    held = Reservation(budget)
    held.close()
    with pytest.raises(Busy):
        held.resize(1)
    assert budget.taken == 0


def test_many_threads_take_no_more_than_there_is():
    budget, peaks = MemoryBudget(100), []

    def work():
        for _ in range(300):
            held = Reservation(budget)
            try:
                held.resize(30)
                peaks.append(budget.taken)
            except Busy:
                pass
            finally:
                held.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.taken == 0
    assert max(peaks) <= 90


class Folder:
    """A folder with one file, that notes what is read of it."""

    def __init__(self, content=CONTENT):
        self.content = content
        self.reads = []

    def entry(self, name):
        return FileEntry(name, len(self.content))

    def read_part(self, name, start, buffer):
        self.reads.append((start, len(buffer)))
        buffer[:] = self.content[start : start + len(buffer)]

    def read(self, name, most=None):
        self.reads.append("whole")
        return StoredFile(self.content)


FILE = ServedFile("x", 1000)


def read(folder, part, file=FILE):
    budget = MemoryBudget(10_000)
    held = Reservation(budget)
    answer = read_answer(folder, file, Wanted(part, frozenset()), held)
    taken = budget.taken
    held.close()
    return answer, taken


def test_nothing_but_a_range_is_read_and_held():
    folder = Folder()
    answer, taken = read(folder, ByteRange(10, 19))
    assert bytes(answer.content) == CONTENT[10:20]
    assert answer.headers == {"Content-Range": "bytes 10-19/200"}
    assert folder.reads == [(10, 10)]
    assert taken == 10


def test_next_to_nothing_is_read_for_a_range_beyond_the_file():
    folder = Folder()
    answer, _ = read(folder, ByteRange(200))
    assert (answer.status, folder.reads) == (416, [(0, 1)])  # to see that it is not compressed


def test_an_empty_file_has_no_ranges():
    folder = Folder(b"")
    answer, _ = read(folder, ByteRange(0, 5))
    assert (answer.status, folder.reads) == (416, [])
    assert answer.headers == {"Content-Range": "bytes */0"}


def test_a_range_longer_than_is_served_is_refused_before_it_is_read():
    folder = Folder()
    with pytest.raises(TooLarge, match="smaller parts"):
        read(folder, ByteRange(0), ServedFile("x", 199))
    assert folder.reads == []


def test_memory_for_all_that_a_file_may_have_is_taken_before_it_is_read():
    folder = Folder()
    budget = MemoryBudget(FILE.most - 1)
    with pytest.raises(Busy):
        read_answer(folder, FILE, Wanted(None, frozenset()), Reservation(budget))
    assert folder.reads == []
    assert budget.taken == 0


def test_a_whole_file_is_held_with_its_own_bytes():
    answer, taken = read(Folder(), None)
    assert (answer.status, bytes(answer.content)) == (200, CONTENT)
    assert taken == 200


@pytest.mark.parametrize("compression", ["", "gzip", "br", "zstd"])
@pytest.mark.parametrize("part", [None, ByteRange(5, 9), ByteRange(-3), ByteRange(500)])
def test_files_in_memory_are_given_as_files_on_disk(compression, part, tmp_path):
    from igneous_airflow.storage.codecs import compress_bytes

    stored = compress_bytes(CONTENT, compression, grey=False)
    answers = []
    for url in (f"file://{tmp_path}", f"mem://files/{compression}-{part}".replace(" ", "")):
        folder = open_folder(url)
        folder.write("x", stored)
        answer, _ = read(folder, part)
        answers.append((bytes(answer.content), answer.status, answer.headers))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        ("gzip, br", {"gzip", "br"}),
        ("GZIP;q=0.5,br ; q=1", {"gzip", "br"}),
        ("gzip;q=0, br;q=0.000", set()),
        ("gzip; q = 0", set()),
        ("", {""}),
    ],
)
def test_compressions_that_a_client_refuses_are_not_used(header, codings):
    from starlette.datastructures import Headers

    assert Wanted.of("GET", Headers({"accept-encoding": header})).codings == codings


def test_only_get_has_ranges():
    from starlette.datastructures import Headers

    headers = Headers({"range": "bytes=0-1"})
    assert Wanted.of("GET", headers).part == ByteRange(0, 1)
    assert Wanted.of("HEAD", headers).part is None
