"""From what a person names as a source - folders, files, globs, lists, shards - to lists of videos and images."""

import csv
import glob
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from os import walk
from pathlib import Path

from tubelet.data.decode import VIDEO_SUFFIXES
from tubelet.data.images import IMAGE_SUFFIXES
from tubelet.data.shards import ShardFolder, is_shards, is_url, open_shards
from tubelet.types import Modality, TubeletError

_MANIFEST_SUFFIXES = (".csv", ".jsonl")
_PATH_COLUMN = "path"
_MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


@dataclass(frozen=True)
class MediaList:
    """The media files of all sources, each once, in the order in which the sources name them.

    Attributes:
        videos: files with a video's suffix.
        images: files with an image's suffix.
        shards: folders of shards, which hold both.
        ignored: how many files of each other suffix were passed over ("" for none), the most frequent first.
        ends: for each source, how many videos, images and folders of shards there are up to and with it.
    """

    videos: list[str]
    images: list[str]
    shards: list[ShardFolder] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    ends: list[tuple[int, int, int]] = field(default_factory=list)

    def of_source(self, number: int) -> "MediaList":
        """What the source of that number, from 0, was the first to name."""
        first = self.ends[number - 1] if number else (0, 0, 0)
        videos, images, shards = (slice(start, end) for start, end in zip(first, self.ends[number], strict=True))
        return MediaList(self.videos[videos], self.images[images], self.shards[shards])

    def count(self, modality: Modality) -> int:
        """How many samples of a modality there are: files, and members of shards."""
        image = modality is Modality.IMAGE
        members = sum(int((folder.members["image"] == image).sum()) for folder in self.shards)
        return len(self.images if image else self.videos) + members


def list_media(sources: Sequence[str]) -> MediaList:
    """Find the media files of some sources.

    Args:
        sources: each a folder (searched with its subfolders, sorted), a media file, a CSV or JSONL manifest, or a glob
            (`**` stands for any number of folders). A CSV has a `path` column, or no header and the path first, parted
            from the rest by a comma or a space; a line of JSONL is an object with a `path`. Relative paths in a
            manifest are relative to its folder. Or a folder of shards, or the URL of one.

    Returns:
        The files. Those that a manifest lists are not looked at: one that does not exist is found out when it is read.

    Raises:
        TubeletError: a source is missing or has no media, or a manifest or an index has a line that cannot be
            understood.
    """
    if not sources:
        raise TubeletError("no data source given: name a folder, a file, a glob, or a CSV or JSONL manifest")
    videos: dict[str, None] = {}
    images: dict[str, None] = {}
    shards: dict[str, ShardFolder] = {}
    ignored: set[str] = set()
    ends: list[tuple[int, int, int]] = []
    for source in sources:
        if is_shards(source):
            root = source.rstrip("/") if is_url(source) else str(_real(Path(source).expanduser()))
            shards.setdefault(root, open_shards(root))
            ends.append((len(videos), len(images), len(shards)))
            continue
        files = list(_files_of(source))
        media = 0
        for file in files:
            suffix = Path(file).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                videos[file] = None
            elif suffix in IMAGE_SUFFIXES:
                images[file] = None
            else:
                ignored.add(file)
                continue
            media += 1
        if not media:
            raise TubeletError(f"{source}: {_what_instead(files)}; name a source that has some")
        ends.append((len(videos), len(images), len(shards)))
    return MediaList(list(videos), list(images), list(shards.values()), _by_suffix(ignored), ends)


def _files_of(source: str) -> Iterator[str]:
    """Absolute paths of all files that a source names, media or not."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        if path.suffix.lower() in _MANIFEST_SUFFIXES:
            for listed in _manifest(path):
                yield _absolute(path.parent / Path(listed).expanduser())
        else:
            yield _absolute(path)
    elif glob.has_magic(str(path)):
        yield from _glob(str(path))
    else:
        raise TubeletError(f"{source}: no such file or folder; check the path (a relative one starts at {Path.cwd()})")


def _folder(folder: Path) -> Iterator[str]:
    """Files of a folder and its subfolders, sorted; hidden ones, which tools leave behind, are left out."""
    seen: set[Path] = set()
    for parent, folders, files in walk(folder, followlinks=True):
        real = _real(Path(parent))
        if real in seen:  # a link back to a folder above: it would be followed for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (str(real / name) for name in sorted(files) if not name.startswith("."))


def _glob(pattern: str) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not matches:
        raise TubeletError(f"{pattern}: nothing matches this pattern; check it (quote it in a shell)")
    for match in matches:
        # A folder that matches stands for what is in it, unless "**" reaches its files anyway.
        if not Path(match).is_dir():
            yield _absolute(Path(match))
        elif "**" not in pattern:
            yield from _folder(Path(match))


def _absolute(path: Path) -> str:
    """One name for one file, so that sources that overlap count it once.

    A file that is itself a link keeps its name: what it points at may have no suffix.
    """
    return str(_real(path.parent) / path.name)


@cache
def _real(folder: Path) -> Path:
    return folder.resolve()


def _manifest(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TubeletError(f"{path}: is not UTF-8 text (byte {error.start}): save the manifest as UTF-8") from error
    except OSError as error:
        raise TubeletError(f"{path}: the manifest cannot be read ({error.strerror})") from error
    return _jsonl(path, text) if path.suffix.lower() == ".jsonl" else _csv(path, text)


def _jsonl(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TubeletError(f"{path}, line {number}: is not JSON ({error.msg}, column {error.colno})") from error
        listed = row.get(_PATH_COLUMN) if isinstance(row, dict) else None
        if not isinstance(listed, str) or not listed.strip():
            raise TubeletError(f'{path}, line {number}: has no path; write {{"path": "film.mp4"}}')
        yield listed.strip()


def _csv(path: Path, text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return
    # Research code writes "path label"; a comma anywhere in the first line, or no media suffix before the space,
    # means that spaces belong to names.
    spaced = "," not in lines[0] and Path(lines[0].rsplit(maxsplit=1)[0]).suffix.lower() in _MEDIA_SUFFIXES
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=" " if spaced else ",", skipinitialspace=True)
    column, first = 0, True
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise TubeletError(f"{path}, line {rows.line_num}: is not CSV ({error})") from error
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        names = [cell.strip().lower() for cell in row]
        if first and _is_header(names):
            if _PATH_COLUMN not in names:
                raise TubeletError(
                    f"{path}, line {rows.line_num}: its header has no column named path: {', '.join(row)}"
                )
            column, first = names.index(_PATH_COLUMN), False
            continue
        first = False
        listed = row[column].strip() if column < len(row) else ""
        if not listed:
            raise TubeletError(
                f"{path}, line {rows.line_num}: has no path in column {column + 1}; fill it or drop the line"
            )
        yield listed


def _is_header(names: list[str]) -> bool:
    """Whether a first row names columns: it says path, or nothing in it looks like a media file."""
    return _PATH_COLUMN in names or not any(Path(name).suffix in _MEDIA_SUFFIXES for name in names)


def _by_suffix(files: Iterable[str]) -> dict[str, int]:
    return dict(Counter(Path(file).suffix.lower() for file in sorted(files)).most_common())


def _what_instead(files: list[str]) -> str:
    """What is there where media was expected, in words."""
    if not files:
        return "holds no files"
    kinds = f"a video ({' '.join(sorted(VIDEO_SUFFIXES))}) or image ({' '.join(sorted(IMAGE_SUFFIXES))})"
    found = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in _by_suffix(files).items())
    return f"{len(files)} file{'s' * (len(files) != 1)}, none of them {kinds}: {found}"
