"""A file of a layer as the answer to a request: all of it or a part, with bounded memory."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from igneous_airflow.errors import IgneousError, UnreadableSource
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import Buffer, Folder, StoredFile
from igneous_airflow.viewer.memory import Reservation
from igneous_airflow.viewer.ranges import ByteRange, wanted_range
from igneous_airflow.viewer.served import ServedFile

_SLICE = 1 << 18  # bytes that are handed to the server at once
_SENDING_SECONDS = 120.0  # after which a client that takes its answer too slowly is left


class TooLarge(IgneousError):
    """A file, or a part of one, has more bytes than are served at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants of a file."""

    part: ByteRange | None
    codings: frozenset[str]  # compressions that the client can undo

    @classmethod
    def of(cls, method: str, headers: Headers) -> "Wanted":
        """Read it from a request's headers."""
        # nothing that we send tells versions apart, so that no condition of a range can hold
        whole = method != "GET" or "if-range" in headers
        codings = _codings(headers.get("accept-encoding", ""))
        return cls(None if whole else wanted_range(headers.get("range")), codings)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send: some bytes, the status, and the headers that go with them."""

    content: Buffer
    status: int
    headers: dict[str, str]


def read_answer(
    folder: Folder, file: ServedFile, wanted: Wanted, held: Reservation
) -> Answer | None:
    """Read what is wanted of a file; None when there is none.

    Raises CorruptChunk for a file that is damaged or larger than the format lets it be, TooLarge
    for more than is sent at once, and what reading raises.
    """
    if wanted.part is not None and (entry := folder.entry(file.name)) is not None:
        try:
            return _stored_part(folder, file, wanted.part, entry.size, held)
        except UnreadableSource:  # stored compressed, or another file by now
            held.resize(0)
    held.resize(file.most)
    stored = folder.read(file.name, file.most)
    return None if stored is None else _whole_or_part(stored, file, wanted, held)


def _stored_part(
    folder: Folder, file: ServedFile, wanted: ByteRange, size: int, held: Reservation
) -> Answer:
    """Read a range of a file of `size` bytes; raises UnreadableSource for a compressed one."""
    part = wanted.within(size)
    # where the file has nothing of the range, its first byte tells whether it is compressed
    start, end = part or (0, min(size, 1))
    if end - start > file.most:
        raise TooLarge(
            f"{end - start:,} bytes of a file are wanted, and {file.most:,} are the most: ask for "
            "smaller parts"
        )
    held.resize(end - start)
    content = bytearray(end - start)
    if content:
        folder.read_part(file.name, start, memoryview(content))
    return _partial(content, part, size) if part else _unsatisfiable(size)


def _whole_or_part(
    stored: StoredFile, file: ServedFile, wanted: Wanted, held: Reservation
) -> Answer:
    if stored.compression and wanted.part is None and stored.compression in wanted.codings:
        held.resize(len(stored.content))
        return _whole(stored.content, stored.compression)
    if stored.compression:
        held.resize(len(stored.content) + file.most)
    content = decompress_bytes(stored, file.most)
    held.resize(len(content))
    if wanted.part is None:
        return _whole(content)
    part = wanted.part.within(len(content))
    if part is None:
        return _unsatisfiable(len(content))
    return _partial(memoryview(content)[part[0] : part[1]], part, len(content))


def _whole(content: Buffer, compression: str = "") -> Answer:
    encoded = {"Content-Encoding": compression} if compression else {}
    return Answer(content, 200, encoded)


def _partial(content: Buffer, part: tuple[int, int], size: int) -> Answer:
    return Answer(content, 206, {"Content-Range": f"bytes {part[0]}-{part[1] - 1}/{size}"})


def _unsatisfiable(size: int) -> Answer:
    return Answer(b"", 416, {"Content-Range": f"bytes */{size}"})


def _codings(header: str) -> frozenset[str]:
    """The compressions that a client names without refusing them: RFC 9110, section 12.5.3."""
    found = set()
    for one in header.lower().split(","):
        coding, _, weight = (text.strip() for text in one.partition(";"))
        if weight.replace(" ", "") not in ("q=0", "q=0.", "q=0.0", "q=0.00", "q=0.000"):
            found.add(coding)
    return frozenset(found)


class FileResponse(Response):
    """Sends an answer piece by piece, so that it is held no longer than the client takes it."""

    media_type = "application/octet-stream"

    def __init__(self, answer: Answer, when_sent: Callable[[], None]) -> None:
        super().__init__(
            status_code=answer.status,
            headers={
                "Cache-Control": "no-cache",
                "Accept-Ranges": "bytes",
                "Vary": "Accept-Encoding",
                **answer.headers,
                "Content-Length": str(len(answer.content)),
            },
        )
        self._content = memoryview(answer.content)
        self._when_sent = when_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it; a client that takes too long is left without the rest."""
        start = {"type": "http.response.start", "status": self.status_code}
        try:
            with suppress(TimeoutError):  # the server closes the connection then
                async with asyncio.timeout(_SENDING_SECONDS):
                    await send({**start, "headers": self.raw_headers})
                    for first in range(0, len(self._content), _SLICE):
                        part = bytes(self._content[first : first + _SLICE])
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                    await send({"type": "http.response.body", "body": b""})
        finally:
            self._when_sent()
