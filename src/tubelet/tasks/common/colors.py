"""Maps as images: classes in distinct colors, depth on a color scale."""

import colorsys
import functools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

UNKNOWN = (38, 38, 42)  # pixels that are ignored
_GOLDEN = 0.618034  # turns of hue that come round to no color near an earlier one for long


@functools.cache
def _palette(class_indices: tuple[int, ...]) -> NDArray[np.uint8]:
    """(256, 3) colors of the few classes of an image: colors of 150 classes could not be distinguished."""
    colors = np.full((256, 3), UNKNOWN, np.uint8)
    for i, k in enumerate(class_indices):
        lightness, saturation = (0.56, 0.72, 0.42)[i % 3], (0.62, 0.55, 0.5)[i // 3 % 3]
        colors[k] = [round(255 * x) for x in colorsys.hls_to_rgb((0.58 + i * _GOLDEN) % 1, lightness, saturation)]
    return colors


def legend(names: Sequence[str], class_indices: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """The names of some classes, and of pixels that are ignored, with their colors.

    Args:
        names: K names, of all classes.
        class_indices: indices of the classes that are in an image.
    """
    colors = {names[k]: tuple(_palette(class_indices)[k].tolist()) for k in class_indices}
    return colors | {"ignored": UNKNOWN}


def color_classes(indices: NDArray[Any], class_indices: tuple[int, ...]) -> NDArray[np.uint8]:
    """(H, W) class indices -> (H, W, 3); indices that are not in `class_indices`, such as 255, are painted dark."""
    return _palette(class_indices)[indices]


def color_errors(predicted: NDArray[Any], truth: NDArray[Any], ignored: int) -> NDArray[np.uint8]:
    """(H, W) class indices, twice -> (H, W, 3): right pale, wrong red, ignored dark."""
    image = np.where((predicted == truth)[..., None], (214, 217, 214), (200, 60, 50)).astype(np.uint8)
    image[truth == ignored] = UNKNOWN
    return image


def color_depth(meters: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) meters -> (H, W, 3), near bright and far dark, on a scale of logarithms; 0 is unknown."""
    fraction = np.log(np.maximum(meters, low) / low) / np.log(high / low)
    image = (255 * matplotlib.colormaps["magma_r"](np.clip(fraction, 0, 1))[..., :3]).astype(np.uint8)
    image[meters <= 0] = UNKNOWN
    return image


def color_depth_errors(ratio: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) prediction / truth -> (H, W, 3): red where too far, blue where too near, pale where right."""
    fraction = 0.5 + 0.5 * np.clip(np.log2(np.where(valid, ratio, 1)), -1, 1)
    image = (255 * matplotlib.colormaps["coolwarm"](fraction)[..., :3]).astype(np.uint8)
    image[~valid] = UNKNOWN
    return image
