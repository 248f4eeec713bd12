"""Spans and weights in the rows of lists: the part of a video that clips are drawn from, and its sampling weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tubelet.data.lists import ROW_COLUMNS, PathList
from tubelet.data.tables import parse_number, parse_time
from tubelet.errors import DataError

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    from torch import Tensor


def span_name(path: str, start_s: float, end_s: float | None) -> str:
    """The name of a span of a file, as in W3C Media Fragments: `a.mp4#t=2.5,7`, or `a.mp4#t=2.5` to the end."""
    times = [np.format_float_positional(second, trim="-") for second in (start_s, end_s) if second is not None]
    return f"{path}#t={','.join(times)}"


@dataclass(frozen=True)
class ListedRows:
    """Spans and weights of N files, as tensors, which worker processes share.

    Attributes:
        lists: names of the lists.
        start_s: (N,) float64 start of the span in seconds; 0 for the start of the video.
        end_s: (N,) float64 end of the span in seconds; infinity for the end of the video.
        weight: (N,) float64 sampling weight, above 0.
        line: (N,) int64 line in the list, from 1; 0 for a file of no list.
        list_number: (N,) int64 index into `lists`.
    """

    lists: tuple[str, ...]
    start_s: Tensor
    end_s: Tensor
    weight: Tensor
    line: Tensor
    list_number: Tensor

    def __len__(self) -> int:
        return len(self.line)

    @classmethod
    def of(
        cls,
        name: str,
        line: NDArray[np.int64],
        start_s: NDArray[np.float64] | None = None,
        end_s: NDArray[np.float64] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> ListedRows:
        """The rows of one list; None for a column that it lacks."""
        import torch

        columns = zip((start_s, end_s, weight), (0.0, np.inf, 1.0), strict=True)
        filled = [np.full(len(line), default) if column is None else column for column, default in columns]
        numbers = (line.astype(np.int64), np.zeros(len(line), np.int64))
        return cls((name,), *(torch.from_numpy(np.ascontiguousarray(column)) for column in (*filled, *numbers)))

    @classmethod
    def whole(cls, count: int) -> ListedRows:
        """The rows of whole files of no list."""
        return cls.of("", np.zeros(count, np.int64))

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> ListedRows:
        """Some of the rows."""
        import torch

        chosen = index if isinstance(index, slice) else torch.from_numpy(index)
        columns = {each.name: getattr(self, each.name)[chosen] for each in fields(self) if each.name != "lists"}
        return replace(self, **columns)

    def span(self, row: int) -> tuple[float, float | None]:
        """Start and end of a row in seconds; None for the end of the video."""
        end_s = float(self.end_s[row])
        return float(self.start_s[row]), None if end_s == np.inf else end_s

    def place(self, row: int) -> str:
        """Where a row is in its list, for messages."""
        return f"{self.lists[int(self.list_number[row])]}, line {int(self.line[row])}"

    def has_spans(self) -> bool:
        """Whether a row is less than its file."""
        return bool((self.start_s > 0).any() or (self.end_s < np.inf).any())

    def content(self) -> bytes:
        """Bytes that differ for other spans or weights."""
        return b"".join(column.numpy().tobytes() for column in (self.start_s, self.end_s, self.weight))


def join_rows(parts: Sequence[ListedRows]) -> ListedRows:
    """The rows of several lists, one list after the other."""
    import torch

    lists = tuple(dict.fromkeys(name for part in parts for name in part.lists))
    moved = [
        replace(part, list_number=torch.tensor([lists.index(name) for name in part.lists])[part.list_number])
        for part in parts
    ]
    names = [each.name for each in fields(ListedRows) if each.name != "lists"]
    return ListedRows(lists, *(torch.cat([getattr(part, name) for part in moved]) for name in names))


def rows_of_list(name: str, listed: PathList, image: NDArray[np.bool_]) -> ListedRows | None:
    """Check the spans and weights of a list.

    Args:
        name: the list, for messages.
        listed: its content.
        image: (N,) whether each path is that of an image.

    Returns:
        The rows; None if the list has no such column.

    Raises:
        DataError: a value is not valid; the message names the line.
    """
    if not listed.values:
        return None
    columns = {column: _numbers(name, listed, column) for column in ROW_COLUMNS if column in listed.values}
    for column, values in columns.items():
        _check(name, listed, np.isinf(values) | (values < 0), f"{column} is {{value:g}}, expected from 0 on", values)
    start, end = (columns.get(column, np.full(len(listed), np.nan)) for column in ("start_s", "end_s"))
    timed = image & ~(np.isnan(start) & np.isnan(end))
    _check(name, listed, timed, "an image has no start_s and end_s; leave the cells empty", start)
    start, end = np.where(np.isnan(start), 0.0, start), np.where(np.isnan(end), np.inf, end)
    _check(name, listed, start >= end, "start_s is {value:g}, not before end_s {other:g}; correct the line", start, end)
    weight = columns.get("weight")
    if weight is not None:
        weight = np.where(np.isnan(weight), 1.0, weight)
    return ListedRows.of(name, listed.lines, start, end, weight)


def _check(
    name: str,
    listed: PathList,
    wrong: NDArray[np.bool_],
    problem: str,
    values: NDArray[np.float64],
    others: NDArray[np.float64] | None = None,
) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        words = problem.format(value=values[row], other=0.0 if others is None else others[row])
        count = int(wrong.sum()) - 1
        more = f" (and {count} other lines)" if count else ""
        raise DataError(f"{name}, line {listed.lines[row]}: {words}{more}")


def _numbers(name: str, listed: PathList, column: str) -> NDArray[np.float64]:
    """(N,) float64, NaN where there is none."""
    cells = listed.values[column]
    try:
        numbers = pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:  # with a line to name, or times such as 1:02:03.5
        parse = parse_number if column == "weight" else parse_time
        texts = cells.to_pylist()
        parsed = [None if text is None else parse(text, listed.decimal_comma) for text in texts]
        for row, (text, value) in enumerate(zip(texts, parsed, strict=True)):
            if text is not None and value is None:
                expected = "a number" if column == "weight" else "seconds or h:mm:ss.mmm"
                message = f"{name}, line {listed.lines[row]}: {column} is {text!r:.60}, expected {expected}"
                raise DataError(message) from None
        numbers = pa.array(parsed, pa.float64())
    return np.array(numbers.to_numpy(zero_copy_only=False), np.float64)
