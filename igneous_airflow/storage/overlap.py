"""Storage operations that overlap each other and the computing, in bounded number.

A bucket answers in tens of milliseconds, so a task keeps many requests under way. A disk answers at
once: there, threads would only cost time, and everything runs in the caller.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def overlap_width(url: str) -> int:
    """How many operations to keep under way in a place: one on disk, many in a bucket."""
    return 1 if url.startswith(("file://", "mem://")) else 16


class Overlap:
    """Runs calls in up to `width` threads, or in the caller when the width is 1."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._pool = ThreadPoolExecutor(width, "storage") if width > 1 else None
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        try:
            while kind is None and self._writes:
                self._writes.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, call: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[tuple[_Item, _Result]]:
        """Yield each item with the result of the call, in order, working a little ahead."""
        if self._pool is None:
            for item in items:
                yield item, call(item)
            return
        ahead: deque[tuple[_Item, Future[_Result]]] = deque()
        for item in items:
            ahead.append((item, self._pool.submit(call, item)))
            if len(ahead) >= self._width:
                first, result = ahead.popleft()
                yield first, result.result()
        while ahead:
            first, result = ahead.popleft()
            yield first, result.result()

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call whose result is not needed; its error is raised here later, or at the end."""
        if self._pool is None:
            call()
            return
        self._writes.append(self._pool.submit(call))
        while len(self._writes) > self._width or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()
