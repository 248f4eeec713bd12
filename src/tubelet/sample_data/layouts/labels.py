"""What the clips and images of the sample set are of."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, SampleEntry, read_truth

NOTHING = "nothing"


def dominant_object(entry: SampleEntry) -> str:
    """The class of object that has the most pixels over all frames, or "nothing"."""
    return largest_object(read_truth(entry.truth).classes)


def largest_object(classes: NDArray[np.uint8]) -> str:
    """The class of object that has the most pixels of a image or clip of any shape, or "nothing"."""
    counts = np.bincount(classes.ravel(), minlength=len(CLASSES))[FIRST_OBJECT:]
    return CLASSES[FIRST_OBJECT + int(counts.argmax())] if counts.any() else NOTHING


def in_words(motion: str) -> str:
    """A motion's name without its underscore."""
    return motion.replace("_", " ")


def copy(entry: SampleEntry, path: Path) -> None:
    """Copy a media file without changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(entry.media, path)
