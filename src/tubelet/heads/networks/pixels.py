"""A linear layer on each token and its position, for segmentation.

B clips, T time steps, S cells, D channels, K outputs.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tubelet.heads.head_network import HeadNetwork
from tubelet.heads.positions import POSITION_CHANNELS, append_positions


class TokenLinear(HeadNetwork):
    """Each token to logits, which are interpolated to the pixels of an image.

    Attributes:
        linear: the layer, which contains the whitening of the tokens.
        indices: index of each class in masks.
    """

    tasks = ("segmentation",)

    def __init__(self, width: int, classes: int, indices: Sequence[int] = ()) -> None:
        """Create a head with random weights.

        Args:
            width: D.
            classes: K.
            indices: index of each class in masks; 0 to K - 1 by default.
        """
        super().__init__()
        self.indices = tuple(indices) or tuple(range(classes))
        self.linear = nn.Linear(width + POSITION_CHANNELS, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens of square windows -> (B, T, S, K) logits."""
        logits: Tensor = self.linear(append_positions(tokens))
        return logits


NETWORK = TokenLinear
