"""The multi-level predictor (docs/system.md, steps 5, 6 and 7)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.errors import DataError
from tubelet.grid import MaskedGrid, Modality
from tubelet.model.layers import NORM_EPS, Block, init_weights, random_vector, run_block
from tubelet.model.packing import pack, unpack
from tubelet.model.rope import RotaryTable, rotary_table


class Fusion(nn.Sequential):
    """Fuse concatenated levels: Linear L·D -> D, GELU, Linear D -> P; a single level is only projected to P."""

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
        self.video_embedding = random_vector(size.width)
        self.image_embedding = random_vector(size.width)
        blocks = [Block(size.width, size.heads, size.mlp_ratio) for _ in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.target_head = nn.Linear(size.width, config.prediction_width)
        self.context_head = nn.Linear(size.width, config.prediction_width)
        init_weights(self, blocks)

    def forward(
        self, levels: list[Tensor], masked: Sequence[MaskedGrid], mask_token: int = 0
    ) -> list[tuple[Tensor, Tensor]]:
        """Predict the teacher's levels at target and context tokens.

        Args:
            levels: L tensors (1, ΣB·Kc, D), packed: the student's levels at the context tokens of all batches. For a
                single batch also (B, Kc, D).
            masked: mask and grid of each batch.
            mask_token: index of the learnable mask token to use.

        Returns:
            for each batch predictions (B, Kt, L·D) at the target tokens and (B, Kc, L·D) at the context tokens.

        Raises:
            TubeletError: if the levels do not match the masks or the model.
        """
        size, expected = self.config.predictor, self.config.num_output_levels
        contexts = tuple((each.mask.context.shape[0], each.mask.context.shape[1]) for each in masked)
        if len(levels) != expected or levels[0].shape[:2].numel() != sum(B * K for B, K in contexts):
            raise DataError(
                f"the predictor got {len(levels)} levels of shape {tuple(levels[0].shape)}, expected {expected} of "
                f"(clips, context tokens) = {', '.join(map(str, contexts))}"
            )
        # 5. Multi-level fusion.
        context = self.fusion(torch.cat(levels, dim=-1))
        context = context.view(1, -1, context.shape[-1])
        # 6. Mask tokens at their positions. Attention does not depend on the order of its sequence: positions are only
        # encoded in the rotary angles, so context and mask tokens need not be interleaved into grid order and back.
        parts = zip(unpack(context, contexts), masked, strict=True)
        sequences = [self._add_mask_tokens(x, each, mask_token) for x, each in parts]
        segments = tuple((x.shape[0], x.shape[1]) for x in sequences)
        rope_grid, head_dim = self.config.rope_grid if size.rescale_rope else None, size.width // size.heads
        ids = [torch.cat([each.mask.context, each.mask.target], dim=1) for each in masked]
        tables = [
            rotary_table(token_ids, each.grid, head_dim, rope_grid) for token_ids, each in zip(ids, masked, strict=True)
        ]
        x, table = pack(sequences), RotaryTable.packed(tables, segments)
        # 7. The multi-level predictor and its two heads.
        for block in self.blocks:
            x = run_block(block, x, table, self.recompute_activations)
        predictions = []
        for part, (_, Kc) in zip(unpack(self.norm(x), segments), contexts, strict=True):
            visible, hidden = part.split([Kc, part.shape[1] - Kc], dim=1)
            predictions.append((self.target_head(hidden), self.context_head(visible)))
        return predictions

    def _add_mask_tokens(self, context: Tensor, masked: MaskedGrid, mask_token: int) -> Tensor:
        """(B, Kc, P) -> (B, Kc + Kt, P)."""
        B, Kt = masked.mask.target.shape
        mask_tokens = self.mask_tokens[mask_token].to(context.dtype).expand(B, Kt, -1)
        embedding = self.image_embedding if masked.modality is Modality.IMAGE else self.video_embedding
        return torch.cat([context, mask_tokens], dim=1) + embedding
