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


def recorded(airflow: RealAirflow, dag_run: str) -> str:
    """The name of the run that a DAG run has recorded, or would have."""
    found = [folder.name for folder in airflow.runs.glob(f"*{dag_run}*")]
    return found[0] if found else f"igneous_transfer_{dag_run}_transfer"


def plan_transfer(airflow: RealAirflow, name: str, conf: dict[str, Any], *, ends: str) -> str:
    """Plan a transfer as a user of the role user, and nothing else; gives the run's name."""
    transfer = airflow.of("igneous_transfer")
    body = {"dag_run_id": name, "logical_date": None, "conf": {**conf, "plan_only": True}}
    path = "/api/v2/dags/igneous_transfer/dagRuns"
    answer = airflow.ask(path, airflow.token_of(MAKER), "POST", body)
    assert answer.status == 200, answer.text
    assert transfer.end_of(name) == ends
    return recorded(airflow, name)


def test_a_run_that_was_only_planned_shows_nothing_of_its_layers(
    airflow: RealAirflow, looker: Callable[[str], Answer], tmp_path: Path
) -> None:
    """A user plans transfers into Airflow's home and elsewhere; another looks at what is there."""
    source = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    assert {path.name for path in airflow.home.iterdir()} >= set(SECRETS)
    viewer = "/igneous/viewer"
    for name, dest, ends in (
        ("to-home", airflow.home, "failed"),  # which is no place for layers
        ("elsewhere", with_secrets(tmp_path / "elsewhere"), "success"),
    ):
        run = plan_transfer(airflow, name, {"src": source, "dest": str(dest)}, ends=ends)
        paths = [f"{viewer}/data/{run}/dest/{secret}" for secret in (*SECRETS, "info")]
        paths += [f"{viewer}/data/{run}/src/info", f"{viewer}/open/{run}", f"{viewer}/state/{run}"]
        for path in paths:
            answer = looker(path)
            assert answer.status == 404
            assert answer.text == "there is no such view"
        page = looker(f"/igneous/page/api/runs/{run}")
        if ends == "failed":  # refused before anything was recorded
            assert page.status == 404
        else:
            assert json.loads(page.text)["was_launched"] is False
            assert "View" not in json.loads(page.text)["links"]


def with_secrets(folder: Path) -> Path:
    """A folder with files of the names that Airflow keeps its secrets under."""
    folder.mkdir()
    for name in (*SECRETS, "api-server.log"):
        (folder / name).write_text("s3cr3t")
    return folder


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
    """Also where a layer was made among other files, and nothing at all in Airflow's home."""
    source = write_layer(tmp_path / "em", random_voxels(Vec3(16, 16, 8)))
    folder = with_secrets(tmp_path / "elsewhere")
    run = launch(
        airflow, "elsewhere", Transfer(src=source, dest=f"file://{folder}"), "igneous_transfer"
    )
    data = f"/igneous/viewer/data/{run}"
    assert looker(f"{data}/src/info").status == 200
    assert looker(f"{data}/dest/info").status == 200
    (folder / "8_8_40").mkdir()
    (folder / "8_8_40" / "0-16_0-16_0-8").symlink_to(folder / SECRETS[0])
    for name in (*SECRETS, "api-server.log", "../em/info"):
        answer = looker(f"{data}/dest/{name}")
        assert answer.status == 404
        assert "s3cr3t" not in answer.text
    (folder / "8_8_40" / "0-16_0-16_0-8").unlink()
    (folder / "8_8_40" / "0-16_0-16_0-8").symlink_to(airflow.home / "airflow.cfg")
    assert looker(f"{data}/dest/8_8_40/0-16_0-16_0-8").status in (403, 404)
    home = Transfer(src=source, dest=f"file://{airflow.home}")
    run = launch(airflow, "made-in-home", home, "igneous_transfer")
    assert looker(f"/igneous/viewer/data/{run}/dest/info").status == 403


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
