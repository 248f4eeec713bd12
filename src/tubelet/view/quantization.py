"""Features of a page: projected to few directions and quantized to a byte a number, with the error that this costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet.view.pca import Projection, fit_projection

_CHUNK = 16_384
_PAIRS = 20_000


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
        return F.normalize(torch.from_numpy(self.values).float(), dim=-1)


def quantize_tokens(tokens: Sequence[Tensor], directions: int, seed: int = 0) -> QuantizedTokens:
    """Project tokens to the directions that preserve their cosines best, and quantize them.

    The directions are the eigenvectors of the second moment of the tokens scaled to length 1, which minimize the
    squared error of the projection; nothing is centered, since that would change cosines.

    Args:
        tokens: (N, D) of each file, with finite values.
        directions: P, at least 3 and at most D.
        seed: of the random pairs that the error is measured on.
    """
    width = tokens[0].shape[-1]
    moment = torch.zeros(width, width, dtype=torch.float64)
    for chunk in _chunks(tokens):
        moment += (chunk.T @ chunk).double()
    basis = torch.linalg.eigh(moment)[1][:, -directions:].flip(1)
    parts = []
    for chunk in _chunks(tokens):
        projected = chunk @ basis.float()
        largest = projected.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        parts.append((projected / largest * 127).round().to(torch.int8))
    values = torch.cat(parts)
    units = F.normalize(values.float(), dim=-1)
    errors = _cosine_errors(tokens, units, np.random.default_rng(seed))
    return QuantizedTokens(
        values.numpy(), float(errors.mean()), float(np.quantile(errors, 0.99)), fit_projection(_sample(units))
    )


def _chunks(tokens: Sequence[Tensor]) -> Iterator[Tensor]:
    """Tokens of length 1, a few thousand at a time."""
    for each in tokens:
        for chunk in each.split(_CHUNK):
            yield F.normalize(chunk.float().cpu(), dim=-1)


def _cosine_errors(tokens: Sequence[Tensor], units: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
    left, right = torch.from_numpy(rng.integers(0, len(units), (2, _PAIRS)))
    exact = F.cosine_similarity(_rows(tokens, left), _rows(tokens, right), dim=-1)
    approximate = (units[left] * units[right]).sum(-1)
    errors: NDArray[np.float64] = (exact - approximate).abs().double().numpy()
    return errors


def _rows(tokens: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows of the concatenation of the files' tokens, which is not made."""
    starts = torch.tensor([0, *(len(each) for each in tokens)]).cumsum(0)
    files = torch.searchsorted(starts, rows, right=True) - 1
    found = torch.empty(len(rows), tokens[0].shape[-1])
    for number, each in enumerate(tokens):
        own = files == number
        found[own] = each[rows[own] - starts[number]].float().cpu()
    return found


def _sample(units: Tensor, most: int = 4 * _CHUNK) -> Tensor:
    """Evenly spaced rows; principal components of more would be the same."""
    return units[:: max(1, -(-len(units) // most))]
