"""A DAG that ingests what has arrived in a watched folder; declared in a DAG file of one's own.

It keeps no list of what it took: the runs on record and the layers that exist are the list.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, BaseOperator
from pydantic import ConfigDict, Field, JsonValue, field_validator

from igneous_airflow.errors import RunNotFound
from igneous_airflow.fields import LayerUrl, SourceUrl
from igneous_airflow.operators.settings import run_url
from igneous_airflow.operators.stage import explained
from igneous_airflow.run import Run
from igneous_airflow.run_record import run_folder_name
from igneous_airflow.sources.arrivals import Arrival, find_arrivals
from igneous_airflow.stages.ingest import Ingest
from igneous_airflow.storage.files import open_folder
from igneous_airflow.validation import WithoutCredentials

if TYPE_CHECKING:
    from airflow.sdk import Context

_CHAIN = f"igneous_{Ingest.name}"
_SOURCE, _LAYER = "source", "ingest_dest"  # the fields of its form that each folder decides
_POLL_SECONDS = 20


class WatchedFolder(WithoutCredentials):
    """A folder in which folders of sections arrive, and what becomes of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[SourceUrl, Field(description="where the folders arrive")]
    layers: Annotated[LayerUrl, Field(description="where the layers go, each named as its folder")]
    parameters: Annotated[
        dict[str, JsonValue], Field(description="further values for the form of `igneous_ingest`")
    ] = {}
    marker: Annotated[
        str | None, Field(min_length=1, description="the file that says that a folder is whole")
    ] = None
    quiet: Annotated[
        timedelta,
        Field(
            ge=timedelta(minutes=1),
            description="without a marker: how long nothing in the folder has changed",
        ),
    ] = timedelta(hours=1)
    at_once: Annotated[int, Field(ge=1, description="how many are ingested at a time")] = 2
    at_most: Annotated[
        int, Field(ge=1, le=1000, description="how many are begun by one look; others wait")
    ] = 100

    @field_validator("parameters")
    @classmethod
    def _without_bound(cls, parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if given := [name for name in (_SOURCE, _LAYER) if name in parameters]:
            raise ValueError(f"each folder decides {' and '.join(given)}: leave them out")
        return parameters


class FindArrivals(BaseOperator):
    """Name the folders that have arrived whole and are in no run, for TriggerDagRunOperator.

    A folder is left alone when the chain has planned it before, however that went, and when a layer
    is already where its own would go.
    """

    def __init__(self, *, watched: WatchedFolder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watched = watched

    def execute(self, context: "Context") -> list[dict[str, Any]]:
        """Return what to trigger: the id of the run, always the same for a folder, and its conf."""
        watched, dag_id = self.watched, context["dag_run"].dag_id
        begun: list[dict[str, Any]] = []
        with explained():
            quiet = watched.quiet.total_seconds()
            for arrival in find_arrivals(watched.folder, marker=watched.marker, quiet=quiet):
                run_id = run_folder_name(arrival.name, dag_id, arrival.url)
                layer = f"{watched.layers}/{arrival.name}"
                reason = arrival.waits_for and f"waits for {arrival.waits_for}"
                reason = reason or _why_not_new(run_id, layer)
                if not reason and len(begun) == watched.at_most:
                    reason = f"is for the next look: this one has found {watched.at_most:,}"
                self.log.info("%s %s", arrival.url, reason or f"becomes {layer}, as run {run_id}")
                if not reason:
                    begun.append({"trigger_run_id": run_id, "conf": self._conf(arrival, layer)})
        return begun

    def _conf(self, arrival: Arrival, layer: str) -> dict[str, JsonValue]:
        return {**self.watched.parameters, _SOURCE: arrival.url, _LAYER: layer}


def _why_not_new(run_id: str, layer: str) -> str:
    """Why a folder is not taken although it is whole; empty when it is new."""
    url = run_url(_CHAIN, run_id, Ingest.name)
    try:
        Run.load(url)
    except RunNotFound:
        there = open_folder(layer).exists("info")
        return f"is left alone: there is a layer at {layer}" if there else ""
    return f"was taken by the run {url}"


def ingest_arrivals(dag_id: str, words: str, watched: WatchedFolder, *, schedule: str) -> DAG:
    """The DAG that looks into a folder on a schedule and runs `igneous_ingest` on what is new.

    It succeeds when every layer it began was proved done, and begins no look before that. `words`
    say what it is for, in Markdown.
    """
    with DAG(
        dag_id,
        description=words.partition("\n")[0],
        doc_md=words,
        schedule=schedule,
        catchup=False,
        max_active_runs=1,
        tags=["igneous"],
    ) as dag:
        # A retry would find the run that is there, and be skipped although that one has failed.
        TriggerDagRunOperator.partial(
            task_id="ingest",
            trigger_dag_id=_CHAIN,
            logical_date=None,
            skip_when_already_exists=True,
            wait_for_completion=True,
            deferrable=True,
            poke_interval=_POLL_SECONDS,
            max_active_tis_per_dagrun=watched.at_once,
            retries=0,
        ).expand_kwargs(FindArrivals(task_id="look", watched=watched, retries=2).output)
    return dag
