"""Sources - folders, files, globs, lists, shards - to lists of videos and images."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.data.file_types import IMAGE_SUFFIXES, MEDIA_SUFFIXES, STACK_FORMATS, STACK_SUFFIXES, VIDEO_SUFFIXES
from tubelet.data.lerobot import METADATA, dataset_root, is_dataset, read_episodes
from tubelet.data.listed_rows import ListedRows, join_rows
from tubelet.data.manifest import MANIFEST_SUFFIXES, absolute, listed_files, root_of
from tubelet.data.paths import Paths, checksum, to_arrow
from tubelet.data.shards.reader import ShardFolder, is_shards, open_shards
from tubelet.data.stacks.image_sequence import NumberedNames, find_sequences, looks_like_frames, names_of_pattern
from tubelet.data.stacks.listing import is_zarr, kinds_of
from tubelet.data.stacks.tiff import has_pages
from tubelet.data.storage import canonical_url, find, is_pattern, is_url, suffix_of
from tubelet.errors import ConfigError, DataError, FileError, MissingFileError, escape_filename
from tubelet.grid import Modality
from tubelet.io.hidden_files import is_hidden

# Folders that are looked at for frames, in a second of processor time.
_LOOKED_AT = 10_000
_NONE = pa.chunked_array([], pa.large_binary())


@dataclass(frozen=True)
class MediaList:
    """The media files of all sources, each once, in the order in which the sources name them.

    Attributes:
        videos: files with the suffix of a video, and stacks of frames.
        images: files with the suffix of an image, and stacks of one frame.
        shards: folders of shards, which contain both.
        ignored: number of ignored files of each other suffix ("" for none), the most frequent first.
        ends: for each source, the number of videos, images and folders of shards up to and including it.
        notes: messages for the user: the forms of lists, and ignored files.
        video_rows: spans and weights of the videos; None if no list has any. One file with several spans is several
            videos.
        image_rows: weights of the images; None if no list has any.
        has_stacks: whether some of the videos are stacks of frames.
        frame_folders: folders whose images look like the frames of a video, but are read one by one.
    """

    videos: Sequence[str]
    images: Sequence[str]
    shards: list[ShardFolder] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    ends: list[tuple[int, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    video_rows: ListedRows | None = None
    image_rows: ListedRows | None = None
    has_stacks: bool = False
    frame_folders: Sequence[str] = ()

    def of_source(self, number: int) -> "MediaList":
        """The files that source `number`, from 0, is the first to contain."""
        first = self.ends[number - 1] if number else (0, 0, 0)
        videos, images, shards = (slice(start, end) for start, end in zip(first, self.ends[number], strict=True))
        return MediaList(
            self.videos[videos],
            self.images[images],
            self.shards[shards],
            video_rows=self.video_rows and self.video_rows.take(videos),
            image_rows=self.image_rows and self.image_rows.take(images),
        )

    @property
    def entry(self) -> str:
        """What one of the files is called: a span where a list has spans of files."""
        return "span" if self.video_rows is not None and self.video_rows.has_spans() else "file"

    def rows(self, modality: Modality) -> ListedRows | None:
        """Spans and weights of the files of a modality."""
        return self.image_rows if modality is Modality.IMAGE else self.video_rows

    def count(self, modality: Modality) -> int:
        """How many samples of a modality there are: files, and members of shards."""
        image = modality is Modality.IMAGE
        members = sum(int((folder.members["image"] == image).sum()) for folder in self.shards)
        return len(self.images if image else self.videos) + members

    def checksum(self) -> int:
        """CRC-32 of all names, and of the spans and weights where there are some."""
        crc = checksum(self._printed())
        for rows in filter(None, (self.video_rows, self.image_rows)):
            crc = crc32(rows.content(), crc)
        return crc

    def _printed(self) -> Iterator[bytes]:
        for files in (self.videos, self.images):
            yield from (files if isinstance(files, Paths) else Paths.of(files)).printed()
        yield from (f"{escape_filename(folder.root)}\n".encode() for folder in self.shards)


class _HiddenEntries:
    """The ignored hidden entries: media files and folders."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.example = ""

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        self.example = self.example or path

    def note(self) -> list[str]:
        """A message, if there are any."""
        if not self.counts:
            return []
        summary = " and ".join(_counted(count, f"hidden {kind}") for kind, count in sorted(self.counts.items()))
        return [f"ignored: {summary}, such as {self.example}"]


