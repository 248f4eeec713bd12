"""Lists of video paths and classes, for any labeled videos.

    train.csv, val.csv         train/abseiling/0wR5jVB-WPk_000417_000427.mp4 0

Classes are numbers from 0, or names. Columns may be separated by spaces, commas, tabs, semicolons or '::'; a header may
name them (path, label); relative paths start at the directory. V-JEPA and other codebases distribute Kinetics and
Something-Something v2 in this form, so the lists may have their names, for instance validate.csv,
kinetics400_val_list_videos.txt or ssv2_train_paths.csv, and lie in annotations/ or lists/.
"""

import re
from pathlib import Path

from tubelet.data.file_types import IMAGE_SUFFIXES
from tubelet.data.tables import read_first_lines
from tubelet.datasets.annotations import class_count, parse_index, read_labeled_paths
from tubelet.datasets.class_folders import own_name
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, entry_names, find_folder, subfolders
from tubelet.datasets.records import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.errors import DataError

SPLITS = {"train": ("train", "training"), "val": ("val", "validate", "validation")}
KINETICS = ("kinetics400", "kinetics600", "kinetics700", "kinetics700-2020", "kinetics")
ARCHIVES = ("k400", "k600", "k700", "k700-2020", *KINETICS)
_PREFIX = r"(?:(?:kinetics|k|ssv|sthv)[-_]?\d*(?:[-_]2020)?[-_])?"
_FILE_NAME = _PREFIX + r"(?:{})(?:_?list)?(?:_videos|_paths)?\.(?:csv|txt|tsv)"
_NUMBER = re.compile(r"[+-]?[\d.]+")
KINETICS_PROTOCOL = ProbeProtocol(segments=8, views=3)


class VideoLists(Layout[ClassificationDataset]):
    """Videos by lists of paths and classes."""

    record = ClassificationDataset
    expected = "lists of videos (train.csv and val.csv with a path and a class on each line)"
    priority = 1

    @staticmethod
    def detect(root: Path) -> bool:
        lists = find_lists(root)
        return lists is not None and not any(map(_lists_images, lists[1:]))

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        located = find_lists(root)
        if located is None:
            split = "val" if find_list(root, "train") else "train"
            raise layout_error(root, f"no list of the {split} split", VideoLists.expected)
        named, (root, train, val) = root, located
        lists = {path: read_labeled_paths(path, root) for path in (train, val)}
        classes, numbers = _classes({path: rows for path, (rows, _) in lists.items()})
        trained = {numbers[label] for _, _, label in lists[train][0]}
        for _, video, label in lists[val][0]:
            if numbers[label] not in trained:
                raise DataError(f"{val}: {video} has class {label}, of which {train} has no video")
        files = {
            path: [LabeledFile(path=video, label=numbers[label]) for _, video, label in rows]
            for path, (rows, _) in lists.items()
        }
        return ClassificationDataset(
            name=own_name(named, len(trained), "video lists"),
            classes=classes,
            train=files[train],
            test=files[val],
            protocol=KINETICS_PROTOCOL,
            list_format="; ".join(f"{path.name} was read as {form}" for path, (_, form) in lists.items()),
        )


def _classes(lists: dict[Path, list[tuple[int, Path, str]]]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the class index of each label in lists of (line, file, label)."""
    labels = {label for rows in lists.values() for _, _, label in rows}
    if "" not in labels and not any(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels)), {label: number for number, label in enumerate(sorted(labels))}
    numbers: dict[str, int] = {}
    folders: dict[int, str] = {}
    for path, rows in lists.items():
        for line, video, label in rows:
            numbers[label] = parse_index(label, f"{path}: line {line}, class number")
            folders.setdefault(numbers[label], video.parent.name or label)
    # Names of parent folders are class names only if there is one for each class.
    named = len(set(folders.values())) == len(folders)
    count = class_count(folders, " and ".join(map(str, lists)))
    return tuple(folders.get(k, str(k)) if named else str(k) for k in range(count)), numbers


def find_lists(root: Path) -> tuple[Path, Path, Path] | None:
    """The first candidate root that has lists of both splits, and those lists."""
    for folder in candidate_roots(root, ARCHIVES):
        train, val = (find_list(folder, split) for split in SPLITS)
        if train is not None and val is not None:
            return folder, train, val
    return None


def find_list(root: Path, split: str) -> Path | None:
    """The list of a split; of several, the one whose name is closest to SPLIT.csv."""
    pattern = re.compile(_FILE_NAME.format("|".join(SPLITS[split])), re.IGNORECASE)
    named = [find_folder(subfolders(place), name) for place in (root / "annotations", root) for name in KINETICS]
    for folder in (root / "annotations", root, root / "lists", root / "labels", *named):
        if folder is not None and folder.is_dir():
            names = (name for name in entry_names(folder) if pattern.fullmatch(name))
            paths = [folder / name for name in names if (folder / name).is_file()]
            if paths:
                return min(paths, key=lambda path: (path.suffix != ".csv", len(path.name), path.name))
    return None


def has_kinetics_header(path: Path) -> bool:
    """Whether a list starts with the header of the official annotations of Kinetics."""
    return "youtube_id" in read_first_lines(path)[0].lower()


def _lists_images(path: Path) -> bool:
    """Whether a list names images, as ImageNet's train.txt and val.txt do."""
    names = re.split(r'[\s,;"]+', "\n".join(read_first_lines(path)[:2]).lower())
    return any(Path(name).suffix in IMAGE_SUFFIXES for name in names)
