"""Remote storage, such as S3: any URL that fsspec supports.

Failed requests are retried with exponential backoff; only permanent errors (no such object, permission denied) are
raised at once. A request that exceeds the timeout counts as failed.
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
from tubelet.io.hidden_files import has_hidden

ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
# For one range of a few megabytes at most; storage clients limit the time without any data, not of slow data.
READ_TIMEOUT_S = 60.0
# Blocks cached for an open file. Only blocks that are read are fetched, so a reader that requests little causes at most
# one extra block.
BLOCK_BYTES = 2**20
BLOCKS = 16

T = TypeVar("T")
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class StorageError(FileError):
    """Storage cannot be reached. Not an error of a single file, so no other file is used instead."""


def is_url(source: object) -> bool:
    """Whether a source is one for fsspec, such as s3://bucket/videos."""
    return isinstance(source, str) and "://" in source


def suffix_of(file: str) -> str:
    """The suffix of a path or URL in lower case, without the query of a web address."""
    web = file.startswith(("http://", "https://"))
    return PurePosixPath(urlsplit(file).path if web else file).suffix.lower()


def is_pattern(url: str) -> bool:
    """Whether a URL is a glob; the `?` of a web address begins its query."""
    return glob.has_magic(url.replace("?", "")) if url.startswith(("http://", "https://")) else glob.has_magic(url)


def fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a URL, fewer if it ends earlier.

    Raises:
        StorageError: it does not exist or cannot be reached.
    """
    try:
        return with_retries(url, lambda: _range(url, start, end))
    except _ABSENT as error:
        raise StorageError(f"{url}: does not exist; check the URL") from error
    except PermissionError as error:
        raise StorageError(f"{url}: permission denied ({first_line(error)}); check the credentials") from error


def exists(url: str) -> bool:
    """Whether an object with this URL exists."""

    def look() -> bool:
        files, path = fsspec.core.url_to_fs(url)
        files.info(path)
        return True

    try:
        return with_retries(url, look)
    except _ABSENT:
        return False
    except PermissionError as error:
        raise StorageError(f"{url}: permission denied ({first_line(error)}); check the credentials") from error


def canonical_url(url: str) -> str:
    """A URL as listings write it."""
    try:
        files, path = fsspec.core.url_to_fs(url)
        return str(files.unstrip_protocol(path)).rstrip("/")
    except Exception as error:  # every storage client has exceptions of its own
        raise StorageError(f"{url}: cannot be read ({first_line(error)}); check the URL") from error


def find(url: str) -> tuple[list[str], list[str]]:
    """URLs of all objects below a folder, or that match a glob, sorted: those that are visible, and the hidden ones.

    Raises:
        StorageError: the storage cannot be reached.
    """
    pattern = is_pattern(url)

    def look() -> tuple[list[str], list[str]]:
        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        entries = files.glob(path, detail=True) if pattern else files.find(path, detail=True)
        names: list[str] = []
        for name, about in entries.items():
            if about["type"] != "directory":
                names.append(name)
            elif "**" not in path:  # a folder that matches stands for its files
                names += files.find(name)
        # Names that the user wrote in full do not count as hidden: the folder, or what precedes the first wildcard.
        root = _before_wildcards(path) if pattern else path.rstrip("/") + "/"
        objects = sorted({name for name in names if not name.endswith("/")})
        visible = [name for name in objects if not has_hidden(name.removeprefix(root))]
        if chained := [name for name in visible if "::" in name]:  # its URL would be read as something else
            raise ValueError(f"the name {chained[0]} is parsed as a chain of URLs; rename it")
        hidden = [files.unstrip_protocol(name) for name in objects if has_hidden(name.removeprefix(root))]
        return [files.unstrip_protocol(name) for name in visible], hidden

    try:
        return with_retries(url, look)
    except _ABSENT:
        return [], []
    except PermissionError as error:
        raise StorageError(f"{url}: cannot be listed ({first_line(error)}); check the credentials") from error


def _before_wildcards(path: str) -> str:
    """The folders of a pattern before the first one with a wildcard."""
    parts = path.split("/")
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "".join(f"{part}/" for part in parts[:plain])


def with_retries(url: str, read: Callable[[], T]) -> T:
    """The result of `read`, after retries if necessary.

    Raises:
        OSError: the object does not exist or permission is denied, raised by `read` and not retried.
        StorageError: every attempt failed.
    """
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except (*_ABSENT, PermissionError):
            raise
        except Exception as error:  # every storage client has exceptions of its own
            if attempt == ATTEMPTS or isinstance(error, (ImportError, ValueError)):
                raise StorageError(
                    f"{url}: cannot be read ({first_line(error)}); check the URL, the network and the credentials"
                ) from error
            time.sleep(pause_s)
            pause_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _range(url: str, start: int | None, end: int | None) -> bytes:
    # Looked up each time: fsspec caches its file systems, and knows when a process was forked.
    files, path = fsspec.core.url_to_fs(url)
    if files.async_impl and end is not None:
        return bytes(sync(files.loop, files._cat_file, path, start=start, end=end, timeout=READ_TIMEOUT_S))
    return bytes(files.cat_file(path, start=start, end=end))


class RemoteFile(io.RawIOBase):
    """A remote file with random access by ranges.

    Libraries that read through it may mistake a network error for the end of the file, so `failure` keeps it.

    Attributes:
        url: address of the file.
        size: bytes.
        failure: error of the last read, if it failed.
    """

    def __init__(self, url: str) -> None:
        """Look up the size of the file.

        Raises:
            DecodeError: it does not exist, permission is denied, or its size is not known.
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

        return with_retries(self.url, block)

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`; returns how many."""
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self.size)
        if end <= self._at:
            return 0
        try:
            data = self._cache._fetch(self._at, end)
        except StorageError as error:
            self.failure = error
            raise
        except OSError as error:  # it existed when it was opened
            self.failure = DecodeError(self.url, f"disappeared while being read ({first_line(error)})")
            raise self.failure from error
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; returns it."""
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True


def size_of(url: str) -> int:
    """Bytes of an object.

    Raises:
        DecodeError: it does not exist, permission is denied, or its size is not known.
        StorageError: the storage cannot be reached.
    """

    def look() -> dict[str, Any]:
        files, path = fsspec.core.url_to_fs(url)
        return dict(files.info(path))

    try:
        about = with_retries(url, look)
    except _ABSENT as error:
        raise DecodeError(url, "does not exist") from error
    except PermissionError as error:
        raise DecodeError(url, "permission denied; check its permissions and the credentials") from error
    if about.get("type") == "directory":
        raise DecodeError(url, "is a folder, not a file")
    if about.get("size") is None:
        raise DecodeError(url, "its server does not report its size; copy it to other storage")
    return int(about["size"])