class _FrameFolders:
    """Folders whose images look like the frames of videos, and are read one by one."""

    def __init__(self) -> None:
        self.looked_at = 0
        self.folders: list[str] = []
        self.remedy = ""

    def add(self, folder: str, names: Sequence[str], source: str = "") -> None:
        """Look at the sorted names of a folder's files; `source` is the part of a pattern before the names' own."""
        self.looked_at += 1
        if self.looked_at > _LOOKED_AT or (pattern := looks_like_frames(names)) is None:
            return
        first = next(name for name in names if pattern.number(name) is not None)
        if suffix_of(first) in STACK_FORMATS["tiff"] and has_pages(f"{folder}/{first}"):
            return
        self.folders.append(folder)
        if not self.remedy:
            self.remedy = (
                f"pass '{source}/{pattern}'" if source else "copy them to a local disk, and see Folders of frames"
            )

    def note(self) -> list[str]:
        """A message, if there are any."""
        if not self.folders:
            return []
        least, count = "at least " if self.looked_at > _LOOKED_AT else "", len(self.folders)
        look = f"{least}{_counted(count, 'folder')} look{'s' * (count == 1)} like frames of videos"
        return [
            f"{look}, such as {self.folders[0]}: the images are read one by one; to read them as videos, {self.remedy}"
        ]


def list_media(sources: Sequence[str], allow_path: Sequence[str] = ()) -> MediaList:
    """Find the media files of some sources.

    Args:
        sources: each a folder (searched with its subfolders, sorted), a media file or stack, a list (CSV, TSV, TXT,
            JSONL or Parquet), a glob (`**` matches any number of folders), or a folder of shards; all of these may be
            URLs. A name with %06d, %d or %f for a number means each folder with frames of such names. A table has a
            `path` or `file_name` column, or no header; a line of JSONL is an object with one of them. Relative paths
            in a list are relative to its folder.
        allow_path: folders and URLs that lists may contain files of, besides those below their own folders.

    Returns:
        The files. Videos and images are not opened: one that a list names and that does not exist is an error when it
        is read. Of TIFF, NumPy and DICOM files, the headers are read.

    Raises:
        TubeletError: a source is missing or has no media, a folder may not be read, or a list or an index has a line
            that cannot be understood, or a path that leads out of the list's folder.
        StorageError: a URL cannot be reached.
    """
    if not sources:
        raise ConfigError("no data source; pass a folder, a file, a glob, or a list of files")
    roots = [root_of(root) for root in allow_path]
    videos, images, others = _Files(), _Files(), _Files()
    shards: dict[str, ShardFolder] = {}
    ends: list[int] = []
    notes: list[str] = []
    hidden, frames, has_stacks = _HiddenEntries(), _FrameFolders(), False
    for source in sources:
        single = is_url(source) and suffix_of(source) in (*MANIFEST_SUFFIXES, *MEDIA_SUFFIXES)
        try:
            of_shards = not single and is_shards(source)
        except PermissionError as error:
            raise FileError(f"{source}: cannot be read ({error.strerror}); change its permissions") from error
        if of_shards:
            root = source.rstrip("/") if is_url(source) else os.path.realpath(Path(source).expanduser())
            shards.setdefault(root, open_shards(root))
            listed, rows = _NONE, None
        else:
            listed, rows = _files_of(source, roots, notes, hidden, frames)
            if rows:
                listed, rows = _without_weight(source, listed, rows, notes)
            is_folder = not is_url(source) and Path(source).expanduser().is_dir()
            kinds = kinds_of(listed, is_folder, _is_list(source) or names_of_pattern(source) is not None)
            media = kinds.video | kinds.image
            if not media.any():
                raise DataError(f"{source}: {_describe_files(listed)}; pass a source that has some")
            if kinds.stacks:
                has_stacks = True
                what = _counted(kinds.stacks, "stack")
                notes.append(f"{source}: {what} of frames; those that state no rate have the rate of the clips")
            if kinds.unread_arrays:
                what, pattern = _counted(kinds.unread_arrays, "NumPy file"), str(Path(source) / "**" / "*.np[yz]")
                notes.append(f"{source}: {what} not read, since the folder has other media; '{pattern}' reads them")
            for files, selected in ((videos, kinds.video), (images, kinds.image)):
                files.add(kinds.files.filter(pa.array(selected)), rows and rows.take(selected))
            others.add(listed.filter(pa.array(~media & ~kinds.repeated)))
        for files in (videos, images, others):
            files.close()
        ends.append(len(shards))
    (video_files, video_ends, video_rows), (image_files, image_ends, image_rows) = (
        each.distinct(notes) for each in (videos, images)
    )
    left = others.distinct(notes)[0]
    if left:
        notes.append(f"ignored: {_describe_counts(left)}")
    notes += [*hidden.note(), *frames.note()]
    counts = list(zip(video_ends, image_ends, ends, strict=True))
    folders = list(shards.values())
    return MediaList(
        video_files,
        image_files,
        folders,
        _by_suffix(left),
        counts,
        notes,
        video_rows,
        image_rows,
        has_stacks,
        frames.folders,
    )


