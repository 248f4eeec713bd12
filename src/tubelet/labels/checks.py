"""Checks of a label table against its media: all faults at once, before anything is computed."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tubelet.config.fields import nearest
from tubelet.data.stacks import is_stack
from tubelet.datasets.annotations import IGNORED
from tubelet.labels.infer import infer_task, may_be_timeline, overlapping_rows
from tubelet.labels.media_facts import MediaFacts, read_media_facts
from tubelet.labels.pages import with_pages
from tubelet.labels.records import LabelError, LabelRow, LabelTable

logger = logging.getLogger(__name__)

MOMENT_S = 1.0
"""Seconds around a moment that a row with a start and no end is about."""
END_TOLERANCE_S = 0.1
"""Seconds by which a span may end after its video, as it does where another stream of the file is longer."""
_FAR = 10  # lengths of a video from its start on, where no time of a span can be
_SHOWN = 3
_NAMED = 10
_SEARCHED = 2000  # folders that are searched for missing files
_NEEDED = {
    "classification": "label", "multilabel": "label", "timeline": "label", "segmentation": "mask", "depth": "depth",
}  # fmt: skip
# "line 7: label is empty", "train/metadata.csv, line 7: label is empty"
_PLACE = re.compile(r"(?P<source>(?:.*?[,:] )?)(?P<kind>[a-z]+) (?P<line>\d+)(?P<problem>:? .*)", re.DOTALL)

Fault = tuple[int, str]


def check_labels(
    table: LabelTable,
    task: str | None = None,
    *,
    min_examples: int = 2,
    exclusive: bool | None = None,
    to_train: bool = True,
    max_failed_fraction: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelTable:
    """Check a label table, and complete it with what its media say.

    Args:
        table: the table as it was read.
        task: the task; None infers it, as `infer_task` does with the table that is returned.
        min_examples: fewest rows of each class.
        exclusive: whether two classes may not be present at the same time; None for classification only.
        to_train: whether a head is to be trained on the table: both sides of a split and enough examples of several
            classes are needed for that only.
        max_failed_fraction: fraction of the media files that may be unreadable: their rows are left out, and they are
            logged. A missing file is always a fault.
        workers: number of processes that open media files; 1 for this one.
        progress: called with the number of media files done and of all.

    Returns:
        The table with `durations_s`; a row for each page of masks and depth maps that have a page for each frame, see
        `with_pages`; times for frame numbers; spans, cut off at the end of the video, of `MOMENT_S`
        around moments; for multi-label tasks one row for all labels of a file or span; and the classes of the task.

    Raises:
        LabelError: with all faults, those of reading the table included.
    """
    if task == "regression":
        table = replace(table, faults=(*table.faults, *table.target_faults))
    faults: list[Fault] = list(table.faults)
    table = with_pages(table, task, faults)
    facts = read_media_facts(table, task, workers, progress)
    read, table = table, _without_unreadable(table, facts, max_failed_fraction)
    faults += _media_faults(table, facts)
    timed_table = _timed(_in_seconds(table, facts, faults), facts, faults)
    if task == "timeline" or (task is None and may_be_timeline(timed_table)):
        timed_table = _with_empty_videos(timed_table, faults)
    inferred, reason = task is None, ""
    if task is None:
        try:
            task, reason = infer_task(timed_table)
        except LabelError as error:  # which a column of another name explains
            unexplained = [] if any(line == 0 for line, _ in faults) else error.faults
            raise LabelError(table.path, _sentences([*faults, *((0, fault) for fault in unexplained)])) from None
    checked = _for_task(timed_table, task, facts)
    if not inferred:
        faults += _column_faults(table, task)
    reason = f" (the task is {reason})" if reason else ""
    faults += _row_faults(timed_table, task, exclusive if exclusive is not None else task == "classification", reason)
    faults += _time_faults(timed_table, task)
    faults += _split_faults(table) if to_train else ()
    faults += _class_faults(table, task, min_examples if to_train else 0, reason)
    faults += _mask_faults(read, task, checked.legend, facts)
    if faults:
        raise LabelError(table.path, _sentences(faults))
    if to_train:
        _warn(checked)
    return checked


def _without_unreadable(table: LabelTable, facts: Mapping[Path, MediaFacts], limit: float) -> LabelTable:
    """The table without the rows of unreadable media, if they are few enough."""
    unreadable = {path: each.fault for path, each in facts.items() if each.fault and not each.missing}
    if not unreadable or len(unreadable) > limit * len(facts) or len(unreadable) == len(facts):
        return table
    for path, fault in unreadable.items():
        logger.warning("%s: %s; its rows are left out", path, fault)
    return replace(table, rows=tuple(row for row in table.rows if row.path not in unreadable))


def _in_seconds(table: LabelTable, facts: Mapping[Path, MediaFacts], faults: list[Fault]) -> LabelTable:
    """The table with a thousandth of its times, and one fault for all, where they can only be that."""
    times = [
        (row, time_s, length)
        for row in table.rows
        for time_s in (row.start_s, row.end_s)
        if time_s and (length := facts[row.path].duration_s)
    ]
    far = [each for each in times if _FAR * each[2] < each[1] <= 1000 * (each[2] + END_TOLERANCE_S)]
    if 2 * len(far) <= len(times) or any(time_s % 1 for _, time_s, _ in times):
        return table
    row, time_s, length = far[0]
    problem = (
        f"{len(far)} of {len(times)} times are far beyond the ends of their videos, such as {time_s:.0f} s in "
        f"{row.path.name} of {length:.3f} s: a spreadsheet may have read the decimal point as a thousands separator, "
        "or they are milliseconds; write seconds"
    )
    faults.append(_fault(table, row, problem))
    thousandths = [
        replace(
            row,
            start_s=None if row.start_s is None else row.start_s / 1000,
            end_s=None if row.end_s is None else row.end_s / 1000,
        )
        for row in table.rows
    ]
    return replace(table, rows=tuple(thousandths))


def _timed(table: LabelTable, facts: Mapping[Path, MediaFacts], faults: list[Fault]) -> LabelTable:
    """The rows of readable media with their times in seconds, and the lengths of these media.

    Rows with a fault are left out: others would follow from it.
    """
    rows, faulty = [], {line for line, _ in table.faults}
    for row in table.rows:
        if not facts[row.path].fault and row.line not in faulty:
            problems: list[str] = []
            timed = _with_times(row, facts[row.path], problems)
            faults += [_fault(table, row, problem) for problem in problems]
            rows += [] if problems else [timed]
    moments = [row for row in table.rows if row.start_s is not None and row.end_s is None and row.line not in faulty]
    if count := sum(row.mask is None and row.depth is None for row in moments):
        subject = "1 label has no end: it" if count == 1 else f"{count} labels have no end: each"
        logger.info("%s is a span of %g s around its time", subject, MOMENT_S)
    durations = {path: each.duration_s for path, each in facts.items() if not each.fault}
    return replace(table, rows=tuple(rows), durations_s=durations)


def _with_empty_videos(table: LabelTable, faults: list[Fault]) -> LabelTable:
    """The table with rows without times and labels as spans of whole videos, in which there is none of the classes."""
    rows: list[LabelRow] = []
    labeled = {row.path: row for row in reversed(table.rows) if row.labels}
    for row in table.rows:
        length = table.durations_s[row.path]
        if row.start_s is not None or row.labels or not length:
            rows.append(row)
        elif (other := labeled.get(row.path)) is None:
            rows.append(replace(row, start_s=0.0, end_s=length))
        else:
            label = "|".join(other.labels)
            problem = f"says that there is nothing in {row.path.name}, but {table.place_of(other)} has {label} there"
            faults.append(_fault(table, row, f"{problem}; fill start_s, end_s and label, or remove the row"))
    return replace(table, rows=tuple(rows))


def _sentences(faults: Iterable[Fault]) -> list[str]:
    """Faults by line, each once; the same fault of several rows is one."""
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for message in dict.fromkeys(message for _, message in sorted(faults, key=lambda fault: fault[0])):
        place = _PLACE.fullmatch(message)
        rows[place.group("source", "kind", "problem") if place else (message,)].append(place["line"] if place else "")
    sentences = []
    for (source, *rest), (first, *others) in rows.items():
        kind, problem = rest or ("", "")
        also = f" (also {_listed(kind, others)})" if others else ""
        sentences.append(f"{source}{kind} {first}{problem}{also}" if rest else source)
    return sentences


def _fault(table: LabelTable, row: LabelRow, problem: str) -> Fault:
    return row.line, f"{table.place_of(row)}: {problem}"


def _media_faults(table: LabelTable, facts: Mapping[Path, MediaFacts]) -> Iterator[Fault]:
    """One fault for each file, with all its lines; one for all missing files, if they are many."""
    rows: dict[Path, list[LabelRow]] = defaultdict(list)
    for row in table.rows:
        rows[row.path].append(row)
    missing = [path for path, each in facts.items() if each.missing and path in rows]
    example, where = _where(table, missing) if missing else (None, "")
    if example is not None and len(missing) > _SHOWN:
        count = f"{len(missing)} of {len(facts)} files do not exist, such as {example}"
        yield _fault(table, rows[example][0], f"{count}; {where}")
    for path, each in facts.items():
        if each.fault and path in rows and (not each.missing or len(missing) <= _SHOWN):
            first, *others = rows[path]
            also = f" (also {_listed(table.row_kind, [row.line for row in others])})" if others else ""
            yield _fault(table, first, f"{path}: {each.fault}{also}" + f"; {where}" * (path == example))


def _where(table: LabelTable, missing: Sequence[Path]) -> tuple[Path, str]:
    """One of the missing files; what their paths are relative to, and a folder below it with files of these names."""
    home = table.path if table.path.is_dir() else table.path.parent
    names = {path.name for path in missing}
    found: Counter[Path] = Counter()
    for number, (folder, _, files) in enumerate(os.walk(home)):
        found[Path(folder)] = len(names.intersection(files))
        if number == _SEARCHED:
            break
    best, count = found.most_common(1)[0] if found else (home, 0)
    relative = f"paths in the table are relative to its folder, {home}"
    if not count:
        return missing[0], relative
    present = {path.name for path in best.iterdir()}
    example = next(path for path in missing if path.name in present)
    return example, (
        f"{count} of these names {'is' if count == 1 else 'are'} in {best}; {relative}: write "
        f"{(best / example.name).relative_to(home).as_posix()} for {_relative(example, home)}, or move the table there"
    )


def _relative(path: Path, home: Path) -> str:
    """A path as a table in the folder may list it."""
    return (path.relative_to(home) if path.is_relative_to(home) else path).as_posix()


def _listed(kind: str, lines: Sequence[int | str]) -> str:
    listed = ", ".join(map(str, lines[:_SHOWN]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{kind}{'s' * (len(lines) > 1)} {listed}{more}"


def _with_times(row: LabelRow, facts: MediaFacts, problems: list[str]) -> LabelRow:
    """A row with its span in seconds; what is wrong with the span is appended to `found`."""
    for name, frame in (("start_frame", row.start_frame), ("end_frame", row.end_frame)):
        if frame is not None and not facts.duration_s:
            problems.append(f"{name} is {frame}, but {row.path.name} is an image")
        elif frame is not None and frame not in facts.frame_s:
            problems.append(f"{name} is {frame}, beyond the {facts.frames} frames of {row.path.name}")
    if problems:
        return row
    start = row.start_s if row.start_frame is None else facts.frame_s[row.start_frame]
    end = row.end_s if row.end_frame is None else facts.frame_s[row.end_frame]
    if start is None:
        if end is not None:
            problems.append("has an end and no start; fill start_s, with 0 for the beginning")
        return row
    length = facts.duration_s
    if not length and start == end == 0:  # as tables of predictions have it
        return replace(row, start_s=None, end_s=None)
    if not length:
        problems.append(f"has a start at {start:g} s, but {row.path.name} is an image")
    elif start >= length:
        problems.append(f"starts at {start:g} s, at or after the end of {row.path.name} at {length:.3f} s")
    elif end is not None and start >= end:
        problems.append(f"starts at {start:g} s, at or after its own end at {end:g} s")
    elif end is not None and end > length + END_TOLERANCE_S:
        problems.append(f"ends at {end:g} s, beyond the end of {row.path.name} at {length:.3f} s")
    if end is None and row.mask is None and row.depth is None:
        start, end = max(0.0, start - MOMENT_S / 2), start + MOMENT_S / 2
    end = None if end is None else min(end, length)
    return replace(row, start_s=start, end_s=end, start_frame=None, end_frame=None)


def _for_task(table: LabelTable, task: str, facts: Mapping[Path, MediaFacts]) -> LabelTable:
    """The table with the classes of a task, and rows of several labels joined where the task has them."""
    if task == "segmentation":
        legend = dict(table.legend)
        if not legend:
            present = {value for each in facts.values() for mask in each.masks.values() for value in mask.values}
            legend = {value: str(value) for value in sorted(present - {IGNORED})}
        return replace(table, legend=legend, classes=tuple(legend.values()))
    if task in ("regression", "depth"):
        return replace(table, classes=())
    rows = _merged(table.rows) if task == "multilabel" else table.rows
    return replace(table, rows=tuple(rows), classes=tuple(sorted({label for row in rows for label in row.labels})))


def _merged(rows: Sequence[LabelRow]) -> list[LabelRow]:
    """One row for each file or span, with the labels of all its rows, at the place of the first."""
    merged: dict[tuple[Path, float | None, float | None], LabelRow] = {}
    for row in rows:
        key = (row.path, row.start_s, row.end_s)
        before = merged.get(key)
        labels = row.labels if before is None else (*before.labels, *row.labels)
        merged[key] = replace(before or row, labels=tuple(dict.fromkeys(labels)))
    return list(merged.values())


def _column_faults(table: LabelTable, task: str) -> Iterator[Fault]:
    """Columns that a task needs and the table lacks."""
    names = ", ".join(table.columns)
    if task == "regression" and not table.targets:
        yield 0, f"header: regression needs a column of numbers, found {names}"
    if task in _NEEDED and _NEEDED[task] not in table.columns:
        yield 0, f"header: {task} needs a column {_NEEDED[task]}, found {names}"
    if task == "timeline" and not {"start_s", "start_frame"} & set(table.columns):
        yield 0, f"header: timeline needs columns start_s and end_s, found {names}"


def _row_faults(table: LabelTable, task: str, exclusive: bool, reason: str) -> Iterator[Fault]:
    """Rows without what the task needs, rows that are there twice, and classes that exclude each other."""
    first: dict[tuple[object, ...], LabelRow] = {}
    by_file: dict[Path, list[LabelRow]] = defaultdict(list)
    for row in table.rows:
        yield from _empty_faults(table, row, task, reason)
        if exclusive and len(row.labels) > 1:
            yield _fault(table, row, f"has the labels {' and '.join(row.labels)}, expected one of exclusive classes")
        content = row.labels if task in ("multilabel", "timeline") else ()
        before = first.setdefault((row.path, row.start_s, row.end_s, content), row)
        if before is row:
            by_file[row.path].append(row)
        elif before.labels == row.labels and (task != "regression" or before.values == row.values):
            yield _fault(table, row, f"repeats {table.place_of(before)}; remove one")
        elif task == "classification":
            conflict = f"{'|'.join(row.labels)}, {table.place_of(before)} {'|'.join(before.labels)}"
            yield _fault(table, row, f"labels the same file or span {conflict}; --task multilabel allows both")
        else:
            yield _fault(table, row, f"is about the same file or span as {table.place_of(before)}; remove one")
    if exclusive:
        for rows in by_file.values():
            whole = [
                replace(row, start_s=0.0, end_s=table.durations_s[row.path]) for row in rows if row.start_s is None
            ]
            for one, other in overlapping_rows([*(row for row in rows if row.start_s is not None), *whole]):
                earlier, later = sorted((one, other), key=lambda row: row.line)
                yield _fault(
                    table,
                    later,
                    f"{_span(later)} overlaps {_span(earlier)} of {table.place_of(earlier)}, and the classes "
                    "exclude each other",
                )


def _span(row: LabelRow) -> str:
    return f"{'|'.join(row.labels)} from {row.start_s:g} to {row.end_s:g} s"


def _empty_faults(table: LabelTable, row: LabelRow, task: str, reason: str) -> Iterator[Fault]:
    problem = ""
    if task == "classification" and not row.labels and "label" in table.columns:
        problem = "label is empty"
    elif task == "segmentation" and row.mask is None and "mask" in table.columns:
        problem = "mask is empty"
    elif task == "depth" and row.depth is None and "depth" in table.columns:
        problem = "depth is empty"
    elif task == "timeline" and row.start_s is None and {"start_s", "start_frame"} & set(table.columns):
        problem = "has no start, which a timeline needs"
    if problem:
        yield _fault(table, row, f"{problem}; fill it or remove the row{reason}")


def _time_faults(table: LabelTable, task: str) -> Iterator[Fault]:
    """Masks and depth maps of one frame of a video or stack that do not name the frame, all in one fault."""
    if task not in ("segmentation", "depth"):
        return
    timeless = [row for row in table.rows if table.durations_s[row.path] and row.start_s is None]
    target = "mask" if task == "segmentation" else "depth"
    for kind, column, remedy in (
        ("video", "start_s (or start_frame)", "add the column: the time (or number) of the frame"),
        (
            "stack",
            "start_frame",
            f"add the column: the page, from 0; or a {target} file with a page for each frame",
        ),
    ):
        if rows := [row for row in timeless if is_stack(row.path) == (kind == "stack")]:
            listed = _listed(table.row_kind, list(dict.fromkeys(row.line for row in rows)))
            verb = "is" if len(rows) == 1 else "are"
            yield rows[0].line, f"{listed}: {verb} about a {kind} without {column}; {remedy}"


def _split_faults(table: LabelTable) -> Iterator[Fault]:
    """Files and groups on both sides of a given split, and a split with one side only."""
    given = [row for row in table.rows if row.split]
    for kind in ("file", "group"):
        first: dict[object, LabelRow] = {}
        reported = set()
        for row in given:
            key = row.path if kind == "file" else row.group
            before = first.setdefault(key, row) if key else row
            if (before.split == "train") != (row.split == "train") and key not in reported:
                reported.add(key)
                problem = f"{kind} {key} is in {row.split}, and in {before.split} at {table.place_of(before)}"
                yield _fault(table, row, f"{problem}; a {kind} must be on one side of the split")
    is_train = {row.split == "train" for row in given}
    if len(is_train) == 1:
        found, lacking = ("train", "val") if is_train == {True} else ("val or test", "train")
        yield 0, f"column split: all rows are {found}, expected some {lacking}; or remove the column"


def _class_faults(table: LabelTable, task: str, min_examples: int, reason: str) -> Iterator[Fault]:
    """Classes with too few examples, and a single class where one of several is to be chosen.

    Where 0 examples are enough, nothing is to be learned, and one class is enough too.
    """
    if task not in ("classification", "multilabel", "timeline"):
        return
    lines: dict[str, list[int]] = defaultdict(list)
    for row in table.rows:
        for label in row.labels:
            lines[label].append(row.line)
    for label, where in lines.items():
        if len(where) < min_examples:
            count = f"{len(where)} example{'s' * (len(where) != 1)}"
            listed = _listed(table.row_kind, where)
            hint = nearest(label, [other for other, found in lines.items() if len(found) > len(where)])
            remedy = "add some, or remove the class"
            yield where[0], f"{listed}: class {label} has {count}, expected at least {min_examples}{hint}; {remedy}"
    if min_examples and task == "classification" and len(lines) == 1:
        yield 0, f"column label: has one class, {next(iter(lines))}, expected at least two{reason}"
    elif not lines and "label" in table.columns and table.rows:
        yield 0, "column label: is empty in all rows"


def _mask_faults(
    table: LabelTable, task: str, legend: Mapping[int, str], facts: Mapping[Path, MediaFacts]
) -> Iterator[Fault]:
    """Masks and depth maps that cannot be read, have another size than their image, or unknown values."""
    if task not in ("segmentation", "depth"):
        return
    unknown: dict[tuple[int, str], tuple[LabelRow, Counter[int]]] = {}
    for path, each in facts.items():
        for number, mask in each.masks.items():
            row = table.rows[number]
            source = row.mask if task == "segmentation" else row.depth
            name = source.name if isinstance(source, Path) else "its mask"
            if source is None:
                continue
            if mask.fault:
                yield _fault(table, row, mask.fault)
            elif mask.size is not None and each.size != (0, 0) and mask.size != each.size:
                sizes = f"{mask.size[1]} x {mask.size[0]} pixels, {path.name} {each.size[1]} x {each.size[0]}"
                yield _fault(table, row, f"{name} has {sizes}; expected equal sizes")
            if task == "segmentation":
                counts = {v: count for v, count in mask.values.items() if v not in legend and v != IGNORED}
                unknown.setdefault((row.line, name), (row, Counter()))[1].update(counts)
    for (_, name), (row, total) in unknown.items():  # of all pages of a file
        if total:
            values = ", ".join(f"{value} ({count} pixels)" for value, count in total.items())
            yield _fault(table, row, f"{name} has values without an entry in the legend: {values}")


def _warn(table: LabelTable) -> None:
    """Log what may surprise, without being a fault."""
    files: dict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        for label in row.labels:
            files[label].add(row.group or str(row.path))
    single = sorted(label for label, labeled_files in files.items() if len(labeled_files) == 1)
    if single and len(set.union(*files.values())) > 1:
        names = ", ".join(single[:_NAMED]) + ", ..." * (len(single) > _NAMED)
        logger.warning(
            "%s in one file or group only, too few to train on and to measure on: %s",
            "1 class is" if len(single) == 1 else f"{len(single)} classes are",
            names,
        )
    tiny = Counter(label for row in table.rows if row.weight == 0 for label in row.labels or ("",))
    if total := sum(tiny.values()):
        logger.warning("%s the weight 0, without use in training", "1 row has" if total == 1 else f"{total} rows have")
