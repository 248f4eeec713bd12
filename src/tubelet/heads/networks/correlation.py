"""A head for timelines of motion: the correlation of tokens with neighboring steps, then convolutions over time.

What a token is says little about how it moves; where it is found in the step before and in the step after does. The
first layer is a correlation layer (Dosovitskiy et al., FlowNet, ICCV 2015), here of cosines: for each displacement of
up to `REACH` cells the similarity of tokens and displaced tokens of the other step, as means over a coarse grid. What
the tokens are is no input: few videos teach it by heart. B videos or parts of them, T time steps, S = side x side
cells, D channels, H hidden channels, K classes, F similarities.
"""

from functools import cache
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.heads.head_network import HeadNetwork, Recipe
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

    tasks = ("timeline",)
    recipe = Recipe(learning_rates=(3e-3, 1e-3), weight_decays=(0.05,), epochs=30, least_steps=150, batch_size=8)

    def __init__(
        self,
        width: int,
        classes: int,
        hidden: int = 128,
        layers: int = 4,
        dropout: float = 0.25,
        causal: bool = False,
    ) -> None:
        """Initialize.

        Args:
            width: D.
            classes: K.
            hidden: H.
            layers: convolutions over time; 0 reads only each step and its neighbors.
            dropout: fraction of hidden channels that are dropped in training.
            causal: whether a step sees earlier ones only.
        """
        super().__init__()
        self.causal = causal
        similarities = (1 if causal else 2) * (2 * REACH + 1) ** 2 * GRID**2  # to the neighbors in time
        self.standardization = Standardization(width)
        self.normalize = nn.BatchNorm1d(similarities)
        self.normalize.num_batches_tracked = torch.zeros(())  # head files hold floats only
        self.merge = nn.Linear(similarities, hidden)
        self.dropout = nn.Dropout(dropout)
        self.temporal = TemporalConvolutions(hidden, classes, layers, dropout, causal)
        self.context = self.temporal.context + 1

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit the standardization."""
        self.standardization.fit(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, T, K) logits."""
        after = step_similarities(self.standardization(tokens))
        before = torch.cat([after[:, :1], after[:, :-1]], dim=1)
        similarities = before if self.causal else torch.cat([before, after], dim=-1)  # (B, T, F)
        normalized = self.normalize(similarities.flatten(0, 1)).unflatten(0, similarities.shape[:2])
        return self.temporal(F.gelu(self.merge(self.dropout(normalized))))


def step_similarities(tokens: Tensor) -> Tensor:
    """Similarity of the tokens of each time step to those of the next, for each displacement.

    Args:
        tokens: (B, T, S, D).

    Returns:
        (B, T, displacements · GRID²) mean cosines, 0 where there is no such pair; those of the last step are to itself.

    Raises:
        ConfigError: if the cells are not a square.
    """
    side = isqrt(tokens.shape[2])
    if side**2 != tokens.shape[2]:
        raise ConfigError(f"the network correlation takes cells in a square, found {tokens.shape[2]}; use another one")
    unit = F.normalize(tokens, dim=-1)
    after = torch.cat([unit[:, 1:], unit[:, -1:]], dim=1)
    cosines = unit @ after.transpose(-1, -2)  # (B, T, S, S)
    return cosines.flatten(2) @ _pair_means(side).to(tokens)


@cache
def _pair_means(side: int) -> Tensor:
    """(S · S, displacements · GRID²) weights of all pairs of cells in the mean of each displacement and place."""
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    cell = row * GRID // side * GRID + column * GRID // side
    groups = []
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            pairs = (row[None] - row[:, None] == down) & (column[None] - column[:, None] == right)  # (S, S)
            groups += [(pairs & (cell == k)[:, None]).flatten() for k in range(GRID**2)]
    weights = torch.stack(groups, dim=1).float()
    return weights / weights.sum(0).clamp(min=1)


NETWORK = CorrelationNetwork
