"""Shards: tar files of short videos and images at training size, and the index that says where in them each one lies.

The tars are plain WebDataset; the index, which is written last, makes each member one read at a known offset, from a
local disk or from anything that fsspec reaches, and carries the checksum that every read is held against.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tubelet.config import ShardConfig, from_dict
from tubelet.data.batch import Blob
from tubelet.data.limits import LINE_CHARACTERS
from tubelet.data.storage import StorageError, exists, fetch, is_pattern, is_url
from tubelet.errors import DecodeError, TubeletError
from tubelet.grid import Modality
from tubelet.io.text import decode_text, parse_json

INDEX = "index.jsonl"
PLAN = "plan.json"
FORMAT = 1
# Members move at most so many places from where the order of the shards puts them.
WINDOW = 4096

_COPY = "copy the index again"
_NAME = 32
_SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,254}", re.ASCII)
_RECORD = np.dtype(
    [
        ("name", f"S{_NAME}"),
        ("shard", np.int32),
        ("offset", np.int64),
        ("size", np.int64),
        ("crc32", np.uint32),
        ("image", np.bool_),
        ("duration_s", np.float64),
    ]
)
_HEADER = {"tubelet_shards": int, "recipe": dict, "shards": list, "members": int}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One video or image of a shard: a line of the index.

    Attributes:
        shard: name of the tar.
        name: in the tar.
        offset: of its first byte in the tar.
        size: bytes.
        crc32: of its bytes.
        modality: video or image.
        source: the file it was made from.
        start_s: where in the source it begins, in seconds.
        duration_s: how much of the source it shows, in seconds; 0 for an image.
        fps: frames per second that were kept, on average; 0 for an image.
        width: pixels.
        height: pixels.
    """

    shard: str
    name: str
    offset: int
    size: int
    crc32: int
    modality: str
    source: str
    start_s: float
    duration_s: float
    fps: float
    width: int
    height: int


_MEMBER = {field.name: (int, float) if field.type is float else field.type for field in fields(Member)}


@dataclass(frozen=True)
class ShardFolder:
    """An index that was read, as a table: tens of millions of members would be too large as objects.

    Attributes:
        root: the folder, or its URL.
        recipe: how the members were made.
        header: the first line of the index.
        shards: names of the tars.
        members: (M,) records: name in the tar, which of `shards`, offset and size in bytes, crc32, whether it is a
            still image, duration_s in seconds.
    """

    root: str
    recipe: ShardConfig
    header: Mapping[str, Any]
    shards: tuple[str, ...]
    members: np.ndarray

    def title(self, place: int) -> str:
        """What errors call a member: the tar and the name in it."""
        member = self.members[place]
        return f"{self.root}/{self.shards[member['shard']]}:{member['name'].decode()}"

    def read(self, place: int) -> Blob:
        """A member's bytes.

        Raises:
            DecodeError: they are not those that were written.
            StorageError: the shard cannot be reached.
        """
        member = self.members[place]
        offset, size = int(member["offset"]), int(member["size"])
        data = _fetch(f"{self.root}/{self.shards[member['shard']]}", offset, offset + size)
        blob = Blob(self.title(place), data)
        if len(data) != size:
            raise DecodeError(blob.name, f"is cut off: it has {len(data)} bytes, the index promises {size}")
        if crc32(data) != member["crc32"]:
            raise DecodeError(blob.name, "is damaged: its checksum is not that of the index; copy the shard again")
        return blob


def is_shards(source: str) -> bool:
    """Whether a source is a folder of shards, finished or not, or the URL of one.

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
        TubeletError: there is none, it cannot be understood, or a local shard is not as large as it says.
    """
    root = str(root).rstrip("/")
    where = f"{root}/{INDEX}"
    if not is_url(root) and not Path(where).exists():
        raise TubeletError(f"{root}: has no {INDEX}: these shards are not finished; run `tubelet shard` again")
    first, *lines = decode_text(_fetch(where), where, _COPY).splitlines() or [""]
    header = _row(where, 1, first, _HEADER)
    if header["tubelet_shards"] != FORMAT:
        raise TubeletError(
            f"{where}: is of format {header['tubelet_shards']}, this version reads {FORMAT}: shard the sources again"
        )
    if len(lines) != header["members"]:
        raise TubeletError(f"{where}: is cut off: it has {len(lines)} members of {header['members']}; copy it again")
    if not lines:
        raise TubeletError(f"{where}: holds no members; shard sources that have some")
    sizes = _sizes(where, header["shards"])
    if not is_url(root):
        _check_sizes(root, sizes)
    places = {name: (place, size) for place, (name, size) in enumerate(sizes.items())}
    records = (_record(where, number, line, places) for number, line in enumerate(lines, 2))
    members = np.fromiter(records, _RECORD, count=len(lines))
    return ShardFolder(
        root, from_dict(ShardConfig, header["recipe"], f"{where}: recipe"), header, tuple(sizes), members
    )


