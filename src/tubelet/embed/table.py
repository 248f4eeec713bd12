"""Feature tables of collections: Parquet parts with one row per clip."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from tubelet.data.part_table import SETTINGS, SPAN, PartTable, check_same_settings, parts, row_keys, write_part
from tubelet.data.storage import is_url
from tubelet.errors import DataError, MissingFileError, TubeletError
from tubelet.io.arrays import numbers, read_parquet, vectors
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error, read_json, validate_content
from tubelet.value_checks import Bounds

# 1 lacks the version of a row's file; the weights' id of 2 depends on a part of the values only; 3 has `clip` for
# `clip_index`, which hides behind a method of pandas' tables.
FORMAT = 4

_EMBED_AGAIN = "embed the collection again into another folder"
_DELETE_PART = "delete this part and run `tubelet embed` again"
# Columns that this package reads, and their types.
_COLUMNS = {
    "path": "string",
    "clip_index": "int64",
    "clips": "int64",
    "size_bytes": "int64",
    "changed_s": "double",
    "start_s": "double",
    "end_s": "double",
    "pooled": "vector",
    "grid": "sizes",
    "times": "numbers",
    "tokens": "numbers",
}
_Count = Annotated[int, Bounds(1, 2**31)]


class PartRemovedError(MissingFileError):
    """A part was removed after the table was listed: another process changes the table."""


class _Settings(TypedDict):
    """Content of _settings.json."""

    format: int
    model: str
    model_id: str
    weights: str
    image_size: _Count
    frames: _Count
    fps: Annotated[float, Bounds(0, 1e6, exclusive=True)]
    stride_s: float | None
    causal: NotRequired[bool]
    dense: bool
    levels: bool


@dataclass
class FileProgress:
    """Rows of one file, or of a listed span of one, in a table.

    Attributes:
        path: name of the file.
        clips: number of its clips.
        clip_indices: indices of the clips that have a row.
        versions: sizes in bytes and modification times in seconds of the file when they were computed.
    """

    path: str
    clips: int
    clip_indices: set[int] = field(default_factory=set)
    versions: set[tuple[int, float]] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether every clip has a row."""
        return len(self.clip_indices) == self.clips

    def is_gone(self) -> bool:
        """Whether the file no longer exists; objects behind URLs and names that are not UTF-8 count as there.

        Of a member of a shard, the shard is looked for.
        """
        shard, is_member, _ = self.path.rpartition(".tar:")
        path = f"{shard}.tar" if is_member else self.path
        return not (is_url(path) or "\\udc" in path or os.path.lexists(path))


class FeatureTable(PartTable):
    """A table with one row per clip."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Create a table in a folder that `check_output` accepted, or continue the table in it, in today's format.

        Raises:
            TubeletError: if the folder has rows with other settings.
        """
        settings = {"format": FORMAT, **settings}
        before = None
        if (path / SETTINGS).exists():
            before = read_settings(path) | {"format": FORMAT}
            # Name and path of the model may change if its weights are the same.
            compared = [key for key in settings if key not in ("model", "model_id", "config_hash")]
            check_same_settings(path, "features", before, {key: settings[key] for key in compared})
        super().__init__(path, settings, _DELETE_PART)
        if before is not None and read_settings(path)["format"] != FORMAT:
            _upgrade(path, before)

    def done(self) -> dict[str, FileProgress]:
        """Progress of each file and span, by key, see `row_keys`."""
        progress: dict[str, FileProgress] = {}
        names = ["clip_index", "clips", "size_bytes", "changed_s"]
        for part in parts(self.path):
            table = read_part(part, ["path", *names], SPAN)
            columns = [row_keys(table).to_pylist(), *(table[name].to_pylist() for name in ("path", *names))]
            for key, path, clip, clips, size, changed in zip(*columns, strict=True):
                file = progress.setdefault(key, FileProgress(path, clips))
                file.clip_indices.add(clip)
                file.versions.add((size, changed))
        return progress


