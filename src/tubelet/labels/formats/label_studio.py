"""Label Studio's exports: JSON, JSON-MIN and CSV.

Read are `timelinelabels` (ranges of frames, counted from 1), regions with a start and an end in seconds, and choices
about a whole file. Frames are counted at the rate `fps` of the task's data, where it has one, as its labeling
interface does with `framerate="$fps"`; otherwise they are those of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tubelet.data.file_types import MEDIA_SUFFIXES
from tubelet.data.tables import parse_table
from tubelet.errors import DataError
from tubelet.io.text import parse_json, read_bytes, read_json
from tubelet.labels.build import find_media, is_file
from tubelet.labels.formats.annotation_format import AnnotationFormat, LabelTableBuilder, head_of
from tubelet.labels.records import LabelRow, LabelTable

_REMEDY = "export the project again from Label Studio"
_RESERVED = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
# Label Studio prefixes an uploaded file with eight hexadecimal digits and a dash.
_UPLOAD_DIGITS = 8


class LabelStudioJson(AnnotationFormat):
    """JSON and JSON-MIN."""

    name = "Label Studio"
    suffixes = (".json",)

    @staticmethod
    def detect(path: Path) -> bool:
        head = head_of(path).lstrip("\ufeff \r\n\t")
        full = '"annotations"' in head or '"completed_by"' in head
        return head.startswith("[") and (full or '"annotator"' in head or '"annotation_id"' in head)

    @staticmethod
    def read(path: Path) -> LabelTable:
        tasks = read_json(path, list[dict[str, Any]], _REMEDY)
        builder = LabelTableBuilder(path)
        for line, task in enumerate(tasks, 1):
            annotations, data = task.get("annotations"), task.get("data")
            if isinstance(annotations, list) and isinstance(data, dict):
                results = _chosen(builder, annotations)
                values = [(str(each.get("type", "")), each.get("value")) for each in results]
            else:
                data, values = task, list(_minimal(task))
            _add_task(builder, line, data, values)
        return builder.table("Label Studio JSON")


class LabelStudioCsv(AnnotationFormat):
    """CSV, whose cells of results are JSON."""

    name = "Label Studio CSV"
    suffixes = (".csv",)

    @staticmethod
    def detect(path: Path) -> bool:
        cells = {cell.strip(' "') for cell in head_of(path).split("\n", 1)[0].strip("\r\ufeff").split(",")}
        return {"annotation_id", "annotator"} <= cells

    @staticmethod
    def read(path: Path) -> LabelTable:
        table = parse_table(read_bytes(path), path, ("annotation_id", "annotator"))
        builder = LabelTableBuilder(path)
        builder.faults += [(line, f"line {line} {fault}") for line, fault in table.faults]
        for line, row in table.rows:
            task: dict[str, Any] = {}
            for name, cell in row.items():
                try:
                    task[name] = parse_json(cell, path) if cell.startswith(("[", "{")) else cell
                except DataError:
                    task[name] = cell
            _add_task(builder, line, task, list(_minimal(task)))
        return builder.table("Label Studio CSV")


def _chosen(builder: LabelTableBuilder, annotations: Sequence[object]) -> list[dict[str, Any]]:
    """The results of the annotation that counts: the ground truth, or else the last one that was not skipped."""
    valid = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    valid = [each for each in valid if each.get("ground_truth")] or valid
    builder.unused["further annotations of the same tasks"] += max(0, len(valid) - 1)
    results = valid[-1].get("result") if valid else []
    return [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []


def _minimal(task: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Kinds and values of the results of JSON-MIN and CSV, which have a column for each control of the interface."""
    for name, value in task.items():
        if name in _RESERVED or value == "":
            continue
        if isinstance(value, list):
            yield from ((_kind(each), each) for each in value if isinstance(each, dict))
        elif isinstance(value, dict) and "choices" in value:
            yield "choices", value
        elif isinstance(value, str) and not _is_media(value) and name not in ("fps", "framerate"):
            yield "choices", {"choices": [value]}


def _kind(value: Mapping[str, Any]) -> str:
    return next((name for name in value if name.endswith("labels")), "choices" if "choices" in value else "other")


def _add_task(
    builder: LabelTableBuilder, line: int, data: Mapping[str, Any], values: Sequence[tuple[str, object]]
) -> None:
    media = _media(builder, line, data)
    fps = data.get("fps")
    rate = float(fps) if isinstance(fps, (int, float, str)) and _is_rate(fps) else None
    choices: list[str] = []
    for kind, value in values:
        if not isinstance(value, dict):
            builder.fault(line, f"a result is {value!r:.60}, expected an object")
            continue
        named = value.get(kind) or value.get("labels")
        labels = [each.strip() for each in named if isinstance(each, str)] if isinstance(named, list) else []
        if kind == "timelinelabels" or "ranges" in value:
            ranges = value.get("ranges")
            for span in ranges if isinstance(ranges, list) else [ranges]:
                _add_range(builder, line, media, span, labels, rate)
        elif kind == "choices":
            choices += labels
        elif kind.endswith("labels") and isinstance(value.get("start"), (int, float)):
            builder.add_span(line, media, value["start"], value.get("end"), labels)
        else:
            builder.unused[f"results of the kind {kind}"] += 1
    if choices and media is not None:
        builder.rows.append(LabelRow(line=line, path=media, labels=tuple(dict.fromkeys(choices))))


def _is_rate(value: object) -> bool:
    try:
        return 0 < float(str(value)) <= 1000
    except ValueError:
        return False


def _add_range(
    builder: LabelTableBuilder, line: int, media: Path | None, span: object, labels: Sequence[str], fps: float | None
) -> None:
    """A range of frames, both ends of which belong to it."""
    first, last = (span.get("start"), span.get("end")) if isinstance(span, dict) else (None, None)
    if not isinstance(first, int) or not isinstance(last, int) or not 1 <= first <= last:
        builder.fault(line, f"a range is {span!r:.60}, expected frames from 1 on")
    elif fps is not None:
        builder.add_span(line, media, (first - 1) / fps, last / fps, labels)
    elif media is not None:
        row = LabelRow(line=line, path=media, start_frame=first - 1, end_frame=last, labels=tuple(labels))
        builder.rows.append(row)


def _is_media(value: object) -> bool:
    name = value.split("?d=")[-1].split("?")[0] if isinstance(value, str) else ""
    return PurePosixPath(unquote(name)).suffix.lower() in MEDIA_SUFFIXES


def _media(builder: LabelTableBuilder, line: int, data: Mapping[str, Any]) -> Path | None:
    """The media file of a task: the value with the suffix of one; an uploaded file also without its prefix."""
    names = [value for value in data.values() if _is_media(value)]
    if not names:
        builder.fault(line, f"has no media file among {', '.join(map(str, data))[:200]}")
        return None
    path = find_media(names[0], builder.path.parent)
    digits, dash, rest = path.name.partition("-")
    if not is_file(path) and dash and len(digits) == _UPLOAD_DIGITS and set(digits) <= set("0123456789abcdef"):
        without = find_media(rest, builder.path.parent)
        return without if is_file(without) else path
    return path
