"""The files that a CSV or JSONL manifest lists.

A manifest may come from elsewhere. It is text that names files, and no more: those below its own folder, and those of
places that the person who runs the command has allowed.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from os.path import commonpath
from pathlib import Path
from posixpath import normpath
from urllib.parse import quote, unquote, urlsplit

from tubelet.data.decode import VIDEO_SUFFIXES
from tubelet.data.images import IMAGE_SUFFIXES
from tubelet.data.limits import LINE_CHARACTERS, MANIFEST_BYTES
from tubelet.data.storage import fetch, is_url, size_of
from tubelet.types import TubeletError

MANIFEST_SUFFIXES = (".csv", ".jsonl")
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
_PATH_COLUMN = "path"


def listed_files(manifest: str, roots: Sequence[str]) -> list[str]:
    """Absolute paths and URLs of the files that a manifest lists, in its order.

    Args:
        manifest: path or URL.
        roots: what `root_of` made of the places that it may name files of, besides those below its own folder.

    Raises:
        TubeletError: a line cannot be understood or is too long, or a path leads elsewhere.
        StorageError: its URL cannot be reached.
    """
    home = manifest.rsplit("/", 1)[0] if is_url(manifest) else str(Path(manifest).parent)
    allowed = [root_of(home), *roots]
    files: list[str] = []
    outside: list[tuple[int, str, str]] = []
    text = _text(manifest)
    for number, listed in _jsonl(manifest, text) if manifest.lower().endswith(".jsonl") else _csv(manifest, text):
        file = _resolve(manifest, number, home, listed)
        if not any(_is_below(file, root) for root in allowed):
            outside.append((number, listed, file))
        files.append(file)
    if outside:
        number, listed, _ = outside[0]
        raise TubeletError(
            f"{manifest}, line {number}: {listed} leads out of the manifest's folder, as {len(outside)} of its "
            f"{len(files)} paths do: if they are to be read, add --allow-outside "
            f"{' '.join(_common([file for _, _, file in outside]))}"
        )
    return files


def root_of(place: str) -> str:
    """The one way that a folder or URL is written, to compare others with."""
    return _plain_url(place) if is_url(place) else str(real(Path(place).expanduser()))


def absolute(path: Path) -> str:
    """One name for one file, so that sources that overlap count it once.

    A file that is itself a link keeps its name: what it points at may have no suffix.
    """
    return str(real(path.parent) / path.name)


@cache
def real(folder: Path) -> Path:
    """A folder without links and dots."""
    return folder.resolve()


def _resolve(manifest: str, number: int, home: str, listed: str) -> str:
    """A listed path as an absolute one, or as a URL."""
    if not listed.isprintable():  # control characters, and halves of characters, which no file system takes
        raise TubeletError(f"{manifest}, line {number}: {ascii(listed)[:200]} cannot be the name of a file")
    if "::" in listed and (is_url(listed) or is_url(home)):
        raise TubeletError(f"{manifest}, line {number}: {listed[:200]} is a chain of URLs: list what it leads to")
    if is_url(listed):
        return _plain_url(listed)
    if is_url(home):
        scheme, rest = home.split("://", 1)
        if listed.startswith("/"):
            return f"{scheme}://{rest.split('/')[0]}{normpath(listed)}"
        return _plain_url(f"{home}/{listed}")
    try:
        # Parents are followed where links lead, so that none leads out of the manifest's folder.
        return absolute(Path(home) / Path(listed).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # a user that is unknown, a loop of links
        raise TubeletError(f"{manifest}, line {number}: {listed[:200]} cannot be followed ({error})") from error


def _plain_url(url: str) -> str:
    """A URL without `.` and `..`, which storages do not know, but web servers follow."""
    scheme, rest = url.split("://", 1)
    host, _, path = rest.partition("/")
    query = ""
    if scheme.lower() in ("http", "https"):
        path, mark, query = path.partition("?")
        query = mark + query
        if ".." in unquote(path):  # a server reads %2e%2e as dots
            path = quote(unquote(path))
    return f"{scheme.lower()}://{host}/{_without_dots(path)}".rstrip("/") + query


def _without_dots(path: str) -> str:
    return normpath("/" + path).lstrip("/") if {".", ".."} & set(path.split("/")) else path


def _is_below(file: str, root: str) -> bool:
    return is_url(file) == is_url(root) and file.startswith(root.rstrip("/") + "/")


def _common(files: list[str]) -> list[str]:
    """The fewest places that hold all of some files: one folder, and the bucket or host of each URL."""
    local = [str(Path(file).parent) for file in files if not is_url(file)]
    places = [commonpath(local)] if local else []
    urls = [urlsplit(file) for file in files if is_url(file)]
    return places + sorted({f"{url.scheme}://{url.netloc}" for url in urls})


def _text(manifest: str) -> str:
    try:
        size = size_of(manifest) if is_url(manifest) else Path(manifest).stat().st_size
        if size > MANIFEST_BYTES:
            raise TubeletError(f"{manifest}: has {size} bytes, above the limit of {MANIFEST_BYTES}: split it")
        data = fetch(manifest) if is_url(manifest) else Path(manifest).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TubeletError(f"{manifest}: is not UTF-8 text (byte {error.start}): save the manifest as UTF-8") from error
    except OSError as error:
        raise TubeletError(f"{manifest}: the manifest cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LINE_CHARACTERS:
            raise TubeletError(
                f"{manifest}, line {number}: has {len(line)} characters, above the limit of {LINE_CHARACTERS}: "
                "put one file on a line"
            )
    return text


def _jsonl(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line number and path of each row."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TubeletError(f"{path}, line {number}: is not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
            raise TubeletError(f"{path}, line {number}: is not JSON that can be read ({error})") from error
        listed = row.get(_PATH_COLUMN) if isinstance(row, dict) else None
        if not isinstance(listed, str) or not listed.strip():
            raise TubeletError(f'{path}, line {number}: has no path; write {{"path": "film.mp4"}}')
        yield number, listed.strip()


def _csv(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line number and path of each row."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return
    # Research code writes "path label"; a comma anywhere in the first line, or no media suffix before the space,
    # means that spaces belong to names.
    spaced = "," not in lines[0] and Path(lines[0].rsplit(maxsplit=1)[0]).suffix.lower() in MEDIA_SUFFIXES
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
        yield rows.line_num, listed


def _is_header(names: list[str]) -> bool:
    """Whether a first row names columns: it says path, or nothing in it looks like a media file."""
    return _PATH_COLUMN in names or not any(Path(name).suffix in MEDIA_SUFFIXES for name in names)
