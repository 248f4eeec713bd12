"""Videos sorted into a folder for each class, for any labeled videos.

    train/CLASS/*.mp4, val/CLASS/*.mp4

The folders of the splits may have other usual names: training/, validation/, videos_train/, train_256/ and so on.
"""

from collections.abc import Iterator
from pathlib import Path

from tubelet.data.suffixes import VIDEO_SUFFIXES
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, media_files, subfolders
from tubelet.datasets.records import ClassificationDataset, LabeledFile
from tubelet.datasets.video_lists import ARCHIVES, KINETICS_PROTOCOL, SPLITS
from tubelet.errors import DataError


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
        found = _root(root)
        if found is None:
            raise layout_error(root, "no folders of videos", VideoFolders.expected)
        folders = {split: subfolders(next(split_folders(found, split))) for split in SPLITS}
        classes = [folder.name for folder in folders["train"]]
        files: dict[str, list[LabeledFile]] = {split: [] for split in SPLITS}
        for split, own in folders.items():
            for folder in own:
                if folder.name not in classes:
                    raise DataError(f"{folder}: class without a folder in {folders['train'][0].parent}")
                label = classes.index(folder.name)
                files[split] += [LabeledFile(path=video, label=label) for video in media_files(folder, VIDEO_SUFFIXES)]
        return ClassificationDataset(
            name=f"video folders ({len(classes)} classes)",
            classes=tuple(classes),
            train=files["train"],
            test=files["val"],
            protocol=KINETICS_PROTOCOL,
        )


def split_folders(root: Path, split: str) -> Iterator[Path]:
    """Folders in which the videos of a split may lie."""
    for name in SPLITS[split]:
        for folder in (name, f"videos_{name}", f"{name}_256", f"videos/{name}", f"{name}_videos"):
            if (root / folder).is_dir():
                yield root / folder


def _root(root: Path) -> Path | None:
    places = candidate_roots(root, ARCHIVES)
    return next((place for place in places if all(_has_classes(place, split) for split in SPLITS)), None)


def _has_classes(root: Path, split: str) -> bool:
    folder = next(split_folders(root, split), None)
    return folder is not None and any(any(media_files(own, VIDEO_SUFFIXES)) for own in subfolders(folder)[:1])
