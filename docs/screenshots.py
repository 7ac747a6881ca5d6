"""Do the tutorial in a real browser, and make its pictures; `make screenshots`.

Needs Chromium, whose place the variable CHROMIUM may name.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chromium import FLAGS, log_in, wait_for
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
DAG = "igneous_ingest"
SECONDS = 1000  # Playwright counts in milliseconds


def main(out: Path) -> None:
    """Make all pictures in the folder `out`."""
    folder = Path(tempfile.gettempdir(), "tutorial")  # always the same: the pictures show it
    folder.mkdir()
    try:
        make_pictures(folder, out)
    finally:
        shutil.rmtree(folder)


def make_pictures(folder: Path, out: Path) -> None:
    """Do what the tutorial says, in an empty folder."""
    make_volume(folder)
    with sync_playwright() as play:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        with started_airflow(folder) as (address, password):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(300 * SECONDS)
            log_in(page, address, "admin", password)
            fill_in_the_form(page, address, folder, out)
            watch(page, address, out)
            look(page, out)
        browser.close()


def make_volume(folder: Path) -> None:
    """Run the tutorial's Python in a folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (HERE / "tutorial.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)  # noqa: S603


@contextmanager
def started_airflow(folder: Path) -> Iterator[tuple[str, str]]:
    """An Airflow as `make airflow` starts it; gives its address and password."""
    command = [sys.executable, "-m", "igneous_airflow", "airflow", "--folder", str(folder)]
    airflow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        said = ""
        for line in airflow.stdout or ():
            said += line
            if "Ctrl-C" in line:
                break
        (address,) = re.findall(r"answers at (\S+)", said)
        (password,) = re.findall(r"password +(\S+)", said)
        yield address, password
    finally:
        airflow.send_signal(signal.SIGINT)
        airflow.wait(60)


def fill_in_the_form(page: Page, address: str, folder: Path, out: Path) -> None:
    """Trigger the DAG by its form, once Airflow has read it."""
    while not page.request.get(f"{address}/api/v2/dags/{DAG}").ok:
        page.wait_for_timeout(SECONDS)
    page.goto(f"{address}/dags/{DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    for name, value in {
        "source": f"{folder}/strands.npy",
        "ingest_dest": f"{folder}/strands",
        "resolution": "8,8,8",
        "axes": "zyx",
    }.items():
        form.locator(f"[name=element_{name}]").fill(value)
    form.locator("#element_layer_type").click()
    page.get_by_role("option", name="segmentation").click()
    form.locator("[name=element_source]").scroll_into_view_if_needed()
    page.screenshot(path=out / "form.png")
    form.get_by_role("button", name="Ingest", exact=True).click()  # closes what was open
    form.locator("[name=element_axes]").fill("zyx")
    form.get_by_role("button", name="Trigger").click()
    page.wait_for_url(lambda url: "/runs/" in url)


def watch(page: Page, address: str, out: Path) -> None:
    """Wait for the end of the run, and show its steps and the page Igneous."""
    runs = f"{address}/api/v2/dags/{DAG}/dagRuns"
    while (state := page.request.get(runs).json()["dag_runs"][0]["state"]) != "success":
        if state == "failed":
            raise SystemExit(f"the run has failed: {address}/dags/{DAG}")
        page.wait_for_timeout(SECONDS)
    page.wait_for_timeout(5 * SECONDS)  # until the page has noticed
    page.screenshot(path=out / "grid.png")
    page.goto(f"{address}/igneous/page/")
    page.get_by_role("link", name="View").first.wait_for()
    page.screenshot(path=out / "page.png", clip={"x": 0, "y": 0, "width": 1280, "height": 460})


def look(page: Page, out: Path) -> None:
    """Open the layer in Neuroglancer, and wait until all of it is drawn."""
    page.get_by_role("link", name="View").first.click()
    page.wait_for_url("**/neuroglancer/v/1/**")
    for _ in range(3):  # it may be ready before it knows of the meshes
        wait_for(page, "window.viewer !== undefined && viewer.isReady()", seconds=300)
        page.wait_for_timeout(3 * SECONDS)
    page.screenshot(path=out / "viewer.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
