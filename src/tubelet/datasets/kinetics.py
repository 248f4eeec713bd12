"""Kinetics-400, 600 and 700 (Kay et al., arXiv 1705.06950), in the three forms that are about.

The official annotations, beside videos in a folder for each split, sorted into folders by class or not:

    annotations/train.csv, annotations/val.csv     label,youtube_id,time_start,time_end,split
    train/abseiling/0wR5jVB-WPk_000417_000427.mp4  or train/0wR5jVB-WPk_000417_000427.mp4, or train/0wR5jVB-WPk.mp4

Or lists of a path and the number of its class, as V-JEPA's and many other codebases make them:

    train.csv, val.csv                             train/abseiling/0wR5jVB-WPk_000417_000427.mp4 0

whose columns may be separated by spaces, commas, tabs, semicolons or '::'; a relative path starts at the folder. Or,
where there are no lists, videos in train/CLASS and val/CLASS.

Lists may also be called validate.csv or validation.csv, kinetics_train.csv or kinetics400_val_list_videos.txt, and lie
in the folder, in annotations/ or in lists/; videos may lie in videos_train/, train_256/ or all in one folder.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tubelet.data.suffixes import VIDEO_SUFFIXES
from tubelet.data.tables import decode_list, read_table
from tubelet.datasets.labelled import ClassificationDataset, LabeledFile, read_numbered, whole_number
from tubelet.datasets.locate import class_folders, entries_of, media_in, named_folder, refuse, roots, stems_of
from tubelet.errors import TubeletError
from tubelet.io.text import read_bytes

SPLITS = {"train": ("train", "training"), "val": ("val", "validate", "validation")}
_NAMES = ("kinetics400", "kinetics600", "kinetics700", "kinetics700-2020", "kinetics")
_INSIDE = ("k400", "k600", "k700", "k700-2020", *_NAMES)
# Something-Something is passed about in lists of this form as well.
_OWNER = r"(?:(?:kinetics|k|ssv|sthv)[-_]?\d*(?:[-_]2020)?[-_])?"
_LIST = _OWNER + r"(?:{})(?:_?list)?(?:_videos|_paths)?\.(?:csv|txt|tsv)"
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return _root(data) is not None


def read(data: Path) -> ClassificationDataset:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    root = _root(data)
    if root is None:
        known = next((split for split in SPLITS if split_list(data, split) is not None), None)
        lacking = next(split for split in SPLITS if split != known)
        raise refuse(data, f"no list of the {lacking} split", f"annotations/{lacking}.csv, or {lacking}.csv")
    train, val = (split_list(root, split) for split in SPLITS)
    if train is None or val is None:
        return _sorted(root)
    if _is_official(train) != _is_official(val):
        raise TubeletError(f"{val}: is in another form than {train}; expected both with a header, or both without")
    return _official(root, train, val) if _is_official(train) else _numbered(root, train, val)


def _root(data: Path) -> Path | None:
    places = list(roots(data, _INSIDE))
    lists = (root for root in places if all(split_list(root, split) is not None for split in SPLITS))
    folders = (root for root in places if all(_has_class_folders(root, split) for split in SPLITS))
    return next(lists, None) or next(folders, None)


def split_list(data: Path, split: str) -> Path | None:
    """The list of a split; of several, that which is called most like the official one."""
    pattern = re.compile(_LIST.format("|".join(SPLITS[split])), re.IGNORECASE)
    named = [named_folder(class_folders(place), name) for place in (data / "annotations", data) for name in _NAMES]
    for folder in (data / "annotations", data, data / "lists", data / "labels", *named):
        if folder is not None and folder.is_dir():
            found = [path for path in entries_of(folder) if path.is_file() and pattern.fullmatch(path.name)]
            if found:
                return min(found, key=lambda path: (path.suffix != ".csv", len(path.name), path.name))
    return None


def _split_folders(data: Path, split: str) -> Iterator[Path]:
    """Where the videos of a split may lie."""
    for name in SPLITS[split]:
        for folder in (name, f"videos_{name}", f"{name}_256", f"videos/{name}", f"{name}_videos"):
            if (data / folder).is_dir():
                yield data / folder


def _has_class_folders(data: Path, split: str) -> bool:
    folder = next(_split_folders(data, split), None)
    return folder is not None and any(any(media_in(own, VIDEO_SUFFIXES)) for own in class_folders(folder)[:1])


def _is_official(path: Path) -> bool:
    first = decode_list(read_bytes(path), path).lstrip("\ufeff\n").split("\n", 1)[0]
    return "youtube_id" in first.lower()


def _official(data: Path, train: Path, val: Path) -> ClassificationDataset:
    rows = {"train": read_table(train, _COLUMNS), "val": read_table(val, _COLUMNS)}
    classes = sorted({row["label"] for _, row in rows["train"]})
    numbers = {name: number for number, name in enumerate(classes)}
    files: dict[str, list[LabeledFile]] = {}
    for split, path in (("train", train), ("val", val)):
        folders = [*_split_folders(data, split), data / "replacement"]
        there = stems_of(folders, VIDEO_SUFFIXES, first=".mp4") or stems_of([data], VIDEO_SUFFIXES, first=".mp4")
        files[split] = []
        for number, row in rows[split]:
            if row["label"] not in numbers:
                raise TubeletError(f"{path}: line {number} has the class {row['label']!r}, which {train} has not")
            start, end = (_second(row[column], f"{path}: line {number}, {column}") for column in _COLUMNS[2:])
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            names = (stem, row["youtube_id"], f"{row['youtube_id']}_{start}_{end}")
            video = next((there[name] for name in names if name in there), None)
            files[split].append(
                LabeledFile(
                    path=video or data / split / row["label"] / f"{stem}.mp4",
                    label=numbers[row["label"]],
                )
            )
    name = f"Kinetics ({len(classes)} classes), validation"
    return ClassificationDataset(name=name, classes=tuple(classes), train=files["train"], val=files["val"])


def _second(text: str, where: str) -> int:
    """A time in whole seconds, which some lists write with a decimal point."""
    return whole_number(text.removesuffix(".0"), where)


def _numbered(data: Path, train: Path, val: Path) -> ClassificationDataset:
    files: dict[Path, list[LabeledFile]] = {}
    names: dict[int, str] = {}
    forms = []
    for path in (train, val):
        rows, form = read_numbered(path, data)
        files[path] = [LabeledFile(path=video, label=label) for _, video, label in rows]
        forms.append(f"{path.name} was read as {form}")
        for _, video, label in rows:
            names.setdefault(label, video.parent.name or str(label))
    known = {file.label for file in files[train]}
    for file in files[val]:
        if file.label not in known:
            raise TubeletError(f"{val}: {file.path} is of class {file.label}, of which {train} has no video")
    # Videos that are not sorted by class have folders that name none.
    named = len(set(names.values())) == len(names)
    classes = tuple(names.get(k, str(k)) if named else str(k) for k in range(max(known) + 1))
    name = f"Kinetics ({len(known)} classes), validation"
    return ClassificationDataset(
        name=name, classes=classes, train=files[train], val=files[val], read_as="; ".join(forms)
    )


def _sorted(data: Path) -> ClassificationDataset:
    """Videos in folders by class, without lists."""
    folders = {split: class_folders(next(_split_folders(data, split))) for split in SPLITS}
    classes = [folder.name for folder in folders["train"]]
    files: dict[str, list[LabeledFile]] = {split: [] for split in SPLITS}
    for split, own in folders.items():
        for folder in own:
            if folder.name not in classes:
                raise TubeletError(f"{folder}: a class that {folders['train'][0].parent} has no folder of")
            label = classes.index(folder.name)
            files[split] += [LabeledFile(path=video, label=label) for video in media_in(folder, VIDEO_SUFFIXES)]
    name = f"Kinetics ({len(classes)} classes), validation"
    return ClassificationDataset(name=name, classes=tuple(classes), train=files["train"], val=files["val"])