def _without_weight(
    source: str, files: pa.ChunkedArray, rows: ListedRows, notes: list[str]
) -> tuple[pa.ChunkedArray, ListedRows]:
    """The files and rows of a list without those of weight 0."""
    drawn = (rows.weight > 0).numpy()
    if drawn.all():
        return files, rows
    if not drawn.any():
        raise DataError(f"{source}: every row has the weight 0; give some a weight above 0")
    notes.append(f"{source}: {_counted(int((~drawn).sum()), 'row')} of weight 0 left out")
    return files.filter(pa.array(drawn)), rows.take(drawn)


class _Files:
    """Files of one kind, source after source."""

    def __init__(self) -> None:
        self.chunks: list[pa.Array] = []
        self.rows: list[ListedRows | None] = []
        self.counts: list[int] = []
        self.size = 0
        self.ends: list[int] = []

    def add(self, files: pa.ChunkedArray, rows: ListedRows | None = None) -> None:
        self.chunks += files.chunks
        self.rows.append(rows)
        self.counts.append(len(files))
        self.size += len(files)

    def close(self) -> None:
        """End the current source."""
        self.ends.append(self.size)

    def distinct(self, notes: list[str]) -> tuple[Paths, list[int], ListedRows | None]:
        """Each file, or span of a file, once; how many there are up to the end of each source; and the rows.

        Raises:
            DataError: if a list has one twice, with two weights.
        """
        encoded = pa.chunked_array(self.chunks, pa.large_binary()).combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        names, rows = encoded.dictionary, None
        if any(self.rows):
            numbered = zip(self.rows, self.counts, strict=True)
            rows = join_rows([listed or ListedRows.whole(count) for listed, count in numbered])
            paths, encoded = encoded.indices, _spans_encoded(encoded.indices, rows)
            first, same = np.unique(encoded.indices.to_numpy(), return_index=True, return_inverse=True)[1:]
            notes += _weights_left_out(rows, first[same])
            names, rows = names.take(paths.take(pa.array(first))), rows.take(first)
        seen = np.maximum.accumulate(encoded.indices.to_numpy()) + 1 if len(encoded) else np.zeros(0, int)
        ends = [int(seen[end - 1]) if end else 0 for end in self.ends]
        return Paths.from_arrow(pa.chunked_array([names.cast(pa.large_binary())])), ends, rows


def _spans_encoded(paths: pa.Array, rows: ListedRows) -> pa.DictionaryArray:
    """The numbers of equal paths with equal spans, in the order of their first occurrence."""
    key = np.stack([paths.to_numpy().astype(np.float64), rows.start_s.numpy(), rows.end_s.numpy()], axis=1)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(key))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(24), len(key), buffers).dictionary_encode()


def _weights_left_out(rows: ListedRows, first: np.ndarray) -> list[str]:
    """A message if files or spans that were listed before, in row `first` (N,), have other weights there.

    Raises:
        DataError: if that is in the same list.
    """
    before = rows.take(first)
    other = (rows.weight != before.weight).numpy()
    if not other.any():
        return []
    in_list = np.flatnonzero(other & (rows.line > 0).numpy() & (rows.list_number == before.list_number).numpy())
    if len(in_list):
        row = int(in_list[0])
        raise DataError(
            f"{rows.place(row)}: has the file and span of line {int(before.line[row])}, but the weight "
            f"{float(rows.weight[row]):g} instead of {float(before.weight[row]):g}; remove one of the lines"
        )
    return [f"{_counted(int(other.sum()), 'file')} of several sources: the weight in the first of them counts"]


def _files_of(
    source: str, roots: Sequence[str], notes: list[str], hidden: _HiddenEntries, frames: _FrameFolders
) -> tuple[pa.ChunkedArray, ListedRows | None]:
    """Absolute paths or URLs of all files of a source, media or not, as large_binary, and spans and weights."""
    path = Path(source).expanduser()
    remote = is_url(source)
    if _is_list(source):
        location = source if remote else str(path)
        files, rows, form = listed_files(location, roots)
        what = "span" if rows and rows.has_spans() else "file"
        notes.append(f"{location}: {_counted(len(files), what)} listed; read as {form}")
        return files, rows
    if (names := names_of_pattern(source)) is not None:
        return _sequences_of(source, names, notes), None
    files = to_arrow(_remote_files_of(source, hidden, frames) if remote else _local_files_of(path, hidden, frames))
    return _episodes_in(source, files, notes)


