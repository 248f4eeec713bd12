"""ImageNet-1K (Russakovsky et al., arXiv 1409.0575), its images sorted into a folder for each class.

train/n01440764/n01440764_10026.JPEG
val/n01440764/ILSVRC2012_val_00000293.JPEG
LOC_synset_mapping.txt   n01440764 tench, Tinca tinca      (names of the classes; need not be there)

Validation images may also lie in one folder, as the official archive unpacks, with a list of their classes beside it,
or beside a folder above: LOC_val_solution.csv (Kaggle's), val.txt (a name and the number of its class, as Caffe's),
imagenet_2012_validation_synset_labels.txt (a class on each line, in the order of the names) or val_annotations.txt
(Tiny ImageNet's). Kaggle's archive has both splits in ILSVRC/Data/CLS-LOC.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from tubelet.data.suffixes import IMAGE_SUFFIXES
from tubelet.data.tables import read_lines
from tubelet.datasets.labelled import ClassificationDataset, LabeledFile
from tubelet.datasets.locate import class_folders, hidden_media, media_in, refuse, roots
from tubelet.errors import TubeletError

NAMES = "LOC_synset_mapping.txt"
SPLITS = {
    "train": ("train", "training", "ILSVRC2012_img_train"),
    "val": ("val", "validation", "valid", "ILSVRC2012_img_val"),
}
LISTS = ("LOC_val_solution.csv", "val_annotations.txt", "val.txt", "imagenet_2012_validation_synset_labels.txt")
_INSIDE = (
    "ILSVRC/Data/CLS-LOC",
    "Data/CLS-LOC",
    "CLS-LOC",
    "ILSVRC2012",
    "ILSVRC",
    "imagenet",
    "imagenet-1k",
    "tiny-imagenet-200",
)


def recognise(data: Path) -> bool:
    """Whether a folder looks like this benchmark's: folders of images in train, and images in val."""
    return _root(data) is not None


def read(data: Path) -> ClassificationDataset:
    """The benchmark's lists.

    Raises:
        TubeletError: if a folder is missing or there are images of a class that is not trained on.
    """
    root = _root(data) or data
    splits = {split: _split_folder(root, split) for split in SPLITS}
    folders = {split: class_folders(folder) for split, folder in splits.items()}
    flat = _flat(splits["val"])
    if flat:
        folders["val"] = []
    for split, there in folders.items():
        if not there and not (split == "val" and flat):
            raise refuse(root, f"no {split}/ with a folder for each class", "train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    identities = [folder.name for folder in folders["train"]]
    numbers = {identity: number for number, identity in enumerate(identities)}
    files: dict[str, list[LabeledFile]] = {"train": [], "val": []}
    for split, there in folders.items():
        for folder in there:
            if folder.name not in numbers:
                raise TubeletError(f"{folder}: a class that {splits['train']} has no folder of")
            own = media_in(folder, IMAGE_SUFFIXES)
            files[split] += [LabeledFile(path=image, label=numbers[folder.name]) for image in own]
    if flat:
        files["val"] = _listed(data, splits["val"], flat, numbers)
    names = _names(next((place / NAMES for place in _above(data, root) if (place / NAMES).is_file()), root / NAMES))
    called = Counter(names.get(identity, identity) for identity in identities)
    # Two classes are a crane, and two a maillot: what is told by name must not take one for the other.
    classes = tuple(
        name if called[name] == 1 else f"{name} ({identity})"
        for identity, name in ((identity, names.get(identity, identity)) for identity in identities)
    )
    return ClassificationDataset(
        name=f"ImageNet ({len(classes)} classes), validation",
        classes=classes,
        train=files["train"],
        val=files["val"],
        left_out=hidden_media(chain(*folders.values())),
    )


def _root(data: Path) -> Path | None:
    return next((root for root in roots(data, _INSIDE) if _is_root(root)), None)


def _is_root(root: Path) -> bool:
    train, val = (_split_folder(root, split) for split in SPLITS)
    trained = any(any(media_in(folder, IMAGE_SUFFIXES)) for folder in class_folders(train)[:1])
    return trained and (any(any(media_in(f, IMAGE_SUFFIXES)) for f in class_folders(val)[:1]) or bool(_flat(val)))


def _split_folder(root: Path, split: str) -> Path:
    return next((root / name for name in SPLITS[split] if (root / name).is_dir()), root / split)


def _flat(val: Path) -> list[Path]:
    """Images that lie in the folder of the split itself, or in the only folder in it, val/images."""
    if not val.is_dir():
        return []
    found = media_in(val, IMAGE_SUFFIXES)
    return found if not found or found[0].parent == val or len(class_folders(val)) == 1 else []


def _above(data: Path, root: Path) -> Iterator[Path]:
    """The root of the splits and the folders above it, up to the one that was named."""
    yield root
    while root != data and data in root.parents:
        root = root.parent
        yield root


def _listed(data: Path, val: Path, images: list[Path], numbers: Mapping[str, int]) -> list[LabeledFile]:
    """The images of a flat folder with the classes that a list beside it names.

    Raises:
        TubeletError: there is no list, it does not name an image, or names a class that is not trained on.
    """
    folders = [place / inside for place in _above(data, val.parent) for inside in (".", "meta", "caffe_ilsvrc12")]
    places = [folder / name for name in LISTS for folder in (val, *folders)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise refuse(
            val.parent,
            f"{val.name}/ has no folder for each class",
            f"{val.name}/CLASS/*.JPEG, or the classes of its images in {' or '.join(LISTS)}",
        )
    lines = read_lines(path)
    if path.name == LISTS[3]:
        if len(lines) != len(images):
            raise TubeletError(f"{path}: names {len(lines)} classes, but {val} has {len(images)} images")
        found = dict(zip((image.stem for image in images), lines, strict=True))
    else:
        rows = (re.split(r"[\s,]+", line, maxsplit=2) for line in lines)
        found = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1 and row[0] != "ImageId"}
    files = []
    for image in images:
        named = found.get(image.stem)
        if named is None:
            raise TubeletError(f"{path}: has no class of {image.name}")
        label = numbers.get(named, int(named) if named.isascii() and named.isdigit() else -1)
        if not 0 <= label < len(numbers):
            raise TubeletError(f"{path}: {image.name} is of class {named}, which train/ has no folder of")
        files.append(LabeledFile(path=image, label=label))
    return files


def _names(path: Path) -> dict[str, str]:
    """Identity -> name of each class, empty if the file is not there."""
    if not path.is_file():
        return {}
    pairs = (line.partition(" ") for line in read_lines(path))
    return {identity: name.split(",")[0].strip() for identity, _, name in pairs if name}
