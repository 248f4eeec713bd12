"""A collection of videos and images -> shards, over worker processes; an interrupted call can be continued.

Which files make which shard is decided before the first is opened, and a shard depends only on its files and the
configuration: any process writes the same bytes at any time. A shard is complete when its done marker exists, a JSON
file that is renamed into place after the tar; the index is made of the markers and replaces them.

Files that are added later become further shards. Until the new index replaces the old one, the old one stays valid.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo
from typing import Any, BinaryIO, TypedDict
from zlib import crc32

import numpy as np

from tubelet.config import ShardConfig
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.process_map import process_map, track_file
from tubelet.data.shards.format import BAD_FILES, COPY_INDEX, FORMAT, INDEX, PLAN, SOURCES, Member
from tubelet.data.shards.reader import is_shards, open_shards
from tubelet.data.shards.source_list import ShardSource, SourceRow, diff_sources, shard_sources, sources_digest
from tubelet.data.shards.transcode import transcode
from tubelet.data.sources import list_media
from tubelet.data.worker_count import available_cores
from tubelet.errors import BadFile, ConfigError, DecodeError, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import atomic_write, directory_lock, file_errors
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import file_error, read_json, read_jsonl, read_text, validate_content
from tubelet.value_checks import InvalidValueError, check_value, type_hints

logger = logging.getLogger(__name__)

_ORDER_SEED = 0
_WRITE_AGAIN = "delete it and run the same command, which then writes the shard again"
_SHARDS_KEPT = "complete shards are kept"
_SUFFIX = {Modality.VIDEO: ".mp4", Modality.IMAGE: ".jpg"}


class _ShardPlan(TypedDict):
    """What the bytes of the shards depend on: plan.json, and a part of the first line of the index.

    Of shards that were added to, `files`, `source_size` and `sources` are those of all sources.
    """

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
        files: number and source of each file or span.
        config: how the files are transcoded.
    """

    out: Path
    number: int
    files: tuple[tuple[int, ShardSource], ...]
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
        reused: whether the folder had shards before.
        added: number of files and spans that were added to them.
        gone: number of files and spans that the folder has and the sources do not.
    """

    shards: int
    videos: int
    images: int
    size: int
    source_size: int
    bad: int
    reused: bool
    added: int
    gone: int


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
    """Transcode the files of some sources into shards, or those that a folder of shards lacks into further ones.

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
        TubeletError: too many files are bad, the folder has shards of other settings or of files that changed since, or
            it cannot be written.
    """
    for source in sources:
        if is_shards(source):
            raise ConfigError(f"{source}: is already a folder of shards; name the files that it was made from")
    out = Path(out)
    check_output(out, "shards", sources)
    media = list_media(sources, allow_path)
    for message in media.notes:
        logger.info(escape_filename(message))
    files = shard_sources(media)
    if (out / INDEX).exists() and not (before := _read_before(out, files, config, shard_mb)).new:
        return _summary(out, before.header, before)  # nothing is written, and the folder may be read-only
    with directory_lock(out), file_errors(out, _SHARDS_KEPT):
        before = _read_before(out, files, config, shard_mb)  # again: another process may have written since
        if not before.new:
            return _summary(out, before.header, before)
        jobs = _jobs(out, before, config, shard_mb)
        plan = _plan(config, before.all_rows, shard_mb)
        _prepare(out, plan, before)
        done = _run(jobs, workers or available_cores(), max_failed_fraction, progress)
        return _write_index(out, plan, before, jobs, done)


@dataclass(frozen=True)
class _ExistingShards:
    """What a folder has and lacks.

    Attributes:
        new: the sources that it lacks.
        rows: what its members were made of; empty without an index.
        header: first line of the index; empty without one.
        lines: the lines of its members.
        images: number of members that are images.
        gone: keys of sources that are not named any more.
        bad: the files that could not be read.
    """

    new: Sequence[ShardSource]
    rows: Sequence[SourceRow] = ()
    header: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    images: int = 0
    gone: Sequence[str] = ()
    bad: Sequence[Mapping[str, Any]] = ()

    @property
    def all_rows(self) -> list[SourceRow]:
        """What the members of all shards will be made of."""
        return [*self.rows, *(source.row for source in self.new)]


def _read_before(out: Path, files: Sequence[ShardSource], config: ShardConfig, shard_mb: float) -> _ExistingShards:
    """What is in a folder, if it was made with the requested settings.

    Raises:
        ConfigError: it was not, or a file changed since.
    """
    if not (out / INDEX).exists():
        return _ExistingShards(files)
    folder, plan = open_shards(out), _plan(config, [source.row for source in files], shard_mb)
    header = validate_content(_Header, dict(folder.header), f"{out / INDEX}, line 1", COPY_INDEX)
    _compare_settings(out, header, plan)
    images = int(folder.members["image"].sum())
    if header["sources"] == plan["sources"]:
        return _ExistingShards((), header=folder.header, images=images)
    bad = [row for row, _ in read_jsonl(out / BAD_FILES, _BadRow, COPY_INDEX)]
    diff = diff_sources(out, header["files"], files, {row["path"] for row in bad})
    lines = read_text(out / INDEX, COPY_INDEX).splitlines()[1:] if diff.added else ()
    return _ExistingShards(diff.added, diff.existing, folder.header, lines, images, diff.removed, bad)


def _prepare(out: Path, plan: dict[str, Any], before: _ExistingShards) -> None:
    """Check and write the plan, and remove what died processes left.

    What an interrupted addition wrote is continued; of an addition of other files, it is removed: the index lacks it.
    """
    if before.header:
        complete = {shard["name"] for shard in before.header["shards"]}
        resumed = (out / PLAN).exists() and read_json(out / PLAN, _ShardPlan, _WRITE_AGAIN) == plan
        for tar in out.glob("shard-*.tar"):
            if tar.name in complete or not resumed:
                tar.with_suffix(".json").unlink(missing_ok=True)
            if tar.name not in complete and not resumed:
                tar.unlink()
    else:
        _check_plan(out / PLAN, plan)
    _write_atomically(out / PLAN, [plan])
    for leftover in out.glob("*.partial"):
        leftover.unlink(missing_ok=True)


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
            for number, source in job.files:
                begin = file.tell()
                try:
                    with track_file(source.key):
                        made = list(_members(file, job, number, source))
                except DecodeError as error:
                    file.seek(begin)
                    file.truncate()
                    bad.append(asdict(BadFile(source.key if source.sample.place else error.path, error.reason)))
                else:
                    members += made
            file.write(bytes(2 * BLOCKSIZE))  # the end of a tar
            size = file.tell()
        marker = {"size": size, "bad": bad, "members": members}
        _write_atomically(job.marker, [marker])
    return marker


def _members(file: BinaryIO, job: ShardJob, number: int, source: ShardSource) -> Iterator[dict[str, Any]]:
    """Append what is made of one file or span to a tar; yields the lines for the index."""
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


def _write_index(
    out: Path,
    plan: dict[str, Any],
    before: _ExistingShards,
    jobs: list[ShardJob],
    markers: list[dict[str, Any]],
) -> ShardSummary:
    """Write the lists of sources and bad files, then the index, and delete the done markers."""
    new = {source.key for source in before.new}
    bad = [row for row in before.bad if row["path"] not in new] + [row for marker in markers for row in marker["bad"]]
    members = [row for marker in markers for row in marker["members"]]
    shards = [{"name": job.shard.name, "size": marker["size"]} for job, marker in zip(jobs, markers, strict=True)]
    _write_atomically(out / SOURCES, before.all_rows)
    _write_atomically(out / BAD_FILES, bad)
    counts = {"bad": len(bad), "members": len(before.lines) + len(members)}
    header = {"tubelet_shards": FORMAT, **plan, **counts, "shards": [*before.header.get("shards", ()), *shards]}
    _write_lines(out / INDEX, [json.dumps(header), *before.lines, *map(json.dumps, members)])
    for job in jobs:
        job.marker.unlink()
    (out / PLAN).unlink()
    return _summary(out, header, before, sum(row["modality"] == Modality.IMAGE for row in members))


def _summary(out: Path, header: Mapping[str, Any], before: _ExistingShards, new_images: int = 0) -> ShardSummary:
    """What the folder contains now; reports sources that it has and that are not named any more."""
    if before.gone:
        logger.warning(
            "%s: %d files or spans of these shards are not among the sources now, such as %s; their members stay",
            out,
            len(before.gone),
            escape_filename(before.gone[0]),
        )
    images, reused = before.images + new_images, bool(before.header)
    return ShardSummary(
        shards=len(header["shards"]),
        videos=header["members"] - images,
        images=images,
        size=sum(shard["size"] for shard in header["shards"]),
        source_size=header["source_size"],
        bad=header["bad"],
        reused=reused,
        added=len(before.new) if reused else 0,
        gone=len(before.gone),
    )


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


def _jobs(out: Path, before: _ExistingShards, config: ShardConfig, shard_mb: float) -> list[ShardJob]:
    """Distribute files to shards, in random order so that every shard is a fair sample of all that are added."""
    if shard_mb <= 0:
        raise ConfigError(f"shard_mb is {shard_mb}, expected a size above 0")
    order = np.random.default_rng(_ORDER_SEED).permutation(len(before.new))
    groups: list[list[tuple[int, ShardSource]]] = []
    filled = 0
    for number, position in enumerate(order.tolist(), len(before.rows)):
        source = before.new[position]
        if not groups or filled + source.size > shard_mb * 1e6:
            groups.append([])
            filled = 0
        groups[-1].append((number, source))
        filled += source.size
    first = len(before.header.get("shards", ()))
    return [ShardJob(out, number, tuple(group), config) for number, group in enumerate(groups, first)]


def _plan(config: ShardConfig, rows: Sequence[SourceRow], shard_mb: float) -> dict[str, Any]:
    """What the bytes of the shards depend on."""
    sizes = {row["path"]: row["size"] for row in rows}
    plan = {"recipe": asdict(config), "shard_mb": shard_mb, "files": len(rows), "source_size": sum(sizes.values())}
    return plan | {"sources": sources_digest(rows)}


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if path.exists():
        before = read_json(path, _ShardPlan, "delete the folder, or choose another --out")
        _compare_settings(path.parent, before, plan)
        if before["sources"] != plan["sources"]:
            files, size = (f"{before[key]} -> {plan[key]}" for key in ("files", "source_size"))
            raise ConfigError(
                f"{path.parent}: has incomplete shards of other source files ({files} files, {size} bytes); complete "
                "them with the same sources, then add others, or delete the folder"
            )


def _compare_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix shards of different configurations in one folder."""
    old, new = ({"shard_mb": plan["shard_mb"], **plan["recipe"]} for plan in (before, now))
    changed = [f"{key}: {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    if changed:
        raise ConfigError(
            f"{out}: contains shards of another configuration ({'; '.join(changed)}); delete it or choose another --out"
        )


def _write_atomically(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines to a temporary file and rename it, so that no crash leaves half of them."""
    _write_lines(path, map(json.dumps, rows))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path, durable=True, remedy=_SHARDS_KEPT) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
