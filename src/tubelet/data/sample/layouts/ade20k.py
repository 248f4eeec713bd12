"""The sample set as ADE20K: its classes as those of ADE20K that come nearest, void as 0.

The list of class names that comes with the benchmark is not written: the set has a few of the 150 classes only.
"""

from collections.abc import Mapping
from pathlib import Path

from tubelet.data.sample.layouts.frames import frames_of, translate, write_map, write_picture
from tubelet.data.sample.truth import CLASSES

# Numbers of ADE20K's 150 classes, from 1.
LABELS = {
    "wall": 1,
    "sky": 3,
    "floor": 4,
    "ceiling": 6,
    "monster": 127,  # animal
    "item": 42,  # box
    "weapon": 120,  # ball: nothing comes near
    "decoration": 43,  # column
    "plant": 18,
    "light": 83,
    "barrel": 113,
    "remains": 13,  # person
    "effect": 50,  # fireplace
}


def write(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see the registry."""
    counts = {}
    for split, folder, short in (("train", "training", "train"), ("val", "validation", "val")):
        for frame in frames_of(root, split):
            name = f"ADE_{short}_{frame.number + 1:08d}"
            base = out / "ADEChallengeData2016"
            write_picture(base / "images" / folder / f"{name}.jpg", frame.pixels)
            write_map(base / "annotations" / folder / f"{name}.png", translate(frame.classes, LABELS, CLASSES, 0))
            counts[f"{folder} pictures"] = frame.number + 1
    return counts
