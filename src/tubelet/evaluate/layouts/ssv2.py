"""Something-Something v2 (Goyal et al., arXiv 1706.04261), as its download unpacks.

labels/labels.json       {"Putting something on a surface": "105", ...}
labels/train.json        [{"id": "78687", "template": "Putting [something] on a surface", ...}, ...]
labels/validation.json   the same
20bn-something-something-v2/78687.webm

The JSON files may also lie in the folder itself, and may be called something-something-v2-train.json and so on, as in
older downloads.
"""

from pathlib import Path
from typing import TypedDict

from tubelet.evaluate.layouts.folders import refuse
from tubelet.evaluate.layouts.labelled import Labelled, LabelledFile, whole_number
from tubelet.readers import read_json
from tubelet.types import TubeletError

VIDEOS = "20bn-something-something-v2"
_OLD_NAMES = "something-something-v2-"


class _Entry(TypedDict):
    """One video of a split."""

    id: str | int
    template: str


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return (data / VIDEOS).is_dir()


def read(data: Path) -> Labelled:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
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
    return Labelled(
        name="Something-Something v2, validation",
        classes=tuple(classes),
        train=_split(data, _find(data, "train"), numbers),
        val=_split(data, _find(data, "validation"), numbers),
    )


def _find(data: Path, name: str) -> Path:
    for folder in (data / "labels", data):
        for file in (folder / f"{name}.json", folder / f"{_OLD_NAMES}{name}.json"):
            if file.is_file():
                return file
    raise refuse(data, f"no labels/{name}.json", f"labels/labels.json, train.json, validation.json and {VIDEOS}/*.webm")


def _split(data: Path, path: Path, numbers: dict[str, int]) -> list[LabelledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_Entry])):
        identity, template = str(entry["id"]), _plain(entry["template"])
        if template not in numbers:
            raise TubeletError(f"{path}: entry {position}, video {identity}, has the unknown template {template!r}")
        files.append(LabelledFile(path=data / VIDEOS / f"{identity}.webm", label=numbers[template]))
    return files


def _plain(template: str) -> str:
    """A template without the brackets around what stands for an object: so labels.json has it."""
    return template.replace("[", "").replace("]", "")
