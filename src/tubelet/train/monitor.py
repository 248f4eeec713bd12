"""Whether the features live: the figures that betray a collapse, and the warnings that name it."""

from collections import deque
from collections.abc import Mapping
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor

MAX_TOKENS = 4096
LOOKS = 10  # that "lately" means
LEAST_RANK = 0.03  # of the width; healthy runs were seen at 0.15 and above
LEAST_STD = 0.05  # healthy ones at 0.25 and above


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


def some_tokens(tokens: Tensor, processes: int) -> Tensor:
    """(K, D) of the tokens (B, N, D), evenly spread; those of all processes together are at most MAX_TOKENS."""
    flat = tokens.flatten(0, 1)
    return flat[:: -(-len(flat) * processes // MAX_TOKENS)]


def feature_health(tokens: Tensor) -> dict[str, float]:
    """Effective rank and channel spread of tokens (K, D)."""
    return {"effective_rank": effective_rank(tokens), "channel_std": channel_std(tokens)}


class CollapseWatch:
    """Compares the teacher's health with what it lately was, and warns once for each new halving.

    An untrained network spreads its tokens over more directions than a trained one will: the effective rank of a
    healthy run falls to a third within its first steps. What alarms is therefore a fall below half of the median of the
    last looks, or a figure so low that hardly anything is left to tell tokens apart, however slowly it came to that.
    """

    def __init__(self, width: int) -> None:
        """Args:
        width: D, channels of the teacher.
        """
        self.least = {"effective_rank": max(2.0, LEAST_RANK * width), "channel_std": LEAST_STD}
        self.recent: dict[str, deque[float]] = {name: deque(maxlen=LOOKS) for name in _MEANING}
        self.warned: dict[str, float] = {}

    def observe(self, metrics: Mapping[str, Any]) -> list[str]:
        """Sentences for the log: which figure fell, from what to what, and what usually helps.

        Args:
            metrics: one step's; those without `feature_health`'s figures are passed over.
        """
        warnings = []
        for name, recent in self.recent.items():
            if name not in metrics:
                continue
            value = metrics[name]
            usual = median(recent) if recent else value
            recent.append(value)
            if value >= max(usual / 2, self.least[name]) or value >= self.warned.get(name, inf) / 2:
                continue
            self.warned[name] = value
            warnings.append(
                f"the teacher's features are collapsing: {_MEANING[name]} is {value:.3g}, it lately was {usual:.3g}; "
                "lower the learning rate, or raise the teacher's momentum (ema)"
            )
        return warnings


_MEANING = {
    "effective_rank": "the effective rank of its last level",
    "channel_std": "the spread of its last level's channels over tokens",
}
