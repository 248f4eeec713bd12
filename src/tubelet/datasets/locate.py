"""Find the directories and files of a data set below the directory that the user names.

Hidden entries, and those that operating systems and network storage add, are never returned.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tubelet.data.file_types import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from tubelet.errors import DataError, FileError
from tubelet.io.hidden_files import is_hidden


def candidate_roots(root: Path, archives: Sequence[str] = ()) -> Iterator[Path]:
    """Directories that may be the root of a data set: the named one and those that archives unpack to below it.

    Args:
        root: The named directory; while it holds a single directory, that one is a candidate too.
        archives: Names of directories in which archives unpack; case, hyphens and underscores do not matter.
    """
    for _ in range(4):  # root/ade/ADEChallengeData2016, DAVIS-2017-trainval-480p/DAVIS
        yield root
        folders = subfolders(root)
        yield from (found for name in archives if (found := find_folder(folders, name)) is not None)
        if len(folders) != 1:
            return
        root = folders[0]


def find_folder(folders: Sequence[Path], name: str) -> Path | None:
    """The folder of a name, or else one whose name differs only in case, hyphens, underscores or spaces.

    Args:
        folders: Folders of one directory.
        name: Name of a folder, or a relative path that starts with one.
    """
    first, _, rest = name.partition("/")
    exact = [path for path in folders if path.name == first]
    matches = exact or [path for path in folders if _simplified(path.name) == _simplified(first)]
    if not matches:
        return None
    return find_folder(subfolders(matches[0]), rest) if rest else matches[0]


def _simplified(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def find_root(root: Path, archives: Sequence[str], markers: Sequence[str]) -> Path | None:
    """The first of `candidate_roots` that holds all markers, which are relative paths."""
    candidates = candidate_roots(root, archives)
    return next((folder for folder in candidates if all((folder / marker).exists() for marker in markers)), None)


def list_directory(folder: Path) -> list[Path]:
    """Visible entries of a directory, sorted by name.

    Raises:
        FileError: The directory cannot be listed.
    """
    return [folder / name for name in entry_names(folder)]


def entry_names(folder: Path, folders_only: bool = False) -> list[str]:
    """Names of the visible entries of a directory, sorted; of a million of them, none takes a `stat`.

    Raises:
        FileError: The directory cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not is_hidden(e.name) and (not folders_only or e.is_dir()))
    except OSError as error:
        raise FileError(f"{folder}: cannot list the directory ({error.strerror}); check its permissions") from error


def glob_visible(folder: Path, pattern: str) -> list[Path]:
    """Visible paths below a directory that match a pattern, sorted; empty if the directory does not exist."""
    paths = folder.glob(pattern) if folder.is_dir() else ()
    return sorted(path for path in paths if not any(map(is_hidden, path.relative_to(folder).parts)))


def list_images(folder: Path, suffixes: Sequence[str] = (".jpg", ".jpeg", ".png")) -> list[Path]:
    """Image files of a directory, sorted by name.

    Raises:
        DataError: There are none.
    """
    entries = list_directory(folder) if folder.is_dir() else []
    images = [path for path in entries if path.suffix.lower() in suffixes]
    if not images:
        raise DataError(f"{folder}: no images found, expected {', '.join(suffixes)} files")
    return images


def index_videos(root: Path, folders: Sequence[Path], preferred: str) -> dict[str, Path]:
    """Stem -> video file below some directories, or below the root of the data set if they have none.

    One walk: checking several candidate paths for each of 240,000 videos takes far longer.

    Args:
        root: Root of the data set.
        folders: Directories; of two files with one stem, that of the earlier directory is returned.
        preferred: Suffix to prefer where one directory has several files of a stem.
    """
    return _index_by_stem(folders, preferred) or _index_by_stem([root], preferred)


def _index_by_stem(folders: Sequence[Path], preferred: str) -> dict[str, Path]:
    index: dict[str, Path] = {}
    visited: set[str] = set()
    for folder in folders:
        for parent, inside, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(parent)
            inside[:] = [] if real in visited else sorted(name for name in inside if not is_hidden(name))
            if real in visited:
                continue
            visited.add(real)
            for name in sorted(files, key=lambda name: (not name.lower().endswith(preferred), name)):
                stem, dot, suffix = name.rpartition(".")
                if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES and not is_hidden(name):
                    index.setdefault(stem, Path(parent, name))
    return index


def subfolders(folder: Path) -> list[Path]:
    """Visible directories in a directory, sorted by name; empty if the directory does not exist."""
    return [folder / name for name in entry_names(folder, folders_only=True)] if folder.is_dir() else []


def media_files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Media files of a class folder, sorted; if it has none, those in its images/ and videos/."""
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name))
    files = [folder / name for name, is_folder in visible if not is_folder and Path(name).suffix.lower() in suffixes]
    return files or [
        path
        for name, is_folder in visible
        if is_folder and name in ("images", "videos")
        for path in media_files(folder / name, suffixes)
    ]


def count_hidden_media(folders: Iterable[Path]) -> dict[str, int]:
    """Number of hidden media files directly in some directories, as an entry of `DatasetRecord.excluded`."""
    count = 0
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_hidden(entry.name)]
        count += sum(Path(name).suffix.lower() in MEDIA_SUFFIXES for name in names)
    return {"hidden files": count} if count else {}


def find_other_suffix(path: Path) -> Path | None:
    """An existing media file that differs from a missing one only in its suffix."""
    suffixes = [case(suffix) for suffix in sorted(MEDIA_SUFFIXES) for case in (str.lower, str.upper)]
    return next((other for other in map(path.with_suffix, suffixes) if other.is_file()), None)
