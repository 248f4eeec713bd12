"""YouTube-VOS, validation split.

    valid/meta.json
    valid/JPEGImages/VIDEO/00000.jpg
    valid/Annotations/VIDEO/00000.png     masks of the frames in which objects first occur

The masks of all other frames are not public: predictions go to the benchmark's server.
"""

from pathlib import Path
from typing import TypedDict

from tubelet.datasets.annotations import parse_index
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import find_root, list_images
from tubelet.datasets.records import VideoObjectDataset, VideoObjectSequence
from tubelet.errors import DataError, MissingFileError
from tubelet.io.text import read_json


class _Object(TypedDict):
    """An object of a video, with the names of the frames in which it occurs."""

    frames: list[str]


class _Video(TypedDict):
    """Objects of a video by number."""

    objects: dict[str, _Object]


class _Meta(TypedDict):
    """Content of meta.json."""

    videos: dict[str, _Video]


SPLITS = ("valid", "val", "validation")
ARCHIVES = ("YouTube-VOS", "ytvos", *(f"{name}-{year}" for name in ("YouTube-VOS", "ytvos") for year in (2018, 2019)))


class YouTubeVos(Layout[VideoObjectDataset]):
    """Validation videos of YouTube-VOS."""

    record = VideoObjectDataset
    expected = "YouTube-VOS (valid/meta.json, valid/JPEGImages, valid/Annotations)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None or _training_root(root) is not None

    @staticmethod
    def load(root: Path) -> VideoObjectDataset:
        folder = _root(root)
        if folder is None:
            remedy = f"{YouTubeVos.expected}, which the evaluation uses"
            raise layout_error(_training_root(root) or root, "no valid/ next to train/", remedy)
        meta_file = folder / "meta.json"
        if not meta_file.is_file():
            raise layout_error(folder, "no meta.json", YouTubeVos.expected)
        objects = {
            name: {
                parse_index(number, f"{meta_file}: videos.{name}: object number"): entry["frames"]
                for number, entry in video["objects"].items()
            }
            for name, video in read_json(meta_file, _Meta)["videos"].items()
        }
        if not objects:
            raise DataError(f"{meta_file}: lists no sequence")
        sequences = [_sequence(folder, meta_file, name, entries) for name, entries in sorted(objects.items())]
        return VideoObjectDataset(name="YouTube-VOS", sequences=sequences, output_folder="predictions/Annotations")


def _root(root: Path) -> Path | None:
    """Folder of the validation split; the folder itself may be named."""
    for split in SPLITS:
        folder = find_root(root, ARCHIVES, (f"{split}/JPEGImages",))
        if folder is not None:
            return next(folder / name for name in SPLITS if (folder / name / "JPEGImages").is_dir())
    return root if (root / "meta.json").is_file() and (root / "JPEGImages").is_dir() else None


def _training_root(root: Path) -> Path | None:
    return find_root(root, ARCHIVES, ("train/JPEGImages", "train/meta.json"))


def _sequence(root: Path, meta_file: Path, name: str, objects: dict[int, list[str]]) -> VideoObjectSequence:
    frames = list_images(root / "JPEGImages" / name, (".jpg", ".jpeg"))
    indices = {frame.stem: i for i, frame in enumerate(frames)}
    frames_to_predict: set[int] = set()
    first_frames: dict[int, int] = {}
    for number, stems in objects.items():
        missing = [stem for stem in stems if stem not in indices]
        if missing or not stems:
            problem = f"frame {missing[0]}, which has no image" if missing else "no frame"
            raise DataError(f"{meta_file}: object {number} of {name} has {problem}")
        first_frames[number] = min(indices[stem] for stem in stems)
        frames_to_predict |= {indices[stem] for stem in stems}
    if not first_frames:
        raise DataError(f"{meta_file}: {name} has no object")
    folder = root / "Annotations" / name
    references = {frame: folder / f"{frames[frame].stem}.png" for frame in sorted({*first_frames.values()})}
    for mask in references.values():
        if not mask.is_file():
            raise MissingFileError(f"{mask}: missing mask; according to meta.json an object starts in this frame")
    return VideoObjectSequence(
        name=name,
        frames=frames,
        reference_masks=references,
        first_frames=dict(sorted(first_frames.items())),
        masks=None,
        frames_to_predict=sorted(frames_to_predict),
    )
