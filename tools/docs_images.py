"""Create the images of README.md and docs/ from real pages in Chromium.

    python -m tools.docs_images runs/demo runs/sample
    python -m tools.docs_images runs/demo runs/sample --only pca

RUN is a trained run, DATA the sample set it was trained on, with long videos (`tubelet sample-data DATA --long-videos
40`). The pages are written by `tubelet` commands, and the images are screenshots of them. After a change of a page, run
this script again and check the images.
"""

import argparse
import base64
import io
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
VIDEO, PHOTO = "labels/val/0002.mp4", "val/images/000010.png"
MOVING_S, MOVING_FPS, PANEL, GAP, QUALITY = 12.0, 5.0, 256, 8, 62
CLICKED = (0.5, 0.85)  # fractions of width and height of the first frame: the lava in front

SCROLL = "document.getElementById('{}').scrollIntoView({{behavior: 'instant'}})"

# Three panels of a moment: the frame, its PCA colors, and its similarity to the clicked patch.
DRAW_PANELS = """async ([second, side, gap]) => {
  const card = cards[0], screen = card.screens.at(-1), step = card.stepAt(0, second);
  await new Promise(done => { card.video.addEventListener("seeked", done, { once: true }); card.seek(second); });
  const canvas = element("canvas"), context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [3 * side + 2 * gap, side];
  for (const [column, layer] of [null, window.pca, window.similarity].entries()) {
    if (layer) { layers[0] = layer; screen.step = step; screen.drawOverlay(); }
    context.drawImage(screen.frame, column * (side + gap), 0, side, side);
    context.globalAlpha = 0.85;
    if (layer) context.drawImage(screen.overlay, column * (side + gap), 0, side, side);
    context.globalAlpha = 1;
  }
  if (step === 0) {
    context.strokeStyle = "#fff";
    context.lineWidth = 3;
    context.strokeRect(state.query.box[0] * side - 6, state.query.box[1] * side - 6, 12, 12);
  }
  return canvas.toDataURL("image/png");
}"""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Settings of a screenshot.

    Attributes:
        page: name of the page.
        size: width and height of the window, in CSS pixels.
        script: JavaScript to run on the page first.
        dark: whether to use the dark color scheme.
        phone: whether to emulate a phone.
    """

    page: str
    size: tuple[int, int]
    script: str = ""
    dark: bool = False
    phone: bool = False


SHOTS = {
    "view-pca": Shot(page="view", size=(1120, 735), script="cards[0].seek(20)"),
    "view-similarity": Shot(
        page="view",
        size=(1120, 735),
        dark=True,
        script="cards[0].seek(20.4); choose(cards[0], [.5, .85, .5, .85]); setMode('similarity')",
    ),
    "view-phone": Shot(page="view", size=(390, 760), phone=True, script="cards[0].seek(20); setMode('clusters')"),
    "map": Shot(page="map", size=(1440, 900), script="showNeighbors(Number(Object.keys(data.thumbnails)[40]))"),
    "explain": Shot(page="explain", size=(1100, 900), script="tubelet.select(100); " + SCROLL.format("step-7")),
    "report": Shot(page="report", size=(1240, 900), script=SCROLL.format("features")),
}


def main() -> None:
    """Write the pages, then the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=[*SHOTS, "pca"], help="one image")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    names = [options.only] if options.only else [*SHOTS, "pca"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = Pages(options.run.resolve(), options.data.resolve(), Path(folder))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        for name in names:
            out = options.out / f"{name}.webp"
            if name == "pca":
                write_moving_image(browser, pages.path("moving"), out)
            else:
                write_shot(browser, pages, name, out)
            print(f"{out}: {out.stat().st_size / 1000:.0f} kB", flush=True)
        browser.close()


class Pages:
    """The pages, each written on first use."""

    def __init__(self, run: Path, data: Path, folder: Path) -> None:
        self.folder = folder
        media = [data / VIDEO, data / PHOTO]
        model = ["--model", run]
        self.commands: dict[str, list[list[str | Path]]] = {
            "view": [["view", *media, *model, "--out", folder / "view.html"]],
            "moving": [["view", media[0], *model, "--levels", "-1", "--no-surprise", "--out", folder / "moving.html"]],
            "explain": [["explain", media[0], *model, "--out", folder / "explain.html"]],
            "report": [["report", run, "--data", data, "--out", folder / "report.html"]],
            "map": [
                ["embed", data / "val" / "videos", *model, "--out", folder / "sample"],
                ["map", folder / "sample", "--pick", "50", "--out", folder / "map.html"],
            ],
        }

    def path(self, name: str) -> Path:
        """The file of a page."""
        page = self.folder / f"{name}.html"
        for command in self.commands[name] if not page.exists() else []:
            subprocess.run([sys.executable, "-m", "tubelet", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        return page


def open_page(browser: Browser, path: Path, shot: Shot) -> Page:
    """Open a page in a new window."""
    width, height = shot.size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.dark else "light",
        is_mobile=shot.phone,
        has_touch=shot.phone,
    )
    page.goto(path.as_uri())
    page.wait_for_timeout(2000)
    return page


def write_shot(browser: Browser, pages: Pages, name: str, out: Path) -> None:
    """Write a screenshot of the window."""
    page = open_page(browser, pages.path(SHOTS[name].page), SHOTS[name])
    page.evaluate(SHOTS[name].script)
    page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    image.save(out, quality=90, method=6)


def write_moving_image(browser: Browser, path: Path, out: Path) -> None:
    """Write a video next to its PCA colors and its similarity to a patch that was clicked in the first frame."""
    page = open_page(browser, path, Shot(page="moving", size=(1400, 900)))
    x, y = CLICKED
    page.evaluate(
        f"choose(cards[0], [{x}, {y}, {x}, {y}]); window.pca = pcaLayer(0); window.similarity = similarityLayer(0);"
        "state.mode = 'pca'"
    )
    frames = []
    for number in range(int(MOVING_S * MOVING_FPS)):
        uri = page.evaluate(DRAW_PANELS, [number / MOVING_FPS + 0.01, PANEL, GAP])
        frames.append(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))
    page.close()
    frames[0].save(
        out,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / MOVING_FPS),
        loop=0,
        quality=QUALITY,
        method=6,
    )


if __name__ == "__main__":
    main()
