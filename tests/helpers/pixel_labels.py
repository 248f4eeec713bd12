"""Images whose colors are their labels: masks of classes, and depth maps."""

from pathlib import Path

import numpy as np
from PIL import Image

from tubelet.labels.records import LabelRow, LabelTable

COLORS = np.array([(30, 30, 30), (220, 60, 50), (50, 90, 220)])
CLASSES = ("ground", "red", "blue")


def segmentation_image(seed, height=48, width=48):
    """An image (H, W, 3) and its mask (H, W): two squares at random places of a noisy ground."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for k in (1, 2):
        top, left = (8 * int(rng.integers(length // 8 - 1)) for length in (height, width))
        mask[top : top + 16, left : left + 16] = k
    image = COLORS[mask] + rng.integers(-25, 26, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def depth_image(seed, height=48, width=48):
    """An image (H, W, 3) and its depth (H, W): a random slope that darkens with depth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / (height + width)
    share = np.abs(np.cos(rng.uniform(0, 6.3)) * y + np.sin(rng.uniform(0, 6.3)) * x + rng.uniform(-0.5, 0.5))
    share = share.clip(0, 1)
    gray = 240 - 220 * share
    image = np.stack([gray, 0.8 * gray, 0.6 * gray], -1) + rng.integers(-4, 5, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), (500 + 4000 * share).astype(np.uint16)


def write_pixel_labels(folder: Path, kind: str, count: int, shape=(48, 48)) -> LabelTable:
    """A checked table of images in a folder, and `labels.csv`, from which it could have been read.

    Args:
        folder: the folder.
        kind: "mask" or "depth".
        count: number of images; the last quarter is held out.
        shape: (H, W) of the images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, lines = [], [f"path,{kind},split"]
    for i in range(count):
        image, values = (segmentation_image if kind == "mask" else depth_image)(i, *shape)
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray(values).save(folder / f"{i}_{kind}.png")
        split = "train" if i < count - count // 4 else "val"
        lines.append(f"{i}.png,{i}_{kind}.png,{split}")
        paths = {kind: folder / f"{i}_{kind}.png"}
        rows.append(LabelRow(line=i + 2, path=folder / f"{i}.png", split=split, **paths))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "legend.csv").write_text("index,name\n" + "".join(f"{k},{name}\n" for k, name in enumerate(CLASSES)))
    return LabelTable(
        path=folder / "labels.csv",
        format="CSV",
        digest=f"{kind} {count}",
        columns=("path", kind, "split"),
        rows=rows,
        classes=CLASSES if kind == "mask" else (),
        legend=dict(enumerate(CLASSES)) if kind == "mask" else {},
        durations_s={row.path: 0.0 for row in rows},
    )
