"""A collection of videos and images -> shards, over worker processes; an interrupted call can be continued.

Which files make which shard is decided before the first is opened, and a shard depends only on its files and the
configuration: any process writes the same bytes at any time. A shard is complete when its done marker exists, a JSON
file that is renamed into place after the tar; the index is made of the markers and replaces them.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo
from typing import Any, BinaryIO, TypedDict
from zlib import crc32

import numpy as np

from tubelet.config import ShardConfig
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.process_map import process_map, track_file
from tubelet.data.shards.format import BAD_FILES, COPY_INDEX, FORMAT, INDEX, PLAN, Member
from tubelet.data.shards.reader import is_shards, open_shards
from tubelet.data.shards.transcode import transcode
from tubelet.data.sources import list_media
from tubelet.data.storage import StorageError, is_url, size_of
from tubelet.data.worker_count import available_cores
from tubelet.errors import BadFile, ConfigError, DecodeError, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import atomic_write, directory_lock, file_errors
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import file_error, read_json, validate_content
from tubelet.value_checks import InvalidValueError, check_value, type_hints

logger = logging.getLogger(__name__)

_ORDER_SEED = 0
_WRITE_AGAIN = "delete it and run the same command, which then writes the shard again"
_SHARDS_KEPT = "complete shards are kept"
_SUFFIX = {Modality.VIDEO: ".mp4", Modality.IMAGE: ".jpg"}


class _ShardPlan(TypedDict):
    """What the bytes of the shards depend on: plan.json, and a part of the first line of the index."""

    recipe: dict[str, Any]
    shard_mb: float
    files: int
    source_size: int
    sources: str


class _Header(_ShardPlan):
    """The first line of the index, as far as its reader has not checked it."""

    bad: int


class _BadRow(TypedDict):
    """A file that could not be read."""

    path: str
    reason: str


class _DoneMarker(TypedDict):
    """What is known of a complete shard; its members are checked like those of the index."""

    size: int
    bad: list[_BadRow]
    members: list[dict[str, Any]]


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written.

    Attributes:
        out: folder of the shards.
        number: number of the shard.
        files: number, path and modality of each file.
        config: how the files are transcoded.
    """

    out: Path
    number: int
    files: tuple[tuple[int, str, Modality], ...]
    config: ShardConfig

    @property
    def shard(self) -> Path:
        """The tar."""
        return self.out / f"shard-{self.number:06d}.tar"

    @property
    def marker(self) -> Path:
        """The done marker, which lists the members."""
        return self.shard.with_suffix(".json")


@dataclass(frozen=True)
class ShardSummary:
    """The result of `write_shards`.

    Attributes:
        shards: number of tars.
        videos: number of members that are segments of videos.
        images: number of members that are images.
        size: bytes of all tars.
        source_size: bytes of all source files.
        bad: number of files that could not be read.
        reused: whether the shards existed before.
    """

    shards: int
    videos: int
    images: int
    size: int
    source_size: int
    bad: int
    reused: bool


