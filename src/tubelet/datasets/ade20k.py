"""ADE20K as its scene parsing benchmark unpacks: ADEChallengeData2016, 150 classes, 0 is not labelled.

ADEChallengeData2016/
  images/training/ADE_train_00000001.jpg ...       annotations/training/ADE_train_00000001.png ...
  images/validation/ADE_val_00000001.jpg ...       annotations/validation/ADE_val_00000001.png ...
  objectInfo150.txt                                names of the classes, optional
"""

from pathlib import Path

import numpy as np

from tubelet.data.tables import read_lines
from tubelet.datasets.labels import SegmentationDataset
from tubelet.datasets.locate import find_root, hidden_media, refuse, roots
from tubelet.datasets.pairs import IGNORED, DenseSample, check_pairs, images_in
from tubelet.errors import TubeletError

CLASSES = 150
INSIDE = ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k/ADEChallengeData2016")
MARKERS = ("images/training", "annotations/training")


def read(data: Path) -> SegmentationDataset | None:
    """The benchmark, or None if the folder is not one of ADE20K.

    Raises:
        TubeletError: if a split is empty, or an annotation is missing.
    """
    root = find_root(data, INSIDE, MARKERS)
    if root is None:
        full = next((root for root in roots(data, INSIDE) if (root / "images/ADE/training").is_dir()), None)
        if full is not None:
            raise refuse(
                full, "the full ADE20K", "ADEChallengeData2016.zip of its scene parsing benchmark, 150 classes"
            )
        return None
    table = np.full(256, IGNORED, np.uint8)
    table[1 : CLASSES + 1] = np.arange(CLASSES)
    return SegmentationDataset(
        benchmark="ADE20K",
        train=_split(root, "training"),
        test=_split(root, "validation"),
        left_out=hidden_media(root / "images" / split for split in ("training", "validation")),
        classes=_names(root / "objectInfo150.txt"),
        table=table,
        legal=np.arange(256) <= CLASSES,
    )


def _split(root: Path, split: str) -> list[DenseSample]:
    annotations = root / "annotations" / split
    pairs = [
        DenseSample(name=image.stem, image=image, target=annotations / f"{image.stem}.png")
        for image in images_in(root / "images" / split)
    ]
    return check_pairs(pairs, split, root)


def _names(path: Path) -> tuple[str, ...]:
    """The names of the classes, from the file that comes with the benchmark; their numbers without it."""
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, CLASSES + 1))
    names = [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(path)[1:]]
    if len(names) != CLASSES:
        raise TubeletError(f"{path}: names {len(names)} classes, expected {CLASSES}")
    return tuple(names)