def epoch_order(group: np.ndarray, seed: tuple[int, ...], window: int = WINDOW) -> np.ndarray:
    """The order of one pass over all samples: groups in random order, then each sample moved by chance.

    Samples of a group stay near each other, so that reads of a shard do too, and yet neighbours come from several.

    Args:
        group: (M,) the group of each sample, 0 to G - 1; a plain file is a group of its own.
        seed: the same seed gives the same order.
        window: a sample changes places with others at most so far away.

    Returns:
        (M,) a permutation of the samples.
    """
    rng = np.random.default_rng(seed)
    turns = rng.permutation(int(group.max()) + 1)
    if len(turns) == len(group):  # no two samples share a group: the order is random already
        return np.argsort(group)[turns]
    order = np.argsort(np.argsort(turns)[group], kind="stable")
    return order[np.argsort(np.arange(len(order)) + rng.uniform(0, window, len(order)), kind="stable")]


def _row(where: str, number: int, line: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """One line of an index, with all that it must hold."""
    if number > 1 and len(line) > LINE_CHARACTERS:  # the first one lists all tars
        raise TubeletError(f"{where}, line {number}: has {len(line)} characters, above the limit of {LINE_CHARACTERS}")
    row: dict[str, Any] = parse_json(line, f"{where}, line {number}", remedy=_COPY)
    for key, kind in kinds.items():
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or _beyond(value):
            raise TubeletError(f"{where}, line {number}: has no valid {key}; expected an index of `tubelet shard`")
    return row


def _beyond(value: object) -> bool:
    """Whether a number does not fit the table."""
    return isinstance(value, (int, float)) and not (math.isfinite(value) and -(2**63) <= value < 2**63)


def _sizes(where: str, shards: list[Any]) -> dict[str, int]:
    """Bytes of each tar. They lie beside their index: a name that leads elsewhere is none."""
    sizes: dict[str, int] = {}
    for shard in shards:
        name, size = (shard.get("name"), shard.get("size")) if isinstance(shard, dict) else (None, None)
        if (
            not isinstance(name, str)
            or not _SHARD_NAME.fullmatch(name)
            or type(size) is not int
            or not 0 <= size < 2**63
        ):
            raise TubeletError(f"{where}, line 1: {ascii(shard)[:200]} is not the name and size of a tar beside it")
        sizes[name] = size
    return sizes


def _record(where: str, number: int, line: str, places: Mapping[str, tuple[int, int]]) -> tuple[Any, ...]:
    """A member's line as a row of the table."""
    row = _row(where, number, line, _MEMBER)
    place, size = places.get(row["shard"], (-1, 0))
    if not 0 <= row["offset"] <= row["offset"] + row["size"] <= size or not 0 <= row["crc32"] < 2**32:
        raise TubeletError(f"{where}, line {number}: {row['name']} is not within {row['shard']}; copy the index again")
    if not row["name"].isascii() or len(row["name"]) > _NAME or not row["duration_s"] >= 0:
        raise TubeletError(f"{where}, line {number}: {ascii(row['name'])[:200]} is no member of `tubelet shard`")
    image = row["modality"] == Modality.IMAGE
    return row["name"].encode(), place, row["offset"], row["size"], row["crc32"], image, row["duration_s"]


def _check_sizes(root: str, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        path = Path(root) / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} bytes"
            raise TubeletError(f"{path}: {there}, the index promises {size} bytes: copy the shard again")


def _fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a local file, or of a URL, where what fails is tried again after a pause."""
    if is_url(url):
        return fetch(url, start, end)
    try:
        with Path(url).open("rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))
    except OSError as error:
        raise StorageError(
            f"{url}: cannot be read ({error.strerror}); check that the shards are still there"
        ) from error
