"""Size, first paint and click time of feature pages in Chromium, with their limits.

python -m benchmarks.pages               # a minute of video at 256 pixels; the largest page; a served table
python -m benchmarks.pages page.html     # pages that `tubelet view` wrote

The minute of video is 640 x 360 pixels of texture with grain, which compresses worse than most videos. The largest page
and the first served table have 200,000 tokens, the second has five times as many; their features are random. Clicks are
measured in processor time of the page, which does not depend on other processes; "first" is the time until the visible
frame is updated.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import CDPSession

from tests.helpers.browser import Browser
from tests.helpers.media import write_video
from tubelet.checkpoint.run import save_checkpoint
from tubelet.config import DataConfig, ModelConfig, TrainConfig, ViewConfig
from tubelet.embed.table import FeatureTable
from tubelet.grid import Grid
from tubelet.prediction.video_writer import write_frames
from tubelet.view.encoder_view import EncoderView
from tubelet.view.feature_page import page_values, write_feature_page
from tubelet.view.page import write_page
from tubelet.view.quantization import quantize_tokens
from tubelet.view.serve import serve_table
from tubelet.view.token_maps import FileTokens
from tubelet.view.viewed_files import ViewedFile
from tubelet.vjepa import VJEPA

WARM_UP, CLICKS = 4, 20
PAGE_MB, PAINT_MS, CLICK_MS = 25, 2000, 50
ROWS, STEPS, WIDTH = 24, 8, 96  # of the tokens of a time step, time steps of a clip, channels
_FILLED = "layers[0].filled.size === features(state.shown[0]).chunks.length"
# Clicks, waits until everything is shown, and is the time until the visible moment was.
_CLICK = f"""(async () => {{{{
  const begin = performance.now(), before = layers[0], wait = ms => new Promise(resolve => setTimeout(resolve, ms));
  clicked(cards[0], [{{x}}, {{y}}], state.shown[0]);
  while (!layers[0]?.filled.size || layers[0] === before) await wait(0);
  const answered = performance.now() - begin;
  while (!({_FILLED})) await wait(5);
  return answered;
}}}})()"""


def write_minute_page(folder: Path) -> Path:
    """The page of a minute of video, by a model with random weights, patches of 16 pixels and four levels."""
    video, rng = folder / "minute.mp4", np.random.default_rng(0)
    octaves = [rng.normal(128, 160 / side, (side, side, 3)) for side in (4, 16, 64, 256)]
    layers = [
        np.asarray(Image.fromarray(np.clip(each, 0, 255).astype(np.uint8)).resize((2080, 1040))) for each in octaves
    ]
    texture = np.mean(layers, axis=0)

    def frames() -> Iterator[tuple[NDArray[np.uint8], float]]:
        for number in range(24 * 60):
            x, y = number, number // 3
            grain = rng.integers(-4, 5, (360, 640, 1))
            yield np.clip(texture[y : y + 360, x : x + 640] + grain, 0, 255).astype(np.uint8), number / 24

    write_frames(frames(), video, Fraction(1, 24), 60.0)
    model = ModelConfig(width=96, depth=4, heads=2, levels=(0, 1, 2, 3), patch_size=16)
    config = TrainConfig(model=model, data=DataConfig(sources=("videos",), image_size=256), steps=1)
    torch.manual_seed(0)
    save_checkpoint(folder / "run", 1, VJEPA(model).state_dict(), config, keep=1)
    out = folder / "minute.html"
    write_feature_page([str(video)], [str(folder / "run")], out, ViewConfig(image_size=256))
    return out


def write_largest_page(folder: Path, tokens: int) -> Path:
    """A page of one video of a number of tokens with random features in 64 directions."""
    video = write_video(folder / "a.mp4", frames=240, size=256)
    steps = tokens // ROWS**2
    torch.manual_seed(0)
    level = quantize_tokens([torch.randn(steps * ROWS**2, WIDTH)], 64)
    times = np.arange(steps) * 20.0 / steps
    view = EncoderView(
        "random", "teacher", [FileTokens(Grid(steps, ROWS, ROWS), times, ())], ["level 1"], [level], None, "-"
    )
    out = folder / "largest.html"
    write_page("view.html", out, page_values([ViewedFile(video, True, 256, 256, 20.0)], [view]))
    return out


def write_table(folder: Path, tokens: int) -> Path:
    """A dense table of one video of a number of tokens with random features."""
    video = write_video(folder / "b.mp4", frames=240, size=256, bframes=0)
    version = {"size_bytes": video.stat().st_size, "changed_s": video.stat().st_mtime, "path": str(video)}
    settings = {"model": "", "model_id": "random", "weights": "", "image_size": 384, "frames": 2 * STEPS, "fps": 4.0}
    table = FeatureTable(folder / "table", settings | {"stride_s": None, "dense": True, "levels": False})
    rng, clips = np.random.default_rng(0), tokens // (STEPS * ROWS**2)
    for clip in range(clips):
        values = rng.standard_normal(STEPS * ROWS**2 * WIDTH, dtype=np.float32).astype(np.float16)
        times = (clip * STEPS + np.arange(STEPS)) * 20.0 / (STEPS * clips)
        grid = np.array([STEPS, ROWS, ROWS], np.int32)
        table.add([version | {"clip_index": clip, "clips": clips, "grid": grid, "times": times, "tokens": values}])
    table.flush()
    return table.path


def measure_page(browser: Browser, page: Path | str) -> dict[str, float]:
    """Tokens, time to the first paint and until everything is shown, and times of a click."""
    begin = time.monotonic()
    browser.open(page)
    browser.wait(f"layers[0] && {_FILLED}", 120)
    ready = time.monotonic() - begin
    paint = browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    session = browser.page.context.new_cdp_session(browser.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time, whatever else runs here
    first, processor = [], []
    for number in range(WARM_UP + CLICKS):
        before = _task_s(session)
        answered = browser.evaluate(_CLICK.format(x=number * 7 % 20 / 20, y=number * 3 % 20 / 20))
        if number >= WARM_UP:
            first.append(answered)
            processor.append(1000 * (_task_s(session) - before))
    return {
        "tokens": browser.evaluate("features(state.shown[0]).count"),
        f"first paint ms (limit {PAINT_MS})": paint,
        "ready ms": 1000 * ready,
        "click, first ms": float(np.median(first)),
        f"click, processor ms (limit {CLICK_MS})": float(np.median(processor)),
    }


def _task_s(session: CDPSession) -> float:
    """Processor seconds of the page's thread so far: scripts, layout and painting."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in found if each["name"] == "TaskDuration")


def main() -> None:
    """Print a line for each page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000, help="of the largest page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name)
        for page in options.pages or [write_minute_page(folder), write_largest_page(folder, options.tokens)]:
            _print_line(page.name, {f"MB (limit {PAGE_MB})": page.stat().st_size / 1e6} | measure_page(browser, page))
        if options.pages:
            return
        for tokens in (options.tokens, 5 * options.tokens):
            (folder / str(tokens)).mkdir()
            table = write_table(folder / str(tokens), tokens)
            with serve_table(table, [], 64) as server:
                thread = threading.Thread(target=server.serve_forever, args=(0.02,))
                thread.start()
                try:
                    _print_line("served table", measure_page(browser, server.url))
                finally:
                    server.shutdown()
                    thread.join()


def _print_line(name: str, found: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value:,.1f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
