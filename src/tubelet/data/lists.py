"""Lists of files in any common form: one parser for training and evaluation.

The separator, the column of the paths and the presence of a header are inferred from the whole list: every line must
have a path in the same position. Of several possible interpretations, the one whose paths exist is chosen.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from tubelet.config.fields import nearest
from tubelet.data.file_types import LISTED_SUFFIXES, any_of, names_with
from tubelet.data.size_limits import LINE_CHARACTERS
from tubelet.data.tables import SEPARATORS, decode_list
from tubelet.errors import DataError, escape_unprintable
from tubelet.io.text import parse_json

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "file_name")  # the second as in the metadata of Hugging Face's folders of media
ROW_COLUMNS = ("start_s", "end_s", "weight")
LABEL_COLUMNS = ("label", "class", "class_id", "label_id", "target")
_NOT_MISNAMED = ("height",)
_TEXT = pa.large_string()
# Number of paths that are looked up to choose between interpretations.
_LOOKED_UP = 64
_HEAD = 1000
# Forms of a list: a path on each line; the first column of a table, or the one in its header; a path that may contain
# the separator, and what follows it; another column of a table; a path that may contain the separator, after a number.
_FORMS = [
    ("line", ""),
    *((kind, separator) for kind in ("first", "path", "other", "after") for separator in SEPARATORS),
]
Existing = Callable[[Sequence[str]], int]


@dataclass
class PathList:
    """The parsed content of a list.

    Attributes:
        paths: (N,) large_string, as written.
        labels: (N,) large_string, the label of each path; None if there is none, or several columns.
        lines: (N,) int64 line numbers, from 1.
        form: description of the form of the list.
        values: those of `ROW_COLUMNS` that a header names, each (N,) large_string as written, or double; null for none.
        decimal_comma: whether numbers may have a comma, since another character separates the columns.
    """

    paths: pa.Array
    labels: pa.Array | None
    lines: np.ndarray
    form: str
    values: Mapping[str, pa.Array] = field(default_factory=dict)
    decimal_comma: bool = False

    def __len__(self) -> int:
        return len(self.paths)


class _Interpretation(PathList):
    """One interpretation of a list.

    Attributes:
        missing: message about a line without a path.
        named: whether a header names the column of the paths.
        media: (N,) bool, paths with the suffix of a video or image.
        valid: (N,) bool, paths with the suffix of any file, in rows that are not too long.
        too_long: row -> its number of cells, of rows with more cells than the header.
    """

    def __init__(
        self,
        paths: pa.Array,
        labels: pa.Array | None,
        lines: np.ndarray,
        form: str,
        missing: str,
        named: bool,
        values: Mapping[str, pa.Array] | None = None,
        decimal_comma: bool = False,
        too_long: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(paths, labels, lines, form, values or {}, decimal_comma)
        self.missing, self.named, self.too_long = missing, named, too_long or {}
        self.media = _matches(paths, names_with(LISTED_SUFFIXES))
        self.valid = self.media if self.media.all() else self.media | _matches(paths, _OTHER_FILE)
        if self.too_long:
            self.valid = self.valid.copy()
            self.valid[list(self.too_long)] = False

    @property
    def perfect(self) -> bool:
        """Whether every line is valid."""
        return bool(self.valid.all())


# Other files in a list are ignored and counted.
_OTHER_FILE = r"(?i)[^/]\.[a-z][a-z0-9_]{0,9}$"


def _matches(paths: pa.Array, pattern: str) -> np.ndarray:
    matches = pc.fill_null(pc.match_substring_regex(paths, pattern), False)
    return matches.to_numpy(zero_copy_only=False)


def parse_list(name: str, data: bytes, existing: Existing) -> PathList:
    """Parse a list of paths and labels.

    Args:
        name: name of the list, for messages; JSON Lines if it ends in .jsonl.
        data: content of the list.
        existing: counts how many of at most `_LOOKED_UP` paths exist; called only if there are several interpretations.

    Raises:
        DataError: a line cannot be parsed or is too long, or the encoding is unknown.
    """
    text = decode_list(data, name)
    lines, numbers = _lines(name, text)
    if name.lower().endswith(".jsonl"):
        warn_of_misnamed_columns(name, re.findall(r'"([^"]+)"\s*:', lines[0].as_py()) if len(lines) else [])
        return _json_lines(name, lines, numbers)
    if not len(lines):
        return PathList(pa.array([], _TEXT), None, numbers, "no lines")
    best = _choose(_interpretations(text, lines, numbers), existing)
    invalid = np.flatnonzero(~best.valid)
    if len(invalid) and not _are_folders(best, invalid, existing):
        raise DataError(f"{name}, line {best.lines[invalid[0]]}: {_explain(text, best, invalid)}")
    if best.named:
        warn_of_misnamed_columns(name, re.split(r'["\s,;]+', lines[0].as_py().lower()))
    return PathList(best.paths, best.labels, best.lines, best.form, best.values, best.decimal_comma)


def _are_folders(best: _Interpretation, rows: np.ndarray, existing: Existing) -> bool:
    """Whether rows without a suffix name what exists, such as folders of frames, below a header."""
    paths = [path for path in best.paths.take(pa.array(rows)).to_pylist() if path]
    return best.named and not best.too_long and len(paths) == len(rows) == existing(paths)


def warn_of_misnamed_columns(name: str, header: Sequence[str]) -> None:
    """Warn of columns of a list that are not used, but have almost the name of one that would be."""
    for column in header:
        hint = nearest(column, [similar for similar in ROW_COLUMNS if similar not in header])
        if hint and column not in (*ROW_COLUMNS, *_NOT_MISNAMED):
            logger.warning("%s: column %s is not used%s", *map(escape_unprintable, (name, column)), hint)


def path_column(header: Sequence[str]) -> int | None:
    """The number of the column of the paths in a header in lower case; None if it names none."""
    return next((header.index(name) for name in PATH_COLUMNS if name in header), None)


def _lines(name: str, text: str) -> tuple[pa.Array, np.ndarray]:
    """The lines that are not blank, stripped, and their numbers."""
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.append(np.flatnonzero(data == ord("\n")) + 1, len(data))
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    lines = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    lengths = pc.utf8_length(lines).to_numpy()
    if lengths.max() > LINE_CHARACTERS:
        number = int(np.argmax(lengths > LINE_CHARACTERS))
        raise DataError(
            f"{name}, line {number + 1}: has {lengths[number]} characters, above the limit of {LINE_CHARACTERS}; "
            "write one file per line"
        )
    lines = pc.utf8_trim_whitespace(pc.utf8_trim(lines, characters="\ufeff"))
    nonempty = pc.greater(pc.binary_length(lines), 0)
    return lines.filter(nonempty), np.flatnonzero(nonempty.to_numpy(zero_copy_only=False)) + 1


def _interpretations(text: str, lines: pa.Array, numbers: np.ndarray) -> list[_Interpretation]:
    """The interpretations in which all lines are valid, the simplest first; all interpretations if there are none."""
    # An interpretation of the whole list is one of its beginning.
    end = 0
    for _ in range(_HEAD):
        end = text.find("\n", end) + 1 or len(text)
    head, count = text[:end], int(np.searchsorted(numbers, _HEAD, side="right"))
    forms = [
        form for form in _FORMS if any(r.perfect for r in _interpret(*form, head, lines[:count], numbers[:count], end))
    ]
    perfect = [r for form in forms for r in _interpret(*form, text, lines, numbers, len(text)) if r.perfect]
    return perfect or [r for form in _FORMS for r in _interpret(*form, text, lines, numbers, len(text))]


def _interpret(
    kind: str, separator: str, text: str, lines: pa.Array, numbers: np.ndarray, end: int
) -> Iterator[_Interpretation]:
    if kind == "line":
        skip = int(lines[0].as_py().strip("\"'").lower() in PATH_COLUMNS)
        form = "a path on each line" + ", below a header" * skip
        yield _Interpretation(lines[skip:], None, numbers[skip:], form, "has no path", bool(skip))
    elif '"' not in text and not pc.any(pc.match_substring(lines, separator)).as_py():
        return
    elif kind == "path":
        yield _split_at_path(lines, numbers, separator)
    elif kind == "after":
        fields = pc.extract_regex(lines, rf'^"?(?P<rest>\d+)"?\s*{re.escape(separator)}\s*"?(?P<path>[^"\s].*?)"?$')
        form = f"a number, {SEPARATORS[separator]}, and a path, which may contain them too; no header"
        arrays = [pc.struct_field(fields, name) for name in ("path", "rest")]
        yield _Interpretation(arrays[0], arrays[1], numbers, form, "has no path", named=False)
    else:
        yield from _tables(text, lines, numbers, separator, first=kind == "first", cut_off=end < len(text))


def _tables(
    text: str, lines: pa.Array, numbers: np.ndarray, separator: str, first: bool, cut_off: bool
) -> Iterator[_Interpretation]:
    """The list as a table whose cells are in quotes if they contain the separator."""
    if '"' in text and len(separator) > 1:
        return
    columns = _by_csv(text, len(lines), separator) if '"' in text else None
    too_long = {}
    if columns is not None:
        width, header = len(columns), [column[0].as_py() for column in columns]
    else:
        if '"' in text:
            rows, at = _rows(text, separator, cut_off)
            if not rows:
                return
            cells, numbers = pa.array(rows, pa.large_list(_TEXT)), np.array(at)
        elif separator == " ":
            cells = pc.utf8_split_whitespace(lines)
        else:
            cells = pc.split_pattern(lines, separator)
        counts = pc.list_value_length(cells).to_numpy()
        width, header = int(np.bincount(counts).argmax()), cells[0].as_py()
        more = np.flatnonzero(counts[1:] > len(header))
        too_long = {int(row): int(counts[row + 1]) for row in more if _has_more(cells[int(row) + 1], len(header))}

    def column(index: int) -> pa.Array:
        values = columns[index] if columns is not None else _column(cells, counts, index)
        values = pc.utf8_trim_whitespace(values)
        return pc.if_else(pc.equal(pc.binary_length(values), 0), pa.scalar(None, _TEXT), values)

    form = f"columns separated by {SEPARATORS[separator]}"
    header = [cell.strip("\ufeff \t").lower() for cell in header]
    if (index := path_column(header)) is not None:
        if first:
            label = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
            labels = None if label is None else column(label)[1:]
            form = f"{form}, the paths in the one that the header names {header[index]!r}"
            missing = f"has no path in column {index + 1}"
            values = {name: column(header.index(name))[1:] for name in ROW_COLUMNS if name in header}
            paths = column(index)[1:]
            yield _Interpretation(paths, labels, numbers[1:], form, missing, True, values, separator != ",", too_long)
        return
    for index in [0] if first else range(1, width):
        labels = column(1 - index) if width == 2 and index < 2 else None
        missing = f"has no path in column {index + 1}"
        where = f"{form}, the paths in number {index + 1} of {width}, no header"
        yield _Interpretation(column(index), labels, numbers, where, missing, named=False)


def _by_csv(text: str, count: int, separator: str) -> list[pa.Array] | None:
    """The columns of a table with quotes as pyarrow parses them; None unless each of `count` lines is a row."""
    parse = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    names = csv.reader([text.split("\n", 1)[0]], delimiter=separator, skipinitialspace=True)
    columns = [str(i) for i in range(len(next(names, [])))]
    if not columns or text.startswith("\n"):
        return None
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text.encode()),
            pyarrow.csv.ReadOptions(column_names=columns, block_size=2**24),
            parse,
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, _TEXT), strings_can_be_null=False),
        )
    except (pa.ArrowException, ValueError):
        return None
    arrays = [pa.concat_arrays(column.chunks) for column in table.columns] if len(table) == count else None
    # A quote that remains in a cell did not enclose it.
    return None if arrays is None or any(pc.any(pc.match_substring(c, '"')).as_py() for c in arrays) else arrays


def _rows(text: str, separator: str, cut_off: bool) -> tuple[list[list[str]], list[int]]:
    """The rows of a table with quotes and the line at which each ends; none if quotes are inconsistent."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append(row)
                numbers.append(reader.line_num)
    except csv.Error as error:
        if not (cut_off and "unexpected end" in str(error)):
            return [], []
    if rows:
        rows[0][0] = rows[0][0].lstrip("\ufeff")
    return rows, numbers