def _is_list(source: str) -> bool:
    return suffix_of(source) in MANIFEST_SUFFIXES and (is_url(source) or Path(source).expanduser().is_file())


def _sequences_of(source: str, names: NumberedNames, notes: list[str]) -> pa.ChunkedArray:
    """The folders of frames that a pattern names."""
    if is_url(source):
        raise ConfigError(f"{source}: frames of a video are read from a local disk; copy their folders")
    folders = list(find_sequences(source, names))
    if gaps := {folder: missing for folder, missing in folders if missing}:
        total, (example, _) = sum(gaps.values()), max(gaps.items(), key=lambda gap: gap[1])
        notes.append(
            f"{source}: {_counted(total, 'number')} missing between the frames of {_counted(len(gaps), 'folder')}, "
            f"such as {example}; the frames before and after are read as neighbors"
        )
    return to_arrow(absolute(Path(folder)) for folder, _ in folders)


def _episodes_in(source: str, files: pa.ChunkedArray, notes: list[str]) -> tuple[pa.ChunkedArray, ListedRows | None]:
    """The files of a source, those of LeRobot data sets as their episodes."""
    metadata = files.filter(pc.match_substring_regex(files, METADATA))
    roots = list(dict.fromkeys(os.fsdecode(each).rpartition("/meta/")[0] for each in metadata.to_pylist()))
    data_set = None if roots and not is_pattern(source) else dataset_root(_without_pattern(source))
    roots = [root for root in dict.fromkeys([*roots, *filter(None, [data_set])]) if is_dataset(root)]
    if not roots:
        return files, None
    chunks, parts = [], []
    for root in roots:
        inside = pc.starts_with(files, os.fsencode(f"{root}/"))
        within, files = set(files.filter(inside).to_pylist()), files.filter(pc.invert(inside))
        every = read_episodes(root)
        episodes = [each for each in every if os.fsencode(each.path) in within]
        if is_url(root):  # of a part of a data set, the other files are not listed
            missing = len(every) - len(episodes) if root != data_set else 0
        else:
            missing = sum(not Path(each.path).is_file() for each in every)
        cameras = ", ".join(dict.fromkeys(each.camera for each in episodes))
        count = len({each.episode for each in episodes})
        notes.append(f"{root}: LeRobot data set, {_counted(count, 'episode')} of the cameras {cameras or 'none'}")
        if missing:
            notes.append(f"{root}: {missing} of {len(every)} videos of episodes are missing and left out")
        chunks.append(to_arrow(each.path for each in episodes))
        start = np.array([each.start_s for each in episodes], np.float64)
        end = np.array([np.inf if each.end_s is None else each.end_s for each in episodes], np.float64)
        numbers = np.array([each.episode for each in episodes], np.int64)
        parts.append(ListedRows.of(f"{root}, episodes", numbers, start, end))
    rows = join_rows([*parts, ListedRows.whole(len(files))])
    joined = pa.chunked_array([chunk for each in [*chunks, files] for chunk in each.chunks], pa.large_binary())
    return joined, rows if rows.has_spans() else None


def _without_pattern(source: str) -> str:
    """What precedes the first wildcard of a source, absolute or a URL."""
    if is_url(source):
        parts = source.rstrip("/").split("/")
        return canonical_url(
            "/".join(parts[: next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts))])
        )
    path = Path(source).expanduser().absolute()
    count = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts))
    return os.path.realpath(Path(*path.parts[:count]))


def _local_files_of(path: Path, hidden: _HiddenEntries, frames: _FrameFolders) -> Iterator[str]:
    if path.is_dir() and not is_zarr(path.name):
        yield from _folder(str(path), hidden, frames, f"{glob.escape(str(path))}/**")
    elif path.is_file() or path.is_dir():
        yield absolute(path)
    elif glob.has_magic(str(path)):
        yield from _glob(str(path), hidden, frames)
    else:
        raise MissingFileError(
            f"{path}: no such file or folder; check the path (a relative one starts at {Path.cwd()})"
        )


def _remote_files_of(source: str, hidden: _HiddenEntries, frames: _FrameFolders) -> Iterator[str]:
    if suffix_of(source) in MEDIA_SUFFIXES and not is_pattern(source):
        yield source
        return
    names, left_out = find(source)
    if not names:
        what = "nothing matches this pattern; check it (quote it in a shell)"
        raise MissingFileError(f"{source}: {what if is_pattern(source) else 'no such file or folder; check the URL'}")
    for url in left_out:
        if suffix_of(url) in MEDIA_SUFFIXES:
            hidden.add("file", url)
    for folder, files in groupby(names, key=lambda url: url.rpartition("/")[0]):
        frames.add(folder, [url[len(folder) + 1 :] for url in files])
    yield from names


