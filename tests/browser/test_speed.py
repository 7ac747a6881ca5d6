"""How soon the page shows its numbers: 1,000 runs, and one of 100,000 tasks; below one second.

The ledgers are written by their own means, as workers write them.
"""

import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from chromium import wait_for
from playwright.sync_api import Page
from real_airflow import RealAirflow

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Failure
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Work
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer

RUNS, TASKS = 1000, 100_000
LIMIT = 1.0  # seconds
LARGE = "speed-large"
#: Notes when a selector is first found in the page, in milliseconds since navigation began.
STOPWATCH = """
new MutationObserver((changes, observer) => {
  const found = document.querySelector("%s");
  if (!found || !found.textContent) return;
  window.shownAt = performance.now();
  observer.disconnect();
}).observe(document, { childList: true, subtree: true, characterData: true });
"""


@pytest.fixture(scope="module", autouse=True)
def _runs(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    layer = write_layer(tmp_path_factory.mktemp("speed") / "image", random_voxels(Vec3(64, 16, 8)))
    first, _ = Run.launch(
        Downsample(layer=layer, num_mips=1),
        url=f"file://{airflow.runs}/{LARGE}",
        queue="memory://speed",
        by="a@example.org",
        triggered_by={
            "dag_id": "igneous_downsample",
            "dag_run_id": "manual",
            "group_id": "downsample",
        },
    )
    large = first.model_copy(update={"blocks": TASKS, "created": time.time() - 3600})
    large._recorded(first)
    for task in range(TASKS - 10):
        large.ledger.write_receipt(
            Receipt(task=task, attempt=1, seconds=1, worker="host:1", work=Work(voxels=262_144))
        )
    for task in range(TASKS - 10, TASKS):
        large.ledger.write_failure(
            Failure(
                task=task,
                attempt=1,
                error=f"MissingChunk: chunk {task} is missing",
                traceback="Traceback (most recent call last)",
                final=True,
                worker="host:1",
                at="2026-01-01T00:00:00+00:00",
            )
        )
    for number in range(RUNS):
        name = f"speed-{number}"
        url = f"file://{airflow.runs}/{name}"
        run = first.model_copy(update={"id": name, "url": url, "created": time.time()})
        run._recorded(None)
        run.ledger.write_receipt(Receipt(task=0, attempt=1, seconds=1, worker="host:1"))
    time.sleep(6)  # the list of the runs that there were before is given for 5 seconds
    yield
    for folder in airflow.runs.glob("speed-*"):
        shutil.rmtree(folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("", "#runs tbody tr b"),
        (f"?run={LARGE}", "#detail .numbers dd"),
    ],
    ids=["list", "large run"],
)
def test_the_page_shows_its_numbers_within_a_second(
    open_page: Callable[..., Page],
    picture: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    address: str,
    shown: str,
) -> None:
    page = open_page("/igneous/page/page.css")
    page.add_init_script(STOPWATCH % shown)
    seconds = []
    for _ in range(4):
        page.goto(f"{page.url.partition('/page/')[0]}/page/{address}")
        wait_for(page, "window.shownAt !== undefined", seconds=30)
        seconds.append(page.evaluate("window.shownAt") / 1000)
        page.wait_for_timeout(2500)  # what was answered is not remembered for longer
    with capsys.disabled():
        print(f"\n{address or 'list'}: {', '.join(f'{s:.2f} s' for s in seconds)}")  # noqa: T201
    picture(page, f"speed-{'run' if address else 'list'}", full_page=False)
    assert min(seconds) < LIMIT  # the best: other programs may be at work
