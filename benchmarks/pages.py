"""Sizes of pages of features, and the time that a click takes in Chromium.

python -m benchmarks.pages               # the largest page: 200,000 tokens, random features
python -m benchmarks.pages page.html     # pages that `tubelet view` wrote
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import CDPSession

from tests.helpers.browser import Browser
from tests.helpers.media import write_video
from tubelet.grid import Grid
from tubelet.view.feature_page import EncoderView, ViewedFile, page_values
from tubelet.view.page import write_page
from tubelet.view.quantization import quantize_tokens
from tubelet.view.token_maps import FileTokens

WARM_UP, CLICKS = 4, 20
_CLICK = "clicked(cards[0], [({} * 7 % 20) / 20, ({} * 3 % 20) / 20], state.shown[0])"


def write_largest_page(folder: Path, tokens: int) -> Path:
    """A page of one video of a number of tokens with random features in 64 directions."""
    video = write_video(folder / "a.mp4", frames=240, size=256)
    rows = 24
    steps = tokens // rows**2
    torch.manual_seed(0)
    level = quantize_tokens([torch.randn(steps * rows**2, 96)], 64)
    times = np.arange(steps) * 20.0 / steps
    view = EncoderView(
        "random", "teacher", [FileTokens(Grid(steps, rows, rows), times, ())], ["level 1"], [level], None, "-"
    )
    out = folder / "page.html"
    write_page("view.html", out, page_values([ViewedFile(video, True, 256, 256, 20.0)], [view]))
    return out


def measure_page(browser: Browser, page: Path) -> dict[str, Any]:
    """Size, time to the first paint and to the first layer, and mean processor time of a click."""
    begin = time.monotonic()
    browser.open(page)
    browser.wait("layers.length > 0")
    ready = time.monotonic() - begin
    paint = browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    tokens = browser.evaluate("features(state.shown[0]).count")
    session = browser.page.context.new_cdp_session(browser.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time, whatever else runs here
    for number in range(WARM_UP + CLICKS):
        if number == WARM_UP:
            before = _task_s(session)
        browser.evaluate(_CLICK.format(number, number))
    click = (_task_s(session) - before) / CLICKS
    return {
        "MB": page.stat().st_size / 1e6,
        "tokens": tokens,
        "first paint ms": paint,
        "ready ms": 1000 * ready,
        "processor ms of a click": 1000 * click,
    }


def _task_s(session: CDPSession) -> float:
    """Processor seconds of the page's thread so far: scripts, layout and painting."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in found if each["name"] == "TaskDuration")


def main() -> None:
    """Print a line for each page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000, help="of the page with random features")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        for page in options.pages or [write_largest_page(Path(folder), options.tokens)]:
            found = measure_page(browser, page)
            print(f"{page.name}: " + ", ".join(f"{name} {value:,.1f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
