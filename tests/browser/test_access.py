"""What page and viewer give to whom: asked over HTTP, with paths sent as they are written."""

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from real_airflow import RealAirflow
from users import HIDDEN_DAG, READER

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.testing.layers import random_voxels, write_layer

Ask = Callable[..., "Answer"]
SHOWN, HIDDEN, NOBODYS = "access-shown", "access-hidden", "access-nobodys"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@pytest.fixture(scope="module")
def ask(airflow: RealAirflow) -> Ask:
    """Ask the server for a path, as a user or as nobody."""
    tokens: dict[str, str] = {}

    def ask(path: str, user: str = "", token: str = "", **headers: str) -> Answer:
        if user and user not in tokens:
            account = {"username": user, "password": user}
            tokens[user] = airflow.call("POST", "/auth/token", account)["access_token"]
        if token or user:
            headers["Authorization"] = f"Bearer {token or tokens[user]}"
        connection = http.client.HTTPConnection("127.0.0.1", airflow.port, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read().decode(errors="replace")
        connection.close()
        return Answer(answer.status, dict(answer.getheaders()), content)

    return ask


@pytest.fixture(scope="module", autouse=True)
def layers(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with a layer each: of a DAG, of one that the reader may not read, of no DAG.

    And a run of a stage that no other run is of, which the reader may not read either.
    """
    folder = tmp_path_factory.mktemp("layers")
    origins = {SHOWN: "igneous_downsample", HIDDEN: HIDDEN_DAG, NOBODYS: ""}
    for name, dag in origins.items():
        layer = write_layer(folder / name, random_voxels(Vec3(16, 16, 8)))
        run, _ = Run.launch(
            Downsample(layer=layer, num_mips=1),
            url=f"file://{airflow.runs}/{name}",
            queue="memory://access",
            by="somebody@example.org",
            triggered_by={"dag_id": dag, "dag_run_id": "manual", "group_id": "x"} if dag else {},
        )
        run.prepare()
    Run.launch(
        LuminanceLevels(layer=layer),
        url=f"file://{airflow.runs}/hidden-levels",
        queue="memory://access",
        by="somebody@example.org",
        triggered_by={"dag_id": HIDDEN_DAG, "dag_run_id": "manual", "group_id": "x"},
    )
    (folder / "unrecorded").mkdir()
    (folder / "unrecorded" / "info").write_text("secret")
    (folder / "secret").write_text("secret")
    return folder


def data(run: str, path: str, layer: str = "layer") -> str:
    return f"/igneous/viewer/data/{run}/{layer}/{path}"


@pytest.mark.parametrize(
    "path",
    [
        "/igneous/page/",
        "/igneous/page/page.js",
        "/igneous/page/api/runs",
        f"/igneous/page/api/runs/{SHOWN}",
        f"/igneous/page/api/runs/{SHOWN}/failures/0/1",
        f"/igneous/viewer/open/{SHOWN}",
        f"/igneous/viewer/state/{SHOWN}",
        data(SHOWN, "info"),
        "/igneous/viewer/neuroglancer/v/1/",
        "/igneous/viewer/neuroglancer/events/1",
        "/igneous/nothing",
    ],
)
def test_nothing_is_given_without_login(ask: Ask, path: str) -> None:
    assert ask(path).status == 401
    assert ask(path, token="guessed").status in (401, 403)
    page = ask(path, Accept="text/html")
    assert page.status == 307
    assert page.headers["location"].startswith("/auth/login?next=%2Figneous%2F")


def test_a_link_from_a_colleague_leads_to_the_login_and_then_to_the_run(
    airflow: RealAirflow, browser: Browser
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{airflow.base}/igneous/page/?run={SHOWN}")
    page.locator("input[name=username]").fill("admin")
    page.locator("input[name=password]").fill("admin")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=2)).to_contain_text(SHOWN)
    context.close()


def test_a_run_is_shown_to_those_who_may_read_its_dag(ask: Ask) -> None:
    for run in (SHOWN, HIDDEN, NOBODYS):
        assert ask(f"/igneous/page/api/runs/{run}", "admin").status == 200
        assert ask(data(run, "info"), "admin").status == 200
    assert ask(f"/igneous/page/api/runs/{SHOWN}", READER).status == 200
    assert ask(data(SHOWN, "info"), READER).status == 200


@pytest.mark.parametrize("run", [HIDDEN, NOBODYS])
def test_a_run_is_hidden_from_those_who_may_not_read_its_dag(ask: Ask, run: str) -> None:
    assert ask(f"/igneous/page/api/runs/{run}", READER).status == 403
    assert ask(f"/igneous/page/api/runs/{run}/failures/0/1", READER).status == 403
    for path in (f"/igneous/viewer/open/{run}", f"/igneous/viewer/state/{run}", data(run, "info")):
        assert ask(path, READER).status == 404


def test_the_list_holds_what_a_user_may_read(ask: Ask) -> None:
    def listed(user: str) -> set[str]:
        answer = json.loads(ask("/igneous/page/api/runs?layer=access-&limit=200", user).text)
        assert ("luminance_levels" in answer["stages"]) == (user == "admin")
        return {run["name"] for run in answer["runs"]} - {"hidden-levels"}

    assert listed("admin") == {SHOWN, HIDDEN, NOBODYS}
    assert listed(READER) == {SHOWN}


@pytest.mark.parametrize(
    "path",
    [
        data(SHOWN, "../unrecorded/info"),
        data(SHOWN, "..%2funrecorded%2finfo"),
        data(SHOWN, "%2e%2e/unrecorded/info"),
        data(SHOWN, "%2e%2e%2funrecorded%2finfo"),
        data(SHOWN, "%252e%252e%252fsecret"),
        data(SHOWN, "..%5csecret"),
        data(SHOWN, "8_8_40/../../secret"),
        data(SHOWN, "8_8_40/..%2f..%2fsecret"),
        data(SHOWN, f"../{HIDDEN}/info"),
        data(SHOWN, f"..%2f{HIDDEN}%2finfo"),
        data(SHOWN, "/etc/passwd"),
        data(SHOWN, "%2fetc%2fpasswd"),
        data(SHOWN, "file:%2f%2f%2fetc%2fpasswd"),
        data(SHOWN, "s3:%2f%2fother-bucket%2finfo"),
        data(SHOWN, "info%00"),
        data(SHOWN, ""),
        data(SHOWN, "info", layer="dest"),
        data(SHOWN, "info", layer=".."),
        data(SHOWN, "info", layer="%2e%2e"),
        data(SHOWN, "info", layer="s3:%2f%2fother-bucket"),
        data("..", "info"),
        data("%2e%2e%2f" + SHOWN, "info"),
        data("unrecorded", "info"),
        "/igneous/page/..%2fweb.py",
        "/igneous/page/%2e%2e/web.py",
        "/igneous/page/../web.py",
        "/igneous/page/api/runs/..%2f" + SHOWN,
        "/igneous/viewer/neuroglancer/v/1/..%2f..%2f__init__.py",
        "/igneous/viewer/neuroglancer/v/1/../../__init__.py",
    ],
)
def test_nothing_but_what_a_run_has_recorded_is_opened(ask: Ask, layers: Path, path: str) -> None:
    answer = ask(path, "admin")
    assert answer.status == 404, answer.text[:200]
    for word in ("secret", "root:", "import", "data_type"):
        assert word not in answer.text


def test_the_files_of_a_recorded_layer_are_given(ask: Ask, layers: Path) -> None:
    """What the refusals above are worth: the same addresses without the tricks answer."""
    assert json.loads(ask(data(SHOWN, "info"), "admin").text)["data_type"] == "uint8"
    chunk = next((layers / SHOWN / "8_8_40").iterdir()).name
    part = ask(data(SHOWN, f"8_8_40/{chunk}"), "admin", Range="bytes=0-9")
    assert part.status == 206
    assert part.headers["content-range"].startswith("bytes 0-9/")
