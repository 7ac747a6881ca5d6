"""The sensor that decides whether a stage's tasks are all done; used by `group.py`."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout

from igneous_airflow.operators.metrics import report_failed
from igneous_airflow.operators.params import RunOptions, read_params
from igneous_airflow.operators.proof import RUN_URL, proof_mark, prove
from igneous_airflow.operators.settings import aws_conn_id, load_run
from igneous_airflow.operators.stage import explained
from igneous_airflow.operators.trigger import StageDrainedTrigger, Verdict, Watch
from igneous_airflow.progress import Pace, State

if TYPE_CHECKING:
    from airflow.sdk import Context

_RESENDS = 3  # of lost messages
_PATIENCE_WITH_OTHERS = 1800.0  # seconds; workers elsewhere may have to be started first


class StageDrainedSensor(BaseSensorOperator):
    """Wait until every planned task of a run has its receipt.

    Fails without retry, naming tasks and errors, when tasks were given up, when messages are lost
    again and again, and when tasks wait but nobody takes one for `patience` seconds. The first
    look is made at once; further ones by the triggerer when `deferrable`, else by this task, after
    `poke_interval` to `max_interval` seconds.
    """

    template_fields: Sequence[str] = (RUN_URL,)

    def __init__(
        self,
        *,
        run_url: str,
        patience: float = 600,
        deferrable: bool = True,
        poke_interval: float = 5,
        max_interval: float = 60,
        retries: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, retries=retries, mode="poke", **kwargs)
        self.run_url = run_url
        self.patience = patience
        self.deferrable = deferrable
        self.max_interval = max_interval
        self._watch = Watch(patience)
        self._pace = Pace()
        self._said = ""
        self._resends = 0

    def execute(self, context: "Context") -> object:
        """Look, and wait when the run is undecided."""
        if not read_params(RunOptions, context.get("params") or {}).workers:
            self.patience = max(self.patience, _PATIENCE_WITH_OTHERS)
            self._watch = Watch(self.patience)
        if not self.deferrable:
            super().execute(context)
        elif not self.poke(context):
            self._defer(until=time.time() + self.timeout)
        return None

    def poke(self, context: "Context") -> bool:
        """Whether every task has its receipt; raises AirflowFailException when that is hopeless."""
        with explained(context):
            progress = load_run(self.run_url).progress()
        if (text := self._pace.describe(progress)) != self._said:
            self.log.info("%s", text)
            self._said = text
        return self._act(context, self._watch.judge(progress))

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> object:
        """Act on what the trigger saw."""
        verdict = Verdict(event["verdict"])
        if verdict is Verdict.ERROR:
            raise AirflowException(f"cannot look at {self.run_url}: {event['message']}")
        if verdict is Verdict.TIMEOUT:
            raise AirflowSensorTimeout(f"undecided after {self.timeout:,.0f} seconds")
        self._resends = event["resends"]
        if not self._act(context, verdict):
            self._defer(until=time.time() + self.timeout)
        return None

    def _defer(self, until: float) -> None:
        shortest = max(self.poke_interval, 1)  # a trigger that fires at once is lost
        longest = max(self.max_interval, shortest)
        self.defer(
            trigger=StageDrainedTrigger(
                run_url=self.run_url,
                intervals=(shortest, longest),
                patience=self.patience,
                until=until,
                resends=self._resends,
                aws_conn_id=aws_conn_id(),
            ),
            method_name=self.execute_complete.__name__,
            timeout=timedelta(seconds=self.timeout + 2 * longest + 60),
        )

    def _act(self, context: "Context", verdict: Verdict) -> bool:
        """Whether the run is done; sends lost tasks again, and raises when waiting is no use."""
        if verdict is Verdict.WAIT:
            return False
        if verdict is Verdict.DONE:
            self.log.info("Every task has its receipt")
            return True
        with explained(context):
            run = load_run(self.run_url)
            if verdict is Verdict.LOST and self._resends < _RESENDS:
                self._resends += 1
                self.log.warning("Messages were lost: sent %s tasks again", f"{run.enqueue():,}")
                return False
            progress = run.progress()
            if progress.state is not State.DONE:
                report_failed(run, progress)
            run.require_done(progress)
        return True


class StageProvedSensor(StageDrainedSensor):
    """Wait until every planned task of a run has its receipt, then prove the run.

    So two tasks of a step rely on the proof, this one and `FinishStage`: whatever comes after both
    begins only when the run is proved, also when one of them is marked by hand.
    """

    def execute(self, context: "Context") -> int | None:
        """Look, wait when the run is undecided, and prove it."""
        super().execute(context)
        return self._prove(context)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> int | None:
        """Act on what the trigger saw, and prove the run."""
        super().execute_complete(context, event)
        return self._prove(context)

    def _prove(self, context: "Context") -> int | None:
        """Return the mark of a proof, by which `FinishStage` knows it.

        A run that was proved before keeps its proof, which only `FinishStage` may take back: unlike
        this task, it fails the DAG run then.
        """
        with explained(context):
            run = load_run(self.run_url)
            if run.is_finished:
                return None
            prove(run)
        return proof_mark(context)
