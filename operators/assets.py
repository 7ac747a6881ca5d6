"""The layers that stages have made, as Airflow's assets, to schedule other DAGs on.

Which layer it will be is known only when the DAG runs; so each finish task announces it by an alias
of its stage. A DAG is scheduled on a stage, whatever the layer, or on a layer, whoever made it.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias
from pydantic import JsonValue, TypeAdapter

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.fields import LayerUrl
from igneous_airflow.overview import layer_of
from igneous_airflow.run import Run
from igneous_airflow.stage import Stage

if TYPE_CHECKING:
    from airflow.sdk import Context

_GROUP = "igneous"
_log = logging.getLogger(__name__)


def made_by(stage: type[Stage]) -> AssetAlias:
    """Every layer that the stage has made or changed: `DAG(schedule=made_by(Ingest))`."""
    return AssetAlias(f"igneous/{stage.name}", group=_GROUP)


def layer_asset(layer: str) -> Asset:
    """A layer, by its address as forms take it: `DAG(schedule=layer_asset("s3://bucket/em"))`.

    The asset's name and URI are that address, percent-encoded. Raises InvalidParameter for one that
    holds credentials.
    """
    refuse_credentials(layer)
    url = TypeAdapter(LayerUrl).validate_python(layer)
    return Asset(quote(url, safe=":/@"), group=_GROUP)


def announce(run: Run, outlets: Sequence[object], context: "Context") -> None:
    """Say to Airflow, by the aliases among a task's outlets, that the run has made its layer.

    What was proved done stays so: an address that is no asset to Airflow is logged, not raised.
    """
    aliases = [alias for alias in outlets if isinstance(alias, AssetAlias)]
    if not aliases:
        return
    try:
        asset = layer_asset(layer_of(run))
    except ValueError as error:
        _log.warning("No DAG is told of the layer: %s", error)
        return
    extra: dict[str, JsonValue] = {"layer": layer_of(run), "stage": run.stage, "run": run.url}
    for alias in aliases:
        context["outlet_events"][alias].add(asset, extra=extra)
    _log.info("DAGs that are scheduled on %s are told", asset.uri)
