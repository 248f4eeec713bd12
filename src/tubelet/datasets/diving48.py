"""Diving-48 (Li et al., ECCV 2018) with the cleaned labels of its second version, as its download unpacks.

Diving48_V2_train.json   [{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}, ...]
Diving48_V2_test.json    the same
Diving48_vocab.json      [["Back", "15som", "05Twis", "FREE"], ...], a dive for each number
rgb/-mmq0PT-u8k_00155.mp4

The JSON files may also lie in annotations/ or labels/, the videos in videos/ or beside the lists, in any container.
"""

from pathlib import Path
from typing import TypedDict

from tubelet.data.suffixes import VIDEO_SUFFIXES
from tubelet.datasets.labelled import ClassificationDataset, LabeledFile, whole_number
from tubelet.datasets.locate import refuse, roots, stems_of
from tubelet.errors import TubeletError
from tubelet.io.text import read_json

TRAIN, TEST, VOCABULARY, VIDEOS = "Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json", "rgb"
_INSIDE = ("diving48",)
_LISTS = ("annotations", "labels")
_FOLDERS = (VIDEOS, "Diving48_rgb", "videos")


class _Entry(TypedDict):
    """One video of a split."""

    vid_name: str
    label: int


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return _root(data) is not None


def _root(data: Path) -> Path | None:
    lists = (data / name for data in roots(data, _INSIDE) for name in (".", *_LISTS))
    return next((place for place in lists if (place / TRAIN).is_file() or (place / VOCABULARY).is_file()), None)


def read(data: Path) -> ClassificationDataset:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    lists = _root(data) or data
    for name in (TRAIN, TEST, VOCABULARY):
        if not (lists / name).is_file():
            raise refuse(lists, f"no {name}", f"{TRAIN}, {TEST}, {VOCABULARY} and {VIDEOS}/*.mp4")
    root = lists.parent if lists.name in _LISTS else lists
    there = stems_of([root / folder for folder in _FOLDERS], VIDEO_SUFFIXES, first=".mp4") or stems_of(
        [root], VIDEO_SUFFIXES, first=".mp4"
    )
    vocabulary = read_json(lists / VOCABULARY, list[str | list[str]])
    classes = tuple(" ".join(map(str, dive)) if isinstance(dive, list) else dive for dive in vocabulary)
    return ClassificationDataset(
        name="Diving-48 v2, test",
        classes=classes,
        train=_split(root, lists / TRAIN, len(classes), there),
        val=_split(root, lists / TEST, len(classes), there),
    )


def _split(data: Path, path: Path, classes: int, there: dict[str, Path]) -> list[LabeledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_Entry])):
        name, label = entry["vid_name"], whole_number(entry["label"], f"{path}: label of entry {position}")
        if label >= classes:
            raise TubeletError(f"{path}: {name} is of class {label}, but {VOCABULARY} names {classes} classes")
        files.append(LabeledFile(path=there.get(name) or data / VIDEOS / f"{name}.mp4", label=label))
    return files
