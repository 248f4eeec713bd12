"""DAVIS 2017, semi-supervised, 480p.

    JPEGImages/480p/SEQUENCE/00000.jpg
    Annotations/480p/SEQUENCE/00000.png
    ImageSets/2017/val.txt

They lie in the named directory, in DAVIS/ as the archive unpacks, or below a chain of single directories.
"""

from pathlib import Path

from tubelet.data.tables import read_lines
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import find_root, list_directory, list_images
from tubelet.datasets.records import VideoObjectDataset, VideoObjectSequence
from tubelet.errors import DataError, MissingFileError

ARCHIVES = ("DAVIS", "DAVIS-2017", "DAVIS-2017-trainval-480p/DAVIS")
LIST = "ImageSets/2017/val.txt"


class Davis2017(Layout[VideoObjectDataset]):
    """Validation sequences of DAVIS 2017."""

    record = VideoObjectDataset
    expected = f"DAVIS 2017 ({LIST}, JPEGImages/480p, Annotations/480p)"

    @staticmethod
    def detect(root: Path) -> bool:
        return find_root(root, ARCHIVES, (LIST,)) is not None or _other_edition(root) is not None

    @staticmethod
    def load(root: Path) -> VideoObjectDataset:
        release = find_root(root, ARCHIVES, (LIST,))
        if release is None:
            remedy = f"{Davis2017.expected}, as DAVIS-2017-trainval-480p.zip unpacks"
            raise layout_error(_other_edition(root) or root, f"no {LIST}", remedy)
        for folder in (release / "JPEGImages", release / "Annotations"):
            if not (folder / "480p").is_dir():
                content = ", ".join(path.name for path in list_directory(folder)) if folder.is_dir() else "nothing"
                raise DataError(f"{folder}: no 480p, found {content}; unpack DAVIS-2017-trainval-480p.zip here")
        names = read_lines(release / LIST)
        if not names:
            raise DataError(f"{release / LIST}: lists no sequence")
        sequences = [_sequence(release, name) for name in names]
        return VideoObjectDataset(name="DAVIS 2017", sequences=sequences, output_folder="predictions")


def _other_edition(root: Path) -> Path | None:
    """Root of another edition of DAVIS; Pascal VOC has the same folders."""
    folder = find_root(root, ARCHIVES, ("ImageSets", "JPEGImages", "Annotations"))
    return folder if folder and not (folder / "ImageSets" / "Segmentation").exists() else None


def _sequence(root: Path, name: str) -> VideoObjectSequence:
    frames = list_images(root / "JPEGImages" / "480p" / name, (".jpg", ".jpeg"))
    masks = [root / "Annotations" / "480p" / name / f"{frame.stem}.png" for frame in frames]
    for mask in masks:
        if not mask.is_file():
            raise MissingFileError(f"{mask}: missing mask; expected one for every frame of a validation sequence")
    if len(frames) < 3:
        raise DataError(
            f"{frames[0].parent}: {len(frames)} frames, expected at least 3; the first and the last are not scored"
        )
    return VideoObjectSequence(
        name=name,
        frames=frames,
        reference_masks={0: masks[0]},
        first_frames=None,
        masks=masks,
        frames_to_predict=list(range(len(frames))),
    )