def write_shards(
    sources: Sequence[str],
    out: str | Path,
    config: ShardConfig,
    workers: int | None = None,
    shard_mb: float = 1024,
    max_failed_fraction: float = 0.05,
    allow_path: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ShardSummary:
    """Transcode the files of some sources into shards.

    Args:
        sources: folders, media files, globs, and lists, as for training.
        out: folder of the shards; what an interrupted call wrote there is continued.
        config: how the files are transcoded.
        workers: number of processes; None for one per core.
        shard_mb: megabytes of source files that go into one shard.
        max_failed_fraction: fraction of the files that may be unreadable.
        allow_path: folders and URLs that lists may name files of, besides those below their own folder.
        progress: called with the number of files done and of all files.

    Returns:
        What the folder contains now.

    Raises:
        TubeletError: too many files are bad, the folder has other shards, or it cannot be written.
    """
    for source in sources:
        if is_shards(source):
            raise ConfigError(f"{source}: is already a folder of shards; name the files that it was made from")
    out = Path(out)
    check_output(out, "shards", sources)
    media = list_media(sources, allow_path)
    for message in media.notes:
        logger.info(escape_filename(message))
    files = [(path, Modality.VIDEO) for path in media.videos] + [(path, Modality.IMAGE) for path in media.images]
    sizes = [_size(path) for path, _ in files]
    jobs = _jobs(out, files, sizes, config, shard_mb)
    plan = _plan(config, files, sizes, shard_mb)
    if (out / INDEX).exists():  # nothing is written any more, and the folder may be read-only
        return _found(out, plan)
    with directory_lock(out), file_errors(out, _SHARDS_KEPT):
        if (out / INDEX).exists():  # written since the check above
            return _found(out, plan)
        _check_plan(out / PLAN, plan)
        _write_atomically(out / PLAN, [plan])
        for leftover in out.glob("*.partial"):  # of a process that died while it wrote
            leftover.unlink(missing_ok=True)
        done = _run(jobs, workers or available_cores(), max_failed_fraction, progress)
        return _write_index(out, plan, jobs, done)


def _run(
    jobs: list[ShardJob],
    workers: int,
    max_failed_fraction: float,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Write the shards that are missing; the done markers of all, in their order."""
    total, done = sum(len(job.files) for job in jobs), 0
    bad: list[BadFile] = []
    markers: dict[int, dict[str, Any]] = {}

    def collect(job: ShardJob, marker: dict[str, Any]) -> None:
        nonlocal done
        markers[job.number] = marker
        done += len(job.files)
        new = [BadFile(**row) for row in marker["bad"]]
        bad.extend(new)
        for file in new:
            logger.warning("bad file %s", file)
        progress(done, total)
        check_failed_fraction(bad, total, max_failed_fraction)

    for job in jobs:
        if (marker := _read_marker(job)) is not None:
            collect(job, marker)
    missing = [job for job in jobs if job.number not in markers]
    process_map(write_shard, missing, workers, collect, "run the same command to continue with the missing shards")
    return [markers[job.number] for job in jobs]


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one tar and its done marker; returns the marker.

    Raises:
        TubeletError: it cannot be written.
    """
    members: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    with file_errors(job.shard, _SHARDS_KEPT):
        with atomic_write(job.shard, durable=True, remedy=_SHARDS_KEPT) as partial, partial.open("wb") as file:
            for number, path, modality in job.files:
                begin = file.tell()
                try:
                    with track_file(path):
                        made = list(_members(file, job, number, path, modality))
                except DecodeError as error:
                    file.seek(begin)
                    file.truncate()
                    bad.append(asdict(BadFile(error.path, error.reason)))
                else:
                    members += made
            file.write(bytes(2 * BLOCKSIZE))  # the end of a tar
            size = file.tell()
        marker = {"size": size, "bad": bad, "members": members}
        _write_atomically(job.marker, [marker])
    return marker


def _members(file: BinaryIO, job: ShardJob, number: int, path: str, modality: Modality) -> Iterator[dict[str, Any]]:
    """Append what is made of one file to a tar; yields the lines for the index."""
    for part, segment in enumerate(transcode(path, modality, job.config)):
        entry = TarInfo(f"{number:08d}-{part:04d}{_SUFFIX[modality]}")
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
            modality=modality,
            source=path,
            **about,
        )
        yield asdict(member)


def _write_index(out: Path, plan: dict[str, Any], jobs: list[ShardJob], markers: list[dict[str, Any]]) -> ShardSummary:
    """Write the list of bad files, then the index, and delete the done markers."""
    bad = [row for marker in markers for row in marker["bad"]]
    members = [row for marker in markers for row in marker["members"]]
    shards = [{"name": job.shard.name, "size": marker["size"]} for job, marker in zip(jobs, markers, strict=True)]
    _write_atomically(out / BAD_FILES, bad)
    header = {"tubelet_shards": FORMAT, **plan, "bad": len(bad), "members": len(members), "shards": shards}
    _write_atomically(out / INDEX, [header, *members])
    for job in jobs:
        job.marker.unlink()
    (out / PLAN).unlink()
    return _summary(header, sum(row["modality"] == Modality.IMAGE for row in members), reused=False)


def _summary(header: Any, images: int, reused: bool) -> ShardSummary:
    size = sum(shard["size"] for shard in header["shards"])
    videos = header["members"] - images
    return ShardSummary(len(header["shards"]), videos, images, size, header["source_size"], header["bad"], reused)


def _found(out: Path, plan: dict[str, Any]) -> ShardSummary:
    """Existing shards, if they are the requested ones."""
    folder = open_shards(out)
    before = validate_content(_Header, dict(folder.header), f"{out / INDEX}, line 1", COPY_INDEX)
    _compare(out, before, plan)
    return _summary(folder.header, int(folder.members["image"].sum()), reused=True)


def _read_marker(job: ShardJob) -> dict[str, Any] | None:
    """A shard's done marker if the tar exists and is as large as the marker says."""
    if not job.marker.exists() or not job.shard.exists():
        return None
    marker: dict[str, Any] = read_json(job.marker, _DoneMarker, _WRITE_AGAIN)
    for number, row in enumerate(marker["members"]):
        try:
            row.setdefault("weight", 1.0)  # of a marker that was written before weights existed
            if {*row} != {*type_hints(Member)}:
                raise InvalidValueError(f"members[{number}]", f"has the fields {sorted(row)!r:.200}")
            for name, kind in type_hints(Member).items():
                check_value(kind, row[name], f"members[{number}].{name}", strict=True)
        except InvalidValueError as error:
            raise file_error(job.marker, str(error), _WRITE_AGAIN) from error
    return marker if job.shard.stat().st_size == marker["size"] else None


def _size(path: str) -> int:
    try:
        return size_of(path) if is_url(path) else Path(path).stat().st_size
    except StorageError:
        raise
    except (OSError, DecodeError):
        return 0  # reported when it is read


def _jobs(
    out: Path, files: list[tuple[str, Modality]], sizes: list[int], config: ShardConfig, shard_mb: float
) -> list[ShardJob]:
    """Distribute files to shards, in random order so that every shard is a fair sample of all."""
    if shard_mb <= 0:
        raise ConfigError(f"shard_mb is {shard_mb}, expected a size above 0")
    order = np.random.default_rng(_ORDER_SEED).permutation(len(files))
    groups: list[list[tuple[int, str, Modality]]] = []
    filled = 0
    for number, position in enumerate(order.tolist()):
        if not groups or filled + sizes[position] > shard_mb * 1e6:
            groups.append([])
            filled = 0
        groups[-1].append((number, *files[position]))
        filled += sizes[position]
    return [ShardJob(out, k, tuple(group), config) for k, group in enumerate(groups)]


def _plan(config: ShardConfig, files: list[tuple[str, Modality]], sizes: list[int], shard_mb: float) -> dict[str, Any]:
    """What the bytes of the shards depend on."""
    listed = [[path, size] for (path, _), size in zip(files, sizes, strict=True)]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    plan = {"recipe": asdict(config), "shard_mb": shard_mb, "files": len(files), "source_size": sum(sizes)}
    return plan | {"sources": digest}


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if path.exists():
        _compare(path.parent, read_json(path, _ShardPlan, "delete the folder, or choose another --out"), plan)


def _compare(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix shards of different configurations in one folder."""
    old, new = ({"shard_mb": plan["shard_mb"], **plan["recipe"]} for plan in (before, now))
    changed = [f"{key}: {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    if not changed and before["sources"] != now["sources"]:
        files, size = (f"{before[key]} -> {now[key]}" for key in ("files", "source_size"))
        changed = [f"other source files: {files} files, {size} bytes"]
    if changed:
        raise ConfigError(
            f"{out}: contains shards of another configuration ({'; '.join(changed)}); delete it or choose another --out"
        )


def _write_atomically(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines to a temporary file and rename it, so that no crash leaves half of them."""
    with atomic_write(path, durable=True, remedy=_SHARDS_KEPT) as partial, partial.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
