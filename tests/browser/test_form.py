"""The trigger form of Airflow, filled in as a person does it."""

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect
from real_airflow import DAG, RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

SECTIONS = ["Where", "What", "How", "Limits", "Run"]


def opened_form(page: Page) -> Locator:
    page.get_by_role("button", name="Trigger").first.click()
    return page.get_by_role("dialog")


def field(form: Locator, name: str) -> Locator:
    return form.locator(f"[name=element_{name}]")


def test_a_run_is_triggered_with_two_fields_and_turns_green(
    airflow: RealAirflow,
    open_page: Callable[..., Page],
    picture: Callable[..., None],
    tmp_path: Path,
) -> None:
    layer = write_layer(
        tmp_path / "image", random_voxels(Vec3(128, 128, 64)), LayerSpec(chunk_size=(64, 64, 64))
    )
    page = open_page(f"/dags/{DAG}")
    form = opened_form(page)
    headings = form.get_by_role("button").all_inner_texts()
    assert [text for text in headings if text in SECTIONS] == SECTIONS
    send = form.get_by_role("button", name="Trigger")
    expect(send).to_be_disabled()  # the layer is missing
    expect(form.get_by_text("Address of the Precomputed layer")).to_be_visible()
    expect(field(form, "mip")).to_be_hidden()
    form.get_by_role("button", name="Where").click()
    expect(field(form, "mip")).to_be_visible()
    form.get_by_role("button", name="Where").click()

    field(form, "layer").fill(layer.removeprefix("file://"))
    field(form, "num_mips").fill("1")
    picture(page, "form", full_page=False)
    send.click()

    page.wait_for_url(re.compile(rf"/dags/{DAG}/runs/"), timeout=30_000)
    run = page.url.partition("/runs/")[2].partition("?")[0]
    picture(page, "grid-running", full_page=False)
    assert airflow.end_of(run) == "success"
    finish = page.get_by_role("row").filter(has_text="downsample.finish")
    expect(finish).to_contain_text("Success")
    picture(page, "grid-done", full_page=False)
    assert len(list((tmp_path / "image" / "16_16_40").iterdir())) == 1


def test_a_wrong_value_is_refused_at_once_with_the_name_of_its_field(
    open_page: Callable[..., Page], picture: Callable[..., None]
) -> None:
    page = open_page(f"/dags/{DAG}")
    form = opened_form(page)
    expect(form.get_by_text("This field is required")).to_be_visible()
    field(form, "layer").fill("/data/layer")
    form.get_by_role("button", name="What").click()
    field(form, "factor").fill("2,2")
    form.get_by_role("button", name="Trigger").click()
    words = form.get_by_text("Invalid input for param factor")
    expect(words).to_be_visible()
    words.scroll_into_view_if_needed()
    picture(page, "form-refused", full_page=False)


def test_what_only_the_layer_can_tell_is_refused_by_the_plan_with_the_name_of_its_field(
    airflow: RealAirflow,
    open_page: Callable[..., Page],
    picture: Callable[..., None],
    tmp_path: Path,
) -> None:
    layer = write_layer(tmp_path / "image", random_voxels(Vec3(16, 16, 8)))
    run = "refused-by-the-plan"
    airflow.trigger(run, {"layer": layer, "bounds": "900-908_0-8_0-8"})
    assert airflow.end_of(run) == "failed"
    page = open_page(f"/dags/{DAG}/runs/{run}/tasks/downsample.plan")
    expect(page.get_by_text(re.compile("bounds")).first).to_be_visible()
    picture(page, "plan-refused", full_page=False)
    assert not (tmp_path / "image" / "16_16_40").exists()
