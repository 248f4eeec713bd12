"""The legend of masks: which class each index is."""

from pathlib import Path

from tubelet.data.tables import parse_table
from tubelet.datasets.annotations import IGNORED
from tubelet.errors import DataError
from tubelet.io.text import parse_json, read_bytes

_COLUMNS = ("index", "name")


def find_legend(table: Path) -> Path | None:
    """The legend of a label table: TABLE.legend.csv or .json with the table's name, else legend.csv or .json."""
    names = [f"{table.stem}.legend.csv", f"{table.stem}.legend.json", "legend.csv", "legend.json"]
    return next((path for name in names if (path := table.parent / name).is_file()), None)


def read_legend(table: Path, faults: list[tuple[int, str]]) -> tuple[dict[int, str], bytes]:
    """The legend of a label table, a file in the table's folder.

    Args:
        table: the label table.
        faults: where faults of the legend are collected.

    Returns:
        Index -> name, and the content of the file; both empty without one. The index 255 never counts.
    """
    path = find_legend(table)
    if path is None:
        return {}, b""
    content = read_bytes(path)
    entries: list[tuple[str, object, object]] = []
    try:
        if path.suffix == ".json":
            value = parse_json(content, path, dict[str, str] | list[str])
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            entries = [(f"entry {index}", index, name) for index, name in pairs]
        else:
            parsed = parse_table(content, path, _COLUMNS)
            if missing := [name for name in _COLUMNS if name not in parsed.header]:
                raise DataError(f"{path}: has no column {', '.join(missing)}; found {', '.join(parsed.header)[:300]}")
            faults += [(0, f"{path.name}: line {line} {fault}") for line, fault in parsed.faults]
            entries = [(f"line {line}", row["index"], row["name"]) for line, row in parsed.rows]
    except DataError as error:
        faults.append((0, str(error)))
    legend: dict[int, str] = {}
    for where, index, name in entries:
        digits, name = str(index), str(name).strip()
        if not (digits.isascii() and digits.isdigit() and int(digits[:9]) <= IGNORED):
            faults.append((0, f"{path.name}, {where}: index is {digits!r:.60}, expected a number from 0 to {IGNORED}"))
        elif int(digits) in legend or name in legend.values() or not name:
            faults.append((0, f"{path.name}, {where}: {digits} {name!r:.60} is there twice, or has no name"))
        else:
            legend[int(digits)] = name
    legend.pop(IGNORED, None)
    return legend, content
