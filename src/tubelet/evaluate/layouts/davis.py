"""DAVIS 2017, semi-supervised, 480p: JPEGImages/480p, Annotations/480p, ImageSets/2017/val.txt."""

from pathlib import Path

from tubelet.evaluate.layouts.sequences import ObjectSequence, ObjectSet, check_number, pictures
from tubelet.readers import read_lines
from tubelet.types import TubeletError

EXPECTED = "DAVIS (ImageSets/2017/val.txt, JPEGImages/480p, Annotations/480p)"


def read(data: Path) -> ObjectSet | None:
    """The validation sequences, or None if this is another benchmark.

    Raises:
        TubeletError: if a sequence that val.txt lists, or a mask of it, is missing.
    """
    names_file = data / "ImageSets" / "2017" / "val.txt"
    if not names_file.is_file():
        return None
    names = [line.strip() for line in read_lines(names_file) if line.strip()]
    check_number(names, names_file)
    return ObjectSet(benchmark="DAVIS 2017", sequences=[_sequence(data, name) for name in names], folder="predictions")


def _sequence(data: Path, name: str) -> ObjectSequence:
    frames = pictures(data / "JPEGImages" / "480p" / name)
    masks = [data / "Annotations" / "480p" / name / f"{frame.stem}.png" for frame in frames]
    for mask in masks:
        if not mask.is_file():
            raise TubeletError(f"{mask}: no such mask; a validation sequence has one for every frame")
    if len(frames) < 3:
        raise TubeletError(
            f"{frames[0].parent}: {len(frames)} frames, expected at least 3: the first and the last are not measured"
        )
    return ObjectSequence(
        name=name, frames=frames, given={0: masks[0]}, objects=None, truth=masks, wanted=list(range(len(frames)))
    )
