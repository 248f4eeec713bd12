"""The sample set as it is rendered: its images, and the middle frame of each of its clips."""

from pathlib import Path

import numpy as np

from tubelet.datasets.depths import DepthDataset
from tubelet.datasets.labels import SegmentationDataset
from tubelet.datasets.pairs import IGNORED, DenseSample, check_pairs
from tubelet.io.text import read_text
from tubelet.sample_data.truth import CLASSES, NAME, UNITS_PER_METRE, VOID, read_description, read_index

BENCHMARK = "sample set"
MAX_DEPTH = 1830 / UNITS_PER_METRE  # metres; farther floors and ceilings have no depth


def read_classes(data: Path) -> SegmentationDataset | None:
    """The set with the classes of its pixels, or None if the folder is not a sample set.

    Raises:
        TubeletError: if it is one of another format, or a file is missing.
    """
    if not _is_sample_set(data):
        return None
    table = np.full(256, IGNORED, np.uint8)
    kept = [number for number in range(len(CLASSES)) if number != VOID]
    table[kept] = np.arange(len(kept))
    return SegmentationDataset(
        benchmark=BENCHMARK,
        train=pairs(data, "train"),
        test=pairs(data, "val"),
        left_out={},
        classes=tuple(CLASSES[number] for number in kept),
        table=table,
        legal=np.arange(256) < len(CLASSES),
        image_size=_size(data),
    )


def read_depths(data: Path) -> DepthDataset | None:
    """The set with the depth of its pixels, or None if the folder is not a sample set.

    Raises:
        TubeletError: if it is one of another format, or a file is missing.
    """
    if not _is_sample_set(data):
        return None
    return DepthDataset(
        benchmark=BENCHMARK,
        train=pairs(data, "train"),
        test=pairs(data, "val"),
        left_out={},
        scale=1,
        max_depth=MAX_DEPTH,
        seen=None,
        scored=(0, 0, 1, 1),
        height=_size(data),
        crop=(7 / 8, 7 / 8),
    )


def pairs(data: Path, split: str) -> list[DenseSample]:
    """The images of a split, and the middle frames of its clips.

    Raises:
        TubeletError: if there is none, or a file is missing.
    """
    middle = int(read_description(data)["parameters"]["frames"]) // 2
    found = [
        DenseSample(
            name=f"{kind}/{entry.media.stem}",
            image=entry.media,
            target=entry.truth,
            frame=middle if kind == "videos" else None,
        )
        for kind in ("images", "videos")
        for entry in read_index(data, split, kind)
    ]
    return check_pairs(found, split, data)


def _is_sample_set(data: Path) -> bool:
    path = data / "dataset.json"
    return path.is_file() and NAME in read_text(path)


def _size(data: Path) -> int:
    return int(read_description(data)["parameters"]["size"])
