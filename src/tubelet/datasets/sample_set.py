"""The generated sample data set: its images and the middle frames of its clips, or the clips with their point tracks.

dataset.json                              what the set was made with, and its files
{train,val}/{images,videos}/NAME.*        media
{train,val}/truth/{images,videos}/NAME.npz
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.datasets.annotations import IGNORED
from tubelet.datasets.layout import Layout
from tubelet.datasets.records import (
    DenseSample,
    DepthDataset,
    PointTracks,
    SegmentationDataset,
    TrackedVideo,
    TrackingDataset,
    check_samples,
)
from tubelet.errors import DataError
from tubelet.io.text import read_text
from tubelet.sample_data.truth import (
    CLASSES,
    NAME,
    UNITS_PER_METER,
    VOID,
    read_description,
    read_index,
    read_truth,
)

MAX_DEPTH = 1830 / UNITS_PER_METER  # meters; floors and ceilings that are farther have no depth


class _Segmentation(SegmentationDataset):
    def read_values(self, sample: DenseSample) -> NDArray[np.uint8]:
        return read_truth(sample.target).classes[sample.frame or 0]


class _Depth(DepthDataset):
    def read_meters(self, sample: DenseSample) -> NDArray[Any]:
        return read_truth(sample.target).depth[sample.frame or 0] / self.units_per_meter


class _Tracking(TrackingDataset):
    def load_tracks(self, video: TrackedVideo) -> PointTracks:
        truth = read_truth(video.annotation)
        return PointTracks(truth.tracks, truth.visible, truth.classes.shape)


class SampleSegmentation(Layout[SegmentationDataset]):
    """Classes of the sample data set."""

    record = SegmentationDataset
    expected = "the sample data set (dataset.json, as `tubelet sample-data` writes)"

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
            units_per_meter=UNITS_PER_METER,
            max_depth=MAX_DEPTH,
            input_crop=None,
            eval_crop=(0, 0, 1, 1),
            input_height=_size(root),
            train_crop=(7 / 8, 7 / 8),
        )


class SampleTracking(Layout[TrackingDataset]):
    """Point tracks of the sample data set, in the clips that training does not use."""

    record = TrackingDataset
    expected = SampleSegmentation.expected

    @staticmethod
    def detect(root: Path) -> bool:
        return _is_sample_set(root)

    @staticmethod
    def load(root: Path) -> TrackingDataset:
        parameters = read_description(root)["parameters"]
        videos = [
            TrackedVideo(path=entry.media, annotation=entry.truth, motion=entry.motion.replace("_", " "))
            for entry in read_index(root, "val")
        ]
        if not videos:
            raise DataError(f"{root}: no val clips; make a larger set with `tubelet sample-data`")
        return _Tracking(name="sample set", test=videos, image_size=parameters["size"], frames=parameters["frames"])


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
