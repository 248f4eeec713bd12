"""Many paths in one array that processes share: a million Python strings would be copied into every worker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, overload
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.errors import escape_filename

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    from torch import Tensor

_BLOCK = 2**16


class Paths(Sequence[str]):
    """Paths or URLs, immutable.

    A forked worker reads the parent's pages, which no reference count dirties; one that was started otherwise receives
    the tensors by PyTorch's shared memory. NumPy views are made for each access: when a tensor moves to shared memory,
    older views would point to where it was.

    Attributes:
        text: (bytes,) uint8, the names in the file system's encoding, each with a line feed at its end.
        offsets: (N + 1,) int64, where each name begins in `text`.
    """

    def __init__(self, text: Tensor, offsets: Tensor) -> None:
        self.text = text
        self.offsets = offsets

    @classmethod
    def of(cls, names: Iterable[str]) -> Paths:
        """The array of some names."""
        return cls.from_arrow(to_arrow(names))

    @classmethod
    def from_arrow(cls, names: pa.ChunkedArray) -> Paths:
        """The array of names that are large_binary in pyarrow."""
        import torch

        lines = pc.binary_join_element_wise(
            names, pa.scalar(b"", pa.large_binary()), pa.scalar(b"\n", pa.large_binary())
        )
        offsets = torch.zeros(len(lines) + 1, dtype=torch.int64)
        np.cumsum(pc.binary_length(lines), out=offsets.numpy()[1:])
        text = torch.empty(int(offsets[-1]), dtype=torch.uint8)
        target, end = text.numpy(), 0
        for chunk in lines.chunks:
            if len(chunk):
                _, ends, data = chunk.buffers()
                first, last = np.frombuffer(ends, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
                target[end : end + last - first] = np.frombuffer(data, np.uint8)[first:last]
                end += last - first
        return cls(text, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> str | Paths:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return Paths.of(self[i] for i in range(start, stop, step))
            offsets = self.offsets[start : max(start, stop) + 1]
            return Paths(self.text[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])
        position = index + len(self) * (index < 0)
        if not 0 <= position < len(self):
            raise IndexError(f"no path {index} of {len(self)}")
        start, stop = self.offsets[position : position + 2].tolist()
        return os.fsdecode(self.text[start : stop - 1].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            offsets = self.offsets[first : first + _BLOCK + 1].tolist()
            block = self.text[offsets[0] : offsets[-1]].numpy().tobytes()
            for start, stop in pairwise(offsets):
                yield os.fsdecode(block[start - offsets[0] : stop - offsets[0] - 1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Paths):
            import torch

            return torch.equal(self.offsets, other.offsets) and torch.equal(self.text, other.text)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        listed = ", ".join(map(repr, self[:3])) + ", ..." * (len(self) > 3)
        return f"Paths({len(self)}: {listed})"

    def printed(self) -> Iterator[bytes]:
        """Blocks of the names as `escape_filename` writes them, in UTF-8, each name with a line feed at its end."""
        for first in range(0, len(self), _BLOCK):
            start, stop = self.offsets[[first, min(first + _BLOCK, len(self))]].tolist()
            yield escape_filename(os.fsdecode(self.text[start:stop].numpy().tobytes())).encode()


def to_arrow(names: Iterable[str]) -> pa.ChunkedArray:
    """Names as large_binary in the file system's encoding, from an iterable; one block at a time is in memory."""
    left, chunks = iter(names), []
    while block := [os.fsencode(name) for name in islice(left, _BLOCK)]:
        chunks.append(pa.array(block, pa.large_binary()))
    return pa.chunked_array(chunks, pa.large_binary())


def checksum(blocks: Iterable[bytes]) -> int:
    """CRC-32 of lines as if they were joined by line feeds, with none after the last."""
    crc, pending = 0, b""
    for block in blocks:
        crc = crc32(block[:-1], crc32(pending, crc))
        pending = block[-1:]
    return crc
