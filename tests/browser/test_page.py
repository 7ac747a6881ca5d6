"""The page of runs during and after a run that fails in part, as a person sees it."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, Page, expect
from real_airflow import DAG, RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Work
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

PAGE = "/igneous/page/"
MISSING = ("64-128_64-128_0-64", "512-576_64-128_0-64")


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 32 tasks, two of which miss a chunk."""
    layer = tmp_path_factory.mktemp("page") / "image_with_gaps"
    spec = LayerSpec(chunk_size=(64, 64, 64), resolution=(8, 8, 40))
    write_layer(layer, random_voxels(Vec3(1024, 512, 64)), spec)
    for name in MISSING:
        (layer / "8_8_40" / name).unlink()
    return layer


@pytest.fixture(scope="module")
def others(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in other states, of which one makes a layer with a long address."""
    folder = tmp_path_factory.mktemp("others")
    layer = write_layer(folder / "begun_image", random_voxels(Vec3(64, 16, 8)))
    far = folder / "lab" / "fish_2024_03_left_hemisphere_resection" / "aligned_v3_contrast_v2"
    launch(airflow, "waiting", Transfer(src=layer, dest=str(far / "em_4nm_chunks_of_64")))
    begun = launch(airflow, "begun", Downsample(layer=layer, num_mips=1))
    begun.ledger.write_receipt(
        Receipt(task=0, attempt=1, seconds=1, worker="host:1", work=Work(voxels=512))
    )
    return folder


def launch(airflow: RealAirflow, name: str, stage: Downsample | Transfer) -> Run:
    url = f"file://{airflow.runs}/{name}"
    run, _ = Run.launch(stage, url=url, queue="memory://seen", by="mara@example.org")
    return run


def framed(page: Page) -> FrameLocator:
    """The page of runs inside of Airflow's."""
    page.get_by_role("link", name="Igneous").click()
    return page.frame_locator("iframe")


def test_a_bar_moves_by_itself_and_errors_are_shown_in_groups(
    airflow: RealAirflow,
    open_page: Callable[..., Page],
    picture: Callable[..., None],
    gaps: Path,
) -> None:
    page = open_page("/")
    runs = framed(page)
    expect(runs.get_by_role("heading", name="Igneous runs")).to_be_visible()
    slow = {"compress": "br", "compress_level": 11, "workers": 1}
    airflow.trigger("with-gaps", {"layer": str(gaps), "num_mips": 1, **slow})

    row = runs.get_by_role("row").filter(has_text=str(gaps))
    expect(row).to_be_visible(timeout=120_000)
    bar = row.get_by_role("progressbar")
    seen: list[int] = []
    deadline = time.monotonic() + 450
    while "failed" not in row.inner_text():
        assert time.monotonic() < deadline, seen
        seen.append(int(bar.get_attribute("aria-valuenow") or 0))
        if len(set(seen)) == 2 and seen[-1] != seen[-2]:
            picture(page, "list-working", full_page=False)
        page.wait_for_timeout(500)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3, seen
    assert bar.get_attribute("aria-valuenow") == "30"
    assert bar.get_attribute("aria-valuemax") == "32"

    row.get_by_role("link", name=str(gaps)).click()
    group = runs.locator(".errors > li")
    expect(group).to_have_count(1)
    expect(group).to_contain_text(re.compile("|".join(MISSING)))
    expect(group).to_contain_text("2 times, first in task 0")
    expect(group.locator("pre")).to_have_count(0)
    group.locator("summary").click()
    expect(group.locator("pre")).to_contain_text("Traceback (most recent call last)")
    page.wait_for_timeout(4000)  # the page asks anew
    expect(group.locator("pre")).to_be_visible()
    for words, number in {"Tasks done": "30 of 32", "Tasks given up": "2"}.items():
        pair = runs.locator(".numbers > div").filter(has_text=words)
        expect(pair.locator("dd")).to_have_text(number)
    picture(page, "detail-failed", full_page=False)

    assert airflow.end_of("with-gaps") == "failed"
    dag_run = runs.get_by_role("link", name="DAG run").evaluate("link => link.href")
    runs.get_by_role("link", name="Task logs").click()
    expect(page.get_by_role("link", name="downsample.workers")).to_be_visible()
    picture(page, "task-logs", full_page=False)
    assert dag_run == f"{airflow.base}/dags/{DAG}/runs/with-gaps"
    page.goto(dag_run)
    expect(page.get_by_role("heading", name="with-gaps")).to_be_visible()


def test_runs_are_filtered(
    others: Path, open_page: Callable[..., Page], picture: Callable[..., None]
) -> None:
    page = open_page(PAGE)
    rows = page.locator("#runs tbody tr")
    expect(rows.filter(has_text="begun_image")).to_have_count(1)
    picture(page, "list")
    layer, stage, state = (page.get_by_label(name) for name in ("Layer", "Stage", "State"))
    layer.fill(str(others).upper())
    expect(rows).to_have_count(2)
    stage.select_option("transfer")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("em_4nm_chunks_of_64")
    stage.select_option("all")
    expect(rows).to_have_count(2)
    for chosen, name in {"waiting": "em_4nm", "interrupted": "begun_image"}.items():
        state.select_option(chosen)
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text(name)
    state.select_option("done")
    expect(page.get_by_role("status")).to_have_text("No run fits these filters.")
    expect(page.locator("#runs")).to_be_hidden()
    picture(page, "list-none")


def test_a_run_has_an_address_and_the_way_back_works(
    others: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{PAGE}?run=waiting")
    expect(page.get_by_role("heading", level=2)).to_contain_text("transfer")
    expect(page.locator("#runs")).to_be_hidden()
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("#runs")).to_be_visible()
    expect(page.get_by_role("heading", level=2)).to_have_count(0)
    page.go_back()
    expect(page.get_by_role("heading", level=2)).to_contain_text("em_4nm_chunks_of_64")
    page.goto(f"{page.url.partition('?')[0]}?run=nothing")
    expect(page.get_by_role("status")).to_contain_text("no run of the name 'nothing'")


def test_the_keyboard_stays_where_it_is_while_the_page_updates_itself(
    others: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(PAGE)
    link = page.get_by_role("link", name=re.compile("em_4nm_chunks_of_64"))
    link.focus()
    with page.expect_response(re.compile("api/runs")):
        pass
    with page.expect_response(re.compile("api/runs")):
        pass
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_contain_text("em_4nm_chunks_of_64")


@pytest.mark.parametrize(("theme", "dark"), [("dark", True), ("light", False)])
def test_the_page_follows_the_theme_of_airflow(
    others: Path, open_page: Callable[..., Page], theme: str, dark: bool
) -> None:
    page = open_page(PAGE, color_scheme="light" if dark else "dark")
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    expect(page.locator("#runs")).to_be_visible()
    (red, *_) = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(red) < 128) == dark
