"""Cityscapes as leftImg8bit_trainvaltest and gtFine_trainvaltest unpack: 34 labels, of which 19 are evaluated.

    leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png

Each of the two may lie in a folder of its archive's name (leftImg8bit_trainvaltest, gtFine_trainvaltest).
"""

from pathlib import Path

import numpy as np

from tubelet.datasets.annotations import IGNORED
from tubelet.datasets.layout import Layout
from tubelet.datasets.locate import candidate_roots, glob_visible
from tubelet.datasets.records import DenseSample, SegmentationDataset, check_samples
from tubelet.errors import MissingFileError

# Evaluated labels, in the order of their train IDs.
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
IMAGES, LABELS_FOLDER = "leftImg8bit", "gtFine"
IMAGE_SUFFIX, LABEL_SUFFIX = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(Layout[SegmentationDataset]):
    """Cityscapes with fine annotations, 19 classes."""

    record = SegmentationDataset
    expected = f"Cityscapes ({IMAGES} and {LABELS_FOLDER})"

    @staticmethod
    def detect(root: Path) -> bool:
        return _folders(root) is not None

    @staticmethod
    def load(root: Path) -> SegmentationDataset:
        images, labels = _folders(root) or (root / IMAGES, root / LABELS_FOLDER)
        class_of_label = np.full(256, IGNORED, np.uint8)
        class_of_label[list(LABELS)] = np.arange(len(LABELS))
        known_labels = np.arange(256) <= LAST_LABEL
        known_labels[IGNORED] = True
        return SegmentationDataset(
            name="Cityscapes",
            train=_split(images, labels, "train"),
            test=_split(images, labels, "val"),
            classes=tuple(LABELS.values()),
            class_of_label=class_of_label,
            known_labels=known_labels,
        )


def _folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of images and of labels."""
    pairs = (
        (_folder(folder, IMAGES), _folder(folder, LABELS_FOLDER)) for folder in candidate_roots(root, ("cityscapes",))
    )
    return next(((images, labels) for images, labels in pairs if images and labels), None)


def _folder(root: Path, name: str) -> Path | None:
    folders = (root / f"{name}{archive}" for archive in ("", f"_trainvaltest/{name}"))
    return next((folder for folder in folders if (folder / "train").is_dir() or (folder / "val").is_dir()), None)


def _split(images: Path, labels: Path, split: str) -> list[DenseSample]:
    samples = []
    for image in glob_visible(images / split, f"*/*{IMAGE_SUFFIX}"):
        name = image.name.removesuffix(IMAGE_SUFFIX)
        target = labels / split / image.parent.name / f"{name}{LABEL_SUFFIX}"
        samples.append(DenseSample(name=name, image=image, target=target))
    if samples and not samples[0].target.is_file():
        others = glob_visible(samples[0].target.parent, f"{samples[0].name}_gtFine_*.png")
        if others:
            raise MissingFileError(
                f"{samples[0].target}: missing, but {others[0].name} exists; expected the label IDs of "
                "gtFine_trainvaltest.zip"
            )
    return check_samples(samples, split, images)
