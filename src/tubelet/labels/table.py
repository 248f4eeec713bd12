"""Label tables: CSV with a header, Parquet and JSON lines; annotation files of other programs are recognized first."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from tubelet.config.fields import nearest
from tubelet.data.lerobot import INFO, is_dataset
from tubelet.data.tables import SEPARATORS, decode_list, parse_number, parse_table, parse_time
from tubelet.errors import DataError
from tubelet.io.arrays import read_parquet
from tubelet.io.text import parse_json, read_bytes
from tubelet.labels.build import (
    build_table,
    digest_of,
    looks_numeric,
    resolve_listed,
    split_labels,
)
from tubelet.labels.formats.annotation_format import find_format
from tubelet.labels.legend import read_legend
from tubelet.labels.media_folders import read_media_folder
from tubelet.labels.records import SPLITS, LabelError, LabelRow, LabelTable
from tubelet.value_checks import LARGEST_INT

logger = logging.getLogger(__name__)

COLUMNS = (
    "path", "start_s", "end_s", "start_frame", "end_frame", "label", "mask", "depth", "split", "group", "weight",
)  # fmt: skip
"""Columns with a meaning; every other one of numbers is a target of regression."""
_LEARNED = {"label", "mask", "depth"}
"""Columns that say what is to be learned; without any, it is the numbers."""
IGNORED_COLUMNS = ("answer", "answer_score")
"""Columns of tables of suggestions (`tubelet fit --suggest`), which show what a head says."""
# Names of Hugging Face's folders of media, where NAME_file_name is the file of a column NAME, and of predicted maps.
_OTHER_NAMES = {
    "path": ("file_name", "image_file_name", "video_file_name"),
    "mask": ("mask_file", "mask_file_name"),
    "depth": ("depth_file", "depth_file_name"),
}
_REMEDY = "save the table again"
# Without these columns a table is still valid and means something else, so that a misspelled one is an error.
_DECISIVE = ("start_s", "end_s", "start_frame", "end_frame", "split", "group", "weight")
_URL = re.compile(r"\w{2,}:/")  # as a URL and as the path that it becomes; a drive of Windows has one letter
# Columns of numbers that are a known column under another name rather than targets, and of text that are labels.
_MISNOMERS = {
    "path": (
        *("video", "videos", "video_path", "video_file", "video_name", "clip", "movie", "recording", "source"),
        *("file", "files", "filename", "file_path", "filepath", "media", "media_path", "media_file", "media_name"),
        *("image", "images", "image_path", "image_file", "image_name", "img_path"),
    ),
    "start_s": ("start", "begin", "begin_s", "start_time", "onset", "start (s)", "start_sec", "start_ms"),
    "end_s": ("end", "stop", "stop_s", "end_time", "offset", "stop (s)", "end_sec", "end_ms"),
    "label": ("class", "labels", "category", "behavior", "behaviour"),
}


@dataclass(frozen=True)
class _Cells:
    """A table before its cells are understood.

    Attributes:
        header: names of the columns.
        rows: line and cells by column of each row.
        faults: line and sentence of each fault.
        form: description of the format.
        row_kind: what a row is in messages.
        decimal_comma: whether numbers may have a comma.
    """

    header: Sequence[str]
    rows: Sequence[tuple[int, dict[str, str]]]
    faults: list[tuple[int, str]]
    form: str
    row_kind: str = "line"
    decimal_comma: bool = False


def read_labels(path: str | Path) -> LabelTable:
    """Read a label table, or an annotation file of another program.

    Faults of rows are collected in the table, so that `tubelet.labels.checks.check_labels` can report them together
    with those that only the media show.

    Args:
        path: CSV with a header (the separator and encoding are found), Parquet, JSON lines, an annotation file, or a
            folder of annotation files, a LeRobot data set, whose classes are the tasks of its episodes, or a folder of
            media with metadata files, folders of splits or folders of classes, see `read_media_folder`.

    Raises:
        LabelError: if the file has no rows, or no column of paths.
        DataError: if it cannot be parsed at all.
        FileError: if it cannot be read.
    """
    if _URL.match(str(path)):
        raise DataError(f"{path}: labels are read from a local disk; copy them, with their media, and pass their path")
    path = Path(path).expanduser().absolute()
    if path.is_dir() and is_dataset(str(path)):
        path = path / INFO
    annotation_format = find_format(path)
    if path.is_dir():
        table = _read_folder(path)
    else:
        table = annotation_format.read(path) if annotation_format else _read_own(path)
    if not table.rows and not table.faults:
        raise LabelError(path, [f"has no labels, expected at least one {table.row_kind}"])
    return table


def _read_folder(folder: Path) -> LabelTable:
    """The annotation files in a folder as one table; files of no annotation program are not read."""
    exports = [
        (path, annotation_format) for path in sorted(folder.iterdir()) if (annotation_format := find_format(path))
    ]
    tables = [annotation_format.read(path) for path, annotation_format in exports]
    if not tables:
        if (table := read_media_folder(folder, _read_own)) is not None:
            return table
        raise LabelError(folder, ["has no annotation file, metadata.csv or folders of classes; name the label table"])
    if len({tuple(table.legend.items()) for table in tables if table.legend}) > 1:
        raise LabelError(folder, ["has annotation files of masks with different classes; convert them with one list"])
    rows = [replace(row, source=table.path.name) for table in tables for row in table.rows]
    faults = [
        (line, fault if fault.startswith(table.path.name) else f"{table.path.name}, {fault}")
        for table in tables
        for line, fault in table.faults
    ]
    form = f"{len(tables)} files of {', '.join(sorted({table.format for table in tables}))}"
    legend = next((table.legend for table in tables if table.legend), None)
    digest = digest_of(*(table.digest.encode() for table in tables))
    return build_table(folder, form, digest, rows, faults, legend=legend)


def _read_own(path: Path) -> LabelTable:
    content = read_bytes(path, "check the name and the permissions of the label table")
    cells = _cells(path, content)
    columns = {name.lower(): name for name in cells.header if name.lower() in COLUMNS}
    for name, others in _OTHER_NAMES.items():
        other = next((each for each in others if each in cells.header), None)
        if name not in columns and other is not None:
            columns[name] = other
    misnomers = _misnomers(cells.header, columns)
    targets, texts, empty = _other_columns(cells, {*columns.values(), *misnomers})
    if not targets and (unnamed := _unnamed_labels({*columns, *misnomers.values()}, texts)):
        misnomers[unnamed] = "label"
        texts = []
    faults = [*cells.faults, *((0, f"header: {fault}") for fault in _header_faults(cells.header, columns, misnomers))]
    # As if they were renamed, so that all faults are in one list.
    columns |= {column: name for name, column in misnomers.items() if not name.lower().endswith("_ms")}
    learned = bool(_LEARNED & columns.keys())
    faults += _unused_faults(targets, texts, empty, columns, learned)
    if "path" not in columns:
        raise LabelError(path, [fault for _, fault in faults])
    target_faults = _target_faults(cells, targets)
    if not learned:
        faults += target_faults
    rows = []
    resolved: dict[str, Path] = {}
    for line, row in cells.rows:
        named = {name: row.get(column, "") for name, column in columns.items()}
        values = [row.get(target, "") for target in targets]
        parsed = _RowParser(f"{cells.row_kind} {line}", line, named, path.parent, cells.decimal_comma, faults, resolved)
        if (read := parsed.row(values)) is not None:
            rows.append(read)
    if "label" in columns and not set(IGNORED_COLUMNS).isdisjoint(cells.header):
        _warn_of_open_suggestions(rows, cells.row_kind)
    legend, legend_content = read_legend(path, faults) if "mask" in columns else ({}, b"")
    return build_table(
        path,
        cells.form,
        digest_of(content, legend_content),
        rows,
        faults,
        legend=legend,
        columns=[*(name for name in COLUMNS if name in columns), *targets],
        targets=targets,
        target_faults=target_faults if learned else (),
        row_kind=cells.row_kind,
    )


def _cells(path: Path, content: bytes) -> _Cells:
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq") or content.startswith(b"PAR1"):
        table = read_parquet(path, None, _REMEDY)
        records = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
        return _Cells(table.column_names, list(enumerate(records, 1)), [], "Parquet", "row")
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, content)
    if suffix == ".json":
        raise DataError(
            f"{path}: is JSON of no known annotation program; save the labels as CSV, Parquet or JSON lines (.jsonl)"
        )
    table = parse_table(content, path, None)
    encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-8"
    faults = [(line, f"line {line} {fault}") for line, fault in table.faults]
    form = f"CSV separated by {SEPARATORS[table.separator]}, {encoding}"
    return _Cells(table.header, table.rows, faults, form, decimal_comma=table.separator != ",")


def _json_lines(path: Path, content: bytes) -> _Cells:
    rows: list[tuple[int, dict[str, str]]] = []
    faults: list[tuple[int, str]] = []
    header: dict[str, None] = {}
    for line, text in enumerate(decode_list(content, path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            value = parse_json(text.strip("\ufeff"), f"line {line}", dict[str, Any], _REMEDY)
        except DataError as error:
            faults.append((line, str(error)))
            continue
        rows.append((line, {name: _text(cell) for name, cell in value.items()}))
        header |= dict.fromkeys(value)
    return _Cells(list(header), rows, faults, "JSON lines")


def _text(value: object) -> str:
    """A value of Parquet or JSON as the cell of a table; NaN stands for no value, as pandas writes it."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INT:
        return str(int(value))  # pandas stores whole numbers with gaps as floats
    if isinstance(value, (list, tuple)):
        return "|".join(_text(item) for item in value)
    return str(value).strip()


