"""The sources of a folder of shards: which files and spans its members were made of, so that more can be added.

`sources.jsonl` has a line for each file or span, in the order in which they were added, and is written before the
index. The index has their number: lines after those are of an addition that was interrupted.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from tubelet.data.listed_rows import span_name
from tubelet.data.sample_index import Sample, build_index, version_of
from tubelet.data.shards.format import SOURCES
from tubelet.data.sources import MediaList
from tubelet.data.storage import StorageError, is_url, size_of
from tubelet.errors import ConfigError, DecodeError
from tubelet.grid import Modality
from tubelet.io.text import file_error, read_jsonl

_DAMAGED = "restore it; without it, no files can be added to these shards"


class SourceRow(TypedDict):
    """A line of sources.jsonl: a file or a span of one; times are in seconds, null for a whole file."""

    path: str
    size: int
    start_s: float | None
    end_s: float | None
    weight: float


@dataclass(frozen=True)
class ShardSource:
    """A file or a listed span that becomes members of shards.

    Attributes:
        sample: the file and the span.
        modality: video or image.
        size: bytes of the file.
        weight: sampling weight of its members.
    """

    sample: Sample
    modality: Modality
    size: int
    weight: float = 1.0

    @property
    def path(self) -> str:
        """The file."""
        return str(self.sample.media)

    @property
    def key(self) -> str:
        """Unique key: the path, with the times of a span."""
        return _key(self.row)

    @property
    def row(self) -> SourceRow:
        """The row of this source in sources.jsonl."""
        span = (self.sample.start_s, self.sample.end_s) if self.sample.place else (None, None)
        return SourceRow(path=self.path, size=self.size, start_s=span[0], end_s=span[1], weight=self.weight)


@dataclass(frozen=True)
class SourceDiff:
    """Difference between the sources of a folder of shards and the sources that are named now.

    Attributes:
        existing: rows of the sources that the folder contains.
        added: sources that the folder does not contain.
        removed: keys of sources that the folder contains and that are no longer named.
    """

    existing: Sequence[SourceRow]
    added: Sequence[ShardSource]
    removed: Sequence[str]


def shard_sources(media: MediaList) -> list[ShardSource]:
    """The files and spans of some sources, videos first."""
    sources, sizes = [], dict[str, int]()
    for modality in Modality:
        index, rows = build_index(media, modality), media.rows(modality)
        for number, path in enumerate(index.files):
            if path not in sizes:
                sizes[path] = _size(path)
            weight = 1.0 if rows is None else float(rows.weight[number])
            sources.append(ShardSource(index.read(number), modality, sizes[path], weight))
    return sources


def sources_digest(rows: Sequence[SourceRow]) -> str:
    """Hash of the files, and of spans and weights where there are some."""
    listed: list[list[object]] = []
    for row in rows:
        more = [row["start_s"], row["end_s"], row["weight"]]
        listed.append([row["path"], row["size"], *(more if more != [None, None, 1.0] else ())])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def diff_sources(out: Path, count: int, sources: Sequence[ShardSource], bad: Collection[str]) -> SourceDiff:
    """Compare sources with those of a folder of shards.

    Args:
        out: the folder.
        count: number of sources of its index.
        sources: the sources that are named now.
        bad: keys of those that could not be read, which are new if they changed.

    Raises:
        ConfigError: a file or a weight changed, or the folder does not say what it was made of.
        DataError: the list is damaged.
    """
    path = out / SOURCES
    if not path.is_file():
        raise ConfigError(
            f"{out}: was made of other source files, and {SOURCES} is missing, without which no files can be added; "
            "choose another --out"
        )
    previous: list[Any] = [row for row, _ in islice(read_jsonl(path, SourceRow, _DAMAGED), count)]
    if len(previous) < count:
        raise file_error(path, f"has {len(previous)} rows, and the index {count} sources", _DAMAGED)
    before = {_key(row): row for row in previous}
    new = []
    for source in sources:
        row: Any = source.row
        old = before.pop(source.key, None)
        changed = [
            f"{name} {old[name]} -> {row[name]}" for name in ("size", "weight") if old and old[name] != row[name]
        ]
        if old is None or (changed and source.key in bad):
            new.append(source)
        elif changed:
            raise ConfigError(
                f"{out}: {source.key} changed since it was sharded ({', '.join(changed)}), and shards are only added "
                "to; delete the folder or choose another --out"
            )
    return SourceDiff(previous, new, list(before))


def _key(row: SourceRow) -> str:
    return row["path"] if row["start_s"] is None else span_name(row["path"], row["start_s"], row["end_s"])


def _size(path: str) -> int:
    try:
        return size_of(path) if is_url(path) else (version_of(path) or (0, 0.0))[0]
    except StorageError:
        raise
    except DecodeError:
        return 0  # reported when it is read
