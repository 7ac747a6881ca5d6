"""How Chromium is started for tests and pictures, and how somebody logs in with it."""

from playwright.sync_api import Page

FLAGS = [  # WebGL without a graphics card, and no request that is not ours
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]


def log_in(page: Page, address: str, user: str, password: str) -> None:
    """Log in with the form of the Airflow at an address."""
    page.goto(address)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/auth/" not in url)
