"""The sample set as ADE20K: its classes as those of ADE20K that are nearest, void as 0."""

from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.frames import frames_of, translate, write_image, write_map
from tubelet.sample_data.truth import CLASSES

# Numbers of ADE20K's 150 classes, from 1, and their names.
NEAREST = {
    "wall": (1, "wall"),
    "sky": (3, "sky"),
    "floor": (4, "floor"),
    "ceiling": (6, "ceiling"),
    "monster": (127, "animal"),
    "item": (42, "box"),
    "weapon": (120, "ball"),  # nothing similar
    "decoration": (43, "column"),
    "plant": (18, "plant"),
    "light": (83, "light"),
    "barrel": (113, "barrel"),
    "remains": (13, "person"),
    "effect": (50, "fireplace"),
}
LABELS = {name: number for name, (number, _) in NEAREST.items()}


def write_ade20k(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see `LAYOUTS`."""
    counts = {}
    base = out / "ADEChallengeData2016"
    for split, folder, short in (("train", "training", "train"), ("val", "validation", "val")):
        for frame in frames_of(root, split):
            name = f"ADE_{short}_{frame.number + 1:08d}"
            write_image(base / "images" / folder / f"{name}.jpg", frame.pixels)
            write_map(base / "annotations" / folder / f"{name}.png", translate(frame.classes, LABELS, CLASSES, 0))
            counts[f"{folder} images"] = frame.number + 1
    names = dict(NEAREST.values())
    lines = [f"{k}\t\t\t\t{names.get(k, f'class {k}')}" for k in range(1, 151)]
    (base / "objectInfo150.txt").write_text(
        "\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]) + "\n", encoding="utf-8"
    )
    return counts
