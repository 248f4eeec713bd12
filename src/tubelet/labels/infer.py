"""The task that a label table is for."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tubelet.labels.records import EPISODES, LabelError, LabelRow, LabelTable

_COVERED = 0.5
_SCORES = ("score",)  # columns of tables of predictions that were corrected


def infer_task(table: LabelTable) -> tuple[str, str]:
    """The task of a table by its columns, and the reason in one sentence.

    Masks are for segmentation, depth maps for depth; labels are for timelines, several classes at once or one class;
    numbers without labels are for regression.

    Args:
        table: the table, as `check_labels` returns it: whether spans are a timeline depends on the lengths of videos.

    Returns:
        Name of the task, and a sentence for the user that names the other tasks which the table would allow.

    Raises:
        LabelError: if no column says what is to be learned.
    """
    numbers = ", ".join(name for name in table.targets if name not in _SCORES)
    unused = f"; the numbers in {numbers} are not used (--task regression)" if numbers else ""
    if "mask" in table.columns:
        other = "; the column label is not used (--task classification)" if "label" in table.columns else ""
        return "segmentation", f"segmentation, because the labels have masks{other}{unused}"
    if "depth" in table.columns:
        other = "; the column label is not used (--task classification)" if "label" in table.columns else ""
        return "depth", f"depth, because the labels have depth maps{other}{unused}"
    if "label" not in table.columns:
        if table.targets:
            return "regression", f"regression of {', '.join(table.targets)}, because the labels are numbers"
        expected = "expected a column label, mask or depth, or columns of numbers"
        raise LabelError(table.path, [f"has nothing to learn: its columns are {', '.join(table.columns)}; {expected}"])
    task, reason = _task_of_labels(table)
    return task, f"{task}, because {reason}{unused}"


def _task_of_labels(table: LabelTable) -> tuple[str, str]:
    spans = [row for row in table.rows if row.start_s is not None and row.end_s is not None]
    fraction = covered_fraction(spans, table) if spans else 0.0
    several = next((row for row in table.rows if len(row.labels) > 1), None) or _second_class(table.rows)
    if table.format == EPISODES:  # whole recordings, of which a file may have several
        return (
            ("multilabel", "episodes have several tasks")
            if several
            else ("classification", "each episode has one task")
        )
    nothing = next((row for row in spans if not row.labels and _is_whole(row, table)), None)
    if nothing and len(spans) == len(table.rows):
        return "timeline", f"the other rows are spans, and {table.place_of(nothing)} is a whole video without a class"
    if spans and len(spans) == len(table.rows) and fraction >= _COVERED:
        other = "several classes at once (--task multilabel)" if several else "clips (--task classification)"
        return "timeline", f"the spans cover {fraction:.0%} of their videos; to learn them as {other} is possible too"
    if several:
        timeline = "; to find when they begin and end in whole videos, use --task timeline" if spans else ""
        at = table.place_of(several)
        return "multilabel", f"several classes are present at once ({at}){timeline}"
    whole = [row for row in table.rows if row.start_s is None]
    if spans and whole:
        deciding = next((row for row in whole if row.labels), whole[0])
        return "classification", (
            f"each row has one class, and {table.place_of(deciding)} is about a whole file; --task timeline needs a "
            "start and an end in each row with a label"
        )
    if spans:
        return "classification", (
            f"each span has one class and they cover only {fraction:.0%} of their videos, so that the rest is unknown; "
            "if the rest has none of the classes, use --task timeline"
        )
    return "classification", "each file has one class"


def may_be_timeline(table: LabelTable) -> bool:
    """Whether all rows with labels are spans of videos, and nothing else is to be learned."""
    labeled = [row for row in table.rows if row.labels]
    other = {"mask", "depth"} & set(table.columns) or table.format == EPISODES
    return bool(labeled) and not other and all(row.start_s is not None for row in labeled)


def _is_whole(row: LabelRow, table: LabelTable) -> bool:
    return row.start_s == 0 and row.end_s == table.durations_s[row.path]


def covered_fraction(spans: Sequence[LabelRow], table: LabelTable) -> float:
    """Fraction of the length of the labeled videos that spans cover; 0 where lengths are unknown."""
    by_file: dict[Path, list[tuple[float, float]]] = defaultdict(list)
    for row in spans:
        if row.start_s is not None and row.end_s is not None:
            by_file[row.path].append((row.start_s, row.end_s))
    total = sum(table.durations_s.get(path, 0.0) for path in by_file)
    covered = 0.0
    for times in by_file.values():
        starts, ends = np.array(sorted(times)).T
        reached = np.maximum.accumulate(ends)
        begins = np.maximum(starts, np.concatenate([[0.0], reached[:-1]]))
        covered += float(np.maximum(reached - begins, 0.0).sum())
    return covered / total if total else 0.0


def _second_class(rows: Sequence[LabelRow]) -> LabelRow | None:
    """The first row that gives a file, or a part of a span, another class than a row before it."""
    by_file: dict[Path, list[LabelRow]] = defaultdict(list)
    for row in rows:
        by_file[row.path].append(row)
    for same in by_file.values():
        whole = [row for row in same if row.start_s is None]
        if another := [row for row in whole if row.labels != whole[0].labels]:
            return another[0]
        if pairs := overlapping_rows(same):
            return pairs[0][1]
    return None


def overlapping_rows(rows: Sequence[LabelRow], tolerance_s: float = 1e-3) -> list[tuple[LabelRow, LabelRow]]:
    """Pairs of rows of one file with different labels whose spans overlap by more than a tolerance.

    Each row is paired with the latest-ending one before it only, so that a long span gives one pair for each it covers.
    """
    pairs = []
    latest: dict[tuple[str, ...], LabelRow] = {}
    timed = [row for row in rows if row.start_s is not None and row.end_s is not None]
    for row in sorted(timed, key=lambda row: (row.start_s, row.end_s, row.line)):
        others = [other for labels, other in latest.items() if labels != row.labels]
        before = max(others, key=_end, default=None)
        if before is not None and _end(before) > (row.start_s or 0.0) + tolerance_s:
            pairs.append((before, row))
        if row.labels not in latest or _end(row) > _end(latest[row.labels]):
            latest[row.labels] = row
    return pairs


def _end(row: LabelRow) -> float:
    return row.end_s or 0.0
