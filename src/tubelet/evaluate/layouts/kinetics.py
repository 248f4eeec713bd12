"""Kinetics-400, 600 and 700 (Kay et al., arXiv 1705.06950), in the two forms that are about.

The official annotations, beside videos in a folder for each split, sorted into folders by class or not:

    annotations/train.csv, annotations/val.csv     label,youtube_id,time_start,time_end,split
    train/abseiling/0wR5jVB-WPk_000417_000427.mp4  or train/0wR5jVB-WPk_000417_000427.mp4

Or lists of a path and the number of its class, as V-JEPA's and many other codebases make them:

    train.csv, val.csv                             train/abseiling/0wR5jVB-WPk_000417_000427.mp4 0

Between path and number is a space or a comma; a relative path starts at the folder.
"""

from pathlib import Path

from tubelet.data.decode import VIDEO_SUFFIXES
from tubelet.evaluate.layouts.folders import refuse
from tubelet.evaluate.layouts.labelled import Labelled, LabelledFile, whole_number
from tubelet.readers import read_csv, read_lines
from tubelet.types import TubeletError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's."""
    return all(_list(data, split) is not None for split in ("train", "val"))


def read(data: Path) -> Labelled:
    """The benchmark's lists.

    Raises:
        TubeletError: if a file is missing or wrong.
    """
    lists = {split: _list(data, split) for split in ("train", "val")}
    for split, path in lists.items():
        if path is None:
            raise refuse(data, f"no list of the {split} split", f"annotations/{split}.csv, or {split}.csv")
    train, val = lists["train"], lists["val"]
    assert train is not None and val is not None
    if _is_official(train) != _is_official(val):
        raise TubeletError(f"{val}: is in another form than {train}; expected both with a header, or both without")
    return _official(data, train, val) if _is_official(train) else _numbered(data, train, val)


def _list(data: Path, split: str) -> Path | None:
    candidates = [data / "annotations" / f"{split}.csv", data / f"{split}.csv"]
    return next((path for path in candidates if path.is_file()), None)


def _is_official(path: Path) -> bool:
    return next(iter(read_lines(path)), "").startswith("label,")


def _official(data: Path, train: Path, val: Path) -> Labelled:
    rows = {"train": read_csv(train, _COLUMNS), "val": read_csv(val, _COLUMNS)}
    classes = sorted({row["label"] for row in rows["train"]})
    numbers = {name: number for number, name in enumerate(classes)}
    files: dict[str, list[LabelledFile]] = {}
    for split, path in (("train", train), ("val", val)):
        # One walk over the folder: looking 240,000 videos up under several names would take as many times longer.
        there = {path.stem: path for path in (data / split).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES}
        files[split] = []
        for number, row in enumerate(rows[split], start=2):
            if row["label"] not in numbers:
                raise TubeletError(f"{path}: line {number} has the class {row['label']!r}, which {train} has not")
            start, end = (whole_number(row[c], f"{path}: line {number}, {c}") for c in ("time_start", "time_end"))
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            video = there.get(stem) or there.get(row["youtube_id"]) or data / split / row["label"] / f"{stem}.mp4"
            files[split].append(LabelledFile(path=video, label=numbers[row["label"]]))
    name = f"Kinetics ({len(classes)} classes), validation"
    return Labelled(name=name, classes=tuple(classes), train=files["train"], val=files["val"])


def _numbered(data: Path, train: Path, val: Path) -> Labelled:
    files: dict[Path, list[LabelledFile]] = {}
    names: dict[int, str] = {}
    for path in (train, val):
        files[path] = []
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            separator = "," if "," in line and " " not in line.rsplit(",", 1)[1].strip() else " "
            video, _, label = line.strip().rpartition(separator)
            if not video:
                raise TubeletError(f"{path}: line {number} is {line!r}, expected a path and the number of its class")
            index = whole_number(label, f"{path}: line {number}, the class")
            files[path].append(LabelledFile(path=data / video, label=index))
            names.setdefault(index, Path(video).parent.name or str(index))
    if not files[train]:
        raise TubeletError(f"{train}: lists no videos")
    known = {file.label for file in files[train]}
    for file in files[val]:
        if file.label not in known:
            raise TubeletError(f"{val}: {file.path} is of class {file.label}, of which {train} has no video")
    # Videos that are not sorted by class have folders that name none.
    named = len(set(names.values())) == len(names)
    classes = tuple(names.get(k, str(k)) if named else str(k) for k in range(max(known) + 1))
    name = f"Kinetics ({len(known)} classes), validation"
    return Labelled(name=name, classes=classes, train=files[train], val=files[val])
