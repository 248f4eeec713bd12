"""A collection of videos and images -> shards, once, over processes, to be taken up again wherever it was stopped.

Which files make which shard is settled before the first is opened, and a shard depends on nothing but its files and the
recipe: whoever writes it, and whenever, writes the same bytes. A shard is finished when its note, a JSON file that is
renamed into place after the tar, is there; the index is made of the notes and replaces them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo
from typing import Any, BinaryIO, TypedDict
from zlib import crc32

import numpy as np

from tubelet.config import ShardConfig
from tubelet.data.bad_files import check_bad_share
from tubelet.data.cut import cut
from tubelet.data.jobs import reading, run_all
from tubelet.data.shards import FORMAT, INDEX, PLAN, Member, is_shards, open_shards
from tubelet.data.sources import list_media
from tubelet.data.storage import is_url, size_of
from tubelet.errors import BadFile, DecodeError, TubeletError, printable
from tubelet.grid import Modality
from tubelet.io.files import directory_lock, replacing
from tubelet.io.overwrite import check_output
from tubelet.io.text import check_content, damaged, read_json
from tubelet.validation import MisfitError, fit, hints

BAD_FILES = "bad_files.jsonl"
_ORDER_SEED = 0
_ANEW = "delete it: the same command then makes the shard anew"
_SUFFIX = {Modality.VIDEO: ".mp4", Modality.IMAGE: ".jpg"}


class _Plan(TypedDict):
    """What the bytes of the shards depend on: plan.json, and part of the index's first line."""

    recipe: dict[str, Any]
    shard_mb: float
    files: int
    source_size: int
    sources: str


class _Header(_Plan):
    """The index's first line, as far as its reader has not checked it."""

    bad: int


class _BadRow(TypedDict):
    """A file that could not be read."""

    path: str
    reason: str


class _Note(TypedDict):
    """What is known of a finished shard: the members are checked as those of the index are."""

    size: int
    bad: list[_BadRow]
    members: list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One shard to be made.

    Attributes:
        out: the folder.
        number: of the shard.
        files: number, path and modality of each file.
        recipe: how they are cut.
    """

    out: Path
    number: int
    files: tuple[tuple[int, str, Modality], ...]
    recipe: ShardConfig

    @property
    def shard(self) -> Path:
        """The tar."""
        return self.out / f"shard-{self.number:06d}.tar"

    @property
    def note(self) -> Path:
        """What says that the tar is finished, and what is in it."""
        return self.shard.with_suffix(".json")


@dataclass(frozen=True)
class Summary:
    """What `write_shards` leaves behind.

    Attributes:
        shards: tars.
        videos: members that are segments of videos.
        images: members that are images.
        size: bytes of all tars.
        source_size: bytes of all source files.
        bad: files that could not be read.
        reused: whether all was there before.
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
    recipe: ShardConfig,
    workers: int | None = None,
    shard_mb: float = 1024,
    max_failed_fraction: float = 0.05,
    allow_path: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[BadFile], None] = lambda file: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Summary:
    """Cut the files of some sources into shards.

    Args:
        sources: as for training.
        out: the folder; one that a stopped call left is continued.
        recipe: how the files are cut.
        workers: processes; as many as cores unless told.
        shard_mb: megabytes of source files that go into one shard.
        max_failed_fraction: share of the files that may be unreadable.
        allow_path: as for training.
        progress: called with files done and all files.
        report: called once with each file that cannot be read.
        note: called with how lists were read, and what was left out.

    Returns:
        What is in the folder now.

    Raises:
        TubeletError: too many files are bad, the folder holds other shards, or it cannot be written.
    """
    for source in sources:
        if is_shards(source):
            raise TubeletError(f"{source}: is a folder of shards already; name the files that it was made from")
    out = Path(out)
    check_output(out, "shards", sources)
    media = list_media(sources, allow_path)
    for sentence in media.notes:
        note(printable(sentence))
    files = [(path, Modality.VIDEO) for path in media.videos] + [(path, Modality.IMAGE) for path in media.images]
    sizes = [_size(path) for path, _ in files]
    jobs = _jobs(out, files, sizes, recipe, shard_mb)
    plan = _plan(recipe, files, sizes, shard_mb)
    if (out / INDEX).exists():  # nothing is changed any more, and the folder may be one that cannot be written to
        return _found(out, plan)
    with directory_lock(out), _written(out):
        if (out / INDEX).exists():  # since just now
            return _found(out, plan)
        _check_plan(out / PLAN, plan)
        _write_atomically(out / PLAN, [plan])
        for leftover in out.glob("*.partial"):  # of a process that died while it wrote
            leftover.unlink(missing_ok=True)
        notes = _run(jobs, workers or os.cpu_count() or 1, max_failed_fraction, progress, report)
        return _finish(out, plan, jobs, notes)


