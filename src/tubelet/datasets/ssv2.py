"""Something-Something v2 (Goyal et al., arXiv 1706.04261), as its download unpacks.

labels/labels.json       {"Putting something on a surface": "105", ...}
labels/train.json        [{"id": "78687", "template": "Putting [something] on a surface", ...}, ...]
labels/validation.json   the same
20bn-something-something-v2/78687.webm

The JSON files may also lie in annotations/ or in the folder itself, and may be called something-something-v2-train.json
and so on, as in older downloads. The videos may have been converted (.mp4), and may lie in videos/ or anywhere below.
Instead of the JSON files there may be lists of paths and classes, as for Kinetics: ssv2_train_paths.csv and so on.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tubelet.data.suffixes import VIDEO_SUFFIXES
from tubelet.datasets import kinetics
from tubelet.datasets.labelled import ClassificationDataset, LabeledFile, whole_number
from tubelet.datasets.locate import refuse, roots, stems_of
from tubelet.errors import TubeletError
from tubelet.io.text import read_json

_NAME = "Something-Something v2, validation"
VIDEOS = "20bn-something-something-v2"
_PACKAGE = "20bn-something-something-download-package-labels"
_OLD_NAMES = "something-something-v2-"
_INSIDE = ("something-something-v2", "ssv2", "sthv2")
_LISTS = ("labels", "annotations", ".", *(f"{_PACKAGE}{inside}" for inside in ("/labels", "")))
_FOLDERS = (VIDEOS, f"{VIDEOS}-mp4", "videos", "mp4", "webm")


class _Entry(TypedDict):
    """One video of a split."""

    id: str | int
    template: str


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return _root(data) is not None


def read(data: Path) -> ClassificationDataset:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    data = _root(data) or data
    if not _labels(data, "labels") and kinetics.recognise(data):
        return replace(kinetics.read(data), name=_NAME)
    labels_file = _find(data, "labels")
    numbers = {
        _plain(template): whole_number(number, f"{labels_file}: the number of {template!r}")
        for template, number in read_json(labels_file, dict[str, str | int]).items()
    }
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise TubeletError(
            f"{labels_file}: numbers its {len(numbers)} classes with gaps or twice; expected 0, 1, 2, ..."
        )
    classes = sorted(numbers, key=numbers.__getitem__)
    there = stems_of([data / folder for folder in _FOLDERS], VIDEO_SUFFIXES, first=".webm")
    there = there or stems_of([data], VIDEO_SUFFIXES, first=".webm")
    return ClassificationDataset(
        name=_NAME,
        classes=tuple(classes),
        train=_split(data, _find(data, "train"), numbers, there),
        val=_split(data, _find(data, "validation"), numbers, there),
    )


def _root(data: Path) -> Path | None:
    """The folder of the labels; else that of lists or of the videos."""
    places = list(roots(data, _INSIDE))
    others = (root for root in places if (root / VIDEOS).is_dir() or _has_own_lists(root))
    return next((root for root in places if _labels(root, "labels")), None) or next(others, None)


def _has_own_lists(root: Path) -> bool:
    listed = kinetics.split_list(root, "train")
    return listed is not None and listed.name.lower().startswith(("ssv", "sthv"))


def _labels(data: Path, name: str) -> Path | None:
    names = (f"{name}.json", f"{_OLD_NAMES}{name}.json")
    places = (data / folder / file for folder in _LISTS for file in names)
    return next((place for place in places if place.is_file()), None)


def _find(data: Path, name: str) -> Path:
    found = _labels(data, name) or (_labels(data, "val") if name == "validation" else None)
    if found is not None:
        return found
    raise refuse(data, f"no labels/{name}.json", f"labels/labels.json, train.json, validation.json and {VIDEOS}/*.webm")


def _split(data: Path, path: Path, numbers: dict[str, int], there: dict[str, Path]) -> list[LabeledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_Entry])):
        identity, template = str(entry["id"]), _plain(entry["template"])
        if template not in numbers:
            raise TubeletError(f"{path}: entry {position}, video {identity}, has the unknown template {template!r}")
        video = there.get(identity) or data / VIDEOS / f"{identity}.webm"
        files.append(LabeledFile(path=video, label=numbers[template]))
    return files


def _plain(template: str) -> str:
    """A template without the brackets around what stands for an object: so labels.json has it."""
    return template.replace("[", "").replace("]", "")
