"""The multi-level ViT: student (X-encoder) and teacher (Y-encoder) alike (docs/system.md, steps 1, 2 and 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.model.layers import NORM_EPS, Block, init_weights, run_block
from tubelet.model.packing import pack
from tubelet.model.rope import RotaryTable, rotary_table
from tubelet.model.tokenizer import Tokenizer


class Encoder(nn.Module):
    """A pre-norm ViT over all tokens or only the context tokens of a mask, with outputs at several depths."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        self.tokenizer = Tokenizer(config)
        blocks = [Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        # One norm per level, even if only the last levels are returned: released files contain all of them.
        self.norms = nn.ModuleList(nn.LayerNorm(config.width, eps=NORM_EPS) for _ in config.levels)
        init_weights(self, blocks)

    def forward(self, pixels: Tensor | Sequence[Tensor], ids: Tensor | Sequence[Tensor] | None = None) -> list[Tensor]:
        """Encode inputs, or only their context tokens.

        Args:
            pixels: (B, C, T, H, W) normalized pixels, T = 1 for images; or a sequence of such batches.
            ids: (B, K) indices of the tokens to encode, or None for all N; or a sequence, one for each batch.

        Returns:
            L tensors (B, K, D), or (1, ΣB·K, D) packed for several batches: the output levels, shallow to deep, each
            after its own LayerNorm.

        Raises:
            TubeletError: if the pixels' shape does not divide into patches.
        """
        config = self.config
        out_levels = config.levels[-config.num_output_levels :]
        outputs = self.get_intermediate_layers(pixels, out_levels, ids)
        return [self.norms[config.levels.index(i)](x) for i, x in zip(out_levels, outputs, strict=True)]

    def get_intermediate_layers(
        self,
        pixels: Tensor | Sequence[Tensor],
        blocks: Sequence[int],
        ids: Tensor | Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Outputs of the given blocks, without norm; blocks after the last one are not computed.

        Args:
            pixels: (B, C, T, H, W) normalized pixels, T = 1 for images; or a sequence of such batches.
            blocks: 0-based block numbers, ascending.
            ids: (B, K) indices of the tokens to encode, or None for all N; or a sequence, one for each batch.

        Returns:
            for each block a tensor (B, K, D), or (1, ΣB·K, D) packed for several batches.
        """
        if isinstance(pixels, Tensor):
            assert ids is None or isinstance(ids, Tensor)
            x, table = self._embed(pixels, ids)
        else:
            each_ids: Sequence[Tensor | None] = [None] * len(pixels) if ids is None else list(ids)
            embedded = [self._embed(*each) for each in zip(pixels, each_ids, strict=True)]
            tokens, tables = zip(*embedded, strict=True)
            x, table = pack(tokens), RotaryTable.packed(tables, tuple((x.shape[0], x.shape[1]) for x in tokens))
        outputs = []
        for i in range(blocks[-1] + 1):
            x = run_block(self.blocks[i], x, table, self.recompute_activations)
            if i in blocks:
                outputs.append(x)
        return outputs

    def _embed(self, pixels: Tensor, ids: Tensor | None) -> tuple[Tensor, RotaryTable]:
        """The tokens (B, K, D) of one batch, and their rotary table."""
        config, grid = self.config, self.tokenizer.grid(pixels)
        positions = torch.arange(grid.tokens, device=pixels.device).unsqueeze(0) if ids is None else ids
        table = rotary_table(positions, grid, config.width // config.heads, config.rope_grid, config.rope)
        return self.tokenizer(pixels, ids), table


def random_encoder(config: ModelConfig, seed: int) -> Encoder:
    """A frozen encoder with initial weights from `seed`; the global random generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config).eval().requires_grad_(False)
