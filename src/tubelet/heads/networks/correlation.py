"""A head for timelines of motion: the correlation of tokens with neighboring steps, then convolutions over time.

What a token is says little about how it moves; where it is found in the step before and in the step after does. The
first layer is a correlation layer (Dosovitskiy et al., FlowNet, ICCV 2015), here of cosines: for each displacement of
up to `REACH` cells the similarity of tokens and displaced tokens of the other step, as means over a coarse grid. The
mean token is an input too. B videos or parts of them, T time steps, S = side x side cells, D channels, H hidden
channels, K classes, F similarities.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.heads.head_network import HeadNetwork
from tubelet.heads.networks.temporal import TemporalConvolutions
from tubelet.heads.standardization import Standardization

GRID = 2
"""Side of the grid that similarities are averaged over: the coarsest on which an image that grows differs from one that
shifts."""
REACH = 1
"""Largest displacement in cells, along rows and columns."""


class CorrelationNetwork(HeadNetwork):
    """Tokens of consecutive time steps to the logits of each step.

    Attributes:
        context: time steps on each side of a step that its logits depend on.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        hidden: int = 128,
        mean_channels: int = 32,
        layers: int = 4,
        dropout: float = 0.25,
    ) -> None:
        """Initialize.

        Args:
            width: D.
            classes: K.
            hidden: H.
            mean_channels: channels that the mean token is projected to.
            layers: convolutions over time; none sees each step and its neighbors alone.
            dropout: fraction of hidden channels that are dropped in training.
        """
        super().__init__()
        similarities = 2 * 2 * (2 * REACH + 1) ** 2 * GRID**2  # two kinds of tokens, two neighbors in time
        self.standardization = Standardization(width)
        self.normalize = nn.BatchNorm1d(similarities)
        self.mean = nn.Linear(width, mean_channels)
        self.merge = nn.Linear(similarities + mean_channels, hidden)
        self.dropout = nn.Dropout(dropout)
        self.temporal = TemporalConvolutions(hidden, classes, layers, dropout)
        self.context = self.temporal.context + 1

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit the standardization."""
        self.standardization.fit(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, T, K) logits."""
        standardized = self.standardization(tokens)
        after = torch.cat([step_similarities(kind) for kind in (tokens, standardized)], dim=-1)
        before = torch.cat([after[:, :1], after[:, :-1]], dim=1)
        similarities = torch.cat([before, after], dim=-1)  # (B, T, F)
        normalized = self.normalize(similarities.flatten(0, 1)).unflatten(0, similarities.shape[:2])
        steps = torch.cat([normalized, self.mean(standardized.mean(2))], dim=-1)
        return self.temporal(F.gelu(self.merge(self.dropout(steps))))


def step_similarities(tokens: Tensor) -> Tensor:
    """Similarity of the tokens of each time step to those of the next, for each displacement.

    Args:
        tokens: (B, T, S, D).

    Returns:
        (B, T, displacements · GRID²) mean cosines; those of the last step are to itself.

    Raises:
        ConfigError: if the cells are not a square.
    """
    side = isqrt(tokens.shape[2])
    if side**2 != tokens.shape[2]:
        raise ConfigError(
            f"the correlation head takes cells in a square, found {tokens.shape[2]}; use --networks temporal"
        )
    maps = F.normalize(tokens, dim=-1).unflatten(2, (side, side))  # (B, T, side, side, D)
    around = F.pad(torch.cat([maps[:, 1:], maps[:, -1:]], dim=1), (0, 0, *(REACH,) * 4))
    inside = F.pad(maps.new_ones(side, side), (REACH,) * 4)
    found = []
    for row in range(2 * REACH + 1):
        for column in range(2 * REACH + 1):
            place = (slice(row, row + side), slice(column, column + side))
            similar = (maps * around[:, :, place[0], place[1]]).sum(-1)  # (B, T, side, side)
            sums, counts = (F.adaptive_avg_pool2d(x, GRID) for x in (similar, inside[place].unsqueeze(0)))
            found.append((sums / counts.clamp(min=1e-6)).flatten(2))
    return torch.cat(found, dim=-1)


NETWORK = CorrelationNetwork
