"""Layers as Airflow's assets: what a finished DAG run tells other DAGs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.models.asset import AssetAliasModel, AssetEvent
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.utils.session import create_session
from sqlalchemy import select

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.assets import announce, layer_asset, made_by
from igneous_airflow.run import Run
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("layer", "uri"),
    [
        ("/data/layer/", "file:///data/layer"),
        ("precomputed://gs://bucket/em", "gs://bucket/em"),
        ("s3://bucket/em/v1", "s3://bucket/em/v1"),
        ("/data/my layer#2", "file:///data/my%20layer%232"),
        ("/data/Gehörn?", "file:///data/Geh%C3%B6rn%3F"),
    ],
)
def test_a_layer_has_one_name_and_address(layer: str, uri: str) -> None:
    asset = layer_asset(layer)
    assert (asset.name, asset.uri) == (uri, uri)
    assert asset == Asset(uri, group="igneous")


def test_a_layer_whose_address_holds_a_password_is_no_asset() -> None:
    with pytest.raises(InvalidParameter, match="holds credentials") as caught:
        layer_asset("s3://someone:hunter2@bucket/em")
    assert "hunter2" not in str(caught.value)


def test_every_finish_task_tells_of_its_stage_and_no_other_task_does(dags: dict[str, DAG]) -> None:
    assert dags
    told = set()
    for dag in dags.values():
        for task in dag.tasks:
            if not task.task_id.endswith("finish"):
                assert task.outlets == []
                continue
            (alias,) = task.outlets
            assert isinstance(alias, AssetAlias)
            told.add(alias.name)
    assert told == {made_by(stage).name for stage in registered_stages().values()}


def events() -> list[dict[str, Any]]:
    """The events of layers made by `downsample`, as Airflow has recorded them."""
    chosen = AssetEvent.source_aliases.any(AssetAliasModel.name == made_by(Downsample).name)
    with create_session() as session:
        found = session.scalars(select(AssetEvent).where(chosen).order_by(AssetEvent.id))
        return [{"uri": event.asset.uri, **event.extra} for event in found]


def test_a_finished_dag_run_tells_which_layer_it_made(
    dags: dict[str, DAG], make_layer: Make
) -> None:
    before = events()
    layer = make_layer("a layer")
    done = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    assert done.state == "success"
    (event,) = events()[len(before) :]
    assert event["uri"] == layer_asset(str(layer)).uri
    assert event["layer"] == f"file://{layer}"
    assert event["stage"] == "downsample"
    assert event["run"].startswith("file://")


def test_a_failed_dag_run_tells_nothing(dags: dict[str, DAG], make_layer: Make) -> None:
    before = events()
    layer = make_layer()
    next((layer / "4_4_40").iterdir()).unlink()
    done = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    assert done.state == "failed"
    assert events() == before


def test_an_address_too_long_for_airflow_is_no_reason_to_fail(
    make_layer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer("/".join(["ö" * 120] * 3))
    stage = Downsample(layer=str(layer))
    run, _ = Run.launch(stage, url=f"file://{tmp_path}/run", queue="memory://x", by="me")
    announce(run, [made_by(Downsample)], {})
    assert "No DAG is told of the layer: Asset name cannot exceed" in caplog.text
