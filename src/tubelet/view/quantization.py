"""Features of a page: projected to few directions and quantized to 8 bits, with the error of the quantization."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet.view.pca import Projection, fit_projection

_CHUNK = 16_384
_PAIRS = 20_000
_SAMPLE = 4 * _CHUNK

Chunks = Callable[[], Iterable[tuple[NDArray[np.int64], Tensor]]]


@dataclass(frozen=True)
class QuantizedTokens:
    """Tokens of one output level, of all files of a page.

    The lengths of tokens are not kept: the cosine of two tokens is that of their rows.

    Attributes:
        values: (N, P) int8, row by row scaled so that its largest entry is ±127.
        mean_error: mean absolute error of the cosine of two random tokens.
        largest_error: its 99th percentile.
        colors: the first three principal components of the quantized tokens, in the P directions.
    """

    values: NDArray[np.int8]
    mean_error: float
    largest_error: float
    colors: Projection

    def units(self) -> Tensor:
        """(N, P) float32 tokens of length 1."""
        return _units(self.values)


def quantize_tokens(tokens: Sequence[Tensor], directions: int, seed: int = 0) -> QuantizedTokens:
    """Project tokens to the directions that preserve their cosines best, and quantize them.

    Args:
        tokens: (N, D) of each file, with finite values.
        directions: P, at least 3 and at most D.
        seed: of the random pairs that the error is measured on.
    """
    starts = np.cumsum([0, *map(len, tokens)])

    def chunks() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        for start, each in zip(starts, tokens, strict=False):
            for begin in range(0, len(each), _CHUNK):
                chunk = each[begin : begin + _CHUNK]
                yield np.arange(start + begin, start + begin + len(chunk)), chunk

    return quantize_chunks(chunks, np.empty((starts[-1], directions), np.int8), seed)


def quantize_chunks(chunks: Chunks, values: NDArray[np.int8], seed: int = 0) -> QuantizedTokens:
    """Project tokens that are read chunk by chunk, twice, and quantize them.

    The directions are the eigenvectors of the second moment of the tokens scaled to length 1, which minimize the
    squared error of the projection; nothing is centered, since that would change cosines.

    Args:
        chunks: each call iterates over all tokens: row numbers (n,) and finite tokens (n, D).
        values: (N, P) to write to, with P at least 3 and at most D; perhaps mapped from a file.
        seed: of the random pairs that the error is measured on.
    """
    basis = _directions(chunks, values.shape[1])
    pairs = np.random.default_rng(seed).integers(0, len(values), 2 * _PAIRS)
    exact = torch.empty(2 * _PAIRS, len(basis))
    for rows, chunk in chunks():
        units = F.normalize(chunk.float().cpu(), dim=-1)
        projected = units @ basis
        largest = projected.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        values[rows] = (projected / largest * 127).round().to(torch.int8).numpy()
        order = np.argsort(rows)
        indices = np.minimum(np.searchsorted(rows, pairs, sorter=order), len(rows) - 1)
        matches = np.flatnonzero(rows[order[indices]] == pairs)
        exact[matches] = units[order[indices[matches]]]
    approximate = _units(values[pairs])
    left, right = slice(None, _PAIRS), slice(_PAIRS, None)
    cosines = [(each[left] * each[right]).sum(-1).double() for each in (exact, approximate)]
    errors = (cosines[0] - cosines[1]).abs().numpy()
    stride = max(1, -(-len(values) // _SAMPLE))  # principal components of more rows would be the same
    colors = fit_projection(_units(values[::stride]))
    return QuantizedTokens(values, float(errors.mean()), float(np.quantile(errors, 0.99)), colors)


def _directions(chunks: Chunks, count: int) -> Tensor:
    """(D, P) eigenvectors of the second moment, by decreasing eigenvalue, their largest entries positive."""
    moment: Tensor | None = None
    for _, chunk in chunks():
        units = F.normalize(chunk.float().cpu(), dim=-1)
        moments = (units.T @ units).double()
        moment = moments if moment is None else moment + moments
    assert moment is not None
    basis = torch.linalg.eigh(moment)[1][:, -count:].flip(1)
    peaks = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return (basis * torch.where(peaks < 0, -1.0, 1.0)).float()


def _units(values: NDArray[np.int8]) -> Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(values)).float(), dim=-1)
