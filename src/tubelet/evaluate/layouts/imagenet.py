"""ImageNet-1K (Russakovsky et al., arXiv 1409.0575), its images sorted into a folder for each class.

train/n01440764/n01440764_10026.JPEG
val/n01440764/ILSVRC2012_val_00000293.JPEG
LOC_synset_mapping.txt   n01440764 tench, Tinca tinca      (names of the classes; need not be there)
"""

import os
from collections import Counter
from pathlib import Path

from tubelet.data.images import IMAGE_SUFFIXES
from tubelet.evaluate.layouts.folders import refuse
from tubelet.evaluate.layouts.labelled import Labelled, LabelledFile
from tubelet.readers import read_lines
from tubelet.types import TubeletError

NAMES = "LOC_synset_mapping.txt"


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's: folders of images in train and val."""
    return all(any(_images(folder) for folder in _folders(data / split)[:1]) for split in ("train", "val"))


def read(data: Path) -> Labelled:
    """The benchmark's lists.

    Raises:
        TubeletError: if a folder is missing or there are images of a class that is not trained on.
    """
    folders = {split: _folders(data / split) for split in ("train", "val")}
    for split, there in folders.items():
        if not there:
            raise refuse(data, f"no {split}/ with a folder for each class", "train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    identities = [folder.name for folder in folders["train"]]
    numbers = {identity: number for number, identity in enumerate(identities)}
    files: dict[str, list[LabelledFile]] = {"train": [], "val": []}
    for split, there in folders.items():
        for folder in there:
            if folder.name not in numbers:
                raise TubeletError(f"{folder}: a class that {data / 'train'} has no folder of")
            files[split] += [LabelledFile(path=image, label=numbers[folder.name]) for image in _images(folder)]
    names = _names(data / NAMES)
    called = Counter(names.get(identity, identity) for identity in identities)
    # Two classes are a crane, and two a maillot: what is told by name must not take one for the other.
    classes = tuple(
        name if called[name] == 1 else f"{name} ({identity})"
        for identity, name in ((identity, names.get(identity, identity)) for identity in identities)
    )
    title = f"ImageNet ({len(classes)} classes), validation"
    return Labelled(name=title, classes=classes, train=files["train"], val=files["val"])


def _folders(split: Path) -> list[Path]:
    return sorted(path for path in split.iterdir() if path.is_dir()) if split.is_dir() else []


def _images(folder: Path) -> list[Path]:
    # Of a million files, the names are all that is asked for: `scandir` gives them without a look at each.
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]


def _names(path: Path) -> dict[str, str]:
    """Identity -> name of each class, empty if the file is not there."""
    if not path.is_file():
        return {}
    pairs = (line.partition(" ") for line in read_lines(path))
    return {identity: name.split(",")[0].strip() for identity, _, name in pairs if name}
