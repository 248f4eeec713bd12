"""Shards of a collection of videos and images, written by worker processes; an interrupted call can be continued.

The index is made of the done markers of all shards and replaces them. Files that are added later become further
shards. Until the new index replaces the old one, the old one stays valid.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.config import ShardConfig
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.process_map import process_map
from tubelet.data.shards.existing import ExistingShards, ShardPlan, check_plan, make_plan, read_existing
from tubelet.data.shards.format import BAD_FILES, FORMAT, INDEX, PLAN, SOURCES
from tubelet.data.shards.reader import is_shards
from tubelet.data.shards.shard_file import (
    SHARDS_KEPT,
    WRITE_AGAIN,
    ShardJob,
    read_marker,
    write_json_lines,
    write_lines,
    write_shard,
)
from tubelet.data.shards.source_list import ShardSource, shard_sources
from tubelet.data.sources import list_media
from tubelet.data.worker_count import available_cores
from tubelet.errors import BadFile, ConfigError, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import directory_lock, file_errors
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import read_json

logger = logging.getLogger(__name__)

_ORDER_SEED = 0


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
        gone: number of files and spans that the folder contains and that are no longer named.
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
    if (out / INDEX).exists() and not (existing := read_existing(out, files, config, shard_mb)).new:
        return _summary(out, existing.header, existing)  # nothing is written, and the folder may be read-only
    with directory_lock(out), file_errors(out, SHARDS_KEPT):
        existing = read_existing(out, files, config, shard_mb)  # again: another process may have written since
        if not existing.new:
            return _summary(out, existing.header, existing)
        jobs = _jobs(out, existing, config, shard_mb)
        plan = make_plan(config, existing.all_rows, shard_mb)
        _prepare(out, plan, existing)
        done = _run(jobs, workers or available_cores(), max_failed_fraction, progress)
        return _write_index(out, plan, existing, jobs, done)


def _prepare(out: Path, plan: dict[str, Any], existing: ExistingShards) -> None:
    """Check and write the plan, and remove leftovers of killed processes.

    Shards of an interrupted call are kept if it added the same files; otherwise they are removed: no index has them.
    """
    if existing.header:
        complete = {shard["name"] for shard in existing.header["shards"]}
        resumed = (out / PLAN).exists() and read_json(out / PLAN, ShardPlan, WRITE_AGAIN) == plan
        for tar in out.glob("shard-*.tar"):
            if tar.name in complete or not resumed:
                tar.with_suffix(".json").unlink(missing_ok=True)
            if tar.name not in complete and not resumed:
                tar.unlink()
    else:
        check_plan(out / PLAN, plan)
    write_json_lines(out / PLAN, [plan])
    for leftover in out.glob("*.partial"):
        leftover.unlink(missing_ok=True)


def _run(
    jobs: list[ShardJob],
    workers: int,
    max_failed_fraction: float,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Write the missing shards; returns the done markers of all, in order."""
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
        check_failed_fraction(bad, total, max_failed_fraction, finished=done == total)

    for job in jobs:
        if (marker := read_marker(job)) is not None:
            collect(job, marker)
    missing = [job for job in jobs if job.number not in markers]
    process_map(write_shard, missing, workers, collect, "run the same command to continue with the missing shards")
    return [markers[job.number] for job in jobs]


def _write_index(
    out: Path,
    plan: dict[str, Any],
    existing: ExistingShards,
    jobs: list[ShardJob],
    markers: list[dict[str, Any]],
) -> ShardSummary:
    """Write the lists of sources and bad files, then the index, and delete the done markers."""
    new = {source.key for source in existing.new}
    bad = [row for row in existing.bad if row["path"] not in new] + [row for marker in markers for row in marker["bad"]]
    members = [row for marker in markers for row in marker["members"]]
    shards = [{"name": job.shard.name, "size": marker["size"]} for job, marker in zip(jobs, markers, strict=True)]
    write_json_lines(out / SOURCES, existing.all_rows)
    write_json_lines(out / BAD_FILES, bad)
    counts = {"bad": len(bad), "members": len(existing.lines) + len(members)}
    header = {"tubelet_shards": FORMAT, **plan, **counts, "shards": [*existing.header.get("shards", ()), *shards]}
    write_lines(out / INDEX, [json.dumps(header), *existing.lines, *map(json.dumps, members)])
    for job in jobs:
        job.marker.unlink()
    (out / PLAN).unlink()
    return _summary(out, header, existing, sum(row["modality"] == Modality.IMAGE for row in members))


def _summary(out: Path, header: Mapping[str, Any], existing: ExistingShards, new_images: int = 0) -> ShardSummary:
    """Summarize the folder; logs a warning of sources that it contains and that are no longer named."""
    if existing.gone:
        logger.warning(
            "%s: %d files or spans of these shards are not among the sources now, such as %s; their members stay",
            out,
            len(existing.gone),
            escape_filename(existing.gone[0]),
        )
    images, reused = existing.images + new_images, bool(existing.header)
    return ShardSummary(
        shards=len(header["shards"]),
        videos=header["members"] - images,
        images=images,
        size=sum(shard["size"] for shard in header["shards"]),
        source_size=header["source_size"],
        bad=header["bad"],
        reused=reused,
        added=len(existing.new) if reused else 0,
        gone=len(existing.gone),
    )


def _jobs(out: Path, existing: ExistingShards, config: ShardConfig, shard_mb: float) -> list[ShardJob]:
    """Distribute files to shards, in random order so that every shard is a fair sample of all that are added."""
    if shard_mb <= 0:
        raise ConfigError(f"shard_mb is {shard_mb}, expected a size above 0")
    order = np.random.default_rng(_ORDER_SEED).permutation(len(existing.new))
    groups: list[list[tuple[int, ShardSource]]] = []
    filled = 0
    for number, position in enumerate(order.tolist(), len(existing.rows)):
        source = existing.new[position]
        if not groups or filled + source.size > shard_mb * 1e6:
            groups.append([])
            filled = 0
        groups[-1].append((number, source))
        filled += source.size
    first = len(existing.header.get("shards", ()))
    return [ShardJob(out, number, tuple(group), config) for number, group in enumerate(groups, first)]
