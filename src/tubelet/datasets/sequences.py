"""Video object segmentation: a sequence of frames, and the masks with which its objects are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.palette_png import VOID, read_indexed
from tubelet.datasets.locate import entries_of
from tubelet.datasets.pairs import image_shape
from tubelet.errors import DecodeError, TubeletError


@dataclass(frozen=True, kw_only=True)
class VideoObjectSequence:
    """A sequence.

    Attributes:
        name: of the sequence.
        frames: its pictures, in their order.
        given: number of a frame -> the mask that objects are given by there, those that are new in it.
        objects: number of each object -> the frame that it is given in; None if the first mask tells.
        truth: the mask of every frame; None if it is not public.
        wanted: numbers of the frames whose masks are predicted for an evaluator.
    """

    name: str
    frames: list[Path]
    given: dict[int, Path]
    objects: dict[int, int] | None
    truth: list[Path] | None
    wanted: list[int]


@dataclass(frozen=True, kw_only=True)
class VideoObjectDataset:
    """The sequences of a benchmark.

    Attributes:
        benchmark: its name.
        sequences: in their order.
        folder: below the result's folder, where the evaluator expects the folders of the sequences.
    """

    benchmark: str
    sequences: list[VideoObjectSequence]
    folder: str


def pictures(folder: Path) -> list[Path]:
    """The JPEGs of a sequence in their order.

    Raises:
        TubeletError: if there are none.
    """
    entries = entries_of(folder) if folder.is_dir() else []
    found = [path for path in entries if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise TubeletError(f"{folder}: expected the sequence's frames, 00000.jpg and so on, found none")
    return found


def given_objects(sequence: VideoObjectSequence) -> dict[int, dict[int, NDArray[np.bool_]]]:
    """Number of a frame -> number of each object that is new in it -> its mask (H, W).

    Raises:
        DecodeError: if a mask cannot be read, has another size than its frame, or does not hold its objects.
    """
    result = {}
    for frame, path in sequence.given.items():
        labels = read_mask(path, sequence.frames[frame])
        present = [int(n) for n in np.unique(labels) if n not in (0, VOID)]
        if sequence.objects is None:
            if present != list(range(1, len(present) + 1)) or not present:
                raise DecodeError(str(path), f"holds objects {present}, expected numbers from 1 on without a gap")
            new = present
        else:
            new = [number for number, first in sequence.objects.items() if first == frame]
            lacking = [number for number in new if number not in present]
            if lacking:
                raise DecodeError(str(path), f"lacks object {lacking[0]}, which meta.json says begins in this frame")
        result[frame] = {number: labels == number for number in new}
    return result


def read_mask(path: Path, frame: Path) -> NDArray[np.uint8]:
    """(H, W) the numbers of objects at a frame's own size.

    Raises:
        DecodeError: if one of them cannot be read, or their sizes differ.
    """
    labels = read_indexed(path)
    size = image_shape(frame)
    if labels.shape != size:
        raise DecodeError(
            str(path), f"is {labels.shape[0]} x {labels.shape[1]} pixels, its frame {size[0]} x {size[1]}"
        )
    return labels


def check_number(names: Sequence[str], source: Path) -> None:
    """Refuse a list without a sequence.

    Raises:
        TubeletError: naming the list.
    """
    if not names:
        raise TubeletError(f"{source}: lists no sequence")
