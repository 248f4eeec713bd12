"""Collapse detection: effective rank and channel spread of features, and the warnings that they trigger."""

import logging
import re
from collections import deque
from collections.abc import Mapping
from math import inf, isfinite, nan
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import first_line

logger = logging.getLogger(__name__)

FEATURE_METRICS = ("effective_rank", "channel_std")
MAX_TOKENS = 4096
WINDOW = 10  # number of recent values that a new one is compared with
MIN_RANK_FRACTION = 0.03  # of the width; healthy runs were seen at 0.15 and above
MIN_CHANNEL_STD = 0.05  # healthy ones at 0.25 and above


def effective_rank(products: Tensor) -> float:
    """Effective rank of tokens: exp of the entropy of their normalized singular values, in fp64.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007. Between 1 (all tokens on a line) and min(K, D);
    nan where tokens are not finite, and, with a warning, where the eigenvalues do not converge.

    Args:
        products: (D, D) products of the centered channels, summed over tokens, in host memory.
    """
    if not products.isfinite().all():
        return nan
    try:
        values = torch.linalg.eigvalsh(products.double()).clamp_min(0).sqrt()
    except torch.linalg.LinAlgError as error:
        logger.warning("the effective rank of features is nan in the metrics: %s", first_line(error))
        return nan
    probs = values / values.sum().clamp_min(1e-12)
    return torch.exp(torch.special.entr(probs).sum()).item()


def channel_std(products: Tensor, count: float) -> float:
    """Standard deviation of a channel over tokens, mean over channels; 0 when all tokens are alike.

    Args:
        products: as in `effective_rank`.
        count: number of tokens.
    """
    return (products.diagonal().double() / (count - 1)).sqrt().mean().item()


def subsample_tokens(tokens: Tensor, processes: int) -> Tensor:
    """An evenly spaced subset (K, D) of tokens (B, N, D); all processes together keep at most MAX_TOKENS."""
    flat = tokens.flatten(0, 1)
    return flat[:: -(-len(flat) * processes // MAX_TOKENS)]


def feature_metrics(products: Tensor, count: float) -> tuple[float, float]:
    """`FEATURE_METRICS` of K tokens.

    Args:
        products: as in `effective_rank`.
        count: number of tokens.
    """
    return effective_rank(products), channel_std(products, count)


def level_prefix(network: str, level: int, levels: int) -> str:
    """Prefix of the name of a level's metric; empty for the teacher's last level, the one that is used downstream.

    Args:
        network: "teacher" or "predictor".
        level: number of the level, from 1 (the shallowest).
        levels: number of levels.
    """
    return "" if network == "teacher" and level == levels else f"{network}_level_{level}_"


class CollapseDetector:
    """Compares the features of teacher and predictor, level by level, with those of recent checks.

    A metric triggers a warning if it falls below a third of the median of the last checks, from the sixth check on
    (the lowest ratio in healthy runs was 0.47), or below an absolute minimum. The ratio is this low because the
    effective rank of a healthy run falls to a third within its first steps: an untrained network spreads its tokens
    over more directions than a trained one. An untrained predictor predicts the same for all tokens, so its metrics
    are checked only after ten in a row were above the minimum. A warning is repeated after each further halving, and
    re-armed by ten checks in a row at twice the value of the warning.
    """

    def __init__(self, width: int, predicted_width: int | None = None) -> None:
        """Start without history.

        Args:
            width: D, channels of the teacher.
            predicted_width: channels of a predicted level; None if they are D.
        """
        self.widths = {"teacher": width, "predictor": predicted_width or width}
        self.recent: dict[str, deque[float]] = {}
        self.warned: dict[str, float] = {}
        self.warmed_up: set[str] = set()

    def observe(self, metrics: Mapping[str, Any]) -> list[str]:
        """Warnings for the metrics of one step, each with network, level and values; the last one ends with remedies.

        Args:
            metrics: metrics of one step; others than `FEATURE_METRICS` are ignored.
        """
        values = ((name, value) for name, value in metrics.items() if name.endswith(tuple(_MEANING)))
        warnings = list(filter(None, (self._observe(name, value) for name, value in values)))
        if warnings:
            warnings[-1] += f"; {REMEDIES}"
        return warnings

    def _observe(self, name: str, value: float | None) -> str | None:
        match = _METRIC_NAME.fullmatch(name)
        if match is None or value is None or not isfinite(value):
            return None  # AnomalyGuard handles values that are not finite
        network, level, metric = match["network"] or "teacher", match["level"], match["metric"]
        minimum = MIN_CHANNEL_STD if metric == "channel_std" else max(2.0, MIN_RANK_FRACTION * self.widths[network])
        recent = self.recent.setdefault(name, deque(maxlen=WINDOW))
        typical = median(recent) if len(recent) >= WINDOW // 2 else value
        if len(recent) == WINDOW and min(recent) >= 2 * self.warned.get(name, inf):
            del self.warned[name]  # it had recovered
        recent.append(value)
        if network == "predictor" and name not in self.warmed_up:
            if value < minimum:
                recent.clear()
            if len(recent) == WINDOW:
                self.warmed_up.add(name)
            return None
        if value >= max(typical / 3, minimum) or value >= self.warned.get(name, inf) / 2:
            return None
        self.warned[name] = value
        where = f"level {level}" if level else "the last level"
        return (
            f"the {network}'s features are collapsing: {_MEANING[metric]} of {where} is {value:.3g}, recently it was "
            f"{typical:.3g}"
        )


# In the order in which to try them; the sources are in docs/scale.md.
REMEDIES = (
    "lower the learning rate (--lr) or warm up longer (--warmup-fraction), raise the teacher's momentum (--ema), or "
    "lower the weight of the context loss (--context-weight) and raise it later (--context-warmup)"
)
_METRIC_NAME = re.compile(
    r"((?P<network>teacher|predictor)_level_(?P<level>\d+)_)?(?P<metric>effective_rank|channel_std)"
)
_MEANING = {"effective_rank": "the effective rank", "channel_std": "the spread of channels over tokens"}
