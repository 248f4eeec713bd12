"""ADE20K as its scene parsing benchmark unpacks: 150 classes, label 0 is not annotated.

ADEChallengeData2016/
  images/training/ADE_train_00000001.jpg       annotations/training/ADE_train_00000001.png
  images/validation/ADE_val_00000001.jpg       annotations/validation/ADE_val_00000001.png
  objectInfo150.txt                            class names, optional
"""

from pathlib import Path

import numpy as np

from tubelet.data.tables import read_lines
from tubelet.datasets.annotations import IGNORED
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, count_hidden_media, find_root, list_images
from tubelet.datasets.records import DenseSample, SegmentationDataset, check_samples
from tubelet.errors import DataError

CLASSES = 150
ARCHIVES = ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k/ADEChallengeData2016")
MARKERS = ("images/training", "annotations/training")


class Ade20k(Layout[SegmentationDataset]):
    """ADE20K, 150 classes."""

    record = SegmentationDataset
    expected = "ADE20K (images/training and annotations/training)"

    @staticmethod
    def detect(root: Path) -> bool:
        return find_root(root, ARCHIVES, MARKERS) is not None or _full_release(root) is not None

    @staticmethod
    def load(root: Path) -> SegmentationDataset:
        folder = find_root(root, ARCHIVES, MARKERS)
        if folder is None:
            remedy = "ADEChallengeData2016.zip of the scene parsing benchmark, 150 classes"
            raise layout_error(_full_release(root) or root, "full release of ADE20K", remedy)
        class_of_label = np.full(256, IGNORED, np.uint8)
        class_of_label[1 : CLASSES + 1] = np.arange(CLASSES)
        return SegmentationDataset(
            name="ADE20K",
            train=_split(folder, "training"),
            test=_split(folder, "validation"),
            excluded=count_hidden_media(folder / "images" / split for split in ("training", "validation")),
            classes=_class_names(folder / "objectInfo150.txt"),
            class_of_label=class_of_label,
            known_labels=np.arange(256) <= CLASSES,
        )


def _full_release(root: Path) -> Path | None:
    """Root of the full release, which has other annotations."""
    return next(
        (folder for folder in candidate_roots(root, ARCHIVES) if (folder / "images/ADE/training").is_dir()), None
    )


def _split(root: Path, split: str) -> list[DenseSample]:
    annotations = root / "annotations" / split
    samples = [
        DenseSample(name=image.stem, image=image, target=annotations / f"{image.stem}.png")
        for image in list_images(root / "images" / split)
    ]
    return check_samples(samples, split, root)


def _class_names(path: Path) -> tuple[str, ...]:
    """Class names from the file that comes with the data set; class numbers without it."""
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, CLASSES + 1))
    names = [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(path)[1:]]
    if len(names) != CLASSES:
        raise DataError(f"{path}: {len(names)} class names, expected {CLASSES}")
    return tuple(names)
