"""The attentive probe of V-JEPA 2 with one output, see `tubelet.heads.attentive`.

B clips, T time steps, S cells, D channels, K outputs.
"""

from torch import Tensor

from tubelet.heads.attentive import AttentiveProbe
from tubelet.heads.head_network import CLIP_TASKS, HeadNetwork, Recipe


class AttentiveNetwork(HeadNetwork):
    """Attention over all tokens of a clip.

    The published probe has four blocks, three of which are self-attention among the tokens. A few hundred labels do
    not train those: the default is only the cross-attention of the learnable query.
    """

    tasks = CLIP_TASKS
    recipe = Recipe(learning_rates=(1e-3, 3e-4), weight_decays=(0.1,), epochs=10, least_steps=150, batch_size=32)

    def __init__(self, width: int, classes: int, blocks: int = 1, heads: int | None = None) -> None:
        super().__init__()
        heads = heads or next(count for count in (16, 12, 8, 6, 4, 3, 2, 1) if width % (16 * count) == 0 or count == 1)
        self.probe = AttentiveProbe(width, (classes,), heads, blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) tokens -> (B, K) logits."""
        return self.probe(tokens.flatten(1, 2))[0]


NETWORK = AttentiveNetwork