def _run(
    jobs: list[Job],
    workers: int,
    max_failed_fraction: float,
    progress: Callable[[int, int], None],
    report: Callable[[BadFile], None],
) -> list[dict[str, Any]]:
    """Make the shards that are missing; the notes of all, in their order."""
    total, done = sum(len(job.files) for job in jobs), 0
    bad: list[BadFile] = []
    notes: dict[int, dict[str, Any]] = {}

    def take(job: Job, note: dict[str, Any]) -> None:
        nonlocal done
        notes[job.number] = note
        done += len(job.files)
        new = [BadFile(**row) for row in note["bad"]]
        bad.extend(new)
        for file in new:
            report(file)
        progress(done, total)
        check_bad_share(bad, total, max_failed_fraction)

    for job in jobs:
        if (note := _finished(job)) is not None:
            take(job, note)
    missing = [job for job in jobs if job.number not in notes]
    run_all(write_shard, missing, workers, take, "the same command goes on with the shards that are missing")
    return [notes[job.number] for job in jobs]


def write_shard(job: Job) -> dict[str, Any]:
    """Write one tar and its note; returns the note.

    Raises:
        TubeletError: it cannot be written.
    """
    members: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    with _written(job.shard):
        with replacing(job.shard, durable=True) as partial, partial.open("wb") as file:
            for number, path, modality in job.files:
                begin = file.tell()
                try:
                    with reading(path):
                        made = list(_members(file, job, number, path, modality))
                except DecodeError as error:
                    file.seek(begin)
                    file.truncate()
                    bad.append(asdict(BadFile(error.path, error.reason)))
                else:
                    members += made
            file.write(bytes(2 * BLOCKSIZE))  # the end of a tar
            size = file.tell()
        note = {"size": size, "bad": bad, "members": members}
        _write_atomically(job.note, [note])
    return note


def _members(file: BinaryIO, job: Job, number: int, path: str, modality: Modality) -> Iterator[dict[str, Any]]:
    """Append what is made of one file to a tar; yields the lines for the index."""
    for part, piece in enumerate(cut(path, modality, job.recipe)):
        entry = TarInfo(f"{number:08d}-{part:04d}{_SUFFIX[modality]}")
        entry.size = len(piece.data)
        file.write(entry.tobuf(USTAR_FORMAT))
        offset = file.tell()
        file.write(piece.data)
        file.write(bytes(-len(piece.data) % BLOCKSIZE))
        about = {name: getattr(piece, name) for name in ("start_s", "duration_s", "fps", "width", "height")}
        member = Member(
            shard=job.shard.name,
            name=entry.name,
            offset=offset,
            size=entry.size,
            crc32=crc32(piece.data),
            modality=modality,
            source=path,
            **about,
        )
        yield asdict(member)


def _finish(out: Path, plan: dict[str, Any], jobs: list[Job], notes: list[dict[str, Any]]) -> Summary:
    """Write the list of bad files, then the index, and take the notes away."""
    bad = [row for note in notes for row in note["bad"]]
    members = [row for note in notes for row in note["members"]]
    shards = [{"name": job.shard.name, "size": note["size"]} for job, note in zip(jobs, notes, strict=True)]
    _write_atomically(out / BAD_FILES, bad)
    header = {"tubelet_shards": FORMAT, **plan, "bad": len(bad), "members": len(members), "shards": shards}
    _write_atomically(out / INDEX, [header, *members])
    for job in jobs:
        job.note.unlink()
    (out / PLAN).unlink()
    return _summary(header, sum(row["modality"] == Modality.IMAGE for row in members), reused=False)