def _column(cells: pa.Array, counts: np.ndarray, index: int) -> pa.Array:
    """One column, null where a row is too short."""
    starts = cells.offsets.to_numpy()[:-1] + index
    short = counts <= index
    return cells.values.take(pa.array(starts, mask=short) if short.any() else pa.array(starts))


def _has_more(cells: pa.Scalar, width: int) -> bool:
    """Whether a row has cells with content after those of the header."""
    return any(map(str.strip, cells.as_py()[width:]))


def _split_at_path(lines: pa.Array, numbers: np.ndarray, separator: str) -> _Interpretation:
    """The list as lines whose paths contain the separator too; they end with the last media suffix before one."""
    mark = r"[ \t]+" if separator == " " else rf"\s*{re.escape(separator)}\s*"
    header = [cell.strip('" ') for cell in re.split(mark, lines[0].as_py().lower())]
    separator_name = SEPARATORS[separator]
    if (index := path_column(header)) is not None and len(header) > 1:
        label = next((header.index(name) for name in LABEL_COLUMNS if name in header), -1)
        cell = rf"[^{re.escape(separator[0])}]*"
        columns = {header.index(name): name for name in ROW_COLUMNS if name in header}
        names = ["path" if i == index else "rest" if i == label else columns.get(i, "") for i in range(len(header))]
        cells = [f"(?P<{name}>{'.*' if name == 'path' else cell})" if name else cell for name in names]
        found = pc.extract_regex(lines[1:], f"^{mark.join(cells)}$")
        rest = pc.struct_field(found, "rest") if label >= 0 else None
        form = f"columns separated by {separator_name}, which paths contain too, below a header"
        missing = f"has no path in column {index + 1}"
        values = {name: pc.struct_field(found, name) for name in columns.values()}
        rows = (pc.struct_field(found, "path"), rest, numbers[1:], form, missing, True, values)
        return _Interpretation(*rows, separator != ",")
    paths, rest = pa.nulls(len(lines), _TEXT), pa.nulls(len(lines), _TEXT)
    for pattern in (
        rf'^"(?P<path>(?:[^"]|"")*)"(?:{mark}(?P<rest>.*))?$',
        rf"(?i)^(?P<path>[^\"].*{any_of(LISTED_SUFFIXES)})(?:{mark}(?P<rest>.*))?$",
        rf"^(?P<path>[^\"].*?)(?:{mark}(?P<rest>\S*))?$",  # another file
    ):
        left = pc.is_null(paths)
        if not pc.any(left).as_py():
            break
        found = pc.extract_regex(lines.filter(left), pattern)
        arrays = [pc.struct_field(found, name) for name in ("path", "rest")]
        if pattern.startswith('^"'):
            arrays[0] = pc.replace_substring(arrays[0], '""', '"')
        paths, rest = (
            pc.replace_with_mask(before, left, now) for before, now in zip((paths, rest), arrays, strict=True)
        )
    rest = pc.utf8_trim(rest, characters='" \t')
    form = f"paths, and what follows them after {separator_name}, which paths contain too; no header"
    return _Interpretation(paths, rest, numbers, form, "has no path", named=False)


