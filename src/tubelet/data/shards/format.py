"""The files of a folder of shards, and the format of the index: a JSON header line, then one line for each member.

The tars are plain WebDataset. The index is written last. It turns the read of a member into one read at a known offset,
and has the checksum with which every read is compared.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tubelet.data.size_limits import LINE_CHARACTERS
from tubelet.errors import DataError
from tubelet.grid import Modality
from tubelet.io.text import parse_json

INDEX = "index.jsonl"
PLAN = "plan.json"
BAD_FILES = "bad_files.jsonl"
SOURCES = "sources.jsonl"
FORMAT = 1
COPY_INDEX = "copy the index again"

_NAME = 32
_SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,254}", re.ASCII)
RECORD = np.dtype(
    [
        ("name", f"S{_NAME}"),
        ("shard", np.int32),
        ("offset", np.int64),
        ("size", np.int64),
        ("crc32", np.uint32),
        ("image", np.bool_),
        ("duration_s", np.float64),
        ("weight", np.float64),
    ]
)
_HEADER = {"tubelet_shards": int, "recipe": dict, "shards": list, "members": int}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One video or image of a shard: a line of the index.

    Attributes:
        shard: name of the tar.
        name: name in the tar.
        offset: position of the first byte in the tar.
        size: bytes.
        crc32: checksum of the bytes.
        modality: video or image.
        source: file that it was transcoded from.
        start_s: start in the source, in seconds.
        duration_s: duration in seconds; 0 for an image.
        fps: average frame rate; 0 for an image.
        width: pixels.
        height: pixels.
        weight: sampling weight; members that were written before it existed have 1.
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
    weight: float = 1.0


_MEMBER = {field.name: (int, float) if field.type is float else field.type for field in fields(Member)}
del _MEMBER["weight"]  # not in every index


def parse_header(path: str, line: str) -> dict[str, Any]:
    """The first line of an index.

    Raises:
        DataError: it is not valid, or of another format.
    """
    header = _parse_line(path, 1, line, _HEADER)
    if header["tubelet_shards"] != FORMAT:
        raise DataError(
            f"{path}: format {header['tubelet_shards']}, but this version reads {FORMAT}; shard the sources again"
        )
    return header


def parse_shard_sizes(path: str, shards: list[Any]) -> dict[str, int]:
    """Bytes of each tar by its name. Tars lie next to their index: a name with a folder in it is not valid.

    Raises:
        DataError: a name or a size is not valid.
    """
    sizes: dict[str, int] = {}
    for shard in shards:
        name, size = (shard.get("name"), shard.get("size")) if isinstance(shard, dict) else (None, None)
        valid = isinstance(name, str) and _SHARD_NAME.fullmatch(name) and type(size) is int and 0 <= size < 2**63
        if not valid:
            raise DataError(f"{path}, line 1: {ascii(shard)[:200]} is not the name and size of a tar next to it")
        sizes[str(name)] = size or 0
    return sizes


def parse_member(path: str, number: int, line: str, shards: Mapping[str, tuple[int, int]]) -> tuple[Any, ...]:
    """A member's line as a `RECORD`.

    Args:
        path: the index, for messages.
        number: of the line, from 1.
        line: text of the line.
        shards: number and bytes of each tar by its name.

    Raises:
        DataError: the line is not valid.
    """
    row = _parse_line(path, number, line, _MEMBER)
    shard, size = shards.get(row["shard"], (-1, 0))
    if not 0 <= row["offset"] <= row["offset"] + row["size"] <= size or not 0 <= row["crc32"] < 2**32:
        raise DataError(f"{path}, line {number}: {row['name']} is not within {row['shard']}; {COPY_INDEX}")
    if not row["name"].isascii() or len(row["name"]) > _NAME or not row["duration_s"] >= 0:
        raise DataError(f"{path}, line {number}: {ascii(row['name'])[:200]} is not a member of `tubelet shard`")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise DataError(f"{path}, line {number}: has no valid weight; {COPY_INDEX}")
    image = row["modality"] == Modality.IMAGE
    return row["name"].encode(), shard, row["offset"], row["size"], row["crc32"], image, row["duration_s"], weight


def _parse_line(path: str, number: int, line: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if number > 1 and len(line) > LINE_CHARACTERS:  # the first one lists all tars
        raise DataError(f"{path}, line {number}: has {len(line)} characters, above the limit of {LINE_CHARACTERS}")
    row: dict[str, Any] = parse_json(line, f"{path}, line {number}", remedy=COPY_INDEX)
    for key, kind in kinds.items():
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or _overflows(value):
            raise DataError(f"{path}, line {number}: has no valid {key}; expected an index of `tubelet shard`")
    return row


def _overflows(value: object) -> bool:
    """Whether a number does not fit into a `RECORD`."""
    return isinstance(value, (int, float)) and not (math.isfinite(value) and -(2**63) <= value < 2**63)
