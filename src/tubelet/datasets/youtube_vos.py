"""YouTube-VOS, validation: valid/meta.json, valid/JPEGImages, and valid/Annotations of the frames where objects begin.

The masks of all other frames are not public: predictions go to the benchmark's server.
"""

from pathlib import Path
from typing import TypedDict

from tubelet.datasets.labelled import whole_number
from tubelet.datasets.locate import find_root, refuse
from tubelet.datasets.sequences import VideoObjectDataset, VideoObjectSequence, check_number, pictures
from tubelet.errors import TubeletError
from tubelet.io.text import read_json


class _Object(TypedDict):
    """An object of a video, and the frames that it is in."""

    frames: list[str]


class _Video(TypedDict):
    """A video's objects, by their numbers."""

    objects: dict[str, _Object]


class _Meta(TypedDict):
    """The content of meta.json."""

    videos: dict[str, _Video]


SPLITS = ("valid", "val", "validation")
INSIDE = ("YouTube-VOS", "ytvos", *(f"{name}-{year}" for name in ("YouTube-VOS", "ytvos") for year in (2018, 2019)))
EXPECTED = "YouTube-VOS (valid/meta.json, valid/JPEGImages, valid/Annotations)"


def read(data: Path) -> VideoObjectDataset | None:
    """The validation sequences, or None if this is another benchmark; the folder valid itself will do.

    Raises:
        TubeletError: if meta.json is not what it should be, or a frame or mask that it names is missing.
    """
    root = next((root for name in SPLITS if (root := find_root(data, INSIDE, (f"{name}/JPEGImages",)))), None)
    if root is not None:
        root = next(root / name for name in SPLITS if (root / name / "JPEGImages").is_dir())
    elif (data / "meta.json").is_file() and (data / "JPEGImages").is_dir():
        root = data
    elif (other := find_root(data, INSIDE, ("train/JPEGImages", "train/meta.json"))) is not None:
        raise refuse(other, "no valid/ beside train/", f"{EXPECTED}: the evaluation is of the validation split")
    else:
        return None
    meta_file = root / "meta.json"
    if not meta_file.is_file():
        raise refuse(root, "no meta.json", EXPECTED)
    objects = {
        name: {
            whole_number(number, f"{meta_file}: videos.{name}: the number of an object"): entry["frames"]
            for number, entry in video["objects"].items()
        }
        for name, video in read_json(meta_file, _Meta)["videos"].items()
    }
    check_number(list(objects), meta_file)
    sequences = [_sequence(root, meta_file, name, entries) for name, entries in sorted(objects.items())]
    return VideoObjectDataset(benchmark="YouTube-VOS", sequences=sequences, folder="predictions/Annotations")


def _sequence(root: Path, meta_file: Path, name: str, objects: dict[int, list[str]]) -> VideoObjectSequence:
    frames = pictures(root / "JPEGImages" / name)
    numbers = {frame.stem: i for i, frame in enumerate(frames)}
    wanted: set[int] = set()
    first: dict[int, int] = {}
    for number, stems in objects.items():
        missing = [stem for stem in stems if stem not in numbers]
        if missing or not stems:
            what = f"frame {missing[0]}, which has no picture" if missing else "no frame"
            raise TubeletError(f"{meta_file}: object {number} of {name} has {what}")
        first[number] = min(numbers[stem] for stem in stems)
        wanted |= {numbers[stem] for stem in stems}
    if not first:
        raise TubeletError(f"{meta_file}: {name} has no object")
    given = {frame: root / "Annotations" / name / f"{frames[frame].stem}.png" for frame in sorted({*first.values()})}
    for mask in given.values():
        if not mask.is_file():
            raise TubeletError(f"{mask}: no such mask, but meta.json says that an object begins there")
    return VideoObjectSequence(
        name=name, frames=frames, given=given, objects=dict(sorted(first.items())), truth=None, wanted=sorted(wanted)
    )
