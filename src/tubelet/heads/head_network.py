"""The base class of the networks of heads."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

CLIP_TASKS = ("classification", "multilabel", "regression")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        learning_rates: peak learning rates of AdamW that are tried.
        weight_decays: weight decays that are tried.
        epochs: passes over the training clips.
        least_steps: fewest steps, for few clips.
        batch_size: clips of a step.
        options: keyword arguments of the network.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    epochs: int
    least_steps: int
    batch_size: int
    options: dict[str, Any] = field(default_factory=dict)


class HeadNetwork(nn.Module):
    """Tokens to logits; created with the number of channels and of outputs.

    Attributes:
        tasks: names of the tasks that the network is for.
        recipe: how it is trained; None for a network without gradients, or one that its task trains in its own way.
    """

    tasks: ClassVar[tuple[str, ...]]
    recipe: ClassVar[Recipe | None] = None

    def prepare(self, tokens: Tensor, targets: Tensor) -> None:
        """Fit what gradients do not train, such as a standardization; nothing by default.

        Args:
            tokens: (n, D) mean tokens of the training clips, or tokens of training videos.
            targets: (n, K) their targets.
        """
