"""The page of an evaluation: its metrics, and predictions next to the ground truth, worst first."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tubelet.tasks.common.result import Result
from tubelet.view.page import data_uri, write_page

SHOWN_SKIPPED = 50
_WIDEST = 480  # pixels of an image on the page
_FEW_COLORS = 512


def write_result_page(result: Result, out: Path) -> None:
    """Write the page, one file that needs no other.

    Raises:
        TubeletError: if it cannot be written.
    """
    first = next(iter(result.metrics), "")
    examples = [
        {
            "name": example.name,
            "score": None
            if example.score is None
            else str(replace(result.metrics[first], value=example.score, low=None, high=None)),
            "note": example.note,
            "images": [(label, image_uri(shrink_to_page(pixels))) for label, pixels in example.images.items()],
        }
        for example in result.examples
    ]
    values = {
        "result": result,
        "first": first,
        "examples": examples,
        "tops": sorted({Path(name).parent.as_posix() for name in result.files}),
        "shown_skipped": SHOWN_SKIPPED,
        "details": {name: json.dumps(value, indent=1) for name, value in result.details.items()},
    }
    write_page("results.html", out, values)


def image_uri(pixels: NDArray[np.uint8]) -> Markup:
    """An image as a data URI: exact where it has few colors, which mean something, and small where it is a photo."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    return data_uri(pixels, "png" if len(np.unique(packed)) <= _FEW_COLORS else "jpeg")


def shrink_to_page(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image at the width of the page; nearest pixels, for colors that stand for classes have no mean."""
    height, width = pixels.shape[:2]
    if width <= _WIDEST:
        return pixels
    size = (_WIDEST, max(1, round(height * _WIDEST / width)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))
