"""A linear layer on the mean of all tokens.

B clips, T time steps, S cells, D channels, K outputs.
"""

from torch import Tensor, nn

from tubelet.heads.head_network import HeadNetwork
from tubelet.heads.standardization import Standardization


class MeanLinear(HeadNetwork):
    """Mean of all tokens, standardized, to outputs."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.standardization = Standardization(width)
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit the standardization."""
        self.standardization.fit(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, K) logits."""
        return self.linear(self.standardization(tokens.mean((1, 2))))


NETWORK = MeanLinear
