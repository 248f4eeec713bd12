"""Diving-48 (Li et al., ECCV 2018) with the cleaned labels of its second version.

    Diving48_V2_train.json   [{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}, ...]
    Diving48_V2_test.json    the same
    Diving48_vocab.json      [["Back", "15som", "05Twis", "FREE"], ...], the dive of each class number
    rgb/-mmq0PT-u8k_00155.mp4

The JSON files may lie in annotations/ or labels/, the videos in videos/ or next to the lists, in any container.
"""

from pathlib import Path
from typing import TypedDict

from tubelet.datasets.annotations import parse_index
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, index_videos
from tubelet.datasets.records import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.errors import DataError
from tubelet.io.text import read_json

TRAIN, TEST, VOCABULARY, VIDEOS = "Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json", "rgb"
_LISTS = ("annotations", "labels")
_FOLDERS = (VIDEOS, "Diving48_rgb", "videos")


class _DivingEntry(TypedDict):
    """A video of a split."""

    vid_name: str
    label: int


class Diving48(Layout[ClassificationDataset]):
    """Diving-48 v2, 48 classes."""

    record = ClassificationDataset
    expected = f"Diving-48 ({TRAIN}, {TEST}, {VOCABULARY} and {VIDEOS}/*.mp4)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _list_folder(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        lists = _list_folder(root) or root
        for name in (TRAIN, TEST, VOCABULARY):
            if not (lists / name).is_file():
                raise layout_error(lists, f"no {name}", Diving48.expected)
        root = lists.parent if lists.name in _LISTS else lists
        videos = index_videos(root, [root / folder for folder in _FOLDERS], preferred=".mp4")
        vocabulary = read_json(lists / VOCABULARY, list[str | list[str]])
        classes = tuple(" ".join(map(str, dive)) if isinstance(dive, list) else dive for dive in vocabulary)
        return ClassificationDataset(
            name="Diving-48 v2, test",
            classes=classes,
            train=_split(root, lists / TRAIN, len(classes), videos),
            test=_split(root, lists / TEST, len(classes), videos),
            protocol=ProbeProtocol(
                frames=32,
                frame_step=2,
                segments=4,
                views=3,
                epochs=100,
                batch_size=128,
                learning_rates=(1e-3, 3e-4, 1e-4),
                weight_decays=(0.8,),
            ),
        )


def _list_folder(root: Path) -> Path | None:
    folders = (folder / name for folder in candidate_roots(root, ("diving48",)) for name in (".", *_LISTS))
    return next((folder for folder in folders if (folder / TRAIN).is_file() or (folder / VOCABULARY).is_file()), None)


def _split(root: Path, path: Path, classes: int, videos: dict[str, Path]) -> list[LabeledFile]:
    files = []
    for position, entry in enumerate(read_json(path, list[_DivingEntry])):
        name, label = entry["vid_name"], parse_index(entry["label"], f"{path}: label of entry {position}")
        if label >= classes:
            raise DataError(f"{path}: {name} has class {label}, but {VOCABULARY} has {classes} classes")
        files.append(LabeledFile(path=videos.get(name) or root / VIDEOS / f"{name}.mp4", label=label))
    return files
