"""The files in a list.

A list may come from an untrusted source. It may name files below its own folder and below folders and URLs that the
user allowed, and no others.
"""

import os
from collections.abc import Sequence
from os.path import commonpath, lexists
from pathlib import Path
from posixpath import normpath
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.data.file_types import IMAGE_SUFFIXES, names_with
from tubelet.data.listed_rows import ListedRows, rows_of_list
from tubelet.data.lists import ROW_COLUMNS, PathList, parse_list, path_column, warn_of_misnamed_columns
from tubelet.data.size_limits import MANIFEST_BYTES
from tubelet.data.storage import exists, fetch, is_url, size_of, suffix_of
from tubelet.errors import DataError
from tubelet.io.arrays import read_parquet
from tubelet.io.text import read_bytes

MANIFEST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
# Objects that are looked up for a remote list with several interpretations.
_REMOTE_LOOKUPS = 4


def listed_files(manifest: str, roots: Sequence[str]) -> tuple[pa.ChunkedArray, ListedRows | None, str]:
    """Absolute paths and URLs of the files in a manifest, in its order, their spans and weights, and its form.

    Args:
        manifest: path or URL.
        roots: allowed folders and URLs besides the manifest's own folder, each as `root_of` writes it.

    Returns:
        (N,) large_binary in the file system's encoding; the rows, None without spans and weights; and a description of
        the form.

    Raises:
        DataError: a line cannot be parsed or is too long, a path is outside of the allowed folders, or a span or weight
            is not valid.
        StorageError: a URL cannot be reached.
    """
    home = manifest.rsplit("/", 1)[0] if is_url(manifest) else str(Path(manifest).parent)
    allowed = [root_of(home), *roots]
    if suffix_of(manifest) == ".parquet":
        listed = _read_parquet(manifest)
    else:
        listed = parse_list(manifest, _content(manifest), lambda paths: _existing(paths, home, allowed))
    if not len(listed):
        return pa.chunked_array([], pa.large_binary()), None, listed.form
    image = pc.match_substring_regex(listed.paths, names_with(IMAGE_SUFFIXES)).to_numpy(zero_copy_only=False)
    rows = rows_of_list(manifest, listed, image)
    _check_names(manifest, home, listed)
    folders, entered, which, names = _resolve(manifest, home, listed, allowed)
    parents = pa.array(map(os.fsencode, folders), pa.large_binary())
    outside = np.flatnonzero(~np.array(entered, bool)[which])
    if len(outside):
        first = int(outside[0])
        files = [f"{folders[folder]}/x" for folder in np.unique(which[outside])]
        raise DataError(
            f"{manifest}, line {listed.lines[first]}: {listed.paths[first].as_py()} is outside the manifest's "
            f"folder, as are {len(outside)} of its {len(listed)} paths; to read them, add --allow-path "
            f"{' '.join(_common(files))}"
        )
    parents = parents.take(pa.array(which))
    joined = pc.binary_join_element_wise(parents, names.cast(pa.large_binary()), pa.scalar(b"/", pa.large_binary()))
    return pa.chunked_array([joined]), rows, listed.form


def root_of(source: str) -> str:
    """The canonical form of a folder or URL, for comparisons."""
    return _plain_url(source) if is_url(source) else os.path.realpath(Path(source).expanduser())


def absolute(path: Path) -> str:
    """The canonical path of a file, so that overlapping sources count it once.

    A file that is itself a symbolic link keeps its name, since its target may have no suffix.
    """
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - pathlib takes ten times as long


