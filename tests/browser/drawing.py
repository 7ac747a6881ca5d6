"""What Neuroglancer has drawn in a page, and whether that is all of it."""

import io
import time
from typing import Any

import numpy as np
from chromium import wait_for
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page

Pixels = NDArray[np.uint8]
#: Counts of chunks that are wanted now: failed, and on their way.
CHUNKS = """
() => viewer.chunkQueueManager.getStatistics().then(sources => {
  let failed = 0, underway = 0, shown = 0;
  for (const counts of sources.values()) {
    const at = (state) => counts[state * 3 * 3];
    shown += at(0); underway += at(3) + at(4); failed += at(6);
  }
  return { ready: viewer.isReady(), failed, underway, shown };
})
"""


def wait_until_ready(page: Page) -> dict[str, Any]:
    """Wait until all that is wanted is drawn; raises when a chunk failed or time is up."""
    deadline = time.monotonic() + 120
    page.wait_for_url("**/neuroglancer/v/1/**", timeout=120_000)
    wait_for(page, "window.viewer !== undefined", seconds=120)
    calm = 0
    while calm < 3:
        state: dict[str, Any] = page.evaluate(CHUNKS)
        assert time.monotonic() < deadline, state
        assert not state["failed"], state
        calm = calm + 1 if state["ready"] and state["shown"] and not state["underway"] else 0
        page.wait_for_timeout(300)
    return state


def panel(page: Page, number: int) -> Pixels:
    """The pixels of a panel with data, red, green and blue: (row, column, 3)."""
    place = page.locator(".neuroglancer-rendered-data-panel").nth(number).bounding_box()
    assert place is not None
    return np.array(Image.open(io.BytesIO(page.screenshot(clip=place))).convert("RGB"))


def central(pixels: Pixels) -> Pixels:
    """The middle of a panel, where nothing but data is drawn."""
    rows, columns = pixels.shape[:2]
    return pixels[rows // 3 : rows * 2 // 3, columns // 3 : columns * 2 // 3]
