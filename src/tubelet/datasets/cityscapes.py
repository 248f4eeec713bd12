"""Cityscapes as leftImg8bit_trainvaltest and gtFine_trainvaltest unpack: 34 labels, of which 19 are evaluated.

leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png

Each of the two may lie in a folder named as its archive (leftImg8bit_trainvaltest, gtFine_trainvaltest).
"""

from pathlib import Path

import numpy as np

from tubelet.datasets.labels import SegmentationDataset
from tubelet.datasets.locate import matching, roots
from tubelet.datasets.pairs import IGNORED, DenseSample, check_pairs
from tubelet.errors import TubeletError

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
INSIDE = ("cityscapes",)
MARKERS = ("leftImg8bit", "gtFine")
IMAGE, TARGET = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read(data: Path) -> SegmentationDataset | None:
    """The benchmark, or None if the folder is not one of Cityscapes.

    Raises:
        TubeletError: if a split is empty, or an annotation is missing.
    """
    places = ((_part(root, MARKERS[0]), _part(root, MARKERS[1])) for root in roots(data, INSIDE))
    images, labels = next(((images, labels) for images, labels in places if images and labels), (None, None))
    if images is None or labels is None:
        return None
    table = np.full(256, IGNORED, np.uint8)
    table[list(LABELS)] = np.arange(len(LABELS))
    legal = np.arange(256) <= LAST_LABEL
    legal[IGNORED] = True
    return SegmentationDataset(
        benchmark="Cityscapes",
        train=_split(images, labels, "train"),
        test=_split(images, labels, "val"),
        left_out={},
        classes=tuple(LABELS.values()),
        table=table,
        legal=legal,
    )


def _part(root: Path, name: str) -> Path | None:
    """The folder of images or labels below a root."""
    places = (root / f"{name}{archive}{inside}" for archive, inside in (("", ""), ("_trainvaltest", f"/{name}")))
    return next((place for place in places if (place / "train").is_dir() or (place / "val").is_dir()), None)


def _split(pictures: Path, labels: Path, split: str) -> list[DenseSample]:
    images = matching(pictures / split, f"*/*{IMAGE}")
    pairs = [
        DenseSample(
            name=image.name.removesuffix(IMAGE),
            image=image,
            target=labels / split / image.parent.name / (image.name.removesuffix(IMAGE) + TARGET),
        )
        for image in images
    ]
    if pairs and not pairs[0].target.is_file():
        others = matching(pairs[0].target.parent, f"{pairs[0].name}_gtFine_*.png")
        if others:
            raise TubeletError(
                f"{pairs[0].target}: no such file beside {others[0].name}; expected labels of gtFine_labelIds.png, as "
                "gtFine_trainvaltest.zip unpacks"
            )
    return check_pairs(pairs, split, pictures)
