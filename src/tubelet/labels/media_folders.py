"""Folders of labeled media as in Hugging Face's data sets: folders of splits, `metadata` files, folders of classes.

FOLDER/metadata.csv                  a label table, whose files may lie in folders of splits
FOLDER/train/metadata.csv            a label table for each split
FOLDER/train/CLASS/0.png             classes are folders
FOLDER/CLASS/0.png                   the same without splits
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tubelet.data.sources import list_media
from tubelet.errors import DataError, escape_filename
from tubelet.labels.build import build_table, digest_of
from tubelet.labels.records import LabelError, LabelRow, LabelTable

logger = logging.getLogger(__name__)

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Name of the folder of a split -> value of the column `split`."""


def read_media_folder(folder: Path, read_table: Callable[[Path], LabelTable]) -> LabelTable | None:
    """The labels of a folder of media; None if it has neither metadata nor folders of classes.

    Folders of splits become the column `split`, unless there is only one.

    Args:
        folder: the folder.
        read_table: reader of a label table.

    Raises:
        LabelError: the tables of the splits do not have the same columns.
    """
    if (metadata := _metadata(folder)) is not None:
        table = read_table(metadata)
        rows = [replace(row, split=row.split or _split_of(row.path, folder)) for row in table.rows]
        rows = _without_single_split(folder, rows)
        return replace(table, rows=rows, columns=_with_split(table.columns, rows))
    splits = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name.lower() in SPLIT_FOLDERS]
    tables = [
        each for subfolder in splits or [folder] if (each := _read_split(subfolder, folder, read_table)) is not None
    ]
    if not tables:
        return None
    columns = {tuple(name for name in each.columns if name != "split") for each in tables}
    if len(columns) > 1:
        listed = " and ".join(sorted(", ".join(names) for names in columns))
        raise LabelError(folder, [f"the labels of its splits have other columns: {listed}; make them equal"])
    rows = [row for each in tables for row in each.rows]
    faults = [fault for each in tables for fault in _located(each, each.faults)]
    target_faults = [fault for each in tables for fault in _located(each, each.target_faults)]
    legend = next((each.legend for each in tables if each.legend), None)
    if any(each.legend != tables[0].legend for each in tables):
        raise LabelError(folder, ["the masks of its splits have different classes; give each split the same legend"])
    rows = _without_single_split(folder, rows)
    return build_table(
        folder,
        f"{' and '.join(sorted({each.format for each in tables}))} in {len(tables)} folders",
        digest_of(*(each.digest.encode() for each in tables)),
        rows,
        faults,
        legend=legend,
        columns=_with_split(tables[0].columns, rows),
        targets=tables[0].targets,
        target_faults=target_faults,
        row_kind=tables[0].row_kind,
    )


def _located(table: LabelTable, faults: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(line, f"{table.path.parent.name}: {fault}") for line, fault in faults]


def _with_split(columns: Sequence[str], rows: Sequence[LabelRow]) -> tuple[str, ...]:
    other_columns = tuple(name for name in columns if name != "split")
    return (*other_columns, "split") if any(row.split for row in rows) else other_columns


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _split_of(path: Path, folder: Path) -> str:
    """The split by the first folder below `folder`; "" where that is none."""
    try:
        return SPLIT_FOLDERS.get(path.relative_to(folder.resolve()).parts[0].lower(), "")
    except ValueError:
        return ""


def _read_split(subfolder: Path, folder: Path, read_table: Callable[[Path], LabelTable]) -> LabelTable | None:
    """The metadata or the folders of classes of a split, or of a folder without splits."""
    metadata = _metadata(subfolder)
    table = _read_classes(subfolder) if metadata is None else read_table(metadata)
    if table is None or subfolder == folder:
        return table
    split, source = SPLIT_FOLDERS[subfolder.name.lower()], str(table.path.relative_to(folder))
    return replace(table, rows=[replace(row, split=row.split or split, source=source) for row in table.rows])


def _read_classes(subfolder: Path) -> LabelTable | None:
    """The media in the subfolders of a folder, whose names are their classes."""
    rows: list[LabelRow] = []
    frames: list[str] = []
    for child in sorted(subfolder.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            continue
        try:
            media = list_media([str(child)])
        except DataError:  # no media
            continue
        # A class whose images are numbered is common; its subfolders of numbered images are videos.
        frames += [folder for folder in media.frame_folders if folder != str(child.resolve())]
        for path in sorted([*media.videos, *media.images]):
            rows.append(LabelRow(line=len(rows) + 1, path=Path(path), labels=(child.name,)))
    if not rows:
        return None
    if frames:
        logger.info(
            "%d folder%s look like frames of videos, such as %s: the images are labeled one by one; to label them as "
            "videos, write a table of the columns path and label with a row for each folder",
            *(len(frames), "s" * (len(frames) > 1), escape_filename(frames[0])),
        )
    digest = digest_of(*(f"{row.labels[0]}/{row.path.name}".encode() for row in rows))
    return build_table(subfolder, "folders of classes", digest, rows, row_kind="file")


def _without_single_split(folder: Path, rows: Sequence[LabelRow]) -> list[LabelRow]:
    """The rows without their split where all have the same one."""
    splits = {row.split for row in rows}
    if len(splits) > 1 or splits <= {""}:
        return list(rows)
    logger.info("%s: has only the split %s, of which some files are held out", folder, *splits)
    return [replace(row, split="") for row in rows]
