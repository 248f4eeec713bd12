"""Nearest neighbors among the training clips: nothing is trained.

B clips, T time steps, S cells, D channels, K outputs, n training clips.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.heads.head_network import CLIP_TASKS, HeadNetwork
from tubelet.heads.knn import TEMPERATURE
from tubelet.heads.standardization import Standardization

_LEAST = 1e-4  # share of a class without a vote, whose logarithm would be minus infinity

Link = Literal["log", "logit", "identity"]


class NearestNeighbors(HeadNetwork):
    """The vote of the most similar training clips, weighted by similarity (arXiv 2104.14294)."""

    tasks = CLIP_TASKS

    table: Tensor
    targets: Tensor

    def __init__(self, width: int, classes: int, rows: int, neighbors: int = 10, link: Link = "log") -> None:
        """Create the table, with zeros.

        Args:
            width: D.
            classes: K.
            rows: n.
            neighbors: number of neighbors that vote.
            link: how votes become logits: "log" for classes that exclude each other, "logit" for those that do not,
                "identity" for values.
        """
        super().__init__()
        self.neighbors, self.link = min(neighbors, rows), link
        self.standardization = Standardization(width)
        self.register_buffer("table", torch.zeros(rows, width))
        self.register_buffer("targets", torch.zeros(rows, classes))

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Store mean tokens (n, D) of the training clips and their targets (n, K)."""
        self.standardization.fit(tokens)
        self.table.copy_(F.normalize(self.standardization(tokens.float()), dim=-1))
        self.targets.copy_(targets)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, K) logits of the votes, or mean values."""
        queries = F.normalize(self.standardization(tokens.mean((1, 2))), dim=-1)
        similarity, rows = (queries @ self.table.T).topk(self.neighbors)
        votes = ((similarity / TEMPERATURE).softmax(-1).unsqueeze(-1) * self.targets[rows]).sum(1)
        if self.link == "identity":
            return votes
        return votes.clamp(min=_LEAST).log() if self.link == "log" else votes.logit(_LEAST)


NETWORK = NearestNeighbors