def _folder(folder: str, hidden: _HiddenEntries, frames: _FrameFolders, source: str) -> Iterator[str]:
    """Files of a folder and its subfolders, sorted, without hidden ones; `source` is a pattern of these folders."""
    seen: set[str] = set()
    waiting = [os.path.realpath(folder)]
    while waiting:
        at = waiting.pop()
        if at in seen:  # a link to a parent folder, which would never end
            continue
        seen.add(at)
        files: list[str] = []
        folders: list[tuple[str, str]] = []
        try:
            with os.scandir(at) as entries:
                for entry in entries:
                    name, is_folder = entry.name, entry.is_dir()
                    if is_hidden(name):
                        if is_folder or suffix_of(name) in MEDIA_SUFFIXES:
                            hidden.add("folder" if is_folder else "file", entry.path)
                    elif not is_folder or is_zarr(name):
                        files.append(name)
                    else:
                        folders.append((name, os.path.realpath(entry.path) if entry.is_symlink() else entry.path))
        except OSError as error:
            raise FileError(
                f"{at}: cannot be listed ({error.strerror}); change its permissions, or list the other folders"
            ) from error
        start = at.rstrip("/") + "/"
        files.sort()
        frames.add(at, files, source)
        yield from (start + name for name in files)
        waiting += [place for _, place in sorted(folders, reverse=True)]


def _glob(pattern: str, hidden: _HiddenEntries, frames: _FrameFolders) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not matches:
        raise MissingFileError(f"{pattern}: nothing matches this pattern; check it (quote it in a shell)")
    # Names that the user wrote in full do not count as hidden; and wildcards do not match a leading dot.
    written = set(Path(pattern).parts)
    names: dict[str, list[str]] = {}
    for match in matches:
        path = Path(match)
        if any(map(is_zarr, path.parts[:-1])):  # a chunk
            continue
        if any(part not in written and not part.startswith(".") and is_hidden(part) for part in path.parts):
            if path.suffix.lower() in MEDIA_SUFFIXES:
                hidden.add("file", match)
        # A folder that matches stands for its files, unless "**" matches them anyway.
        elif not path.is_dir() or is_zarr(path.name):
            file = absolute(path)
            names.setdefault(os.path.dirname(file), []).append(path.name)  # noqa: PTH120 - pathlib takes ten times as long
            yield file
        elif "**" not in pattern:
            yield from _folder(match, hidden, frames, f"{pattern.rstrip('/')}/**")
    above = pattern if Path(pattern).name == "**" else str(Path(pattern).parent)
    for folder, inside in names.items():
        frames.add(folder, inside, above)


def _by_suffix(files: Sequence[str]) -> dict[str, int]:
    return dict(Counter(suffix_of(file) for file in sorted(files)).most_common())


def _describe_counts(files: Sequence[str]) -> str:
    """How many files of each suffix there are, with an example of each."""
    kinds: dict[str, list[str]] = {}
    for file in sorted(files):
        kinds.setdefault(suffix_of(file), []).append(file)
    clauses = []
    for suffix, names_of_suffix in sorted(kinds.items()):
        broken = [file for file in names_of_suffix if not suffix and not is_url(file) and not os.path.exists(file)]  # noqa: PTH110
        for names, what in (
            (broken, "broken link"),
            (
                [file for file in names_of_suffix if file not in broken],
                "file without a suffix" if not suffix else f"{suffix} file",
            ),
        ):
            if names:
                clauses.append(f"{_counted(len(names), what)} ({Path(names[0]).name}{', ...' * (len(names) > 1)})")
    return ", ".join(clauses)


def _counted(count: int, what: str) -> str:
    """A number of things in words."""
    noun, preposition, rest = what.partition(" without")
    return f"{count} {noun}{'s' * (count != 1)}{preposition}{rest}"


def _describe_files(found: pa.ChunkedArray) -> str:
    """A description of the files of a source without media."""
    if not len(found):
        return "has no files"
    files = Paths.from_arrow(found)
    named = (("video", VIDEO_SUFFIXES), ("image", IMAGE_SUFFIXES), ("stack", STACK_SUFFIXES))
    kinds = " or ".join(f"{kind} ({' '.join(sorted(suffixes))})" for kind, suffixes in named)
    counts = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in _by_suffix(files).items())
    return f"{_counted(len(files), 'file')}, none of them a {kinds}: {counts}"
