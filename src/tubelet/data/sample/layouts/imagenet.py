"""The sample set as ImageNet: its images and the middle frame of each of its clips, the class is the largest object.

Pictures without an object are left out and counted; so are validation pictures of a class without a training picture.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import read_frames
from tubelet.data.sample.layouts.labels import NOTHING, largest_object
from tubelet.data.sample.truth import CLASSES, FIRST_OBJECT, SampleEntry, read_index, read_truth
from tubelet.types import TubeletError

_IDENTITIES = {name: f"n{i:08d}" for i, name in enumerate(CLASSES) if i >= FIRST_OBJECT}


def write(root: Path, out: Path) -> Mapping[str, int]:
    """Write train/CLASS/*.JPEG, val/CLASS/*.JPEG and LOC_synset_mapping.txt."""
    known: set[str] = set()
    counts: Counter[str] = Counter()
    for split in ("train", "val"):
        number = 0
        for kind in ("images", "videos"):
            for entry in read_index(root, split, kind):
                classes = read_truth(entry.truth).classes
                name = largest_object(classes[len(classes) // 2])
                if name == NOTHING or (split == "val" and name not in known):
                    counts["pictures left out"] += 1
                    continue
                known.add(name)
                number += 1
                stem = f"{_IDENTITIES[name]}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                path = out / split / _IDENTITIES[name] / f"{stem}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_middle(entry, kind)).save(path, format="JPEG", quality=95)
        if not number:
            raise TubeletError(f"{root}: no {split} picture shows an object that can be its class; render more clips")
        counts[f"{split} images"] = number
    names = "".join(f"{_IDENTITIES[name]} {name}\n" for name in CLASSES if name in known)
    (out / "LOC_synset_mapping.txt").write_text(names)
    return counts


def _middle(entry: SampleEntry, kind: str) -> NDArray[np.uint8]:
    """An image, or the middle frame of a clip: (H, W, 3)."""
    if kind == "videos":
        pixels = read_frames(entry.media).pixels
        return pixels[len(pixels) // 2].numpy()
    with Image.open(entry.media) as image:
        return np.asarray(image.convert("RGB"))
