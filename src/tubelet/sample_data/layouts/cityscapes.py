"""The sample set as Cityscapes: a level is a city, classes are the labels that are nearest, void is unlabeled."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.frames import frames_of, translate, write_image, write_map
from tubelet.sample_data.truth import CLASSES

# Label ids, not train ids.
LABELS = {
    "wall": 11,  # building
    "floor": 7,  # road
    "ceiling": 16,  # tunnel, which is not evaluated
    "sky": 23,
    "monster": 24,  # person
    "item": 20,  # traffic sign
    "weapon": 33,  # bicycle
    "decoration": 17,  # pole
    "plant": 21,  # vegetation
    "light": 19,  # traffic light
    "barrel": 26,  # car
    "remains": 22,  # terrain
    "effect": 0,
}


def write_cityscapes(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see `LAYOUTS`."""
    counts = {}
    for split in ("train", "val"):
        numbers: Counter[str] = Counter()
        for frame in frames_of(root, split):
            city = frame.level.lower()
            name = f"{city}_{numbers[city]:06d}_000019"
            write_image(out / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", frame.pixels)
            labels = translate(frame.classes, LABELS, CLASSES, 0)
            write_map(out / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", labels)
            numbers[city] += 1
        counts[f"{split} images"] = numbers.total()
        counts[f"{split} cities"] = len(numbers)
    return counts
