"""The decoder of fpzip in a process of its own, since damaged bytes can crash it.

Both sides speak in messages: 8 bytes that say how long it is, and the message.
"""

import subprocess
import sys
import weakref
from threading import Lock
from typing import IO

_LENGTH = 8  # bytes of a length
_SECONDS_TO_END = 10.0


class FpzipProcess:
    """Decodes chunks one after the other; may be used by many threads.

    The process starts with the first chunk, again after a crash, and ends with this object.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, content: bytes, most: int) -> bytes:
        """The numbers of a file as bytes, `most` of them at most, x fastest.

        Raises ValueError for a file that is cut off or damaged.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None  # noqa: S101 - a pipe, as its stdout
            assert process.stdout is not None  # noqa: S101
            try:
                _send(process.stdin, most.to_bytes(_LENGTH, "little") + content)
                numbers = _receive(process.stdout)
            except (EOFError, BrokenPipeError) as error:
                raise ValueError(f"its decoder ended with code {process.wait()}") from error
        if not numbers:
            raise ValueError("it is cut off or damaged")
        return numbers

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(  # noqa: S603 - of ourselves
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _end, self._process)
        return self._process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=_SECONDS_TO_END)  # it ends when its input does


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_LENGTH, "little"))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """The next message; raises EOFError where the other side has ended."""
    length = _exactly(pipe, _LENGTH)
    return _exactly(pipe, int.from_bytes(length, "little"))


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _decoded(content: bytes, most: int) -> bytes:
    """The numbers of a file; none where it needs bytes from behind its end.

    The decoder does not notice an end, so what it reads there must make no difference.
    """
    import fpzip

    room = 2 * most + (1 << 10)  # bytes that it can read on, at most
    one, other = (
        fpzip.decompress(content + bytes([end]) * room, order="F").tobytes("F")
        for end in (0x00, 0xFF)
    )
    return one if one == other else b""


def _serve() -> None:
    """Answer messages until the other side ends."""
    while True:
        try:
            message = _receive(sys.stdin.buffer)
        except EOFError:
            return
        most = int.from_bytes(message[:_LENGTH], "little")
        _send(sys.stdout.buffer, _decoded(message[_LENGTH:], most))


if __name__ == "__main__":
    _serve()
