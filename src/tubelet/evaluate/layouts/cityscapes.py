"""Cityscapes as leftImg8bit_trainvaltest and gtFine_trainvaltest unpack: 34 labels, of which 19 are evaluated.

leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png
"""

from pathlib import Path

import numpy as np

from tubelet.evaluate.layouts.labels import LabelSet
from tubelet.evaluate.layouts.pairs import IGNORED, Pair, check_pairs, find_root

# The labels that are evaluated, in the order of their train ids.
LABELS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
LAST_LABEL = 33
MARKERS = ("leftImg8bit", "gtFine")
IMAGE, TARGET = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read(data: Path) -> LabelSet | None:
    """The benchmark, or None if the folder is not one of Cityscapes.

    Raises:
        TubeletError: if a split is empty, or an annotation is missing.
    """
    root = find_root(data, ("cityscapes",), MARKERS)
    if root is None:
        return None
    table = np.full(256, IGNORED, np.uint8)
    table[list(LABELS)] = np.arange(len(LABELS))
    legal = np.arange(256) <= LAST_LABEL
    legal[IGNORED] = True
    return LabelSet(
        benchmark="Cityscapes",
        train=_split(root, "train"),
        test=_split(root, "val"),
        left_out={},
        classes=tuple(LABELS.values()),
        table=table,
        legal=legal,
    )


def _split(root: Path, split: str) -> list[Pair]:
    images = sorted((root / "leftImg8bit" / split).glob(f"*/*{IMAGE}"))
    pairs = [
        Pair(
            name=image.name.removesuffix(IMAGE),
            image=image,
            target=root / "gtFine" / split / image.parent.name / (image.name.removesuffix(IMAGE) + TARGET),
        )
        for image in images
    ]
    return check_pairs(pairs, split, root)
