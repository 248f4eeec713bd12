"""Something-Something v2 (Goyal et al., arXiv 1706.04261).

    labels/labels.json       {"Putting something on a surface": "105", ...}
    labels/train.json        [{"id": "78687", "template": "Putting [something] on a surface", ...}, ...]
    labels/validation.json   the same
    20bn-something-something-v2/78687.webm

The JSON files may lie in annotations/ or in the directory itself, and may have the names of older downloads,
something-something-v2-train.json and so on. The videos may be .mp4, in videos/ or anywhere below. Instead of the JSON
files there may be lists of paths and class numbers, as in `video_lists`: ssv2_train_paths.csv and so on.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tubelet.datasets.annotations import parse_index
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, index_videos
from tubelet.datasets.records import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.datasets.video_lists import VideoLists, find_list
from tubelet.errors import DataError
from tubelet.io.text import read_json, read_start

VIDEOS = "20bn-something-something-v2"
_PACKAGE = "20bn-something-something-download-package-labels"
_OLD_PREFIX = "something-something-v2-"
_ARCHIVES = ("something-something-v2", "ssv2", "sthv2")
_LISTS = ("labels", "annotations", ".", *(f"{_PACKAGE}{inside}" for inside in ("/labels", "")))
_FOLDERS = (VIDEOS, f"{VIDEOS}-mp4", "videos", "mp4", "webm")
_PROTOCOL = ProbeProtocol(segments=2, views=3)
_NAME = "Something-Something v2, validation"


class _SomethingEntry(TypedDict):
    """A video of a split."""

    id: str | int
    template: str


class SomethingSomethingV2(Layout[ClassificationDataset]):
    """Something-Something v2, 174 classes."""

    record = ClassificationDataset
    expected = f"Something-Something v2 (labels/labels.json, train.json, validation.json and {VIDEOS}/*.webm)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        root = _root(root) or root
        if not _json_file(root, "labels") and VideoLists.detect(root):
            return replace(VideoLists.load(root), name=_NAME, protocol=_PROTOCOL)
        labels_file = _required_file(root, "labels")
        numbers = {
            _plain(template): parse_index(number, f"{labels_file}: class number of {template!r}")
            for template, number in read_json(labels_file, dict[str, str | int]).items()
        }
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise DataError(
                f"{labels_file}: {len(numbers)} class numbers with gaps or duplicates; expected 0, 1, 2, ..."
            )
        videos = index_videos(root, [root / folder for folder in _FOLDERS], preferred=".webm")
        return ClassificationDataset(
            name=_NAME,
            classes=tuple(sorted(numbers, key=numbers.__getitem__)),
            train=_split(root, _required_file(root, "train"), numbers, videos),
            test=_split(root, _required_file(root, "validation"), numbers, videos),
            protocol=_PROTOCOL,
        )


def _root(root: Path) -> Path | None:
    """The directory of the JSON files; else that of the lists or the videos."""
    folders = list(candidate_roots(root, _ARCHIVES))
    others = (folder for folder in folders if (folder / VIDEOS).is_dir() or _has_own_lists(folder))
    return next((folder for folder in folders if _has_own_labels(folder)), None) or next(others, None)


def _has_own_labels(root: Path) -> bool:
    """Whether labels.json is of this data set: many others have a file of this name."""
    labels = _json_file(root, "labels")
    if labels is None:
        return False
    if labels.name.startswith(_OLD_PREFIX) or _PACKAGE in labels.parts or (root / VIDEOS).is_dir():
        return True
    splits = (_json_file(root, split) for split in ("train", "validation", "val"))
    return any(split is not None and b'"template"' in read_start(split) for split in splits)


def _has_own_lists(root: Path) -> bool:
    path = find_list(root, "train")
    return path is not None and path.name.lower().startswith(("ssv", "sthv"))


def _json_file(root: Path, name: str) -> Path | None:
    names = (f"{name}.json", f"{_OLD_PREFIX}{name}.json")
    paths = (root / folder / file for folder in _LISTS for file in names)
    return next((path for path in paths if path.is_file()), None)


def _required_file(root: Path, name: str) -> Path:
    path = _json_file(root, name) or (_json_file(root, "val") if name == "validation" else None)
    if path is None:
        raise layout_error(root, f"no labels/{name}.json", SomethingSomethingV2.expected)
    return path


def _split(root: Path, path: Path, numbers: dict[str, int], videos: dict[str, Path]) -> list[LabeledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_SomethingEntry])):
        stem, template = str(entry["id"]), _plain(entry["template"])
        if template not in numbers:
            raise DataError(f"{path}: entry {position}, video {stem}, has the unknown template {template!r}")
        files.append(LabeledFile(path=videos.get(stem) or root / VIDEOS / f"{stem}.webm", label=numbers[template]))
    return files


def _plain(template: str) -> str:
    """A template without the brackets around placeholders, as in labels.json."""
    return template.replace("[", "").replace("]", "")
