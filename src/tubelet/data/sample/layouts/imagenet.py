"""The sample set as ImageNet: the class of an image is its largest object.

Images without an object are left out, and counted; so are validation images of a class that no training image has.
"""

from collections.abc import Mapping
from pathlib import Path

from tubelet.data.sample.layouts.labels import NOTHING, dominant_object, write_jpeg
from tubelet.data.sample.truth import CLASSES, FIRST_OBJECT, read_index

_IDENTITIES = {name: f"n{i:08d}" for i, name in enumerate(CLASSES) if i >= FIRST_OBJECT}


def write(root: Path, out: Path) -> Mapping[str, int]:
    """Write train/CLASS/*.JPEG, val/CLASS/*.JPEG and LOC_synset_mapping.txt."""
    labelled = {
        split: [(entry, dominant_object(entry)) for entry in read_index(root, split, "images")]
        for split in ("train", "val")
    }
    known = {name for _, name in labelled["train"]} - {NOTHING}
    counts, left_out = {}, 0
    for split, images in labelled.items():
        kept = [(entry, name) for entry, name in images if name in known]
        left_out += len(images) - len(kept)
        for number, (entry, name) in enumerate(kept, start=1):
            identity = _IDENTITIES[name]
            stem = f"{identity}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
            write_jpeg(entry, out / split / identity / f"{stem}.JPEG")
        counts[f"{split} images"] = len(kept)
    names = "".join(f"{_IDENTITIES[name]} {name}\n" for name in CLASSES if name in known)
    (out / "LOC_synset_mapping.txt").write_text(names)
    return counts | {"images left out": left_out}
