"""Bytes from wherever a source lies: a local disk, or anything that fsspec reaches by URL, such as S3.

Networks fail in passing. What fails is tried again after a pause that doubles; only what is certain - there is no such
object, it may not be read - is said at once. A try that takes too long counts as one that failed.
"""

import glob
import io
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync
from fsspec.caching import BlockCache

from tubelet.errors import DecodeError, FileError, first_line
from tubelet.io.hidden import has_hidden

TRIES = 5
FIRST_PAUSE_S = 0.5
# For one range of bytes, of a few megabytes at most; storages have time limits for silence, not for dripping.
READ_TIMEOUT_S = 60.0
# An open file holds at most so many blocks. Only blocks that are read in are fetched, so a reader that wants little is
# given at most one block more than it asked for.
BLOCK_BYTES = 2**20
BLOCKS = 16

T = TypeVar("T")
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class StorageError(FileError):
    """Storage that cannot be reached: nothing is wrong with a single file, and no other can stand in for it."""


def is_url(source: object) -> bool:
    """Whether a source is one for fsspec, such as s3://bucket/films."""
    return isinstance(source, str) and "://" in source


def suffix_of(file: str) -> str:
    """The suffix of a path or URL, in small letters; a web address may end in a query."""
    web = file.startswith(("http://", "https://"))
    return PurePosixPath(urlsplit(file).path if web else file).suffix.lower()


def is_pattern(url: str) -> bool:
    """Whether a URL is a glob; the `?` of a web address begins its query."""
    return glob.has_magic(url.replace("?", "")) if url.startswith(("http://", "https://")) else glob.has_magic(url)


def fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a URL, fewer where it ends earlier.

    Raises:
        StorageError: it is not there or cannot be reached.
    """
    try:
        return tried(url, lambda: _range(url, start, end))
    except _ABSENT as error:
        raise StorageError(f"{url}: does not exist; check the URL") from error
    except PermissionError as error:
        raise StorageError(f"{url}: permission denied ({first_line(error)}); check the credentials") from error


def exists(url: str) -> bool:
    """Whether there is an object of this URL."""

    def look() -> bool:
        files, path = fsspec.core.url_to_fs(url)
        files.info(path)
        return True

    try:
        return tried(url, look)
    except _ABSENT:
        return False
    except PermissionError as error:
        raise StorageError(f"{url}: permission denied ({first_line(error)}); check the credentials") from error


def find(url: str) -> tuple[list[str], list[str]]:
    """URLs of all objects below a folder, or that match a glob, sorted: those that are visible, and the hidden ones.

    Raises:
        StorageError: the storage cannot be reached.
    """
    pattern = is_pattern(url)

    def look() -> tuple[list[str], list[str]]:
        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        found = files.glob(path, detail=True) if pattern else files.find(path, detail=True)
        names: list[str] = []
        for name, about in found.items():
            if about["type"] != "directory":
                names.append(name)
            elif "**" not in path:  # a folder that matches stands for what is in it
                names += files.find(name)
        # What the user wrote in full is no find: the folder itself, or what stands before a pattern's first wildcard.
        root = _before_wildcards(path) if pattern else path.rstrip("/") + "/"
        objects = sorted({name for name in names if not name.endswith("/")})
        shown = [name for name in objects if not has_hidden(name.removeprefix(root))]
        if chained := [name for name in shown if "::" in name]:  # read by its URL, it would be something else
            raise ValueError(f"the name {chained[0]} is parsed as a chain of URLs; rename it")
        hidden = [files.unstrip_protocol(name) for name in objects if has_hidden(name.removeprefix(root))]
        return [files.unstrip_protocol(name) for name in shown], hidden

    try:
        return tried(url, look)
    except _ABSENT:
        return [], []
    except PermissionError as error:
        raise StorageError(f"{url}: cannot be listed ({first_line(error)}); check the credentials") from error


def _before_wildcards(path: str) -> str:
    """The folders of a pattern before the first one with a wildcard."""
    parts = path.split("/")
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "".join(f"{part}/" for part in parts[:plain])


def tried(url: str, read: Callable[[], T]) -> T:
    """What `read` gives, if need be at a later try.

    Raises:
        OSError: there is no such thing, or it may not be read; as `read` said it, for another try would find the same.
        StorageError: every try failed.
    """
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except (*_ABSENT, PermissionError):
            raise
        except Exception as error:  # every storage has exceptions of its own
            if attempt == TRIES or isinstance(error, (ImportError, ValueError)):
                raise StorageError(
                    f"{url}: cannot be read ({first_line(error)}); check the URL, the network and the credentials"
                ) from error
            time.sleep(pause_s)
            pause_s *= 2
    raise AssertionError("the last try returns or raises")


def _range(url: str, start: int | None, end: int | None) -> bytes:
    # Looked up each time: fsspec keeps its file systems for itself, and knows when a process was forked.
    files, path = fsspec.core.url_to_fs(url)
    if files.async_impl and end is not None:
        return bytes(sync(files.loop, files._cat_file, path, start=start, end=end, timeout=READ_TIMEOUT_S))
    return bytes(files.cat_file(path, start=start, end=end))


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read by ranges from any place.

    Libraries that read through it may take an error of the network for the end of the file: `failure` keeps it.

    Attributes:
        url: where it lies.
        size: bytes.
        failure: why the last read did not succeed, if so.
    """

    def __init__(self, url: str) -> None:
        """Raises:
        DecodeError: it is not there, may not be read, or its length is not known.
        StorageError: the storage cannot be reached.
        """
        self.url = url
        self.size = size_of(url)
        self.failure: StorageError | DecodeError | None = None
        self._cache = BlockCache(BLOCK_BYTES, self._fetch, self.size, maxblocks=BLOCKS)
        self._at = 0

    def _fetch(self, start: int, end: int) -> bytes:
        end = min(end, self.size)

        def block() -> bytes:
            data = _range(self.url, start, end)
            if len(data) != end - start:
                raise OSError(f"the connection closed after {len(data)} of {end - start} bytes")
            return data

        return tried(self.url, block)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes."""
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self.size)
        if end <= self._at:
            return 0
        try:
            data = self._cache._fetch(self._at, end)
        except StorageError as error:
            self.failure = error
            raise
        except OSError as error:  # it was there when it was opened
            self.failure = DecodeError(self.url, f"disappeared while being read ({first_line(error)})")
            raise self.failure from error
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place."""
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True


def size_of(url: str) -> int:
    """Bytes of an object.

    Raises:
        DecodeError: it is not there, may not be read, or its length is not known.
        StorageError: the storage cannot be reached.
    """

    def look() -> dict[str, Any]:
        files, path = fsspec.core.url_to_fs(url)
        return dict(files.info(path))

    try:
        about = tried(url, look)
    except _ABSENT as error:
        raise DecodeError(url, "does not exist") from error
    except PermissionError as error:
        raise DecodeError(url, "permission denied; check its permissions and the credentials") from error
    if about.get("type") == "directory":
        raise DecodeError(url, "is a folder, not a file")
    if about.get("size") is None:
        raise DecodeError(url, "its server does not report its size; copy it to other storage")
    return int(about["size"])
