"""What is ingested of a watched folder: whole folders, each once."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image
from pydantic import ValidationError

from igneous_airflow.operators.settings import run_url
from igneous_airflow.operators.watch import FindArrivals, WatchedFolder
from igneous_airflow.storage.layer import Layer

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
Make = Callable[..., Any]


@pytest.fixture
def watched(tmp_path: Path) -> WatchedFolder:
    return WatchedFolder(
        folder=f"{tmp_path}/arriving",
        layers=f"{tmp_path}/layers",
        parameters={"resolution": "4,4,40"},
        marker="done",
    )


def put_sections(folder: Path) -> None:
    folder.mkdir(parents=True)
    for z in range(3):
        grey = np.random.default_rng(z).integers(0, 255, (40, 50), dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"em_{z}.png")
    (folder / "done").touch()


def begun(watched: WatchedFolder, context: Any) -> dict[str, dict[str, Any]]:
    """What a look would trigger: the parameters of each run, by its id."""
    found = FindArrivals(task_id="look", watched=watched).execute(context)
    return {one["trigger_run_id"]: one["conf"] for one in found}


def test_whole_folders_become_layers_of_their_names(
    watched: WatchedFolder, context: Make, tmp_path: Path
) -> None:
    for name in ("s1", "s2"):
        put_sections(tmp_path / "arriving" / name)
    (tmp_path / "arriving" / "s3").mkdir()
    first, second = begun(watched, context()).values()
    assert first == {
        "source": f"file://{tmp_path}/arriving/s1",
        "ingest_dest": f"file://{tmp_path}/layers/s1",
        "resolution": "4,4,40",
    }
    assert second["ingest_dest"] == f"file://{tmp_path}/layers/s2"


def test_a_folder_has_the_same_run_whenever_it_is_looked_at(
    watched: WatchedFolder, context: Make, tmp_path: Path
) -> None:
    put_sections(tmp_path / "arriving" / "s1")
    (again,) = begun(watched, context())
    assert list(begun(watched, context(run_id="another look"))) == [again]


def test_a_folder_that_a_run_has_taken_is_left_alone_even_when_its_layer_is_gone(
    watched: WatchedFolder, context: Make, tmp_path: Path, dags: dict[str, DAG]
) -> None:
    put_sections(tmp_path / "arriving" / "s1")
    ((run_id, conf),) = begun(watched, context()).items()
    plan = dags["igneous_ingest"].get_task("ingest.plan")
    params = dags["igneous_ingest"].params
    opened = {name: params.get_param(name).value for name in params}
    given = context(run_id=run_id, **opened | conf)
    given["dag_run"].dag_id = "igneous_ingest"
    assert plan.execute(given)["run_url"] == run_url("igneous_ingest", run_id, "ingest")
    assert not (tmp_path / "layers").exists()
    assert begun(watched, context()) == {}


def test_a_folder_whose_layer_is_there_is_left_alone(
    watched: WatchedFolder, context: Make, tmp_path: Path, make_layer: Make
) -> None:
    put_sections(tmp_path / "arriving" / "s1")
    make_layer("layers/s1", size=(64, 64, 64))
    assert Layer.open(f"file://{tmp_path}/layers/s1")
    assert begun(watched, context()) == {}


def test_a_look_begins_no_more_than_it_may_and_the_next_one_goes_on(
    watched: WatchedFolder, context: Make, tmp_path: Path, make_layer: Make
) -> None:
    for name in ("s1", "s2", "s3"):
        put_sections(tmp_path / "arriving" / name)
    few = watched.model_copy(update={"at_most": 2})
    dests = [conf["ingest_dest"].rpartition("/")[2] for conf in begun(few, context()).values()]
    assert dests == ["s1", "s2"]
    for name in dests:
        make_layer(f"layers/{name}", size=(64, 64, 64))
    assert len(begun(few, context())) == 1


def test_a_folder_that_is_not_there_fails_without_retry(
    watched: WatchedFolder, context: Make
) -> None:
    with pytest.raises(AirflowFailException, match="there is no folder"):
        begun(watched, context())


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": {"ingest_dest": "/data/other"}},
        {"quiet": timedelta(seconds=1)},
        {"folder": "arriving"},
        {"at_once": 0},
        {"mark": "done"},
    ],
)
def test_a_watched_folder_that_makes_no_sense_is_refused(
    watched: WatchedFolder, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        WatchedFolder.model_validate(watched.model_dump() | wrong)


def test_the_examples_are_dags_that_work_one_thing_at_a_time(
    dags: dict[str, DAG],
) -> None:
    bag = DagBag(dag_folder=str(EXAMPLES), bundle_path=EXAMPLES, bundle_name="examples")
    assert bag.import_errors == {}
    assert set(bag.dags) == {path.stem for path in EXAMPLES.glob("*.py")}
    nightly = bag.dags["nightly_ingest"]
    parameters = nightly.get_task("look").watched.parameters
    assert parameters.keys() <= dags["igneous_ingest"].params.keys()
    assert nightly.max_active_runs == 1
    assert not nightly.catchup
    assert nightly.get_task("ingest").partial_kwargs["max_active_tis_per_dagrun"] == 2
