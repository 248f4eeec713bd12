"""The sample set as Pascal VOC 2012: surfaces and sky as background, objects as the classes that are nearest."""

from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.frames import frames_of, translate, write_image, write_map
from tubelet.sample_data.truth import CLASSES

LABELS = {
    "void": 255,
    "wall": 0,
    "floor": 0,
    "ceiling": 0,
    "sky": 0,
    "monster": 15,  # person
    "item": 5,  # bottle
    "weapon": 14,  # motorbike: nothing similar
    "decoration": 9,  # chair
    "plant": 16,
    "light": 20,  # monitor
    "barrel": 11,  # table
    "remains": 12,  # dog
    "effect": 255,
}


def write_voc2012(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see `LAYOUTS`."""
    base, counts = out / "VOCdevkit" / "VOC2012", {}
    for split in ("train", "val"):
        names = []
        for frame in frames_of(root, split):
            name = f"{2007 if split == 'train' else 2008}_{frame.number + 1:06d}"
            write_image(base / "JPEGImages" / f"{name}.jpg", frame.pixels)
            labels = translate(frame.classes, LABELS, CLASSES, 255)
            write_map(base / "SegmentationClass" / f"{name}.png", labels, PALETTE)
            names.append(name)
        lists = base / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        counts[f"{split} images"] = len(names)
    return counts


def _palette() -> list[int]:
    """The colors of VOC's maps: an index's bits go to red, green and blue in turn, the lowest to the brightest."""
    colors = []
    for index in range(256):
        for channel in range(3):
            bits = [index >> (3 * bit_index + channel) & 1 for bit_index in range(3)]
            colors.append(sum(bit << (7 - bit_index) for bit_index, bit in enumerate(bits)))
    return colors


PALETTE = _palette()
