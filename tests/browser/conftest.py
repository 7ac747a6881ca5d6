"""A real Airflow and a real browser that is logged in to it; screenshots of what was seen.

Run by `make test-browser`. Nothing is skipped: without Chromium the tests end with what to install.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    expect,
    sync_playwright,
)
from real_airflow import ROOT, RealAirflow
from users import READER

HERE = Path(__file__).parent
PICTURES = ROOT / ".browser"
OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    """A real Airflow with an administrator and a user who may not read every DAG."""
    settings = {
        "AIRFLOW__CORE__AUTH_MANAGER": "auth_manager.GuardedAuthManager",
        "PYTHONPATH": str(HERE),
    }
    airflow = RealAirflow(tmp_path_factory.mktemp("airflow"), {READER: "viewer"}, settings)
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium of this machine."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.exit("The browser tests need Chromium: `make test-browser` says how", returncode=1)
    expect.set_options(timeout=20_000)  # a machine may be busy with other things
    browser = playwright.chromium.launch(executable_path=found, args=chromium.FLAGS)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def logged_in(airflow: RealAirflow, browser: Browser) -> Callable[[str], Any]:
    """What a browser keeps of a user who has logged in with Airflow's own form."""
    known: dict[str, Any] = {}

    def log_in(user: str) -> Any:
        if user not in known:
            context = browser.new_context()
            page = context.new_page()
            chromium.log_in(page, airflow.base, user, user)
            known[user] = context.storage_state()
            context.close()
        return known[user]

    return log_in


@pytest.fixture
def open_page(
    airflow: RealAirflow, browser: Browser, logged_in: Callable[[str], Any]
) -> Iterator[OpenPage]:
    """Open a page of Airflow as a user; its errors fail the test in the end.

    So does whatever a page of ours tries against its own policy.
    """
    opened: list[BrowserContext] = []
    errors: list[str] = []

    def open_page(path: str, user: str = "admin", width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(
            storage_state=logged_in(user), viewport={"width": width, "height": 800}, **options
        )
        opened.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        chromium.watch_policy(page, errors)
        page.goto(f"{airflow.base}{path}")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert errors == []


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep a screenshot below .browser/ for people to look at."""

    def take(page: Page, name: str, *, full_page: bool = True) -> None:
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}.png", full_page=full_page)

    return take
