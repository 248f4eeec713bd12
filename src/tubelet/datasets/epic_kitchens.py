"""EPIC-KITCHENS-100 (Damen et al., arXiv 2006.13256).

    EPIC_100_train.csv, EPIC_100_validation.csv            narration_id,video_id,start_timestamp,verb_class,...
    EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv   id,key,instances,category
    P01/videos/P01_01.MP4, or P01/P01_01.MP4

The CSV files lie in the directory, in annotations/ or in epic-kitchens-100-annotations/ (or -master, as GitHub's
archive unpacks); the folders of the participants in the directory, in videos/ or in EPIC-KITCHENS/ of the official
downloader, or in train/ and test/ there. Videos may also lie in one folder, in any container.
"""

from collections.abc import Sequence
from pathlib import Path

from tubelet.data.file_types import VIDEO_SUFFIXES
from tubelet.data.tables import read_table
from tubelet.datasets.annotations import class_count, parse_index
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots
from tubelet.datasets.records import ActionSegment, AnticipationDataset
from tubelet.errors import DataError

TRAIN, VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
_CLASS_FILES = {
    "verb": ("EPIC_100_verb_classes.csv", "verb_classes.csv"),
    "noun": ("EPIC_100_noun_classes.csv", "noun_classes.csv", "EPIC_100_noun_classes_v2.csv"),
}
_FOLDERS = ("annotations", "epic-kitchens-100-annotations", "epic-kitchens-100-annotations-master")
_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "narration", "verb_class", "noun_class")


class EpicKitchens100(Layout[AnticipationDataset]):
    """EPIC-KITCHENS-100, 97 verbs and 300 nouns."""

    record = AnticipationDataset
    expected = (
        f"EPIC-KITCHENS-100 ({TRAIN}, {VALIDATION}, {_CLASS_FILES['verb'][0]}, {_CLASS_FILES['noun'][0]} and "
        "P01/videos/*.MP4)"
    )

    @staticmethod
    def detect(root: Path) -> bool:
        return _find(root, (TRAIN,)) is not None

    @staticmethod
    def load(root: Path) -> AnticipationDataset:
        classes = {kind: _class_names(root, kind) for kind in _CLASS_FILES}
        return AnticipationDataset(
            name="EPIC-KITCHENS-100, validation",
            verbs=classes["verb"],
            nouns=classes["noun"],
            train=_split(root, TRAIN, classes),
            test=_split(root, VALIDATION, classes),
        )


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    folders = (candidate / inside for candidate in candidate_roots(root) for inside in (".", *_FOLDERS))
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _required_file(root: Path, names: tuple[str, ...]) -> Path:
    path = _find(root, names)
    if path is None:
        raise layout_error(root, f"no {names[0]}", EpicKitchens100.expected)
    return path


def _class_names(root: Path, kind: str) -> tuple[str, ...]:
    path = _required_file(root, _CLASS_FILES[kind])
    names = {parse_index(row["id"], f"{path}: id"): row["key"] for _, row in read_table(path, ("id", "key"))}
    if not names:
        raise DataError(f"{path}: no classes")
    return tuple(names.get(k, str(k)) for k in range(class_count(names, str(path))))


def _split(root: Path, name: str, classes: dict[str, tuple[str, ...]]) -> list[ActionSegment]:
    path = _required_file(root, (name,))
    videos: dict[str, Path] = {}
    segments = []
    for line, row in read_table(path, _COLUMNS):
        labels = {}
        for kind, names in classes.items():
            labels[kind] = parse_index(row[f"{kind}_class"], f"{path}: line {line}, {kind}_class")
            if labels[kind] >= len(names):
                raise DataError(f"{path}: line {line} has {kind} class {labels[kind]}, expected 0 to {len(names) - 1}")
        if row["video_id"] not in videos:
            videos[row["video_id"]] = _video(list(candidate_roots(root)), row["participant_id"], row["video_id"])
        segments.append(
            ActionSegment(
                name=row["narration_id"],
                path=videos[row["video_id"]],
                start_s=_seconds(row["start_timestamp"], f"{path}: line {line}"),
                narration=row["narration"],
                verb=labels["verb"],
                noun=labels["noun"],
            )
        )
    return segments


def _video(roots: Sequence[Path], participant: str, video: str) -> Path:
    """The file of a video; its usual path if it does not exist."""
    folders = [
        root / above / below
        for root in roots
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
    """Seconds of a timestamp HH:mm:ss.SS."""
    try:
        hours, minutes, seconds = timestamp.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        raise DataError(f"{where}: start_timestamp is {timestamp!r}, expected HH:mm:ss.SS") from None