def _choose(interpretations: Sequence[_Interpretation], existing: Existing) -> _Interpretation:
    """The interpretation with most valid lines, of these with most media, of these with most existing paths."""
    named = [interpretation for interpretation in interpretations if interpretation.named and len(interpretation)]
    if named and not interpretations[0].perfect:
        interpretations = named
    ranks = [
        (int(interpretation.valid.sum()) - len(interpretation), int(interpretation.media.sum()))
        for interpretation in interpretations
    ]
    best_ones = [
        interpretation for interpretation, rank in zip(interpretations, ranks, strict=True) if rank == max(ranks)
    ]
    distinct = [
        interpretation
        for i, interpretation in enumerate(best_ones)
        if not any(interpretation.paths.equals(o.paths) for o in best_ones[:i])
    ]
    best = distinct[0]
    if len(distinct) > 1:
        existing_counts = [existing(_samples(interpretation, distinct)) for interpretation in distinct]
        best = distinct[existing_counts.index(max(existing_counts))]
    same = (interpretation for interpretation in best_ones if interpretation.paths.equals(best.paths))
    return next((interpretation for interpretation in same if interpretation.labels is not None), best)


def _samples(interpretation: _Interpretation, interpretations: Sequence[_Interpretation]) -> list[str]:
    """Some paths of an interpretation, spread evenly: half of them from lines that another one parses differently."""
    chosen = _spread(np.arange(len(interpretation)))
    for other in interpretations:
        if other is not interpretation and len(other) == len(interpretation):
            distinct = pc.fill_null(pc.not_equal(other.paths, interpretation.paths), True)
            chosen = np.append(chosen, _spread(np.flatnonzero(distinct.to_numpy(zero_copy_only=False))))
            break
    return [path for path in interpretation.paths.take(pa.array(np.unique(chosen))).to_pylist() if path]


