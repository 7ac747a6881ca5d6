"""Watching a run until it is decided; used by the sensor, in its own process or in the triggerer.

The triggerer imports this module by name and calls `StageDrainedTrigger` with plain values.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from igneous_airflow.errors import TransientError
from igneous_airflow.operators.settings import is_on_sqs
from igneous_airflow.progress import Pace, Progress, State
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_counters import AsyncCounter
from igneous_airflow.run import Run

_LAGGING_LOOKS = 3
_LAG_SECONDS = 60.0  # until counters of SQS are right, when nobody sends any more


class Verdict(StrEnum):
    """What is to be done about a run."""

    WAIT = "wait"
    DONE = "done"
    FAILED = "failed"  # tasks were given up
    LOST = "lost"  # messages were lost: their tasks must be sent again
    UNATTENDED = "unattended"  # tasks wait, and nobody takes them
    TIMEOUT = "timeout"
    ERROR = "error"  # the run cannot be looked at


class Watch:
    """Judges a run from look to look.

    Counters of a queue in the cloud lag behind: that nothing is left is believed when it stays so
    for a minute. A queue that holds tasks is unattended when nothing has changed for `patience`
    seconds and nothing is leased: the lease of a dead worker ends by itself, that of a live one
    never does.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._last: Progress | None = None
        self._changed = clock()
        self._alike = 0  # looks that saw the same, one after the other

    def judge(self, progress: Progress) -> Verdict:
        """What to do, after one more look."""
        if progress != self._last or progress.leased:
            self._changed = self._clock()
        self._alike = self._alike + 1 if progress == self._last else 1
        self._last = progress
        unchanged = self._clock() - self._changed
        if progress.state is State.DONE:
            return Verdict.DONE
        if progress.undecided:
            return Verdict.UNATTENDED if unchanged >= self._patience else Verdict.WAIT
        failed = progress.state is State.FAILED
        if not progress.exact:
            believed = self._alike >= _LAGGING_LOOKS and unchanged >= _LAG_SECONDS
        else:
            believed = failed or self._alike > 1  # a task may have been settled during the look
        if not believed:
            return Verdict.WAIT
        return Verdict.FAILED if failed else Verdict.LOST


class Rhythm:
    """How long to wait between looks: the shortest time at first and near the end."""

    def __init__(
        self, shortest: float, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest = shortest
        self._longest = longest
        self._clock = clock
        self._next = shortest
        self._first: tuple[float, int] | None = None

    def seconds(self, progress: Progress | None) -> float:
        """Until the next look, after one that saw this, or failed."""
        pause = self._next
        self._next = min(1.5 * pause, self._longest)
        if progress is None:
            return pause
        now = self._clock()
        if self._first is None:
            self._first = (now, progress.done)
        since, at_first = self._first
        gained = progress.done - at_first
        if gained <= 0 or now <= since:
            return pause
        left = (progress.planned - progress.done) * (now - since) / gained
        return max(self._shortest, min(pause, left / 3))


class StageDrainedTrigger(BaseTrigger):
    """Fires once, when a run is decided or at `until` (seconds since the epoch).

    `intervals` are the shortest and the longest time between looks in seconds: the first look comes
    after the shortest, later ones come less often while the end is far. A queue on SQS is asked
    through one connection that stays open, with the credentials of `aws_conn_id`. The event holds
    the `verdict`, `resends` as it was given, and a `message` when there was an error.
    """

    def __init__(
        self,
        *,
        run_url: str,
        intervals: Sequence[float],
        patience: float,
        until: float,
        resends: int,
        aws_conn_id: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_url = run_url
        self.intervals = intervals
        self.patience = patience
        self.until = until
        self.resends = resends
        self.aws_conn_id = aws_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where to find this class, and what to call it with."""
        return (
            "igneous_airflow.operators.trigger.StageDrainedTrigger",
            {
                "run_url": self.run_url,
                "intervals": list(self.intervals),
                "patience": self.patience,
                "until": self.until,
                "resends": self.resends,
                "aws_conn_id": self.aws_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look from time to time until the run is decided."""
        message = ""
        try:
            async with AsyncExitStack() as connections:
                verdict = await self._decide(_Look(self.run_url, self.aws_conn_id, connections))
        except Exception as error:  # noqa: BLE001 - the task must hear of it, whatever it is
            verdict, message = Verdict.ERROR, f"{type(error).__name__}: {error}"
        payload = {"verdict": verdict.value, "resends": self.resends, "message": message}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _decide(self, look: "_Look") -> Verdict:
        watch, pace, said = Watch(self.patience), Pace(), ""
        shortest, longest = self.intervals
        rhythm = Rhythm(shortest, longest)
        progress: Progress | None = None
        while True:
            await asyncio.sleep(rhythm.seconds(progress))
            verdict = Verdict.WAIT
            try:
                progress = await look()
            except TransientError as error:
                self.log.warning("Cannot look at %s now: %s", self.run_url, error)
            else:
                verdict = watch.judge(progress)
                if (text := pace.describe(progress)) != said:
                    self.log.info("%s", text)
                    said = text
            if verdict is not Verdict.WAIT:
                return verdict
            if time.time() >= self.until:
                return Verdict.TIMEOUT


class _Look:
    """Looks at a run without keeping other triggers waiting; connects to SQS once."""

    def __init__(self, run_url: str, aws_conn_id: str, connections: AsyncExitStack) -> None:
        self._run_url = run_url
        self._aws_conn_id = aws_conn_id
        self._connections = connections
        self._counter: AsyncCounter | None = None

    async def __call__(self) -> Progress:
        run = await asyncio.to_thread(Run.load, self._run_url)
        if not is_on_sqs(run.queue):
            return await asyncio.to_thread(run.progress)
        if self._counter is None:
            self._counter = await self._connect(Address.parse(run.queue))
        return await asyncio.to_thread(run.progress, await self._counter.counts())

    async def _connect(self, address: Address) -> AsyncCounter:
        from asgiref.sync import sync_to_async

        from igneous_airflow.operators.aws import make_async_client

        # through this wrapper Airflow hands out connections to triggers
        client = await sync_to_async(make_async_client)(self._aws_conn_id, address)
        return AsyncCounter(address, await self._connections.enter_async_context(client))