def _summary(header: Any, images: int, reused: bool) -> Summary:
    size = sum(shard["size"] for shard in header["shards"])
    videos = header["members"] - images
    return Summary(len(header["shards"]), videos, images, size, header["source_size"], header["bad"], reused)


def _found(out: Path, plan: dict[str, Any]) -> Summary:
    """Shards that are there already, if they are those that were asked for."""
    folder = open_shards(out)
    before = check_content(_Header, dict(folder.header), f"{out / INDEX}, line 1", "copy the index again")
    _compare(out, before, plan)
    return _summary(folder.header, int(folder.members["image"].sum()), reused=True)


def _finished(job: Job) -> dict[str, Any] | None:
    """A shard's note if the shard is finished and as large as the note says."""
    if not job.note.exists() or not job.shard.exists():
        return None
    note: dict[str, Any] = read_json(job.note, _Note, _ANEW)
    for number, row in enumerate(note["members"]):
        try:
            if {*row} != {*hints(Member)}:
                raise MisfitError(f"members[{number}]", f"has the fields {sorted(row)!r:.200}")
            for name, kind in hints(Member).items():
                fit(kind, row[name], f"members[{number}].{name}", given=False)
        except MisfitError as error:
            raise damaged(job.note, str(error), _ANEW) from error
    return note if job.shard.stat().st_size == note["size"] else None


def _size(path: str) -> int:
    try:
        return size_of(path) if is_url(path) else Path(path).stat().st_size
    except (OSError, DecodeError):
        return 0  # said when it is to be read


def _jobs(
    out: Path, files: list[tuple[str, Modality]], sizes: list[int], recipe: ShardConfig, shard_mb: float
) -> list[Job]:
    """Deal files, in random order so that every shard is a fair sample of all, out to shards."""
    if shard_mb <= 0:
        raise TubeletError(f"shard_mb is {shard_mb}, expected a size above 0")
    order = np.random.default_rng(_ORDER_SEED).permutation(len(files))
    groups: list[list[tuple[int, str, Modality]]] = []
    filled = 0
    for number, place in enumerate(order.tolist()):
        if not groups or filled + sizes[place] > shard_mb * 1e6:
            groups.append([])
            filled = 0
        groups[-1].append((number, *files[place]))
        filled += sizes[place]
    return [Job(out, k, tuple(group), recipe) for k, group in enumerate(groups)]


def _plan(recipe: ShardConfig, files: list[tuple[str, Modality]], sizes: list[int], shard_mb: float) -> dict[str, Any]:
    """What the bytes of the shards depend on."""
    listed = [[path, size] for (path, _), size in zip(files, sizes, strict=True)]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    plan = {"recipe": asdict(recipe), "shard_mb": shard_mb, "files": len(files), "source_size": sum(sizes)}
    return plan | {"sources": digest}


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if path.exists():
        _compare(path.parent, read_json(path, _Plan, "delete the folder, or choose another --out"), plan)


def _compare(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix shards of different kinds in one folder."""
    then, wanted = ({"shard_mb": plan["shard_mb"], **plan["recipe"]} for plan in (before, now))
    changed = [f"{key}: {then.get(key)} -> {value}" for key, value in wanted.items() if then.get(key) != value]
    if not changed and before["sources"] != now["sources"]:
        files, size = (f"{before[key]} -> {now[key]}" for key in ("files", "source_size"))
        changed = [f"other source files: {files} files, {size} bytes"]
    if changed:
        raise TubeletError(
            f"{out}: holds shards that were made otherwise ({'; '.join(changed)}): delete it, or choose another --out"
        )


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """A TubeletError for what the disk says."""
    try:
        yield
    except OSError as error:
        raise TubeletError(f"{path}: cannot be written ({error.strerror}); what is finished is kept") from error


def _write_atomically(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, written beside their place and renamed, so that no crash leaves half of them."""
    with replacing(path, durable=True) as partial, partial.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
