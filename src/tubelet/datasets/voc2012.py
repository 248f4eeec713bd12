"""Pascal VOC 2012 as its trainval archive unpacks: 20 classes and the background, 255 is a border or difficult.

VOCdevkit/VOC2012/
  JPEGImages/2007_000032.jpg ...     SegmentationClass/2007_000032.png ...
  ImageSets/Segmentation/train.txt, val.txt
"""

from pathlib import Path

import numpy as np

from tubelet.datasets.labels import SegmentationDataset
from tubelet.datasets.locate import find_root, refuse
from tubelet.datasets.pairs import IGNORED, DenseSample, check_pairs, read_list

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
_ARCHIVES = ("VOCtrainval_11-May-2012", "TrainVal", "VOC2012_train_val", "VOC2012_train_val/VOC2012_train_val")
INSIDE = (*_DEVKIT, *(f"{archive}/{inside}" for archive in _ARCHIVES for inside in _DEVKIT), *_ARCHIVES)
MARKERS = ("ImageSets/Segmentation", "JPEGImages")


def read(data: Path) -> SegmentationDataset | None:
    """The benchmark, or None if the folder is not one of Pascal VOC.

    Raises:
        TubeletError: if a list cannot be read or is empty, or a file that it names is missing.
    """
    root = find_root(data, INSIDE, MARKERS)
    if root is None:
        return None
    if not (root / "SegmentationClass").is_dir():
        raise refuse(root, "no SegmentationClass", "JPEGImages, SegmentationClass and ImageSets/Segmentation")
    table = np.full(256, IGNORED, np.uint8)
    table[: len(CLASSES)] = np.arange(len(CLASSES))
    legal = np.arange(256) < len(CLASSES)
    legal[IGNORED] = True
    return SegmentationDataset(
        benchmark="Pascal VOC 2012",
        train=_split(root, "train"),
        test=_split(root, "val"),
        left_out={},
        classes=CLASSES,
        table=table,
        legal=legal,
    )


def _split(root: Path, split: str) -> list[DenseSample]:
    names = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    pairs = [
        DenseSample(
            name=name,
            image=root / "JPEGImages" / f"{name}.jpg",
            target=root / "SegmentationClass" / f"{name}.png",
        )
        for name in names
    ]
    return check_pairs(pairs, split, root)
