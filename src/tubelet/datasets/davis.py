"""DAVIS 2017, semi-supervised, 480p: JPEGImages/480p, Annotations/480p, ImageSets/2017/val.txt.

These lie in the folder, in DAVIS/ as the archive unpacks, or at the end of a chain of only folders.
"""

from pathlib import Path

from tubelet.data.tables import read_lines
from tubelet.datasets.locate import entries_of, find_root, refuse
from tubelet.datasets.sequences import VideoObjectDataset, VideoObjectSequence, check_number, pictures
from tubelet.errors import TubeletError

INSIDE = ("DAVIS", "DAVIS-2017", "DAVIS-2017-trainval-480p/DAVIS")
EXPECTED = "DAVIS (ImageSets/2017/val.txt, JPEGImages/480p, Annotations/480p)"


def read(data: Path) -> VideoObjectDataset | None:
    """The validation sequences, or None if this is another benchmark.

    Raises:
        TubeletError: if a sequence that val.txt lists, or a mask of it, is missing.
    """
    root = find_root(data, INSIDE, ("ImageSets/2017/val.txt",))
    if root is None:
        other = find_root(data, INSIDE, ("ImageSets", "JPEGImages", "Annotations"))
        if other is not None and not (other / "ImageSets" / "Segmentation").exists():
            raise refuse(other, "no ImageSets/2017/val.txt", f"{EXPECTED}, as DAVIS-2017-trainval-480p.zip unpacks")
        return None
    for kind in ("JPEGImages", "Annotations"):
        if not (root / kind / "480p").is_dir():
            there = ", ".join(path.name for path in entries_of(root / kind)) if (root / kind).is_dir() else "nothing"
            raise TubeletError(f"{root / kind}: no 480p here but {there}; unpack DAVIS-2017-trainval-480p.zip here")
    names_file = root / "ImageSets" / "2017" / "val.txt"
    names = read_lines(names_file)
    check_number(names, names_file)
    return VideoObjectDataset(
        benchmark="DAVIS 2017", sequences=[_sequence(root, name) for name in names], folder="predictions"
    )


def _sequence(data: Path, name: str) -> VideoObjectSequence:
    frames = pictures(data / "JPEGImages" / "480p" / name)
    masks = [data / "Annotations" / "480p" / name / f"{frame.stem}.png" for frame in frames]
    for mask in masks:
        if not mask.is_file():
            raise TubeletError(f"{mask}: no such mask; a validation sequence has one for every frame")
    if len(frames) < 3:
        raise TubeletError(
            f"{frames[0].parent}: {len(frames)} frames, expected at least 3: the first and the last are not measured"
        )
    return VideoObjectSequence(
        name=name, frames=frames, given={0: masks[0]}, objects=None, truth=masks, wanted=list(range(len(frames)))
    )