class ResolvedFolders:
    """Canonical paths of folders, each resolved once; for a single listing."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {"/": "", "": ""}

    def __getitem__(self, folder: str) -> str:
        """The canonical path of an absolute one, "" for the root."""
        resolved = self._known.get(folder)
        if resolved is not None:
            return resolved
        above, _, name = folder.rpartition("/")
        parent = self[above]
        if name in ("", "."):
            real = parent
        elif name == "..":
            real = parent.rpartition("/")[0]
        else:
            real = f"{parent}/{name}"
            if os.path.islink(real):  # noqa: PTH114 - as above
                real = os.path.realpath(real).rstrip("/")
        self._known[folder] = real
        return real


def _check_names(manifest: str, home: str, listed: PathList) -> None:
    """Reject names that no file can have.

    Raises:
        DataError: the message names the line.
    """
    odd = pc.match_substring_regex(listed.paths, r"\p{Cc}")
    if pc.any(odd).as_py():
        row = int(np.argmax(odd.to_numpy(zero_copy_only=False)))
        named = ascii(listed.paths[row].as_py())[:200]
        raise DataError(f"{manifest}, line {listed.lines[row]}: {named} is not a valid file name; remove the line")
    chain = pc.match_substring(listed.paths, "::")
    if not is_url(home):
        chain = pc.and_(chain, pc.match_substring(listed.paths, "://"))
    if pc.any(chain).as_py():
        row = int(np.argmax(chain.to_numpy(zero_copy_only=False)))
        named = listed.paths[row].as_py()[:200]
        raise DataError(f"{manifest}, line {listed.lines[row]}: {named} is a chain of URLs; list its target")


def _resolve(
    manifest: str, home: str, listed: PathList, allowed: Sequence[str]
) -> tuple[list[str], list[bool], np.ndarray, pa.Array]:
    """Canonical folders, whether each is entered from an allowed one, the folder of each listed file, and its name.

    Links in parents are resolved, each parent once.
    """
    paths = listed.paths
    special = pc.match_substring_regex(paths, r"^~|://|(?:^|/)\.{0,2}$")
    if is_url(home) or pc.any(special).as_py():
        rows = np.arange(len(paths)) if is_url(home) else np.flatnonzero(special.to_numpy(zero_copy_only=False))
        written = paths.take(pa.array(rows)).to_pylist()
        plain = [
            _resolve_one(manifest, int(listed.lines[r]), home, path) for r, path in zip(rows, written, strict=True)
        ]
        mask = np.zeros(len(paths), bool)
        mask[rows] = True
        paths = pc.replace_with_mask(paths, pa.array(mask), pa.array(plain, paths.type))
    parts = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
    starts, values = parts.offsets.to_numpy(), parts.values
    bare = np.diff(starts) == 1  # no slash: in the manifest's own folder
    parents = values.take(pa.array(starts[:-1], mask=bare)).dictionary_encode("encode")
    base, real, folders, entered = str(Path(home).absolute()), ResolvedFolders(), [], []
    for parent in parents.dictionary.to_pylist():
        if parent is not None and ("://" in parent or parent.endswith(":/")):
            folders.append(parent)
            entered.append(any(_is_below(f"{parent}/x", root) for root in allowed))
            continue
        if parent is None:
            place = base
        else:  # "" is the root
            place = parent.rstrip("/") if parent[:1] in ("", "/") else f"{base}/{parent}".rstrip("/")
        folders.append(real[place])
        entered.append(_is_entered(place, real, allowed))
    return folders, entered, parents.indices.to_numpy(), values.take(pa.array(starts[1:] - 1))


def _is_entered(folder: str, real: ResolvedFolders, allowed: Sequence[str]) -> bool:
    """Whether a folder is in an allowed one, or is reached from there only by links, which are followed as in sources.

    What follows `..` counts by where it is: behind a link, that is not the folder before it.
    """
    while folder:
        if any(_is_below(f"{real[folder]}/x", root) for root in allowed):
            return True
        folder, _, name = folder.rpartition("/")
        if name == "..":
            return False
    return False


def _resolve_one(manifest: str, number: int, home: str, listed: str) -> str:
    """A listed path as an absolute one, or as a URL."""
    if is_url(listed):
        return _plain_url(listed)
    if is_url(home):
        scheme, rest = home.split("://", 1)
        if listed.startswith("/"):
            return f"{scheme}://{rest.split('/')[0]}{normpath(listed)}"
        return _plain_url(f"{home}/{listed}")
    try:
        return absolute(Path(home).absolute() / Path(listed).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # a user that is unknown, a loop of links
        raise DataError(f"{manifest}, line {number}: {listed[:200]} cannot be resolved ({error})") from error


def _existing(paths: Sequence[str], home: str, allowed: Sequence[str]) -> int:
    """How many of some listed paths exist; those outside of the allowed folders are not looked up."""
    if is_url(home):
        urls = [_resolve_one(home, 0, home, path) for path in paths[:: max(1, len(paths) // _REMOTE_LOOKUPS)]]
        return sum(exists(url) for url in urls if any(_is_below(url, root) for root in allowed))
    absolute_paths = [os.path.join(home, path) for path in paths if not is_url(path)]  # noqa: PTH118
    real = ResolvedFolders()
    inside = [
        candidate for candidate in absolute_paths if _is_entered(str(Path(candidate).absolute().parent), real, allowed)
    ]
    return sum(map(lexists, inside))


def _plain_url(url: str) -> str:
    """A URL without `.` and `..`, which storage does not know but web servers resolve."""
    scheme, rest = url.split("://", 1)
    host, _, path = rest.partition("/")
    query = ""
    if scheme.lower() in ("http", "https"):
        path, separator, query = path.partition("?")
        query = separator + query
        if ".." in unquote(path):  # a server reads %2e%2e as dots
            path = quote(unquote(path))
    return f"{scheme.lower()}://{host}/{_without_dots(path)}".rstrip("/") + query


def _without_dots(path: str) -> str:
    return normpath("/" + path).lstrip("/") if {".", ".."} & set(path.split("/")) else path


def _is_below(file: str, root: str) -> bool:
    return is_url(file) == is_url(root) and file.startswith(root.rstrip("/") + "/")


def _common(files: list[str]) -> list[str]:
    """The common folder of some files, and the buckets or hosts of URLs."""
    local = [str(Path(file).parent) for file in files if not is_url(file)]
    folders = [commonpath(local)] if local else []
    urls = [urlsplit(file) for file in files if is_url(file)]
    return folders + sorted({f"{url.scheme}://{url.netloc}" for url in urls})


def _read_parquet(manifest: str) -> PathList:
    """The rows of a Parquet file, whose lines are its rows."""
    if is_url(manifest):
        raise DataError(f"{manifest}: Parquet lists are read from a local disk; copy it")
    table = read_parquet(Path(manifest), None, "write the list again")
    header = [name.lower() for name in table.column_names]
    index = path_column(header)
    if index is None:
        columns = ", ".join(table.column_names)[:300]
        raise DataError(f"{manifest}: has no column path, found {columns}; rename the column with the paths")
    warn_of_misnamed_columns(manifest, header)
    try:
        paths = pc.utf8_trim_whitespace(table.column(index).cast(pa.large_string()).combine_chunks())
        values = {
            name: table.column(header.index(name)).cast(pa.float64()).combine_chunks()
            for name in ROW_COLUMNS
            if name in header
        }
    except pa.ArrowException as error:
        raise DataError(f"{manifest}: its paths are no texts, or its times and weights no numbers ({error})") from error
    lines = np.arange(1, len(paths) + 1)
    empty = pc.fill_null(pc.equal(pc.binary_length(paths), 0), True).to_numpy(zero_copy_only=False)
    if empty.any():
        raise DataError(f"{manifest}, row {lines[np.argmax(empty)]}: has no path; fill it or remove the row")
    return PathList(paths, None, lines, f"Parquet, the paths in column {table.column_names[index]!r}", values)


def _content(manifest: str) -> bytes:
    if not is_url(manifest):
        return read_bytes(Path(manifest), "check its name and permissions, or split it", MANIFEST_BYTES)
    size = size_of(manifest)
    if size > MANIFEST_BYTES:
        raise DataError(f"{manifest}: has {size} bytes, above the limit of {MANIFEST_BYTES}; split it")
    return fetch(manifest)