def _upgrade(path: Path, settings: Mapping[str, Any]) -> None:
    """Bring a table of the format before to today's: parts, one after the other, then its settings."""
    content = json.dumps(settings, indent=2)
    for part in parts(path):
        write_part(part, read_part(part, None).replace_schema_metadata({"tubelet": json.dumps(settings)}))
    with atomic_write(path / SETTINGS) as partial:
        partial.write_text(content + "\n", encoding="utf-8")


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a table.

    Raises:
        TubeletError: if the folder is not a table.
    """
    if not (path / SETTINGS).is_file():
        raise DataError(
            f"{path}: not a table of features ({SETTINGS} is missing); expected a folder that `tubelet embed` wrote"
        )
    settings: dict[str, Any] = read_json(path / SETTINGS, dict[str, Any], _EMBED_AGAIN)
    if settings.get("format") not in (FORMAT - 1, FORMAT):
        problem = f"its format is {settings.get('format')!r:.100}, this version reads {FORMAT - 1} and {FORMAT}"
        newer = isinstance(settings.get("format"), int) and settings["format"] > FORMAT
        raise file_error(path / SETTINGS, problem, "install the version that wrote it" if newer else _EMBED_AGAIN)
    validate_content(_Settings, settings, path / SETTINGS, _EMBED_AGAIN)
    return {"causal": False} | settings


def read_part(part: Path, columns: Sequence[str] | None, optional: Mapping[str, str] | None = None) -> pa.Table:
    """Columns of a part, where None means all, and optional ones where it has them.

    Raises:
        PartRemovedError: if it was removed.
        TubeletError: if the file is damaged, or a column is missing or of another type.
    """
    expected = None if columns is None else {name: _COLUMNS[name] for name in columns}
    either = dict.fromkeys(("clip", "clip_index"), _COLUMNS["clip_index"])
    by_clip = expected is not None and expected.pop("clip_index", None) is not None
    try:
        table = read_parquet(part, expected, _DELETE_PART, {**(optional or {}), **(either if by_clip else {})})
        names = ["clip_index" if name == "clip" else name for name in table.column_names]
        if by_clip and "clip_index" not in names:
            raise file_error(part, f"has no columns 'clip_index' (found {', '.join(names[:20])})", _DELETE_PART)
        return table.rename_columns(names)
    except TubeletError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            message = f"{part}: was removed while the table was read; try again when `tubelet embed` has finished"
            raise PartRemovedError(message) from error
        raise


def pooled_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """For each part: some columns, and the pooled features (rows, D) in float32."""
    for part in parts(path):
        table = read_part(part, [*columns, "pooled"])
        yield table.select(columns), vectors(table["pooled"]).astype(np.float32)


def dense_rows(
    path: Path, columns: Sequence[str], most_values: int
) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
    """Rows of equal grids: some columns, tokens (n, t, h, w, D) in float32, and times (n, t) in seconds.

    Args:
        path: a table with tokens.
        columns: names of the columns.
        most_values: maximum of n·t·h·w·D, at least one row.

    Raises:
        TubeletError: if a part cannot be read, or a row has another number of tokens than its grid.
    """
    for part in parts(path):
        table = read_part(part, [*columns, "grid", "times", "tokens"])
        grids, tokens, times = vectors(table["grid"]), numbers(table["tokens"]), numbers(table["times"])
        begin = 0
        for i in range(1, len(grids) + 1):
            size = (i - begin + 1) * len(tokens[begin])
            if i < len(grids) and (grids[i] == grids[begin]).all() and size <= most_values:
                continue
            t, h, w = map(int, grids[begin])
            if t * h * w < 1 or any(len(x) != len(tokens[begin]) or len(x) % (t * h * w) for x in tokens[begin:i]):
                raise file_error(part, f"has rows whose tokens do not fit the grid {t} x {h} x {w}", _DELETE_PART)
            if any(len(x) != t for x in times[begin:i]):
                raise file_error(part, f"has rows whose times do not fit the grid {t} x {h} x {w}", _DELETE_PART)
            dense = np.stack(tokens[begin:i]).astype(np.float32).reshape(i - begin, t, h, w, -1)
            yield table.select(columns).slice(begin, i - begin), dense, np.stack(times[begin:i])
            begin = i
