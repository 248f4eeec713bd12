"""ADE20K as its scene parsing benchmark unpacks: ADEChallengeData2016, 150 classes, 0 is not labelled.

ADEChallengeData2016/
  images/training/ADE_train_00000001.jpg ...       annotations/training/ADE_train_00000001.png ...
  images/validation/ADE_val_00000001.jpg ...       annotations/validation/ADE_val_00000001.png ...
  objectInfo150.txt                                names of the classes, optional
"""

from pathlib import Path

import numpy as np

from tubelet.evaluate.layouts.labels import LabelSet
from tubelet.evaluate.layouts.pairs import IGNORED, Pair, check_pairs, find_root, images_in
from tubelet.readers import read_lines
from tubelet.types import TubeletError

CLASSES = 150
MARKERS = ("images/training", "annotations/training")


def read(data: Path) -> LabelSet | None:
    """The benchmark, or None if the folder is not one of ADE20K.

    Raises:
        TubeletError: if a split is empty, or an annotation is missing.
    """
    root = find_root(data, ("ADEChallengeData2016",), MARKERS)
    if root is None:
        return None
    table = np.full(256, IGNORED, np.uint8)
    table[1 : CLASSES + 1] = np.arange(CLASSES)
    return LabelSet(
        benchmark="ADE20K",
        train=_split(root, "training"),
        test=_split(root, "validation"),
        left_out={},
        classes=_names(root / "objectInfo150.txt"),
        table=table,
        legal=np.arange(256) <= CLASSES,
    )


def _split(root: Path, split: str) -> list[Pair]:
    annotations = root / "annotations" / split
    pairs = [
        Pair(name=image.stem, image=image, target=annotations / f"{image.stem}.png")
        for image in images_in(root / "images" / split)
    ]
    return check_pairs(pairs, split, root)


def _names(path: Path) -> tuple[str, ...]:
    """The names of the classes, from the file that comes with the benchmark; their numbers without it."""
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, CLASSES + 1))
    names = [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(path)[1:] if line.strip()]
    if len(names) != CLASSES:
        raise TubeletError(f"{path}: names {len(names)} classes, expected {CLASSES}")
    return tuple(names)