def _header_faults(header: Sequence[str], columns: dict[str, str], misnomers: dict[str, str]) -> list[str]:
    """Columns that are there twice, columns to rename, and a missing column of paths."""
    faults = [f"column {name!r} is there twice; rename or remove one" for name in _duplicate_columns(header)]
    if "path" not in {*columns, *misnomers.values()}:
        found = ", ".join(header)[:300] or "nothing"
        faults.append(f"has no column path, found {found}{nearest('path', header)}; rename the column of the files")
    if misnomers:
        units = {name: " (converted to seconds)" if name.lower().endswith("_ms") else "" for name in misnomers}
        renames = ", ".join(f"{name} to {column}{units[name]}" for name, column in misnomers.items())
        faults.append(f"unknown column{'s' * (len(misnomers) > 1)}; rename {renames}")
    return faults


def _misnomers(header: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """Columns that go by another name than the known one that the table lacks -> that one."""
    misnomers: dict[str, str] = {}
    for column, others in _MISNOMERS.items():
        if column not in columns and column.replace("_s", "_frame") not in columns:
            misnomers |= dict.fromkeys([name for name in header if name.lower() in others][:1], column)
    for column in _DECISIVE:
        if column not in {*columns, *misnomers.values()}:
            misnomers |= dict.fromkeys([name for name in header if _is_misspelling(name.lower(), column)][:1], column)
    return misnomers


def _is_misspelling(word: str, name: str) -> bool:
    """Whether letters are swapped, or one is missing or too many: `start_x` is another word than `start_s`."""
    a, b = Counter(word), Counter(name)
    return (a - b).total() + (b - a).total() <= 1


def _duplicate_columns(header: Sequence[str]) -> list[str]:
    lowered = [name.lower() if name.lower() in COLUMNS else name for name in header]
    return sorted({name for name in lowered if lowered.count(name) > 1})


def _other_columns(cells: _Cells, taken: Collection[str]) -> tuple[list[str], list[str], list[str]]:
    """The columns without a meaning of their own: those of mostly numbers, those of text, and empty ones."""
    numeric: list[str] = []
    texts: list[str] = []
    empty: list[str] = []
    for column in dict.fromkeys(cells.header):
        if column and column not in taken and column not in IGNORED_COLUMNS:
            filled = [text for _, row in cells.rows if (text := row.get(column, ""))]
            count = sum(looks_numeric(text, cells.decimal_comma) for text in filled)
            (numeric if 2 * count > len(filled) else texts if filled else empty).append(column)
    return numeric, texts, empty


def _unnamed_labels(known: Collection[str], texts: Sequence[str]) -> str | None:
    """The only column of text of a table that says nothing else to be learned, whatever its name."""
    if "path" not in known or _LEARNED.intersection(known) or len(texts) != 1:
        return None
    hint = nearest(texts[0], [name for name in COLUMNS if name not in known])  # such as massk for mask
    return texts[0] if hint in ("", nearest(texts[0], ["label"])) else None


def _target_faults(cells: _Cells, targets: Sequence[str]) -> list[tuple[int, str]]:
    """One fault for each cell of a number column that has no number."""
    faults = []
    for column in targets:
        for line, row in cells.rows:
            text = row.get(column, "")
            if parse_number(text, cells.decimal_comma) is None:
                content = f"is {text!r:.60}" if text else "is empty"
                fault = f"{cells.row_kind} {line}: {column} {content}, expected a number as in the other rows"
                faults.append((line, fault))
    return faults


def _warn_of_open_suggestions(rows: Sequence[LabelRow], row_kind: str) -> None:
    """Warn of suggestions without a label, which tasks with empty labels read as an answer."""
    if unlabeled := [row.line for row in rows if not row.labels]:
        logger.warning(
            "%d suggestions have no label, the first in %s %d: timelines and multi-label tasks take them for files "
            "without any of the classes; remove the rows that you did not look at",
            *(len(unlabeled), row_kind, unlabeled[0]),
        )


def _unused_faults(
    targets: Sequence[str], texts: Sequence[str], empty: Sequence[str], columns: Collection[str], learned: bool
) -> list[tuple[int, str]]:
    """Columns that must be renamed for anything to be learned; what else may surprise is logged."""
    faults: list[tuple[int, str]] = []
    lacking = [name for name in COLUMNS if name not in columns]
    hints = {column: nearest(column, lacking) for column in (*texts, *empty)}
    if not (targets or learned):
        misspelled = [(column, hint) for column, hint in hints.items() if hint]
        faults += [(0, f"header: column {column!r} is unknown{hint}; rename it") for column, hint in misspelled]
        if len(texts) > 1 and not faults:
            names = ", ".join(texts)
            faults.append((0, f"header: has no column label; rename the one of {names} that has the classes to label"))
    for column, hint in hints.items() if not faults else ():
        logger.warning("column %s of the labels is not used: it does not have numbers%s", column, hint)
    for column in targets:
        if hint := nearest(column, lacking):
            logger.warning("column %s of the labels is taken for numbers to predict%s", column, hint)
    return faults


class _RowParser:
    """The cells of one row to values, collecting its faults."""

    def __init__(
        self,
        location: str,
        line: int,
        cells: dict[str, str],
        home: Path,
        decimal_comma: bool,
        faults: list[tuple[int, str]],
        resolved: dict[str, Path],
    ) -> None:
        self.location, self.line, self.cells, self.home = location, line, cells, home
        self.decimal_comma, self.faults = decimal_comma, faults
        self.resolved = resolved  # names are looked up once for all rows

    def row(self, values: Sequence[str]) -> LabelRow | None:
        """The row, None without a path; any other cell with a fault counts as empty."""
        path = self._file("path")
        if path is None:
            return None
        for name, seconds in (("start_frame", "start_s"), ("end_frame", "end_s")):
            if self.cells.get(name) and self.cells.get(seconds):
                self.fault(f"has both {seconds} and {name}; remove one")
        return LabelRow(
            line=self.line,
            path=path,
            start_s=self._time("start_s"),
            end_s=self._time("end_s"),
            start_frame=self._frame("start_frame"),
            end_frame=self._frame("end_frame"),
            labels=split_labels(self.cells.get("label", "")),
            values=tuple(parse_number(text, self.decimal_comma) or 0.0 for text in values),
            mask=self._file("mask"),
            depth=self._file("depth"),
            split=self._split(),
            group=self.cells.get("group", ""),
            weight=self._weight(),
        )

    def fault(self, problem: str) -> None:
        self.faults.append((self.line, f"{self.location}: {problem}"))

    def _file(self, column: str) -> Path | None:
        name = self.cells.get(column, "")
        if not name:
            if column == "path":
                self.fault("path is empty, expected a media file")
            return None
        try:
            if name not in self.resolved:
                self.resolved[name] = resolve_listed(name, self.home)
            return self.resolved[name]
        except ValueError as error:
            self.fault(f"{column} {name!r:.200} {error}")
            return None

    def _time(self, column: str) -> float | None:
        text = self.cells.get(column, "")
        if not text:
            return None
        value = parse_time(text, self.decimal_comma)
        if value is None:
            self.fault(f"{column} is {text!r:.60}, expected seconds or h:mm:ss.mmm")
        elif value < 0:
            self.fault(f"{column} is {text}, expected a time from 0 on")
            return None
        return value

    def _frame(self, column: str) -> int | None:
        text = self.cells.get(column, "")
        if not text:
            return None
        value = parse_number(text)
        if value is None or value < 0 or value != int(value) or value > LARGEST_INT:
            self.fault(f"{column} is {text!r:.60}, expected the number of a frame, from 0 on")
            return None
        return int(value)

    def _split(self) -> str:
        text = self.cells.get("split", "").lower()
        if "split" in self.cells and text not in SPLITS:
            content = f"is {text!r:.60}" if text else "is empty"
            self.fault(f"split {content}, expected one of {', '.join(SPLITS)}{nearest(text, SPLITS)}")
            return ""
        return text

    def _weight(self) -> float:
        text = self.cells.get("weight", "")
        if not text:
            return 1.0
        value = parse_number(text, self.decimal_comma)
        if value is None or value < 0:
            self.fault(f"weight is {text!r:.60}, expected a number from 0 on")
            return 1.0
        return value
