"""The sample set as ImageNet: its images and the middle frame of each of its clips, the class is the largest object.

Images without an object are left out and counted; so are validation images of a class without a training image.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tubelet.errors import DataError
from tubelet.sample_data.layouts.frames import frames_of, write_image
from tubelet.sample_data.layouts.labels import NOTHING, largest_object
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT

_IDENTITIES = {name: f"n{i:08d}" for i, name in enumerate(CLASSES) if i >= FIRST_OBJECT}


def write_imagenet(root: Path, out: Path) -> Mapping[str, int]:
    """Write train/CLASS/*.JPEG, val/CLASS/*.JPEG and LOC_synset_mapping.txt."""
    written: set[str] = set()
    counts: Counter[str] = Counter()
    for split in ("train", "val"):
        number = 0
        for frame in frames_of(root, split):
            name = largest_object(frame.classes)
            if name == NOTHING or (split == "val" and name not in written):
                counts["images left out"] += 1
                continue
            written.add(name)
            number += 1
            stem = f"{_IDENTITIES[name]}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
            write_image(out / split / _IDENTITIES[name] / f"{stem}.JPEG", frame.pixels)
        if not number:
            raise DataError(f"{root}: no {split} image shows an object that can be its class; render more clips")
        counts[f"{split} images"] = number
    names = "".join(f"{_IDENTITIES[name]} {name}\n" for name in CLASSES if name in written)
    (out / "LOC_synset_mapping.txt").write_text(names, encoding="utf-8")
    return counts
