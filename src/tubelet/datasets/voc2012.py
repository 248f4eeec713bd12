"""Pascal VOC 2012 as its trainval archive unpacks: 20 classes and the background; label 255 is a border or difficult.

VOCdevkit/VOC2012/
  JPEGImages/2007_000032.jpg
  SegmentationClass/2007_000032.png
  ImageSets/Segmentation/train.txt, val.txt
"""

from pathlib import Path

import numpy as np

from tubelet.datasets.annotations import IGNORED, read_nonempty_lines
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import find_root
from tubelet.datasets.records import DenseSample, SegmentationDataset, check_samples

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
_DEVKIT = ("VOCdevkit/VOC2012", "VOC2012", "pascal_voc/VOCdevkit/VOC2012")
_ZIPS = ("VOCtrainval_11-May-2012", "TrainVal", "VOC2012_train_val", "VOC2012_train_val/VOC2012_train_val")
ARCHIVES = (*_DEVKIT, *(f"{archive}/{inside}" for archive in _ZIPS for inside in _DEVKIT), *_ZIPS)
MARKERS = ("ImageSets/Segmentation", "JPEGImages")


class PascalVoc2012(Layout[SegmentationDataset]):
    """Pascal VOC 2012, 21 classes."""

    record = SegmentationDataset
    expected = "Pascal VOC 2012 (ImageSets/Segmentation and JPEGImages)"

    @staticmethod
    def detect(root: Path) -> bool:
        return find_root(root, ARCHIVES, MARKERS) is not None

    @staticmethod
    def load(root: Path) -> SegmentationDataset:
        root = find_root(root, ARCHIVES, MARKERS) or root
        if not (root / "SegmentationClass").is_dir():
            raise layout_error(root, "no SegmentationClass", "JPEGImages, SegmentationClass and ImageSets/Segmentation")
        class_of_label = np.full(256, IGNORED, np.uint8)
        class_of_label[: len(CLASSES)] = np.arange(len(CLASSES))
        known_labels = np.arange(256) < len(CLASSES)
        known_labels[IGNORED] = True
        return SegmentationDataset(
            name="Pascal VOC 2012",
            train=_split(root, "train"),
            test=_split(root, "val"),
            classes=CLASSES,
            class_of_label=class_of_label,
            known_labels=known_labels,
        )


def _split(root: Path, split: str) -> list[DenseSample]:
    samples = [
        DenseSample(
            name=name,
            image=root / "JPEGImages" / f"{name}.jpg",
            target=root / "SegmentationClass" / f"{name}.png",
        )
        for name in read_nonempty_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    ]
    return check_samples(samples, split, root)
