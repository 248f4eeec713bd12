"""From what a person names as a source - folders, files, globs, lists, shards - to lists of videos and images."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import walk
from pathlib import Path

from tubelet.data.decode import VIDEO_SUFFIXES
from tubelet.data.images import IMAGE_SUFFIXES
from tubelet.data.manifest import MANIFEST_SUFFIXES, MEDIA_SUFFIXES, absolute, listed_files, real, root_of
from tubelet.data.shards import ShardFolder, is_shards, open_shards
from tubelet.data.storage import find, is_pattern, is_url, suffix_of
from tubelet.types import Modality, TubeletError


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


def list_media(sources: Sequence[str], allow_outside: Sequence[str] = ()) -> MediaList:
    """Find the media files of some sources.

    Args:
        sources: each a folder (searched with its subfolders, sorted), a media file, a CSV or JSONL manifest, or a glob
            (`**` stands for any number of folders). A CSV has a `path` column, or no header and the path first, parted
            from the rest by a comma or a space; a line of JSONL is an object with a `path`. Relative paths in a
            manifest are relative to its folder. Or a folder of shards. All of these may be URLs.
        allow_outside: folders and URLs that manifests may name files of, besides those below their own folders.

    Returns:
        The files. Those that a manifest lists are not looked at: one that does not exist is found out when it is read.

    Raises:
        TubeletError: a source is missing or has no media, or a manifest or an index has a line that cannot be
            understood, or a path that leads out of the manifest's folder.
        StorageError: a URL cannot be reached.
    """
    if not sources:
        raise TubeletError("no data source given: name a folder, a file, a glob, or a CSV or JSONL manifest")
    roots = [root_of(root) for root in allow_outside]
    videos: dict[str, None] = {}
    images: dict[str, None] = {}
    shards: dict[str, ShardFolder] = {}
    ignored: set[str] = set()
    ends: list[tuple[int, int, int]] = []
    for source in sources:
        single = is_url(source) and suffix_of(source) in (*MANIFEST_SUFFIXES, *MEDIA_SUFFIXES)
        if not single and is_shards(source):
            root = source.rstrip("/") if is_url(source) else str(real(Path(source).expanduser()))
            shards.setdefault(root, open_shards(root))
            ends.append((len(videos), len(images), len(shards)))
            continue
        files = list(_remote_files_of(source, roots) if is_url(source) else _files_of(source, roots))
        media = 0
        for file in files:
            suffix = suffix_of(file)
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


def _files_of(source: str, roots: Sequence[str]) -> Iterator[str]:
    """Absolute paths of all files that a source names, media or not."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            yield from listed_files(str(path), roots)
        else:
            yield absolute(path)
    elif glob.has_magic(str(path)):
        yield from _glob(str(path))
    else:
        raise TubeletError(f"{source}: no such file or folder; check the path (a relative one starts at {Path.cwd()})")


def _remote_files_of(source: str, roots: Sequence[str]) -> Iterator[str]:
    """URLs of all objects that a URL names, media or not."""
    if is_pattern(source):
        found = find(source)
        if not found:
            raise TubeletError(f"{source}: nothing matches this pattern; check it (quote it in a shell)")
        yield from found
    elif suffix_of(source) in MANIFEST_SUFFIXES:
        yield from listed_files(source, roots)
    elif suffix_of(source) in MEDIA_SUFFIXES:
        yield source
    else:
        found = find(source)
        if not found:
            raise TubeletError(f"{source}: no such file or folder; check the URL")
        yield from found


def _folder(folder: Path) -> Iterator[str]:
    """Files of a folder and its subfolders, sorted; hidden ones, which tools leave behind, are left out."""
    seen: set[Path] = set()
    for parent, folders, files in walk(folder, followlinks=True):
        at = real(Path(parent))
        if at in seen:  # a link back to a folder above: it would be followed for ever
            folders.clear()
            continue
        seen.add(at)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (str(at / name) for name in sorted(files) if not name.startswith("."))


def _glob(pattern: str) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not matches:
        raise TubeletError(f"{pattern}: nothing matches this pattern; check it (quote it in a shell)")
    for match in matches:
        # A folder that matches stands for what is in it, unless "**" reaches its files anyway.
        if not Path(match).is_dir():
            yield absolute(Path(match))
        elif "**" not in pattern:
            yield from _folder(Path(match))


def _by_suffix(files: Iterable[str]) -> dict[str, int]:
    return dict(Counter(suffix_of(file) for file in sorted(files)).most_common())


def _what_instead(files: list[str]) -> str:
    """What is there where media was expected, in words."""
    if not files:
        return "holds no files"
    kinds = f"a video ({' '.join(sorted(VIDEO_SUFFIXES))}) or image ({' '.join(sorted(IMAGE_SUFFIXES))})"
    found = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in _by_suffix(files).items())
    return f"{len(files)} file{'s' * (len(files) != 1)}, none of them {kinds}: {found}"
