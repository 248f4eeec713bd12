"""A linear layer on the mean of all tokens.

B clips, T time steps, S cells, D channels, K outputs.
"""

from torch import Tensor, nn

from tubelet.heads.head_network import CLIP_TASKS, HeadNetwork, Recipe
from tubelet.heads.standardization import Standardization


class MeanLinear(HeadNetwork):
    """Mean of all tokens, standardized, to outputs."""

    tasks = CLIP_TASKS
    recipe = Recipe(
        learning_rates=(1e-2, 1e-3), weight_decays=(0.01, 0.1, 1.0), epochs=20, least_steps=400, batch_size=128
    )

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
