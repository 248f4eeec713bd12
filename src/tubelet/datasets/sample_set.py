"""The generated sample data set: its images, and the middle frame of each of its clips.

dataset.json                              what the set was made with, and its files
{train,val}/{images,videos}/NAME.*        media
{train,val}/truth/{images,videos}/NAME.npz
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.datasets.annotations import IGNORED
from tubelet.datasets.records import DenseSample, DepthDataset, SegmentationDataset, check_samples
from tubelet.datasets.registry import Layout
from tubelet.io.text import read_text
from tubelet.sample_data.truth import (
    CLASSES,
    NAME,
    UNITS_PER_METRE,
    VOID,
    read_description,
    read_index,
    read_truth,
)

MAX_DEPTH = 1830 / UNITS_PER_METRE  # meters; floors and ceilings that are farther have no depth


class _Segmentation(SegmentationDataset):
    def read_values(self, sample: DenseSample) -> NDArray[np.uint8]:
        return read_truth(sample.target).classes[sample.frame or 0]


class _Depth(DepthDataset):
    def read_meters(self, sample: DenseSample) -> NDArray[Any]:
        return read_truth(sample.target).depth[sample.frame or 0] / self.units_per_meter


class SampleSegmentation(Layout[SegmentationDataset]):
    """Classes of the sample data set."""

    record = SegmentationDataset
    expected = "the sample data set (dataset.json)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _is_sample_set(root)

    @staticmethod
    def load(root: Path) -> SegmentationDataset:
        class_of_label = np.full(256, IGNORED, np.uint8)
        evaluated = [number for number in range(len(CLASSES)) if number != VOID]
        class_of_label[evaluated] = np.arange(len(evaluated))
        return _Segmentation(
            name="sample set",
            train=_split(root, "train"),
            test=_split(root, "val"),
            classes=tuple(CLASSES[number] for number in evaluated),
            class_of_label=class_of_label,
            known_labels=np.arange(256) < len(CLASSES),
            image_size=_size(root),
        )


class SampleDepth(Layout[DepthDataset]):
    """Depth of the sample data set."""

    record = DepthDataset
    expected = SampleSegmentation.expected

    @staticmethod
    def detect(root: Path) -> bool:
        return _is_sample_set(root)

    @staticmethod
    def load(root: Path) -> DepthDataset:
        return _Depth(
            name="sample set",
            train=_split(root, "train"),
            test=_split(root, "val"),
            units_per_meter=UNITS_PER_METRE,
            max_depth=MAX_DEPTH,
            input_crop=None,
            eval_crop=(0, 0, 1, 1),
            input_height=_size(root),
            train_crop=(7 / 8, 7 / 8),
        )


def _split(root: Path, split: str) -> list[DenseSample]:
    middle = int(read_description(root)["parameters"]["frames"]) // 2
    samples = [
        DenseSample(
            name=f"{kind}/{entry.media.stem}",
            image=entry.media,
            target=entry.truth,
            frame=middle if kind == "videos" else None,
        )
        for kind in ("images", "videos")
        for entry in read_index(root, split, kind)
    ]
    return check_samples(samples, split, root)


def _is_sample_set(root: Path) -> bool:
    path = root / "dataset.json"
    return path.is_file() and NAME in read_text(path)


def _size(root: Path) -> int:
    return int(read_description(root)["parameters"]["size"])
