"""Kinetics-400, 600 and 700 (Kay et al., arXiv 1705.06950) by their official annotations.

    annotations/train.csv, annotations/val.csv     label,youtube_id,time_start,time_end,split
    train/abseiling/0wR5jVB-WPk_000417_000427.mp4  or train/0wR5jVB-WPk_000417_000427.mp4, or train/0wR5jVB-WPk.mp4

The lists may have the other names and places of `video_lists`; videos may lie in videos_train/, train_256/ or all in
one folder. Copies of Kinetics without official annotations are read by `video_lists` and `video_folders`.
"""

from pathlib import Path

from tubelet.data.tables import read_table
from tubelet.datasets.annotations import parse_index
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import index_videos
from tubelet.datasets.records import ClassificationDataset, LabeledFile
from tubelet.datasets.video_folders import split_folders
from tubelet.datasets.video_lists import KINETICS_PROTOCOL, find_lists, has_kinetics_header
from tubelet.errors import DataError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class Kinetics(Layout[ClassificationDataset]):
    """Kinetics-400, 600 and 700."""

    record = ClassificationDataset
    expected = f"Kinetics (annotations/train.csv and val.csv with columns {', '.join(_COLUMNS)})"

    @staticmethod
    def detect(root: Path) -> bool:
        lists = find_lists(root)
        return lists is not None and any(map(has_kinetics_header, lists[1:]))

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        located = find_lists(root)
        if located is None:
            raise layout_error(root, "no annotations", Kinetics.expected)
        root, *lists = located
        for path in lists:
            if not has_kinetics_header(path):
                raise DataError(f"{path}: no header, expected columns {', '.join(_COLUMNS)} as in the other split")
        rows = {split: read_table(path, _COLUMNS) for split, path in zip(("train", "val"), lists, strict=True)}
        classes = sorted({row["label"] for _, row in rows["train"]})
        numbers = {name: number for number, name in enumerate(classes)}
        train, val = (_split(root, split, path, rows[split], numbers) for split, path in zip(rows, lists, strict=True))
        return ClassificationDataset(
            name=f"Kinetics ({len(classes)} classes), validation",
            classes=tuple(classes),
            train=train,
            test=val,
            protocol=KINETICS_PROTOCOL,
        )


def _split(
    root: Path, split: str, path: Path, rows: list[tuple[int, dict[str, str]]], numbers: dict[str, int]
) -> list[LabeledFile]:
    videos = index_videos(root, [*split_folders(root, split), root / "replacement"], preferred=".mp4")
    files = []
    for line, row in rows:
        if row["label"] not in numbers:
            raise DataError(f"{path}: line {line} has the class {row['label']!r}, which the train split does not have")
        # Some lists write whole seconds with a decimal point.
        start, end = (
            parse_index(row[column].removesuffix(".0"), f"{path}: line {line}, {column}") for column in _COLUMNS[2:]
        )
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        names = (stem, row["youtube_id"], f"{row['youtube_id']}_{start}_{end}")
        video = next((videos[name] for name in names if name in videos), None)
        expected = root / split / row["label"] / f"{stem}.mp4"
        files.append(LabeledFile(path=video or expected, label=numbers[row["label"]]))
    return files
