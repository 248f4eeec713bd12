"""The base class of the networks of heads."""

from torch import Tensor, nn


class HeadNetwork(nn.Module):
    """Tokens to logits; created with the number of channels and of outputs."""

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit what gradients do not train, such as a standardization; nothing by default.

        Args:
            tokens: (n, D) mean tokens of the training clips, or tokens of training videos.
            targets: (n, K) their targets.
        """
