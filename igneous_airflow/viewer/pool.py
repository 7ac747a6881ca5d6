"""Threads of the viewer's own for whatever waits for storage, so that no server is kept waiting.

A server's own threads are few, and shared by all of its pages. A call to a storage that does not
answer cannot be ended, but its request can: at a deadline the call is abandoned, and its thread
goes on for itself. The number of calls is limited for each storage, abandoned ones included, so
that one that hangs leaves room for all others.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Generic, TypeVar

from igneous_airflow.errors import TransientError

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Busy(TransientError):
    """A request cannot be served now; it may be made again after some seconds."""

    def __init__(self, why: str, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(f"{why}: try again in {self.retry_after} s")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How much a pool takes on."""

    threads: int = 128  # in all, abandoned ones included
    share: int = 16  # of them for one storage
    waiting: int = 1024  # requests that wait for a thread
    seconds: float = 20.0  # after which a request is answered, whatever its call does
    stalled: float = 5.0  # seconds without the end of any call, after which nothing waits for one


@dataclass(slots=True)
class _Lane:
    """The calls to one storage."""

    storage: str
    running: int = 0
    abandoned: int = 0
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)
    moved: float = 0.0  # when there was room for a call last
    closed_until: float = 0.0

    @property
    def is_unused(self) -> bool:
        return not (self.running or self.abandoned or self.waiting)


@dataclass(slots=True)
class _Call(Generic[T]):
    """A call that a thread makes, and what it gives."""

    lane: _Lane
    answer: "asyncio.Future[T]"
    is_abandoned: bool = False


class RequestPool:
    """Makes calls in threads; all its own state is changed in the event loop of its requests."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self._limits = limits or PoolLimits()
        self._lanes: dict[str, _Lane] = {}
        self._threads = 0

    @property
    def threads(self) -> int:
        """How many calls are under way, abandoned ones included."""
        return self._threads

    @property
    def abandoned(self) -> int:
        """How many calls go on though their requests were answered."""
        return sum(lane.abandoned for lane in self._lanes.values())

    async def run(self, storage: str, call: Callable[[], T]) -> T:
        """Make a call that may wait for a storage, and give what it gives or raise what it raises.

        Raises Busy when there is no room, or when the time is up.
        """
        ends = time.monotonic() + self._limits.seconds
        lane = self._lanes.setdefault(storage, _Lane(storage))
        await self._enter(lane, ends)
        started = self._start(lane, call)
        try:
            await asyncio.wait([started.answer], timeout=ends - time.monotonic())
        finally:
            if not started.answer.done():
                self._abandon(started)
        if started.is_abandoned:
            raise Busy("the storage does not answer in time", self._limits.stalled)
        return started.answer.result()

    async def _enter(self, lane: _Lane, ends: float) -> None:
        """Wait for a place among the calls to a storage; raises Busy when there will be none."""
        if not lane.waiting and self._has_room(lane):
            self._take_place(lane)
            return
        if lane.abandoned >= self._limits.share:
            pause = max(lane.closed_until - time.monotonic(), self._limits.stalled)
            raise Busy("the storage has not answered for long", pause)
        if sum(len(each.waiting) for each in self._lanes.values()) >= self._limits.waiting:
            raise Busy("too many requests wait for the viewer", self._limits.stalled)
        turn = asyncio.get_running_loop().create_future()
        lane.waiting.append(turn)
        try:
            while not turn.done() and (left := self._patience(lane, ends)) > 0:
                await asyncio.wait([turn], timeout=left)
        except asyncio.CancelledError:
            if turn.done():
                self._leave(lane)
            raise
        finally:
            if not turn.done():
                lane.waiting.remove(turn)
        if not turn.done():
            raise Busy("the storage does not answer", self._limits.stalled)

    def _patience(self, lane: _Lane, ends: float) -> float:
        """For how many seconds it makes sense to wait for a place."""
        return min(ends, lane.moved + self._limits.stalled) - time.monotonic()

    def _has_room(self, lane: _Lane) -> bool:
        """Whether one more call may be made.

        Where all places are taken by abandoned calls one is tried now and then, ever more seldom.
        """
        limits = self._limits
        if self._threads >= limits.threads:
            return False
        if lane.abandoned >= limits.share:
            return lane.running == 0 and time.monotonic() >= lane.closed_until
        return lane.running + lane.abandoned < limits.share

    def _take_place(self, lane: _Lane) -> None:
        lane.running += 1
        lane.moved = time.monotonic()
        self._threads += 1

    def _leave(self, lane: _Lane, *, abandoned: bool = False) -> None:
        """Give a place to the next request."""
        self._threads -= 1
        if abandoned:
            lane.abandoned -= 1
        else:
            lane.running -= 1
            lane.moved = time.monotonic()
        self._admit()

    def _admit(self) -> None:
        for lane in list(self._lanes.values()):
            while lane.waiting and self._has_room(lane):
                self._take_place(lane)
                lane.waiting.popleft().set_result(None)
            if lane.is_unused:
                del self._lanes[lane.storage]

    def _start(self, lane: _Lane, call: Callable[[], T]) -> _Call[T]:
        loop = asyncio.get_running_loop()
        started: _Call[T] = _Call(lane, loop.create_future())

        def make() -> None:
            settle: Callable[[Any], None] = started.answer.set_result
            try:
                outcome: Any = call()
            except BaseException as error:  # noqa: BLE001 - raised where the request waits
                settle, outcome = started.answer.set_exception, error
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._end, started, settle, outcome)

        # threads of an executor would keep the server from ending while a storage does not answer
        thread = Thread(target=copy_context().run, args=(make,), name="viewer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._leave(lane)
            raise Busy("the machine has no thread left", self._limits.stalled) from error
        return started

    def _end(self, call: _Call[T], settle: Callable[[Any], None], outcome: Any) -> None:
        self._leave(call.lane, abandoned=call.is_abandoned)
        if not call.is_abandoned:
            settle(outcome)

    def _abandon(self, call: _Call[T]) -> None:
        call.is_abandoned = True
        lane, limits = call.lane, self._limits
        lane.running -= 1
        lane.abandoned += 1
        beyond = lane.abandoned - limits.share
        if beyond >= 0:
            lane.closed_until = time.monotonic() + limits.seconds * 2**beyond
        _log.warning(
            "%s has not answered for %g s: %d abandoned calls to it go on",
            lane.storage,
            limits.seconds,
            lane.abandoned,
        )
        self._admit()
