"""Do the tutorial in a real browser, and make its pictures; `make screenshots`.

Needs Chromium, whose place the variable CHROMIUM may name.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
DAG = "igneous_ingest"
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]
SECONDS = 1000  # Playwright counts in milliseconds
#: What the tutorial says to fill in, beside the paths.
FORM = {"resolution": "8,8,8", "axes": "zyx"}


def main(out: Path) -> None:
    """Make all pictures in the folder `out`."""
    with tempfile.TemporaryDirectory(prefix="igneous-tutorial-") as name, sync_playwright() as play:
        folder = Path(name)
        make_volume(folder)
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        with started_airflow(folder) as (address, password):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(120 * SECONDS)
            log_in(page, address, password)
            run_address = fill_in_the_form(page, address, folder, out)
            watch(page, address, run_address, out)
            look(page, address, out)
        browser.close()


def make_volume(folder: Path) -> None:
    """Run the tutorial's Python in a folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (HERE / "tutorial.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


@contextmanager
def started_airflow(folder: Path) -> Iterator[tuple[str, str]]:
    """An Airflow as `make airflow` starts it; gives its address and password."""
    command = [sys.executable, "-m", "igneous_airflow", "airflow", "--folder", str(folder)]
    airflow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        assert airflow.stdout is not None
        for line in airflow.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        (address,) = re.findall(r"answers at (\S+)", said)
        (password,) = re.findall(r"password +(\S+)", said)
        yield address, password
    finally:
        airflow.send_signal(signal.SIGINT)
        airflow.wait(60)


def log_in(page: Page, address: str, password: str) -> None:
    """Log in as the tutorial's user."""
    page.goto(address)
    page.locator("input[name=username]").fill("admin")
    page.locator("input[name=password]").fill(password)
    page.locator("button[type=submit]").click()
    page.get_by_role("link", name="Dags").first.wait_for()


def fill_in_the_form(page: Page, address: str, folder: Path, out: Path) -> str:
    """Trigger the DAG by its form; gives the address of the run."""
    page.goto(f"{address}/dags/{DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    given = {"source": f"{folder}/strands.npy", "ingest_dest": f"{folder}/strands", **FORM}
    for section in ("Ingest",):
        page.get_by_text(section, exact=True).first.click()
    for name, value in given.items():
        page.locator(f"[name='element_{name}']").first.fill(value)
    return address


def watch(page: Page, address: str, run_address: str, out: Path) -> None:
    """Wait for the end of the run, and show its steps and the page Igneous."""


def look(page: Page, address: str, out: Path) -> None:
    """Open the layer in Neuroglancer."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
