"""The viewer inside of a real Airflow: what it gives to whom."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_airflow import Answer, RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import random_voxels, write_layer

pytestmark = [pytest.mark.standalone, pytest.mark.timeout(600)]

MAKER, LOOKER = "maker", "looker"  # of the roles user and viewer
SECRETS = ("airflow.cfg", "passwords.json", "airflow.db")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    """An Airflow with a user of each role, whose home has a configuration of its own."""
    home = tmp_path_factory.mktemp("airflow")
    airflow = RealAirflow(home, {MAKER: "user", LOOKER: "viewer"})
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture(scope="module")
def looker(airflow: RealAirflow) -> Callable[[str], Answer]:
    """Ask as a user who may only look."""
    token = airflow.token_of(LOOKER)
    return lambda path: airflow.ask(path, token)


def plan_transfer(airflow: RealAirflow, name: str, conf: dict[str, Any]) -> str:
    """Plan a transfer as a user of the role user, and nothing else; gives the DAG run's end."""
    body = {"dag_run_id": name, "logical_date": None, "conf": {**conf, "plan_only": True}}
    path = "/api/v2/dags/igneous_transfer/dagRuns"
    answer = airflow.ask(path, airflow.token_of(MAKER), "POST", body)
    assert answer.status == 200, answer.text
    return airflow.of("igneous_transfer").end_of(name)


def require_no_view(looker: Callable[[str], Answer], run: str) -> None:
    """Nothing of any layer of a run is shown."""
    viewer = "/igneous/viewer"
    paths = [f"{viewer}/data/{run}/dest/{name}" for name in (*SECRETS, "info")]
    paths += [f"{viewer}/data/{run}/src/info", f"{viewer}/open/{run}", f"{viewer}/state/{run}"]
    for path in paths:
        answer = looker(path)
        assert (answer.status, answer.text) == (404, "there is no such view")


def test_the_plan_of_a_transfer_into_airflows_home_shows_nothing_of_it(
    airflow: RealAirflow, looker: Callable[[str], Answer], tmp_path: Path
) -> None:
    """One user plans a transfer into Airflow's home, another looks at what is there."""
    source = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    assert {path.name for path in airflow.home.iterdir()} >= set(SECRETS)
    plan_transfer(airflow, "to-home", {"src": source, "dest": str(airflow.home)})
    recorded = [path.name for path in airflow.runs.glob("*to-home*")]
    for run in recorded or ["igneous_transfer_to-home_transfer"]:
        require_no_view(looker, run)


def test_a_run_that_was_only_planned_shows_nothing_of_its_layers(
    airflow: RealAirflow, looker: Callable[[str], Answer], tmp_path: Path
) -> None:
    source = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    (tmp_path / "private").mkdir()
    for name in SECRETS:
        (tmp_path / "private" / name).write_text("secret")
    dest = str(tmp_path / "private")
    assert plan_transfer(airflow, "to-private", {"src": source, "dest": dest}) == "success"
    (run,) = (path.name for path in airflow.runs.glob("*to-private*"))
    require_no_view(looker, run)
    page = json.loads(looker(f"/igneous/page/api/runs/{run}").text)
    assert page["was_launched"] is False
    assert "View" not in page["links"]


def launch(airflow: RealAirflow, name: str, stage: Any, dag: str) -> str:
    run, _ = Run.launch(
        stage,
        url=f"file://{airflow.runs}/{name}",
        queue="memory://viewer",
        by="maker",
        triggered_by={"dag_id": dag, "dag_run_id": "manual", "group_id": "x"},
    )
    run.prepare()
    return name


def test_a_run_that_was_launched_shows_the_files_of_the_format_only(
    airflow: RealAirflow, looker: Callable[[str], Answer], tmp_path: Path
) -> None:
    """Also where the layer was made in a folder with secrets."""
    source = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    home = tmp_path / "private"
    home.mkdir()
    for name in (*SECRETS, "run.json", "api-server.log"):
        (home / name).write_text("secret")
    stage = Transfer(src=source, dest=f"file://{home}")
    run = launch(airflow, "made-beside-secrets", stage, "igneous_transfer")
    data = f"/igneous/viewer/data/{run}"
    assert looker(f"{data}/src/info").status == 200
    assert looker(f"{data}/dest/info").status == 200
    (home / "8_8_40").mkdir(exist_ok=True)
    links = {"0-16_0-16_0-8": home, "16-32_0-16_0-8": airflow.home}
    for name, folder in links.items():
        (home / "8_8_40" / name).symlink_to(folder / "airflow.cfg")
    for name in (*SECRETS, *(f"8_8_40/{link}" for link in links), "run.json", "api-server.log"):
        answer = looker(f"{data}/dest/{name}")
        assert answer.status == 404
        assert answer.text == "there is no such file"


def test_the_page_and_all_of_its_answers_have_the_headers(
    airflow: RealAirflow, looker: Callable[[str], Answer], tmp_path: Path
) -> None:
    layer = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    run = launch(airflow, "headers", Downsample(layer=layer, num_mips=1), "igneous_downsample")
    scripts = {}
    for path in (
        "page/",
        "page/page.js",
        "page/nothing",
        "page/api/runs",
        "page/api/runs?limit=x",
        f"page/api/runs/{run}",
        "page/api/runs/none",
        f"viewer/open/{run}",
        f"viewer/state/{run}",
        f"viewer/data/{run}/layer/info",
        "viewer/neuroglancer/v/1/",
        "nothing",
    ):
        answer = looker(f"/igneous/{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        scripts[path] = [part for part in policy.split("; ") if part.startswith("script-src")]
    refused = airflow.ask("/igneous/page/", "guessed")
    assert refused.status in (401, 403)
    assert "default-src 'none'" in refused.headers["content-security-policy"]
    assert scripts["page/"] == scripts[f"viewer/open/{run}"] == ["script-src 'self'"]
    assert scripts["viewer/neuroglancer/v/1/"] == ["script-src 'self' 'wasm-unsafe-eval'"]
    assert scripts[f"viewer/data/{run}/layer/info"] == scripts["page/api/runs"] == []
