"""What the clips and images of the sample set are of, and how their media files are written anew."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tubelet.data.sample.truth import CLASSES, FIRST_OBJECT, SampleEntry, read_truth

NOTHING = "nothing"


def dominant_object(entry: SampleEntry) -> str:
    """The class of object that has the most pixels over all frames, or "nothing"."""
    return largest_object(read_truth(entry.truth).classes)


def largest_object(classes: NDArray[np.uint8]) -> str:
    """The class of object that has the most pixels of a picture or clip of any shape, or "nothing"."""
    counts = np.bincount(classes.ravel(), minlength=len(CLASSES))[FIRST_OBJECT:]
    return CLASSES[FIRST_OBJECT + int(counts.argmax())] if counts.any() else NOTHING


def in_words(motion: str) -> str:
    """A motion's name without its underscore."""
    return motion.replace("_", " ")


def copy(entry: SampleEntry, path: Path) -> None:
    """Copy a media file as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(entry.media, path)


def encode(path: Path, frames: Sequence[NDArray[np.uint8]], fps: Fraction, codec: str, options: dict[str, str]) -> None:
    """Write frames (H, W, 3) as a video of a codec, in the container that the file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4" if path.suffix.lower() == ".mp4" else None) as container:
        stream: Any = container.add_stream(codec, rate=fps)  # of any kind, to the type checker
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", options | {"threads": "1"}
        stream.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
