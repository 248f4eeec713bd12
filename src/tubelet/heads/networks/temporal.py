"""A head for timelines: attention over the cells of each time step, then convolutions over time.

The convolutions are those of a stage of MS-TCN (Farha and Gall, CVPR 2019): kernel 3, the dilation doubled from layer
to layer, residual. B videos or parts of them, T time steps, S cells, D channels, H hidden channels, K classes.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.heads.head_network import HeadNetwork, Recipe
from tubelet.heads.standardization import Standardization

SIDE = 4
"""Side of the grid of cells that queries attend to; finer cells are averaged, at a fourth of the cost."""


def average_cells(tokens: Tensor, side: int) -> Tensor:
    """Cells (B, T, S, D) of a finer square grid averaged to side x side; others stay as they are."""
    token_side = isqrt(tokens.shape[2])
    if token_side**2 != tokens.shape[2] or token_side <= side:
        return tokens
    maps = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (token_side, token_side))  # (B·T, D, rows, columns)
    return F.adaptive_avg_pool2d(maps, (side, side)).flatten(2).transpose(1, 2).unflatten(0, tokens.shape[:2])


class TemporalConvolutions(nn.Module):
    """Residual dilated convolutions over time, and the logits of each step.

    Attributes:
        context: time steps on each side of a step that its logits depend on; where causal, only before it.
    """

    def __init__(self, hidden: int, classes: int, layers: int, dropout: float, causal: bool = False) -> None:
        """Initialize.

        Args:
            hidden: H.
            classes: K.
            layers: convolutions; 0 reads each step by itself.
            dropout: fraction of hidden channels that are dropped in training.
            causal: whether a step sees earlier ones only.
        """
        super().__init__()
        self.causal = causal
        self.context = sum(2**layer for layer in range(layers)) * (2 if causal else 1)
        self.dilated = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 3, padding=0 if causal else 2**layer, dilation=2**layer)
            for layer in range(layers)
        )
        self.mix = nn.ModuleList(nn.Conv1d(hidden, hidden, 1) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, steps: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, K)."""
        x = steps.transpose(1, 2)  # (B, H, T)
        for layer, (dilated, mix) in enumerate(zip(self.dilated, self.mix, strict=True)):
            padded = F.pad(x, (2 * 2**layer, 0)) if self.causal else x
            x = x + self.dropout(mix(F.gelu(dilated(padded))))
        return self.out(x.transpose(1, 2))


class TemporalNetwork(HeadNetwork):
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
        queries: int = 4,
        layers: int = 4,
        dropout: float = 0.25,
        causal: bool = False,
    ) -> None:
        """Initialize.

        Args:
            width: D.
            classes: K.
            hidden: H.
            queries: learnable queries that attend to the cells of a step.
            layers: convolutions over time; 0 reads each step by itself.
            dropout: fraction of hidden channels that are dropped in training.
            causal: whether a step sees earlier ones only.
        """
        super().__init__()
        self.standardization = Standardization(width)
        self.project = nn.Linear(width, hidden)
        self.queries = nn.Linear(hidden, queries)
        self.merge = nn.Linear(queries * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.temporal = TemporalConvolutions(hidden, classes, layers, dropout, causal)
        self.context = self.temporal.context

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit the standardization."""
        self.standardization.fit(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, T, K) logits."""
        hidden = self.project(self.standardization(average_cells(tokens, SIDE)))  # (B, T, S, H)
        weights = self.queries(hidden).softmax(dim=2)  # (B, T, S, Q)
        steps = torch.einsum("btsq,btsh->btqh", weights, hidden).flatten(2)
        return self.temporal(F.gelu(self.merge(self.dropout(steps))))


NETWORK = TemporalNetwork
