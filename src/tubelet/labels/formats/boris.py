"""BORIS: projects (.boris), and tables of events that it exports.

A state event is a span from its start to its stop, a point event a moment. The label is the behavior; events of one
behavior are paired for each subject and modifier, as BORIS pairs them. Of an observation whose media are played one
after the other, the times run over all of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tubelet.data.tables import decode_list, parse_number, parse_table, parse_time
from tubelet.errors import DataError
from tubelet.io.text import read_bytes, read_json
from tubelet.labels.formats.annotation_format import AnnotationFormat, LabelTableBuilder, head_of
from tubelet.labels.records import LabelTable

_REMEDY = "save the project again in BORIS"
_PLAYER = re.compile(r"^\s*(?:player\s*)?#?\s*\d+\s*:\s*", re.IGNORECASE)
_MEDIA_COLUMNS = ("Source", "Media file", "Media file path", "Media file name")
_LENGTH_COLUMNS = ("Media duration (s)", "Total length")


class BorisProject(AnnotationFormat):
    """All observations of a project."""

    name = "BORIS project"
    suffixes = (".boris",)

    @staticmethod
    def detect(path: Path) -> bool:
        return True

    @staticmethod
    def read(path: Path) -> LabelTable:
        project = read_json(path, dict[str, Any], _REMEDY)
        observations, behaviors = project.get("observations"), project.get("behaviors_conf")
        if not isinstance(observations, dict) or not isinstance(behaviors, dict):
            raise DataError(f"{path}: has no observations and behaviors; {_REMEDY}")
        configured = [each for each in behaviors.values() if isinstance(each, dict)]
        states = {each.get("code") for each in configured if str(each.get("type", "")).lower().startswith("state")}
        builder = LabelTableBuilder(path)
        line = 0
        for name, observation in observations.items():
            events = observation.get("events") if isinstance(observation, dict) else None
            if not isinstance(events, list):
                builder.fault(line, f"observation {name!r:.60} has no events")
                continue
            placement = _placement(builder, name, observation, len(events))
            rows: list[tuple[int, tuple[str, ...], float, str]] = []
            for event in events:
                line += 1
                if placement is None:
                    continue
                if not isinstance(event, list) or len(event) < 4 or not isinstance(event[0], (int, float)):
                    builder.fault(
                        line, f"event of observation {name!r:.60} is {event!r:.80}, expected time, subject, ..."
                    )
                    continue
                key = (str(event[2]), str(event[1]), str(event[3]))
                rows.append((line, key, float(event[0]), "" if event[2] in states else "POINT"))
            if placement is not None:
                _add_events(builder, rows, placement)
        return builder.table("BORIS project")


class _Placement:
    """The media of an observation, one after the other."""

    def __init__(self, media: Sequence[Path], lengths: Sequence[float]) -> None:
        self.media, self.lengths = media, lengths
        self.ends = list(accumulate(lengths)) or [0.0]

    def add(self, builder: LabelTableBuilder, line: int, start: float, end: float | None, label: str) -> None:
        """Add a span or a moment; a span over two files becomes one in each."""
        for number, (path, last) in enumerate(zip(self.media, [*self.ends[:-1], float("inf")], strict=True)):
            first = self.ends[number - 1] if number else 0.0
            if end is None:
                if first <= start < last:
                    builder.add_span(line, path, start - first, None, (label,))
            elif start < last and end > first:
                stop = min(end, last) - first
                builder.add_span(line, path, max(start, first) - first, stop, (label,))


def _placement(builder: LabelTableBuilder, name: str, observation: Mapping[str, Any], events: int) -> _Placement | None:
    """The media of an observation of a project; None if it has none, or a fault."""
    if observation.get("type", "MEDIA") != "MEDIA":
        builder.unused["events of observations without media files"] += events
        return None
    files = observation.get("file")
    players = [files[key] for key in sorted(files) if isinstance(files[key], list)] if isinstance(files, dict) else []
    players = [each for each in players if each]
    if not players or not all(isinstance(each, str) for each in players[0]):
        builder.fault(0, f"observation {name!r:.60} names no media file")
        return None
    if observation.get("time offset"):
        offset = observation["time offset"]
        builder.fault(
            0, f"observation {name!r:.60} has a time offset of {offset!r:.20} s, expected 0; set it to 0 in BORIS"
        )
        return None
    builder.unused["media files of further players"] += sum(len(each) for each in players[1:])
    media = [builder.media(0, each) for each in players[0]]
    info = observation.get("media_info")
    length = info.get("length") if isinstance(info, dict) else None
    lengths = [length.get(each) if isinstance(length, dict) else None for each in players[0]]
    return _checked_placement(builder, 0, media, lengths)


def _checked_placement(
    builder: LabelTableBuilder, line: int, media: Sequence[Path | None], lengths: Sequence[object]
) -> _Placement | None:
    paths = [path for path in media if path is not None]
    numbers = [float(length) for length in lengths if isinstance(length, (int, float)) and length > 0]
    if len(paths) > 1 and len(numbers) != len(paths):
        builder.fault(line, f"has {len(paths)} media files without their lengths, so that times cannot be assigned")
        return None
    return _Placement(paths, numbers if len(numbers) == len(paths) else [0.0] * len(paths)) if paths else None


def _add_events(
    builder: LabelTableBuilder, events: Iterable[tuple[int, tuple[str, ...], float, str]], placement: _Placement
) -> None:
    """Add events of one observation: line, (behavior, subject, modifiers), seconds, and START, STOP, POINT or "".

    State events of a project do not say which they are: the first of each pair is the start.
    """
    open_: dict[tuple[str, ...], tuple[int, float]] = {}
    for line, key, time, status in sorted(events, key=lambda event: event[2]):
        if status == "POINT":
            placement.add(builder, line, time, None, key[0])
        elif key in open_ and status in ("", "STOP"):
            start_line, start = open_.pop(key)
            placement.add(builder, start_line, start, time, key[0])
        elif status == "STOP":
            builder.fault(line, f"{key[0]} stops at {time:g} s without a start")
        elif key in open_:
            builder.fault(line, f"{key[0]} starts at {time:g} s, and did at annotation {open_[key][0]}, without a stop")
        else:
            open_[key] = (line, time)
    for key, (line, start) in open_.items():
        builder.fault(line, f"{key[0]} starts at {start:g} s and has no stop")


class BorisEvents(AnnotationFormat):
    """A table of events: aggregated ones (start and stop on one line), or one event on each line."""

    name = "BORIS events"
    suffixes = (".csv", ".tsv", ".txt")

    @staticmethod
    def detect(path: Path) -> bool:
        return _header_line(head_of(path).splitlines()) is not None

    @staticmethod
    def read(path: Path) -> LabelTable:
        text = decode_list(read_bytes(path), path)
        lines = text.split("\n")
        header = _header_line(lines) or 0
        # Blank lines keep the numbers of the lines.
        table = parse_table("\n".join([*[""] * header, *lines[header:]]).encode(), path, ("Behavior",))
        builder = LabelTableBuilder(path)
        builder.faults += [(line, f"line {line} {fault}") for line, fault in table.faults]
        single: dict[tuple[str, str], list[tuple[int, tuple[str, ...], float, str]]] = {}
        placements: dict[tuple[str, str], _Placement | None] = {}
        for line, row in table.rows:
            name = next((row[column] for column in _MEDIA_COLUMNS if row.get(column)), "")
            observation = (row.get("Observation id", ""), name)
            if observation not in placements:
                placements[observation] = _table_placement(builder, line, name, row)
            placement = placements[observation]
            if placement is None:
                continue
            if "Start (s)" in table.header:
                _add_aggregated(builder, line, row, placement)
                continue
            time = parse_time(row.get("Time", ""))
            status = (row.get("Behavior type") or row.get("Status") or "").upper()
            if time is None or status not in ("START", "STOP", "POINT"):
                builder.fault(
                    line, f"is {status!r:.20} at {row.get('Time')!r:.40}, expected START, STOP or POINT, and a time"
                )
                continue
            modifiers = "|".join(row[column] for column in table.header if column.lower().startswith("modifier"))
            event = (line, (row["Behavior"], row.get("Subject", ""), modifiers), time, status)
            single.setdefault(observation, []).append(event)
        for observation, events in single.items():
            placement = placements[observation]
            if placement is not None:
                _add_events(builder, events, placement)
        return builder.table("BORIS events")


def _header_line(lines: Sequence[str]) -> int | None:
    """The line, from 0, that names the columns of a table of events."""
    for number, line in enumerate(lines[:200]):
        cells = {cell.strip(' "\ufeff') for cell in re.split(r"[\t,;]", line)}
        events = {"Time", "Status"} <= cells or {"Time", "Behavior type"} <= cells
        if (
            "Behavior" in cells
            and cells.intersection(_MEDIA_COLUMNS)
            and (events or {"Start (s)", "Stop (s)"} <= cells)
        ):
            return number
    return None


def _table_placement(builder: LabelTableBuilder, line: int, name: str, row: Mapping[str, str]) -> _Placement | None:
    """The media that a line names: files of the first player, separated by semicolons."""
    if name.lower().startswith("live"):
        builder.unused["observations without media files"] += 1
        return None
    players = re.split(r"\|(?=\s*player)", name)
    builder.unused["media files of further players"] += len(players) - 1
    names = [each for each in _PLAYER.sub("", players[0]).split(";") if each.strip()] or [""]
    lengths = next((row[column] for column in _LENGTH_COLUMNS if row.get(column)), "").split("|")[0].split(";")
    media = [builder.media(line, each) for each in names]
    return _checked_placement(builder, line, media, [parse_number(each) for each in lengths])


def _add_aggregated(builder: LabelTableBuilder, line: int, row: Mapping[str, str], placement: _Placement) -> None:
    start, end = parse_time(row.get("Start (s)", "")), parse_time(row.get("Stop (s)", ""))
    point = row.get("Behavior type", "").upper() == "POINT"
    if start is None or (end is None and not point):
        times = f"{row.get('Start (s)')!r:.40} to {row.get('Stop (s)')!r:.40}"
        builder.fault(line, f"is from {times}, expected seconds")
    else:
        placement.add(builder, line, start, None if point else end, row["Behavior"])
