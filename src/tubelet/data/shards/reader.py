"""Reading of folders of shards on a local disk or at any URL that fsspec supports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tubelet.config import ShardConfig, from_dict
from tubelet.data.batch import MediaBytes
from tubelet.data.shards.format import COPY_INDEX, INDEX, PLAN, RECORD, parse_header, parse_member, parse_shard_sizes
from tubelet.data.storage import StorageError, exists, fetch, is_pattern, is_url
from tubelet.errors import DataError, DecodeError
from tubelet.io.text import decode_text


@dataclass(frozen=True)
class ShardFolder:
    """A parsed index, as a table: tens of millions of members would be too large as objects.

    Attributes:
        root: the folder, or its URL.
        config: how the members were made.
        header: first line of the index.
        shards: names of the tars.
        members: (M,) records: name in the tar, number of the shard in `shards`, offset and size in bytes, crc32,
            whether it is an image, duration_s in seconds, sampling weight.
    """

    root: str
    config: ShardConfig
    header: Mapping[str, Any]
    shards: tuple[str, ...]
    members: np.ndarray

    def title(self, row: int) -> str:
        """The name of a member in messages: the tar and the name in it."""
        member = self.members[row]
        return f"{self.root}/{self.shards[member['shard']]}:{member['name'].decode()}"

    def read(self, row: int) -> MediaBytes:
        """A member's bytes.

        Raises:
            DecodeError: the bytes are not those that were written.
            StorageError: the shard cannot be reached.
        """
        member = self.members[row]
        offset, size = int(member["offset"]), int(member["size"])
        data = _fetch(f"{self.root}/{self.shards[member['shard']]}", offset, offset + size)
        blob = MediaBytes(self.title(row), data)
        if len(data) != size:
            raise DecodeError(blob.name, f"truncated: has {len(data)} bytes, expected {size}; copy the shard again")
        if crc32(data) != member["crc32"]:
            raise DecodeError(blob.name, "corrupt: its checksum differs from the index; copy the shard again")
        return blob


def is_shards(source: str) -> bool:
    """Whether a source is a folder of shards, complete or not, or the URL of one.

    Raises:
        StorageError: the URL cannot be reached.
    """
    if is_url(source):
        return not is_pattern(source) and exists(f"{source.rstrip('/')}/{INDEX}")
    folder = Path(source).expanduser()
    return (folder / INDEX).is_file() or (folder / PLAN).is_file()


def open_shards(root: str | Path) -> ShardFolder:
    """Read the index of a folder or URL of shards.

    Raises:
        DataError: the index is missing or not valid, or a local shard has another size.
    """
    root = str(root).rstrip("/")
    path = f"{root}/{INDEX}"
    if not is_url(root) and not Path(path).exists():
        raise DataError(f"{root}: has no {INDEX}; these shards are incomplete, run `tubelet shard` again")
    first, *lines = decode_text(_fetch(path), path, COPY_INDEX).splitlines() or [""]
    header = parse_header(path, first)
    if len(lines) != header["members"]:
        raise DataError(f"{path}: truncated: has {len(lines)} of {header['members']} members; {COPY_INDEX}")
    if not lines:
        raise DataError(f"{path}: has no members; shard sources that contain videos or images")
    sizes = parse_shard_sizes(path, header["shards"])
    if not is_url(root):
        _check_sizes(root, sizes)
    shards = {name: (number, size) for number, (name, size) in enumerate(sizes.items())}
    records = (parse_member(path, number, line, shards) for number, line in enumerate(lines, 2))
    members = np.fromiter(records, RECORD, count=len(lines))
    return ShardFolder(root, from_dict(ShardConfig, header["recipe"], f"{path}: recipe"), header, tuple(sizes), members)


def _check_sizes(root: str, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        path = Path(root) / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            fault = "is missing" if actual is None else f"has {actual} bytes"
            raise DataError(f"{path}: {fault}, expected {size} bytes; copy the shard again")


def _fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a local file or a URL; failed requests are retried."""
    if is_url(url):
        return fetch(url, start, end)
    try:
        with Path(url).open("rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))
    except OSError as error:
        raise StorageError(f"{url}: cannot be read ({error.strerror}); check that the shards still exist") from error
