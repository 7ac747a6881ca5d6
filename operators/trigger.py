"""Watching a run until it is decided; used by the sensor, in its own process or in the triggerer.

The triggerer imports this module by name and calls `StageDrainedTrigger` with plain values.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from igneous_airflow.errors import TransientError
from igneous_airflow.progress import Pace, Progress, State
from igneous_airflow.run import Run


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

    A queue that holds tasks is unattended when nothing has changed for `patience` seconds and
    nothing is leased: the lease of a dead worker ends by itself, that of a live one never does.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._last: Progress | None = None
        self._changed = clock()

    def judge(self, progress: Progress) -> Verdict:
        """What to do, after one more look."""
        earlier, self._last = self._last, progress
        if progress != earlier or progress.leased:
            self._changed = self._clock()
        if progress.state is State.DONE:
            return Verdict.DONE
        if progress.state is State.FAILED:
            return Verdict.FAILED
        if progress.state is State.STALLED:
            # at the second look: counts of a queue in the cloud lag behind
            return Verdict.LOST if progress == earlier else Verdict.WAIT
        unchanged = self._clock() - self._changed
        return Verdict.UNATTENDED if unchanged >= self._patience else Verdict.WAIT


class StageDrainedTrigger(BaseTrigger):
    """Fires once, when a run is decided or at `until` (seconds since the epoch).

    The first look comes after `poll_interval` seconds. The event holds the `verdict`, `resends` as
    it was given, and a `message` when there was an error.
    """

    def __init__(
        self, *, run_url: str, poll_interval: float, patience: float, until: float, resends: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_url = run_url
        self.poll_interval = poll_interval
        self.patience = patience
        self.until = until
        self.resends = resends

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where to find this class, and what to call it with."""
        return (
            "igneous_airflow.operators.trigger.StageDrainedTrigger",
            {
                "run_url": self.run_url,
                "poll_interval": self.poll_interval,
                "patience": self.patience,
                "until": self.until,
                "resends": self.resends,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look from time to time until the run is decided."""
        watch, pace, said = Watch(self.patience), Pace(), ""
        verdict = Verdict.WAIT
        while verdict is Verdict.WAIT:
            await asyncio.sleep(self.poll_interval)
            try:
                progress = await asyncio.to_thread(self._look)
            except TransientError as error:
                self.log.warning("Cannot look at %s now: %s", self.run_url, error)
            except Exception as error:  # noqa: BLE001 - the task must hear of it, whatever it is
                yield self._event(Verdict.ERROR, f"{type(error).__name__}: {error}")
                return
            else:
                verdict = watch.judge(progress)
                if (text := pace.describe(progress)) != said:
                    self.log.info("%s", text)
                    said = text
            if verdict is Verdict.WAIT and time.time() >= self.until:
                verdict = Verdict.TIMEOUT
        yield self._event(verdict)

    def _look(self) -> Progress:
        return Run.load(self.run_url).progress()

    def _event(self, verdict: Verdict, message: str = "") -> TriggerEvent:
        payload = {"verdict": verdict.value, "resends": self.resends, "message": message}
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]
