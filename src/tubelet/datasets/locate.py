"""Which benchmark lies in a folder, and where in it."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tubelet.data.suffixes import MEDIA_SUFFIXES
from tubelet.errors import TubeletError
from tubelet.io.hidden import is_hidden, without_hidden

T = TypeVar("T")


def recognise(data: Path, readers: Mapping[str, Callable[[Path], T | None]]) -> T:
    """What the first reader that knows the folder makes of it.

    Args:
        data: the folder.
        readers: a benchmark, with what marks its layout -> its reader, which answers None where that is missing.

    Raises:
        TubeletError: if none of them knows it, and what the reader raises.
    """
    for read in readers.values():
        found = read(data)
        if found is not None:
            return found
    raise refuse(data, "no benchmark is recognised", " or ".join(readers))


def refuse(data: Path, found: str, expected: str) -> TubeletError:
    """The error of a folder that is not in a layout: what was expected and what lies there."""
    entries = [path.name + "/" * path.is_dir() for path in entries_of(data)]
    there = ", ".join(entries[:8]) + (f", and {len(entries) - 8} more" if len(entries) > 8 else "")
    return TubeletError(f"{data}: {found}; expected {expected}; the folder holds {there or 'nothing'}")


def roots(data: Path, inside: Sequence[str] = ()) -> Iterator[Path]:
    """Where a benchmark's root may be: the folder, those that downloads make in it, or a chain of only folders.

    Args:
        data: the folder.
        inside: names of folders in which archives unpack, in small or capital letters, with or without - and _.
    """
    place = data
    for _ in range(4):  # data/ade/ADEChallengeData2016, DAVIS-2017-trainval-480p/DAVIS
        yield place
        folders = class_folders(place)
        yield from (found for name in inside if (found := named_folder(folders, name)) is not None)
        if len(folders) != 1:
            return
        place = folders[0]


def named_folder(folders: Sequence[Path], name: str) -> Path | None:
    """Of some folders that of a name, or one whose name is the same but for capital letters, hyphens and underscores.

    Args:
        folders: that lie in one place.
        name: may have several components.
    """
    first, _, rest = name.partition("/")
    exact = [path for path in folders if path.name == first]
    found = exact or [path for path in folders if _plain(path.name) == _plain(first)]
    if not found:
        return None
    return named_folder(class_folders(found[0]), rest) if rest else found[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def find_root(data: Path, inside: Sequence[str], markers: Sequence[str]) -> Path | None:
    """The folder that holds all of some markers: `data` itself, or a folder that downloads make in it."""
    return next((root for root in roots(data, inside) if all((root / marker).exists() for marker in markers)), None)


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden entries.

    Raises:
        TubeletError: if it may not be listed.
    """
    try:
        return without_hidden(folder.iterdir())
    except OSError as error:
        raise TubeletError(
            f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions"
        ) from error


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern, sorted, without hidden ones and what lies in hidden folders."""
    found = folder.glob(pattern) if folder.is_dir() else ()
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))


def stems_of(folders: Sequence[Path], suffixes: frozenset[str] = MEDIA_SUFFIXES, first: str = "") -> dict[str, Path]:
    """Stem -> media file, of some folders with their subfolders.

    One walk: looking each of 240,000 videos up under several names would take as many times longer.

    Args:
        folders: of two files with one stem, that of the earlier folder counts.
        suffixes: in small letters.
        first: the suffix that counts where a folder has several files of one stem.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder in folders:
        for parent, inside, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(parent)
            inside[:] = [] if real in seen else sorted(name for name in inside if not is_hidden(name))
            if real in seen:
                continue
            seen.add(real)
            for name in sorted(files, key=lambda name: (not name.lower().endswith(first), name)):
                stem, dot, suffix = name.rpartition(".")
                if dot and f".{suffix.lower()}" in suffixes and not is_hidden(name):
                    found.setdefault(stem, Path(parent, name))
    return found


def class_folders(split: Path) -> list[Path]:
    """The folders of a split, one for each class."""
    return [path for path in entries_of(split) if path.is_dir()] if split.is_dir() else []


def media_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The media files of a class, sorted; also those that lie a folder deeper, as in CLASS/images/."""
    # Of a million files, the names are all that is asked for: `scandir` gives them without a look at each.
    with os.scandir(folder) as entries:
        shown = sorted((entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name))
    files = [folder / name for name, is_folder in shown if not is_folder and Path(name).suffix.lower() in suffixes]
    return files or [
        path
        for name, is_folder in shown
        if is_folder and name in ("images", "videos")
        for path in media_in(folder / name, suffixes)
    ]


def hidden_media(folders: Iterable[Path]) -> dict[str, int]:
    """How many media files of some folders, without their subfolders, are left out as they are hidden; as a reason."""
    count = 0
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_hidden(entry.name)]
        count += sum(Path(name).suffix.lower() in MEDIA_SUFFIXES for name in names)
    return {"hidden files": count} if count else {}


def other_suffix(path: Path) -> Path | None:
    """A media file of the same stem in the same folder, where the one of this suffix is not there."""
    suffixes = [kind(suffix) for suffix in sorted(MEDIA_SUFFIXES) for kind in (str.lower, str.upper)]
    return next((other for other in map(path.with_suffix, suffixes) if other.is_file()), None)
