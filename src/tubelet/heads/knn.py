"""Weighted nearest neighbors, without training.

n training and m test vectors of width D, K classes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = (10, 20)
TEMPERATURE = 0.07  # of DINO's vote (arXiv 2104.14294): a neighbor counts exp(cosine / temperature)
_ROWS = 4096  # that are compared at a time
CPU = torch.device("cpu")


def neighbor_votes(
    table: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    neighbors: list[int],
    device: torch.device = CPU,
) -> Iterator[dict[int, Tensor]]:
    """The votes of the nearest rows, in memory that the number of rows does not change.

    Args:
        table: (n, D) training vectors.
        labels: (n,) their classes.
        queries: (m, D) test vectors.
        classes: K.
        neighbors: numbers of neighbors, none above n.
        device: where vectors are compared, in fp32.

    Yields:
        for a block of b queries after the other, number of neighbors -> (b, K) shares of the vote, on the CPU.
    """
    for block in queries.split(_ROWS):
        similarity, voters = _nearest(table, labels, _unit_vectors(block.to(device)), max(neighbors))
        yield {
            k: torch.zeros(len(block), classes).scatter_add_(
                1, voters[:, :k].cpu(), (similarity[:, :k] / TEMPERATURE).softmax(1).cpu()
            )
            for k in neighbors
        }


def _nearest(table: Tensor, labels: Tensor, block: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(b, count) cosines, the highest first, and the classes of the rows that they are of."""
    best, voters = block.new_empty(len(block), 0), labels.new_empty(len(block), 0).to(block.device)
    for rows, row_labels in zip(table.split(_ROWS), labels.split(_ROWS), strict=True):
        cosines = torch.cat([best, block @ _unit_vectors(rows.to(block.device)).T], dim=1)
        found = torch.cat([voters, row_labels.to(block.device).expand(len(block), -1)], dim=1)
        best, order = cosines.topk(min(count, cosines.shape[1]), dim=1)
        voters = found.gather(1, order)
    return best, voters


def _unit_vectors(rows: Tensor) -> Tensor:
    """(n, D) unit vectors; a row that is not finite becomes 0, which is similar to nothing."""
    return F.normalize(rows.float().nan_to_num(0.0, 0.0, 0.0), dim=1)
