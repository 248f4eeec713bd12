"""Media files sorted into a directory for each class."""

from pathlib import Path

from tubelet.datasets.locate import media_files, subfolders
from tubelet.datasets.records import LabeledFile
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
