"""ImageNet-1K (Russakovsky et al., arXiv 1409.0575).

    train/n01440764/n01440764_10026.JPEG
    val/n01440764/ILSVRC2012_val_00000293.JPEG
    LOC_synset_mapping.txt   n01440764 tench, Tinca tinca      (class names, optional)

Validation images may also lie in one folder, as the official archive unpacks, with a list of classes next to it or
in a directory above: LOC_val_solution.csv (Kaggle), val.txt (Caffe: a name and a class number),
imagenet_2012_validation_synset_labels.txt (a class on each line, in the order of the names) or val_annotations.txt
(Tiny ImageNet). Kaggle's archive has both splits in ILSVRC/Data/CLS-LOC.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tubelet.data.file_types import IMAGE_SUFFIXES
from tubelet.data.tables import read_lines
from tubelet.datasets.class_folders import files_by_class, has_classes
from tubelet.datasets.image_folders import IMAGE_PROTOCOL, SPLITS, split_folder
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots, count_hidden_media, media_files, subfolders
from tubelet.datasets.records import ClassificationDataset, LabeledFile
from tubelet.errors import DataError

NAMES = "LOC_synset_mapping.txt"
LISTS = ("LOC_val_solution.csv", "val_annotations.txt", "val.txt", "imagenet_2012_validation_synset_labels.txt")
_ARCHIVES = (
    "ILSVRC/Data/CLS-LOC",
    "Data/CLS-LOC",
    "CLS-LOC",
    "ILSVRC2012",
    "ILSVRC",
    "imagenet",
    "imagenet-1k",
    "tiny-imagenet-200",
)
_SYNSET = re.compile(r"n\d+")


class ImageNet(Layout[ClassificationDataset]):
    """ImageNet-1K, and its subsets in folders of synsets."""

    record = ClassificationDataset
    expected = "ImageNet (train/SYNSET/*.JPEG, and val/SYNSET/*.JPEG or val/*.JPEG with a list)"
    priority = 3

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        base = _root(root)
        if base is None:
            raise layout_error(root, "no train/ with a folder for each class", ImageNet.expected)
        train, val = (split_folder(base, split) for split in SPLITS)
        synsets = [folder.name for folder in subfolders(train)]
        flat = _flat_images(val)
        return ClassificationDataset(
            name=f"ImageNet ({len(synsets)} classes), validation",
            classes=_class_names(root, base, synsets),
            train=files_by_class(train, train, IMAGE_SUFFIXES),
            test=_listed_images(root, val, flat, synsets) if flat else files_by_class(val, train, IMAGE_SUFFIXES),
            excluded=count_hidden_media(subfolders(train) + ([] if flat else subfolders(val))),
            protocol=IMAGE_PROTOCOL,
        )


def _root(root: Path) -> Path | None:
    return next((folder for folder in candidate_roots(root, _ARCHIVES) if _is_root(folder)), None)


def _is_root(root: Path) -> bool:
    train, val = (split_folder(root, split) for split in SPLITS)
    if not has_classes(train, IMAGE_SUFFIXES):
        return False
    has_synsets = all(_SYNSET.fullmatch(folder.name) for folder in subfolders(train))
    return bool(_flat_images(val)) or (has_synsets and has_classes(val, IMAGE_SUFFIXES))


def _flat_images(val: Path) -> list[Path]:
    """Images directly in the folder of the split, or in its only folder, val/images."""
    if not val.is_dir():
        return []
    images = media_files(val, IMAGE_SUFFIXES)
    if images and images[0].parent == val:
        return [] if has_classes(val, IMAGE_SUFFIXES) else images  # a stray image makes no flat folder
    return images if len(subfolders(val)) == 1 else []


def _ancestors(named: Path, base: Path) -> Iterator[Path]:
    """The directory of the splits and those above it, up to the named one."""
    yield base
    while base != named and named in base.parents:
        base = base.parent
        yield base


def _listed_images(named: Path, val: Path, images: list[Path], synsets: list[str]) -> list[LabeledFile]:
    """Images of a flat folder with the classes of a list next to it.

    Raises:
        DataError: There is no list, or it lacks an image or has a class without training images.
    """
    folders = [
        candidate / inside for candidate in _ancestors(named, val.parent) for inside in (".", "meta", "caffe_ilsvrc12")
    ]
    paths = [folder / name for name in LISTS for folder in (val, *folders)]
    path = next((candidate for candidate in paths if candidate.is_file()), None)
    if path is None:
        expected = f"{val.name}/CLASS/*.JPEG, or a list of its classes, {' or '.join(LISTS)}"
        raise layout_error(val.parent, f"{val.name}/ has no folder for each class", expected)
    lines = read_lines(path)
    if path.name == LISTS[3]:
        if len(lines) != len(images):
            raise DataError(f"{path}: {len(lines)} classes for {len(images)} images in {val}")
        class_of_stem = dict(zip((image.stem for image in images), lines, strict=True))
    else:
        rows = (re.split(r"[\s,]+", line, maxsplit=2) for line in lines)
        class_of_stem = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1 and row[0] != "ImageId"}
    numbers = {synset: number for number, synset in enumerate(synsets)}
    files = []
    for image in images:
        name = class_of_stem.get(image.stem)
        if name is None:
            raise DataError(f"{path}: no class for {image.name}")
        label = numbers.get(name, int(name) if name.isascii() and name.isdigit() else -1)
        if not 0 <= label < len(numbers):
            raise DataError(f"{path}: {image.name} has class {name}, which has no folder in train/")
        files.append(LabeledFile(path=image, label=label))
    return files


def _class_names(named: Path, base: Path, synsets: list[str]) -> tuple[str, ...]:
    """Class names, unique: two synsets of ImageNet are called crane, and two maillot."""
    path = next((folder / NAMES for folder in _ancestors(named, base) if (folder / NAMES).is_file()), None)
    pairs = (line.partition(" ") for line in (read_lines(path) if path else ()))
    names = {synset: name.split(",")[0].strip() for synset, _, name in pairs if name}
    count = Counter(names.get(synset, synset) for synset in synsets)
    pairs_of_names = ((synset, names.get(synset, synset)) for synset in synsets)
    return tuple(name if count[name] == 1 else f"{name} ({synset})" for synset, name in pairs_of_names)
