"""Diving-48 (Li et al., ECCV 2018) with the cleaned labels of its second version, as its download unpacks.

Diving48_V2_train.json   [{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}, ...]
Diving48_V2_test.json    the same
Diving48_vocab.json      [["Back", "15som", "05Twis", "FREE"], ...], a dive for each number
rgb/-mmq0PT-u8k_00155.mp4
"""

from pathlib import Path
from typing import TypedDict

from tubelet.evaluate.layouts.folders import refuse
from tubelet.evaluate.layouts.labelled import Labelled, LabelledFile, whole_number
from tubelet.readers import read_json
from tubelet.types import TubeletError

TRAIN, TEST, VOCABULARY, VIDEOS = "Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json", "rgb"


class _Entry(TypedDict):
    """One video of a split."""

    vid_name: str
    label: int


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return (data / TRAIN).is_file() or (data / VOCABULARY).is_file()


def read(data: Path) -> Labelled:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    for name in (TRAIN, TEST, VOCABULARY):
        if not (data / name).is_file():
            raise refuse(data, f"no {name}", f"{TRAIN}, {TEST}, {VOCABULARY} and {VIDEOS}/*.mp4")
    vocabulary = read_json(data / VOCABULARY, list[str | list[str]])
    classes = tuple(" ".join(map(str, dive)) if isinstance(dive, list) else dive for dive in vocabulary)
    return Labelled(
        name="Diving-48 v2, test",
        classes=classes,
        train=_split(data, data / TRAIN, len(classes)),
        val=_split(data, data / TEST, len(classes)),
    )


def _split(data: Path, path: Path, classes: int) -> list[LabelledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_Entry])):
        name, label = entry["vid_name"], whole_number(entry["label"], f"{path}: label of entry {position}")
        if label >= classes:
            raise TubeletError(f"{path}: {name} is of class {label}, but {VOCABULARY} names {classes} classes")
        files.append(LabelledFile(path=data / VIDEOS / f"{name}.mp4", label=label))
    return files
