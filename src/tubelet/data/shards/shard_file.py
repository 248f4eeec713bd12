"""One shard: a tar of members and its done marker.

A shard depends only on its files and the configuration: any process writes the same bytes at any time. It is complete
when its done marker exists, a JSON file that lists the members and is renamed into place after the tar.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo
from typing import Any, BinaryIO, TypedDict
from zlib import crc32

from tubelet.config import ShardConfig
from tubelet.data.process_map import track_file
from tubelet.data.shards.format import Member
from tubelet.data.shards.source_list import ShardSource
from tubelet.data.shards.transcode import transcode
from tubelet.errors import BadFile, DecodeError
from tubelet.grid import Modality
from tubelet.io.files import atomic_write, file_errors
from tubelet.io.text import file_error, read_json
from tubelet.value_checks import InvalidValueError, check_value, type_hints

WRITE_AGAIN = "delete it and run the same command, which then writes the shard again"
SHARDS_KEPT = "complete shards are kept"
_SUFFIX = {Modality.VIDEO: ".mp4", Modality.IMAGE: ".jpg"}


class BadRow(TypedDict):
    """A file that could not be read."""

    path: str
    reason: str


class DoneMarker(TypedDict):
    """Size, bad files and members of a complete shard; members are checked like those of the index."""

    size: int
    bad: list[BadRow]
    members: list[dict[str, Any]]


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written.

    Attributes:
        out: folder of the shards.
        number: number of the shard.
        files: number and source of each file or span.
        config: how the files are transcoded.
    """

    out: Path
    number: int
    files: tuple[tuple[int, ShardSource], ...]
    config: ShardConfig

    @property
    def shard(self) -> Path:
        """Path of the tar."""
        return self.out / f"shard-{self.number:06d}.tar"

    @property
    def marker(self) -> Path:
        """Path of the done marker."""
        return self.shard.with_suffix(".json")


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one tar and its done marker; returns the marker.

    Raises:
        TubeletError: it cannot be written.
    """
    members: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    with file_errors(job.shard, SHARDS_KEPT):
        with atomic_write(job.shard, durable=True, remedy=SHARDS_KEPT) as partial, partial.open("wb") as file:
            for number, source in job.files:
                begin = file.tell()
                try:
                    with track_file(source.key):
                        new_members = list(_members(file, job, number, source))
                except DecodeError as error:
                    file.seek(begin)
                    file.truncate()
                    bad.append(asdict(BadFile(source.key if source.sample.place else error.path, error.reason)))
                else:
                    members += new_members
            file.write(bytes(2 * BLOCKSIZE))  # the end of a tar
            size = file.tell()
        marker = {"size": size, "bad": bad, "members": members}
        write_json_lines(job.marker, [marker])
    return marker


def _members(file: BinaryIO, job: ShardJob, number: int, source: ShardSource) -> Iterator[dict[str, Any]]:
    """Append the members of one file or span to a tar; yields their lines for the index."""
    for part, segment in enumerate(transcode(source.sample, source.modality, job.config)):
        entry = TarInfo(f"{number:08d}-{part:04d}{_SUFFIX[source.modality]}")
        entry.size = len(segment.data)
        file.write(entry.tobuf(USTAR_FORMAT))
        offset = file.tell()
        file.write(segment.data)
        file.write(bytes(-len(segment.data) % BLOCKSIZE))
        about = {name: getattr(segment, name) for name in ("start_s", "duration_s", "fps", "width", "height")}
        member = Member(
            shard=job.shard.name,
            name=entry.name,
            offset=offset,
            size=entry.size,
            crc32=crc32(segment.data),
            modality=source.modality,
            source=source.path,
            weight=source.weight,
            **about,
        )
        yield asdict(member)


def read_marker(job: ShardJob) -> dict[str, Any] | None:
    """Read a shard's done marker; None unless the tar exists and has the size in the marker."""
    if not job.marker.exists() or not job.shard.exists():
        return None
    marker: dict[str, Any] = read_json(job.marker, DoneMarker, WRITE_AGAIN)
    for number, row in enumerate(marker["members"]):
        try:
            row.setdefault("weight", 1.0)  # of a marker that was written before weights existed
            if {*row} != {*type_hints(Member)}:
                raise InvalidValueError(f"members[{number}]", f"has the fields {sorted(row)!r:.200}")
            for name, kind in type_hints(Member).items():
                check_value(kind, row[name], f"members[{number}].{name}", strict=True)
        except InvalidValueError as error:
            raise file_error(job.marker, str(error), WRITE_AGAIN) from error
    return marker if job.shard.stat().st_size == marker["size"] else None


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines to a temporary file and rename it."""
    write_lines(path, map(json.dumps, rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a temporary file and rename it."""
    with atomic_write(path, durable=True, remedy=SHARDS_KEPT) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
