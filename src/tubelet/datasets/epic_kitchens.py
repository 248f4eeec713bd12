"""EPIC-KITCHENS-100 (Damen et al., arXiv 2006.13256), as its downloads unpack.

EPIC_100_train.csv, EPIC_100_validation.csv            narration_id,video_id,start_timestamp,verb_class,noun_class,...
EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv   id,key,instances,category
P01/videos/P01_01.MP4, or P01/P01_01.MP4

The CSV files lie in the folder, in annotations/ or in epic-kitchens-100-annotations/ (also -master, as GitHub's archive
unpacks); the participants' folders in the folder, in videos/ or in EPIC-KITCHENS/, which the official downloader makes,
or in train/ and test/ there. Videos may also lie in one folder, in any container.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.data.suffixes import VIDEO_SUFFIXES
from tubelet.data.tables import read_table
from tubelet.datasets.labelled import whole_number
from tubelet.datasets.locate import refuse, roots
from tubelet.errors import TubeletError

TRAIN, VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
_CLASS_FILES = {
    "verb": ("EPIC_100_verb_classes.csv", "verb_classes.csv"),
    "noun": ("EPIC_100_noun_classes.csv", "noun_classes.csv", "EPIC_100_noun_classes_v2.csv"),
}
_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "narration", "verb_class", "noun_class")


@dataclass(frozen=True, kw_only=True)
class Action:
    """One annotated action.

    Attributes:
        name: narration_id.
        video: the file.
        start_s: seconds into the video at which it begins.
        narration: what was said of it.
        verb, noun: indices of its classes.
    """

    name: str
    video: Path
    start_s: float
    narration: str
    verb: int
    noun: int


@dataclass(frozen=True, kw_only=True)
class AnticipationDataset:
    """The benchmark's lists.

    Attributes:
        verbs, nouns: names of the classes, by index.
        train, val: annotated actions.
    """

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    train: list[Action]
    val: list[Action]


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return _find(data, (TRAIN,)) is not None


def read(data: Path) -> AnticipationDataset:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    classes = {kind: _classes(data, kind) for kind in _CLASS_FILES}
    splits = {name: _split(data, name, classes) for name in (TRAIN, VALIDATION)}
    return AnticipationDataset(
        verbs=classes["verb"], nouns=classes["noun"], train=splits[TRAIN], val=splits[VALIDATION]
    )


def _find(data: Path, names: tuple[str, ...]) -> Path | None:
    inside = ("annotations", "epic-kitchens-100-annotations", "epic-kitchens-100-annotations-master")
    folders = (place for root in roots(data) for place in (root, *(root / name for name in inside)))
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _required(data: Path, names: tuple[str, ...]) -> Path:
    found = _find(data, names)
    if found is None:
        expected = f"{TRAIN}, {VALIDATION}, {_CLASS_FILES['verb'][0]}, {_CLASS_FILES['noun'][0]} and P01/videos/*.MP4"
        raise refuse(data, f"no {names[0]}", expected)
    return found


def _classes(data: Path, kind: str) -> tuple[str, ...]:
    path = _required(data, _CLASS_FILES[kind])
    names = {whole_number(row["id"], f"{path}: id"): row["key"] for _, row in read_table(path, ("id", "key"))}
    if not names:
        raise TubeletError(f"{path}: names no class")
    return tuple(names.get(k, str(k)) for k in range(max(names) + 1))


def _split(data: Path, name: str, classes: dict[str, tuple[str, ...]]) -> list[Action]:
    path = _required(data, (name,))
    videos: dict[str, Path] = {}
    segments = []
    for number, row in read_table(path, _COLUMNS):
        labels = {}
        for kind, known in classes.items():
            labels[kind] = whole_number(row[f"{kind}_class"], f"{path}: line {number}, {kind}_class")
            if labels[kind] >= len(known):
                raise TubeletError(f"{path}: line {number} is of {kind} class {labels[kind]}, of {len(known)} classes")
        if row["video_id"] not in videos:
            videos[row["video_id"]] = _video(list(roots(data)), row["participant_id"], row["video_id"])
        segments.append(
            Action(
                name=row["narration_id"],
                video=videos[row["video_id"]],
                start_s=_seconds(row["start_timestamp"], f"{path}: line {number}"),
                narration=row["narration"],
                verb=labels["verb"],
                noun=labels["noun"],
            )
        )
    return segments


def _video(places: Sequence[Path], participant: str, video: str) -> Path:
    """Where a video lies; where it should, if it does not."""
    folders = [
        root / above / below
        for root in places
        for above in ("", "videos", "EPIC-KITCHENS")
        for below in (
            *(f"{split}{participant}/{inside}" for split in ("", "train/", "test/") for inside in ("videos", "")),
            "",
        )
    ]
    suffixes = dict.fromkeys((".MP4", ".mp4", *sorted(VIDEO_SUFFIXES)))
    candidates = [folder / f"{video}{suffix}" for folder in folders if folder.is_dir() for suffix in suffixes]
    candidates.append(folders[0] / f"{video}.MP4")
    return next((path for path in candidates if path.is_file()), candidates[0])


def _seconds(timestamp: str, where: str) -> float:
    """HH:mm:ss.SS in seconds."""
    try:
        hours, minutes, seconds = timestamp.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        raise TubeletError(f"{where}: start_timestamp is {timestamp!r}, expected HH:mm:ss.SS") from None
