"""How Chromium is started for tests and pictures, and how somebody logs in with it."""

import time

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


def watch_policy(page: Page, violations: list[str]) -> None:
    """Note what a page tries against its Content-Security-Policy."""

    def note(words: str) -> None:
        if "Content Security Policy" in words:
            violations.append(words)

    page.on("console", lambda message: note(message.text))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', event => console.error("
        "'Content Security Policy', event.violatedDirective, event.blockedURI, event.sourceFile))"
    )


def wait_for(page: Page, expression: str, seconds: float) -> None:
    """Wait until an expression is true in a page.

    Playwright's own way runs text as code again and again, which our pages do not allow.
    """
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} is not true at {page.url}"
        page.wait_for_timeout(100)
