"""Images sorted into a folder for each class, for any labeled images.

    train/CLASS/*.jpg, val/CLASS/*.jpg

The folders of the splits may be called training/, validation/ or valid/; images may lie in CLASS/images/.
"""

from pathlib import Path

from tubelet.data.file_types import IMAGE_SUFFIXES
from tubelet.datasets.class_folders import has_classes, load_class_folders
from tubelet.datasets.layout import Layout, layout_error
from tubelet.datasets.locate import candidate_roots
from tubelet.datasets.records import ClassificationDataset, ProbeProtocol

SPLITS = {
    "train": ("train", "training", "ILSVRC2012_img_train"),
    "val": ("val", "validation", "valid", "ILSVRC2012_img_val"),
}
IMAGE_PROTOCOL = ProbeProtocol(
    frames=1,
    batch_size=1024,
    learning_rates=(5e-4, 1e-3, 1.5e-3, 2e-3),
    weight_decays=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    warmup_epochs=5,
    start_lr=2e-4,
)


class ImageFolders(Layout[ClassificationDataset]):
    """Images in a folder for each class."""

    record = ClassificationDataset
    expected = "folders of images (train/CLASS/*.jpg and val/CLASS/*.jpg)"
    priority = 4

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> ClassificationDataset:
        folder = _root(root)
        if folder is None:
            raise layout_error(root, "no folders of images", ImageFolders.expected)
        train, val = (split_folder(folder, split) for split in SPLITS)
        return load_class_folders(root, "image folders", train, val, IMAGE_SUFFIXES, IMAGE_PROTOCOL)


def _root(root: Path) -> Path | None:
    return next((folder for folder in candidate_roots(root) if all(_has_images(folder, s) for s in SPLITS)), None)


def _has_images(root: Path, split: str) -> bool:
    return has_classes(split_folder(root, split), IMAGE_SUFFIXES)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, by its usual names."""
    return next((root / name for name in SPLITS[split] if (root / name).is_dir()), root / split)
