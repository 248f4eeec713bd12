"""GGUF files, version 3: metadata and tensors (github.com/ggml-org/ggml).

A file is a header, key-value pairs, tensor infos, and the tensors' data at aligned offsets. Dimensions are stored from
the last to the first.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error, require_regular

_MAGIC, _VERSION = b"GGUF", 3
_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL, _UINT32, _FLOAT32 = 8, 9, 7, 4, 6
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
# Limits, far above those of any model: a damaged count would take any amount of time or memory.
_MAX_ENTRIES, _MAX_STRING, _MAX_DIMENSIONS = 2**20, 2**24, 4
_REMEDY = "copy it again or convert the model again"


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file; tensors are stored as float32.

    Args:
        path: the file.
        metadata: values by key: str, bool, int (unsigned, 32 bits), float (32 bits), or a list of one of these.
        tensors: tensors by name.

    Raises:
        FileError: if it cannot be written.
    """
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_packed_string(key) + _packed(value))
        offset = 0
        for name, tensor in tensors.items():
            shape = tuple(reversed(tensor.shape))
            file.write(_packed_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset))
            offset += _aligned(4 * tensor.numel())
        _pad(file)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
            _pad(file)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and memory-mapped tensors of a file of floats.

    Raises:
        CheckpointError: if it is damaged, of another version, or has quantized tensors.
        MissingFileError: if it does not exist.
    """
    require_regular(path, _REMEDY)
    data = np.memmap(path, dtype=np.uint8, mode="c") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        return _Cursor(data).read()
    except (struct.error, ValueError, OverflowError) as error:
        raise file_error(path, f"is not a GGUF file of floats ({error})", _REMEDY, CheckpointError) from error


class _Cursor:
    """Reads values of a mapped file in order; a `ValueError` or `struct.error` names what is wrong."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self._bytes(4) != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC.decode()}")
        version, tensors, pairs = self._unpack("IQQ")
        if version not in (2, _VERSION):
            raise ValueError(f"version is {version}, expected 2 or {_VERSION}")
        if max(tensors, pairs) > _MAX_ENTRIES:
            raise ValueError(f"{tensors} tensors and {pairs} keys, expected at most {_MAX_ENTRIES}")
        metadata = {self._string(): self._value(*self._unpack("I")) for _ in range(pairs)}
        infos = [self._tensor_info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
            raise ValueError(f"general.alignment is {alignment!r}")
        begin = -(-self.position // alignment) * alignment
        named = {name: self._tensor(name, begin + offset, shape, kind) for name, shape, kind, offset in infos}
        if len(named) < len(infos):
            raise ValueError("two tensors have one name")
        return metadata, named

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (count,) = self._unpack("I")
        if count > _MAX_DIMENSIONS:
            raise ValueError(f"{name} has {count} dimensions, expected at most {_MAX_DIMENSIONS}")
        shape = tuple(reversed(self._unpack(f"{count}Q")))
        kind, offset = self._unpack("IQ")
        return name, shape, kind, offset

    def _tensor(self, name: str, begin: int, shape: tuple[int, ...], kind: int) -> Tensor:
        if kind not in _FLOATS:
            raise ValueError(f"{name} is of ggml type {kind}, expected float32, float16 or bfloat16")
        dtype = _FLOATS[kind]
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if begin + size > len(self.data):
            raise ValueError(f"{name} ends at byte {begin + size}, the file at {len(self.data)}")
        return torch.from_numpy(self.data[begin : begin + size]).view(dtype).view(shape)

    def _value(self, kind: int, nested: bool = False) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and not nested:
            element, count = self._unpack("IQ")
            if count > _MAX_ENTRIES:
                raise ValueError(f"an array of {count} values, expected at most {_MAX_ENTRIES}")
            return [self._value(element, nested=True) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind}, which GGUF does not have")
        return self._unpack(_SCALARS[kind])[0]

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        if length > _MAX_STRING:
            raise ValueError(f"a string of {length} bytes, expected at most {_MAX_STRING}")
        return self._bytes(length).decode()

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))

    def _bytes(self, count: int) -> bytes:
        data = self.data[self.position : self.position + count].tobytes()
        if len(data) < count:
            raise ValueError("it ends too early")
        self.position += count
        return data


def _packed(value: Any) -> bytes:
    if isinstance(value, list):
        parts = [_packed(element) for element in value]
        return struct.pack("<I", _ARRAY) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(p[4:] for p in parts)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    return struct.pack("<If", _FLOAT32, value) if isinstance(value, float) else struct.pack("<II", _UINT32, value)


def _packed_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))
