"""The multi-level predictor (docs/system.md, steps 5, 6 and 7)."""

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.errors import DataError
from tubelet.grid import Grid, Mask, Modality
from tubelet.model.layers import NORM_EPS, Block, init_weights, run_block
from tubelet.model.rope import rotary_table


class Fusion(nn.Sequential):
    """Concatenated levels to one predictor token: Linear L·D -> D, GELU, Linear D -> P; one level is only projected."""

    def __init__(self, levels: int, width: int, out: int) -> None:
        if levels == 1:
            super().__init__(nn.Linear(width, out))
        else:
            super().__init__(nn.Linear(levels * width, width), nn.GELU(), nn.Linear(width, out))


class Predictor(nn.Module):
    """A narrow ViT over context and mask tokens, with one head for each of the two."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        size = config.predictor
        self.fusion = Fusion(config.num_output_levels, config.width, size.width)
        self.mask_tokens = nn.Parameter(torch.zeros(size.mask_tokens, size.width))
        self.video_embedding = nn.Parameter(torch.empty(size.width).normal_(std=1e-6))
        self.image_embedding = nn.Parameter(torch.empty(size.width).normal_(std=1e-6))
        blocks = [Block(size.width, size.heads, size.mlp_ratio) for _ in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.target_head = nn.Linear(size.width, config.prediction_width)
        self.context_head = nn.Linear(size.width, config.prediction_width)
        init_weights(self, blocks)

    def forward(
        self, levels: list[Tensor], mask: Mask, grid: Grid, modality: Modality, mask_token: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Predict the teacher's levels at masked and at visible positions.

        Args:
            levels: L tensors (B, Kc, D), the student's levels of the context tokens.
            mask: the indices of context and target tokens.
            grid: the grid that they index.
            modality: whose embedding is added.
            mask_token: which learnable mask token stands in at masked positions.

        Returns:
            (B, Kt, L·D) predictions at the target tokens and (B, Kc, L·D) at the context tokens.

        Raises:
            TubeletError: if the levels do not match the mask or the model.
        """
        size, expected = self.config.predictor, self.config.num_output_levels
        if len(levels) != expected or levels[0].shape[:2] != mask.context.shape:
            raise DataError(
                f"the predictor got {len(levels)} levels of shape {tuple(levels[0].shape)}, expected {expected} of "
                f"(clips, context tokens) = {tuple(mask.context.shape)}"
            )
        # 5. Multi-level fusion.
        context = self.fusion(torch.cat(levels, dim=-1))
        # 6. Mask tokens at their positions. Attention does not depend on the order of its sequence: positions are only
        # encoded in the rotary angles, so context and mask tokens need not be interleaved into grid order and back.
        B, Kt = mask.target.shape
        mask_tokens = self.mask_tokens[mask_token].to(context.dtype).expand(B, Kt, -1)
        x = torch.cat([context, mask_tokens], dim=1)
        x = x + (self.image_embedding if modality is Modality.IMAGE else self.video_embedding)
        ids = torch.cat([mask.context, mask.target], dim=1)
        rope_grid = self.config.rope_grid if size.rescale_rope else None
        table = rotary_table(ids, grid, size.width // size.heads, rope_grid)
        # 7. The multi-level predictor and its two heads.
        for block in self.blocks:
            x = run_block(block, x, table, self.recompute_activations)
        x = self.norm(x)
        visible, masked = x.split([context.shape[1], Kt], dim=1)
        return self.target_head(masked), self.context_head(visible)
