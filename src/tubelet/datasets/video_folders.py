"""Videos sorted into a folder for each class, for any labeled videos.

    train/CLASS/*.mp4, val/CLASS/*.mp4

The folders of the splits may have other usual names: training/, validation/, videos_train/, train_256/ and so on.
"""

from collections.abc import Iterator
from pathlib import Path

from tubelet.data.file_types import VIDEO_SUFFIXES
from tubelet.datasets.class_folders import has_classes, load_class_folders
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots
from tubelet.datasets.records import ClassificationDataset
from tubelet.datasets.video_lists import ARCHIVES, KINETICS_PROTOCOL, SPLITS


class VideoFolders(Layout[ClassificationDataset]):
    """Videos in a folder for each class."""

    record = ClassificationDataset
    expected = "folders of videos (train/CLASS/*.mp4 and val/CLASS/*.mp4)"
    priority = 2

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        folder = _root(root)
        if folder is None:
            raise layout_error(root, "no folders of videos", VideoFolders.expected)
        train, val = (next(split_folders(folder, split)) for split in SPLITS)
        return load_class_folders(root, "video folders", train, val, VIDEO_SUFFIXES, KINETICS_PROTOCOL)


def split_folders(root: Path, split: str) -> Iterator[Path]:
    """Folders in which the videos of a split may lie."""
    for name in SPLITS[split]:
        for folder in (name, f"videos_{name}", f"{name}_256", f"videos/{name}", f"{name}_videos"):
            if (root / folder).is_dir():
                yield root / folder


def _root(root: Path) -> Path | None:
    folders = candidate_roots(root, ARCHIVES)
    return next((folder for folder in folders if all(_has_videos(folder, split) for split in SPLITS)), None)


def _has_videos(root: Path, split: str) -> bool:
    folder = next(split_folders(root, split), None)
    return folder is not None and has_classes(folder, VIDEO_SUFFIXES)