def _spread(places: np.ndarray) -> np.ndarray:
    count = min(len(places), _LOOKED_UP // 2)
    return places[np.linspace(0, len(places) - 1, count).astype(np.int64)] if count else places


def _explain(text: str, best: _Interpretation, wrong: np.ndarray) -> str:
    """What is wrong with the first line that is not valid in the best interpretation."""
    line = text.split("\n", int(best.lines[wrong[0]]))[best.lines[wrong[0]] - 1].strip()
    if best.named and best.paths[int(wrong[0])].as_py() is None:
        return f"{best.missing}; fill it or remove the line"
    if number := best.too_long.get(int(wrong[0])):
        remedy = "put a value with a separator in it in quotes"
        return f"{line[:200]!r} has {number} values, more than the header has columns; {remedy}"
    cells = [cell.strip('" ') for cell in re.split(r"[,;\t]|::| ", line)]
    names_media = any(Path(cell).suffix.lower() in LISTED_SUFFIXES for cell in cells)
    if wrong[0] == 0 and not best.named and not names_media and len(wrong) == 1:
        names = ", ".join(filter(None, cells))[:200]
        return f"its header has no column named path: {names}; rename the column with the paths"
    others = len(best) - len(wrong)
    read = f", as {others} of the other lines have ({best.form})" if others else ""
    return f"{line[:200]!r} has no path of a file with a suffix{read}; correct the line, or the separators of the list"


def _json_lines(name: str, lines: pa.Array, numbers: np.ndarray) -> PathList:
    """The paths of objects, one on a line."""
    form = "an object with a path on each line"
    table = _by_arrow(lines)
    if table is None:  # with a line to name, or beyond what pyarrow reads
        rows = [_row_of(name, int(n), line) for n, line in zip(numbers, lines.to_pylist(), strict=True)]
        table = {"path": pa.array([row["path"] for row in rows], _TEXT)}
        for column in ROW_COLUMNS:
            values = pa.array([row.get(column) for row in rows], pa.float64())
            if values.null_count < len(values):
                table[column] = values
    paths = pc.utf8_trim_whitespace(table.pop("path"))
    return PathList(paths, None, numbers, form, table)


def _by_arrow(lines: pa.Array) -> dict[str, pa.Array] | None:
    """The paths and values as pyarrow parses them; None if a line is not valid."""
    if not len(lines):
        return {"path": pa.array([], _TEXT)}
    # A key that is there twice, or escaped, is a matter of interpretation.
    counts = {key: pc.max(pc.count_substring(lines, f'"{key}"')).as_py() for key in (*PATH_COLUMNS, *ROW_COLUMNS)}
    key = next((column for column in PATH_COLUMNS if counts[column]), None)
    if key is None or max(counts.values()) > 1:
        return None
    columns = [column for column in ROW_COLUMNS if counts[column]]
    joined = pc.binary_join_element_wise(lines, pa.scalar("", _TEXT), pa.scalar("\n", _TEXT))
    schema = pa.schema([(key, _TEXT), *((column, pa.float64()) for column in columns)])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(joined.buffers()[2]),
            pyarrow.json.ReadOptions(block_size=2**24),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowException, ValueError):
        return None
    arrays = {column: pa.concat_arrays(table[column].chunks) for column in (key, *columns)}
    paths = arrays.pop(key)
    empty = pc.any(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(paths)), 0)).as_py()
    return None if len(paths) != len(lines) or paths.null_count or empty else {"path": paths, **arrays}


def _row_of(name: str, number: int, line: str) -> dict[str, Any]:
    """The path of an object as "path", and its values."""
    row = parse_json(line, f"{name}, line {number}", remedy='write {"path": "video.mp4"}')
    listed = next((row[key] for key in PATH_COLUMNS if key in row), None) if isinstance(row, dict) else None
    if not isinstance(listed, str) or not listed.strip():
        raise DataError(f'{name}, line {number}: has no path; write {{"path": "video.mp4"}}')
    if any("\ud800" <= character <= "\udfff" for character in listed):
        raise DataError(f"{name}, line {number}: {ascii(listed)[:200]} is not a valid file name; remove the line")
    for column in ROW_COLUMNS:
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise DataError(f"{name}, line {number}: {column} is {value!r:.60}, expected a number")
    return {**row, "path": listed}
