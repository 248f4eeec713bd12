"""Media files sorted into a directory for each class."""

from pathlib import Path

from tubelet.datasets.locate import count_hidden_media, media_files, subfolders
from tubelet.datasets.records import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.errors import DataError


def has_classes(split: Path, suffixes: frozenset[str]) -> bool:
    """Whether a class directory of a split contains files with one of the suffixes."""
    return any(media_files(folder, suffixes) for folder in subfolders(split))


def files_by_class(split: Path, train: Path, suffixes: frozenset[str]) -> list[LabeledFile]:
    """Files of a split, labeled by the position of their class among the directories of the train split.

    Raises:
        DataError: A class has no directory in the train split.
    """
    labels = {folder.name: label for label, folder in enumerate(subfolders(train))}
    files = []
    for folder in subfolders(split):
        if folder.name not in labels:
            raise DataError(f"{folder}: class without a folder in {train}")
        files += [LabeledFile(path=file, label=labels[folder.name]) for file in media_files(folder, suffixes)]
    return files


def load_class_folders(
    root: Path, kind: str, train: Path, val: Path, suffixes: frozenset[str], protocol: ProbeProtocol
) -> ClassificationDataset:
    """The data set of two splits, each with a directory for each class.

    Args:
        root: Directory that the user named, which the data set is called by.
        kind: Kind of directories, for the name of the data set.
        train: Directory of the train split, which has all classes.
        val: Directory of the validation split.
        suffixes: Suffixes of the files that count.
        protocol: Published settings for an attentive probe.

    Raises:
        DataError: A class has no directory in the train split.
    """
    classes = tuple(folder.name for folder in subfolders(train))
    return ClassificationDataset(
        name=own_name(root, len(classes), kind),
        classes=classes,
        train=files_by_class(train, train, suffixes),
        test=files_by_class(val, train, suffixes),
        excluded=count_hidden_media(folder for split in (train, val) for folder in subfolders(split)),
        protocol=protocol,
    )


def own_name(root: Path, classes: int, layout: str) -> str:
    """The name of a user's own data set: that of its folder, with the layout that it was read as."""
    return f"{root.resolve().name} ({classes} classes, {layout})"
