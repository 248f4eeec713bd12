"""Colors of labels that color-blind people can tell apart."""

import colorsys
from collections.abc import Iterable, Sequence

from tubelet.prediction.records import NONE_OF_THESE

# Okabe and Ito, "Color Universal Design" (2008), without black, which dark pages hide. Yellow comes late: it is faint
# on white.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
NONE_COLOR = "#8c929c"
_GOLDEN_RATIO = 0.618034
_LIGHTNESS = (0.42, 0.66, 0.54)


def label_colors(count: int) -> list[str]:
    """The colors of `count` labels, in their order.

    Args:
        count: number of labels.

    Returns:
        Hexadecimal colors: those of Okabe and Ito, then hues that differ from their neighbors in lightness, too.
    """
    colors = list(OKABE_ITO[:count])
    for number in range(count - len(colors)):
        hue = (0.08 + number * _GOLDEN_RATIO) % 1.0
        saturation = 0.85 if number // len(_LIGHTNESS) % 2 == 0 else 0.45
        red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[number % len(_LIGHTNESS)], saturation)
        colors.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colors


def assign_colors(classes: Sequence[str], labels: Iterable[str]) -> dict[str, str]:
    """Label -> color, the same for all files of a prediction.

    Args:
        classes: the classes of the heads, in their order, which come first.
        labels: labels of the predictions; those that are no classes follow in alphabetical order.
    """
    ordered = list(dict.fromkeys([*classes, *sorted(set(labels) - set(classes))]))
    named = [label for label in ordered if label != NONE_OF_THESE]
    return {**dict(zip(named, label_colors(len(named)), strict=True)), NONE_OF_THESE: NONE_COLOR}


def rgb(color: str) -> tuple[int, int, int]:
    """A hexadecimal color as red, green, blue from 0 to 255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
