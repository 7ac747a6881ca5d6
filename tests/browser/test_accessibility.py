"""The page by the rules of axe-core: nothing serious or worse is found."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from real_airflow import RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Failure
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer

NAME = "accessible"


@pytest.fixture(scope="module", autouse=True)
def _runs_of_all_states(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> None:
    layer = write_layer(tmp_path_factory.mktemp("axe") / "image", random_voxels(Vec3(64, 16, 8)))

    def launch(name: str) -> Run:
        url = f"file://{airflow.runs}/{name}"
        run, _ = Run.launch(
            Downsample(layer=layer, num_mips=1), url=url, queue="memory://axe", by="a@example.org"
        )
        return run

    launch(f"{NAME}-waiting")
    begun, failed = launch(f"{NAME}-begun"), launch(f"{NAME}-failed")
    for run in (begun, failed):
        run.ledger.write_receipt(Receipt(task=0, attempt=1, seconds=1, worker="host:1"))
    failed.ledger.write_failure(
        Failure(
            task=1,
            attempt=1,
            error="MissingChunk: chunk 0-8 is missing",
            traceback="Traceback (most recent call last)",
            final=True,
            worker="host:1",
            at="2026-01-01T00:00:00+00:00",
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("what", ["list", "run", "none"])
def test_axe_finds_nothing_serious(
    open_page: Callable[..., Page], picture: Callable[..., None], scheme: str, what: str
) -> None:
    run = f"?run={NAME}-failed" if what == "run" else ""
    page = open_page(f"/igneous/page/{run}", color_scheme=scheme, width=1440)
    if what == "run":
        page.locator(".errors summary").click()
        expect(page.locator(".errors pre")).to_be_visible()
    elif what == "none":
        page.get_by_label("Layer").fill("no such layer")
        expect(page.get_by_role("status")).to_contain_text("No run")
    else:
        expect(page.locator("#runs")).to_be_visible()
    picture(page, f"axe-{what}-{scheme}")
    found = [
        (one["id"], one["impact"], [node["html"] for node in one["nodes"]])
        for one in Axe().run(page).response["violations"]
    ]
    assert [one for one in found if one[1] in ("serious", "critical")] == []
