"""Damage of chance, and damage with a plan: lengths and sizes are what readers trust first."""

import io
import json
import re
import zipfile
from zlib import crc32

import numpy as np

_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_WORDS = (
    "0", "-1", "1e999", "NaN", "99999999999999999999", "1" * 5000, "null", "true", "[]", "{}", '"x"', '""',
    '"../../x.mp4"', '"/etc/x.mp4"', '"s3://b/x.mp4"', '"\\u0000.mp4"', '"\\ud800.mp4"', "[" * 3000, "65536", "2.5",
    '"' + "a" * 70_000 + '"', "1000000000", '"~nobody/x.mp4"', '"..::file:///x.mp4"', "[[1, 2], [3]]",
)  # fmt: skip


def mutate(data: bytes, name: str, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four kinds of damage to an input.

    Args:
        data: the healthy input.
        name: of its file.
        other: another one, of which a part may be put in.
        rng: all chance there is.
    """
    inner = _INNER.get(name.rsplit(".", 1)[1])
    if inner and rng.random() < 0.7:
        return inner(data, other, rng)
    for _ in range(int(rng.integers(1, 5))):
        way = _WAYS[int(rng.integers(len(_WAYS)))]
        data = way(data, other, rng) if data else data
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A place, more often near the beginning or the end, where headers are."""
    size, near = len(data), min(len(data), 1500)
    where = rng.random()
    if where < 0.4:
        return int(rng.integers(near))
    return size - 1 - int(rng.integers(near)) if where < 0.7 else int(rng.integers(size))


def _flip(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _i in range(int(rng.integers(1, 17))):
        damaged[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _cut_short(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)] if rng.random() < 0.3 else data


def _drop(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 65)) :]


def _repeat(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at : at + int(rng.integers(1, 257))] * int(rng.integers(2, 5)) + data[at:]


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, start = _place(data, rng), int(rng.integers(max(1, len(other))))
    return data[:at] + other[start : start + int(rng.integers(1, 1025))] + data[at:]


def _number(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A number that is likely a length, a count or a size becomes one that no reader expects."""
    at, width = _place(data, rng), int(rng.choice([1, 2, 4, 8]))
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % 256**width
    return data[:at] + value.to_bytes(width, "big" if rng.random() < 0.5 else "little") + data[at + width :]


def _swap(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """The names of two boxes, chunks or keys change places."""
    found = list({match[0] for match in re.finditer(rb"[A-Za-z]{4}", data[:4000] + data[-4000:])})
    if len(found) < 2:
        return data
    a, b = (found[int(i)] for i in rng.choice(len(found), 2, replace=False))
    return data.replace(a, b, 1)


def _word(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A value of JSON, or a cell, becomes another."""
    found = list(re.finditer(rb'"[^"]*"|-?\d+(\.\d+)?|true|false|null|[\w./]+', data[:20_000]))
    if not found:
        return data
    match = found[int(rng.integers(len(found)))]
    word = _WORDS[int(rng.integers(len(_WORDS)))].encode()
    return data[: match.start()] + word + data[match.end() :]


def _words(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        data = _word(data, other, rng)
    return data


def _chunks(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A PNG whose chunks are damaged and whose checksums are right again, so that more than they is tested."""
    data = _number(_flip(data, other, rng) if rng.random() < 0.5 else data, other, rng)
    fixed, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        fixed += data[at : at + 4] + body + crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(fixed)


def _header(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Safetensors with another header: what it says of a tensor, or its own text in it, the config and the step."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = (
        "__metadata__"
        if "__metadata__" in header and rng.random() < 0.5
        else list(header)[int(rng.integers(len(header)))]
    )
    if key == "__metadata__":
        name = list(header[key])[int(rng.integers(len(header[key])))]
        header[key][name] = _words(header[key][name].encode(), other, rng).decode()
        text = json.dumps(header).encode()
    else:
        entry = json.dumps(header[key]).encode()
        text = json.dumps(header).encode().replace(entry, _words(entry, other, rng), 1)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _members(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive that is whole, of which a member is damaged: the instructions of a .pt, or an array."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = pickles[0] if pickles and rng.random() < 0.8 else names[int(rng.integers(len(names)))]
        for name in names:
            content = source.read(name)
            if name == chosen:
                for _ in range(int(rng.integers(1, 4))):
                    ways = (_flip, _number, _number, _drop, _repeat, _swap)
                    content = ways[int(rng.integers(len(ways)))](content, content, rng) if content else content
            archive.writestr(name, content)
    return target.getvalue()


def _json(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Words changed; or an entry missing, twice or in place of another; or another document altogether."""
    where = rng.random()
    if where < 0.6:
        return _words(data, other, rng)
    if where < 0.7:
        return other
    lines = data.splitlines(keepends=True)
    place = int(rng.integers(len(lines)))
    try:
        value = json.loads(lines[place] if len(lines) > 1 and data[:1] == b"{" and lines[0].endswith(b"}\n") else data)
    except ValueError:
        return _words(data, other, rng)
    _edit(value, rng)
    text = json.dumps(value).encode()
    return b"".join([*lines[:place], text + b"\n", *lines[place + 1 :]]) if len(lines) > 1 and b"\n{" in data else text


def _edit(value: object, rng: np.random.Generator) -> None:
    """One entry, at any depth, is removed, replaced by a value of another type, or becomes a list or an object."""
    while isinstance(value, (dict, list)) and value:
        key = (list(value) if isinstance(value, dict) else range(len(value)))[int(rng.integers(len(value)))]
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
            value = value[key]
            continue
        if rng.random() < 0.3:
            del value[key]
        else:
            value[key] = _VALUES[int(rng.integers(len(_VALUES)))]
        return


_VALUES = (
    None, True, 0, -1, 1.5, 2**62, 2**80, 1e300, "", "x", "../x", "/etc/passwd", "a" * 300, "\0", "\udc80", "\ud800",
    [], {}, [1], {"a": 1}, [[]], ["x"], "nan", "1", -(2**40),
)  # fmt: skip


def _table(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A Parquet file that is whole, of other columns, types, lengths or values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    for _ in range(int(rng.integers(1, 3))):
        place = int(rng.integers(table.num_columns)) if table.num_columns else -1
        if place < 0:
            break
        name, column, way = table.column_names[place], table.column(place), int(rng.integers(9))
        n = len(column)
        if way == 0:
            table = table.remove_column(place)
        elif way == 1:
            table = table.rename_columns([*table.column_names[:place], "x" * 70_000, *table.column_names[place + 1 :]])
        elif way == 2:
            table = table.append_column(name, column)
        elif way == 3:
            table = table.slice(0, 0)
        else:
            new = {
                4: pa.array([None] * n, column.type),
                5: pa.array(["x" * 100_000] * n),
                6: pa.array([float("nan")] * n),
                7: pa.array([2**62] * n),
                8: pa.array([[1.0, 2.0]] * n, pa.list_(pa.float16(), 2)),
            }[way]
            table = table.set_column(place, name, new)
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


_WAYS = (_flip, _cut_short, _drop, _repeat, _splice, _number, _number, _swap)
_INNER = {
    "csv": _words,
    "json": _json,
    "jsonl": _json,
    "parquet": _table,
    "png": _chunks,
    "safetensors": _header,
    "pt": _members,
    "npz": _members,
}
