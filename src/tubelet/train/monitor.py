"""Whether the features live: the figures that betray a collapse, and the warnings that name it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_TOKENS = 4096


@torch.no_grad()
def effective_rank(tokens: Tensor) -> float:
    """How many directions the tokens use: exp of the entropy of their normalised singular values.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007. Between 1 (all tokens on a line) and min(K, D).

    Args:
        tokens: (K, D).
    """
    centred = tokens.float() - tokens.float().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(1e-12)
    return torch.exp(torch.special.entr(shares).sum()).item()


@torch.no_grad()
def channel_std(tokens: Tensor) -> float:
    """Standard deviation of a channel over the tokens (K, D), mean over channels; 0 when all tokens are alike."""
    return tokens.float().std(0).mean().item()


@torch.no_grad()
def feature_health(tokens: Tensor) -> dict[str, float]:
    """Effective rank and channel spread of up to MAX_TOKENS of the tokens (B, N, D)."""
    flat = tokens.flatten(0, 1)
    flat = flat[:: -(-len(flat) // MAX_TOKENS)]
    return {"effective_rank": effective_rank(flat), "channel_std": channel_std(flat)}


class CollapseWatch:
    """Compares the teacher's health with the best this run has shown, and warns once for each new halving."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}
        self.warned: dict[str, float] = {}

    def observe(self, metrics: Mapping[str, Any]) -> list[str]:
        """Sentences for the log: which figure fell, from what to what, and what usually helps.

        Args:
            metrics: one step's; those without `feature_health`'s figures are passed over.
        """
        warnings = []
        for name in _MEANING.keys() & metrics.keys():
            value = metrics[name]
            self.best[name] = max(self.best.get(name, value), value)
            threshold = self.warned.get(name, self.best[name]) / 2
            if value < threshold:
                self.warned[name] = value
                warnings.append(
                    f"the teacher's features are collapsing: {_MEANING[name]} fell from {self.best[name]:.3g} to "
                    f"{value:.3g}; lower the learning rate, or raise the teacher's momentum (ema)"
                )
        return warnings


_MEANING = {
    "effective_rank": "the effective rank of its last level",
    "channel_std": "the spread of its last level's channels over tokens",
}
