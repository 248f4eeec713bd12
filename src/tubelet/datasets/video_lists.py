"""Lists of video paths and class numbers, for any labeled videos.

    train.csv, val.csv         train/abseiling/0wR5jVB-WPk_000417_000427.mp4 0

Columns may be separated by spaces, commas, tabs, semicolons or '::'; relative paths start at the directory. V-JEPA and
other codebases distribute Kinetics and Something-Something v2 in this form, so the lists may have their names, for
instance validate.csv, kinetics400_val_list_videos.txt or ssv2_train_paths.csv, and lie in annotations/ or lists/.
"""

import re
from pathlib import Path

from tubelet.data.tables import decode_list
from tubelet.datasets.annotations import read_labeled_paths
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, find_folder, list_directory, subfolders
from tubelet.datasets.records import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.errors import DataError
from tubelet.io.text import read_bytes

SPLITS = {"train": ("train", "training"), "val": ("val", "validate", "validation")}
KINETICS = ("kinetics400", "kinetics600", "kinetics700", "kinetics700-2020", "kinetics")
ARCHIVES = ("k400", "k600", "k700", "k700-2020", *KINETICS)
_PREFIX = r"(?:(?:kinetics|k|ssv|sthv)[-_]?\d*(?:[-_]2020)?[-_])?"
_FILE_NAME = _PREFIX + r"(?:{})(?:_?list)?(?:_videos|_paths)?\.(?:csv|txt|tsv)"
KINETICS_PROTOCOL = ProbeProtocol(segments=8, views=3)


class VideoLists(Layout[ClassificationDataset]):
    """Videos by lists of paths and class numbers."""

    record = ClassificationDataset
    expected = "lists of videos (train.csv and val.csv with a path and a class number on each line)"
    priority = 1

    @staticmethod
    def detect(root: Path) -> bool:
        return find_lists(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        found = find_lists(root)
        if found is None:
            split = "val" if find_list(root, "train") else "train"
            raise layout_error(root, f"no list of the {split} split", VideoLists.expected)
        root, train, val = found
        files: dict[Path, list[LabeledFile]] = {}
        names: dict[int, str] = {}
        formats = []
        for path in (train, val):
            rows, form = read_labeled_paths(path, root)
            files[path] = [LabeledFile(path=video, label=label) for _, video, label in rows]
            formats.append(f"{path.name} was read as {form}")
            for _, video, label in rows:
                names.setdefault(label, video.parent.name or str(label))
        labels = {file.label for file in files[train]}
        for file in files[val]:
            if file.label not in labels:
                raise DataError(f"{val}: {file.path} has class {file.label}, of which {train} has no video")
        # Names of parent folders are class names only if there is one for each class.
        named = len(set(names.values())) == len(names)
        return ClassificationDataset(
            name=f"video lists ({len(labels)} classes)",
            classes=tuple(names.get(k, str(k)) if named else str(k) for k in range(max(labels) + 1)),
            train=files[train],
            test=files[val],
            protocol=KINETICS_PROTOCOL,
            list_format="; ".join(formats),
        )


def find_lists(root: Path) -> tuple[Path, Path, Path] | None:
    """The first candidate root that has lists of both splits, and those lists."""
    for place in candidate_roots(root, ARCHIVES):
        train, val = (find_list(place, split) for split in SPLITS)
        if train is not None and val is not None:
            return place, train, val
    return None


def find_list(root: Path, split: str) -> Path | None:
    """The list of a split; of several, the one whose name is closest to SPLIT.csv."""
    pattern = re.compile(_FILE_NAME.format("|".join(SPLITS[split])), re.IGNORECASE)
    named = [find_folder(subfolders(place), name) for place in (root / "annotations", root) for name in KINETICS]
    for folder in (root / "annotations", root, root / "lists", root / "labels", *named):
        if folder is not None and folder.is_dir():
            found = [path for path in list_directory(folder) if path.is_file() and pattern.fullmatch(path.name)]
            if found:
                return min(found, key=lambda path: (path.suffix != ".csv", len(path.name), path.name))
    return None


def has_kinetics_header(path: Path) -> bool:
    """Whether a list starts with the header of the official annotations of Kinetics."""
    first = decode_list(read_bytes(path), path).lstrip("\ufeff\n").split("\n", 1)[0]
    return "youtube_id" in first.lower()
