"""A linear layer on each token and its position to scores of bins of depth.

B clips, T time steps, S cells, D channels, K bins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.heads.head_network import HeadNetwork
from tubelet.heads.positions import POSITION_CHANNELS, append_positions


def depth_of_scores(scores: Tensor, bins: Tensor, smoothing: float) -> Tensor:
    """Depth (...) of scores (..., K): the mean of the bins, weighted by rectified scores plus a constant.

    Args:
        scores: scores of the bins.
        bins: (K,) depth of each bin.
        smoothing: the constant.
    """
    # (relu(scores) + e) · bins / sum(relu(scores) + e), in one product and without a copy of the scores for e.
    sums = scores.relu() @ torch.stack([bins, torch.ones_like(bins)], dim=1)
    more = smoothing * torch.stack([bins.sum(), bins.new_full((), len(bins))])
    weighted, weights = (sums + more).unbind(-1)
    return weighted / weights


class DepthBins(HeadNetwork):
    """Each token to scores of bins of depth, and those to depth (AdaBins, arXiv 2011.14141, with fixed bins).

    Attributes:
        linear: the layer, which contains the whitening of the tokens; its scores are interpolated to pixels before they
            become depth.
        smoothing: what is added to each bin's rectified score.
        bins: (K,) depth of each bin, ascending.
    """

    tasks = ("depth",)

    bins: Tensor

    def __init__(
        self,
        width: int,
        classes: int,
        bins: Sequence[float],
        smoothing: float = 0.1,
    ) -> None:
        """Create a head with random weights.

        Args:
            width: D.
            classes: 1, the depth.
            bins: depth of each of the K bins, ascending.
            smoothing: what is added to each bin's rectified score.
        """
        super().__init__()
        if classes != 1:
            raise ValueError(f"classes is {classes}, expected 1: depth is one value")
        self.smoothing = smoothing
        self.linear = nn.Linear(width + POSITION_CHANNELS, len(bins))
        self.register_buffer("bins", torch.tensor(tuple(bins), dtype=torch.float32))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens of square windows -> (B, T, S, 1) depth."""
        return depth_of_scores(self.bin_scores(tokens), self.bins, self.smoothing).unsqueeze(-1)

    def bin_scores(self, tokens: Tensor) -> Tensor:
        """(..., S, D) tokens of square windows -> (..., S, K) scores of the bins."""
        scores: Tensor = self.linear(append_positions(tokens))
        return scores


NETWORK = DepthBins
