"""The executable specification: the eight steps in the plainest PyTorch, no fusion and no tricks.

The package computes the same numbers faster; tests compare the two, and benchmarks time them side by side. Modules are
named as in the released checkpoints, so that those load without any mapping. Shapes: B clips, (T', H', W') the token
grid of N tokens, K visible ones, D width, L levels.
"""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.grid import Grid, Mask, Modality

NORM_EPS = 1e-6


# 2. Say where.


def rotary_angles(ids: Tensor, grid: Grid, head_dim: int, rope_grid: int | None) -> Tensor:
    """Angles (B, 1, K, head_dim) of tokens `ids` (B, K); both members of an interleaved pair of channels share one."""
    part = 2 * (head_dim // 3 // 2)
    frame = grid.h * grid.w
    rows = cols = 1.0
    if rope_grid is not None:
        rows, cols = (rope_grid - 1) / max(grid.h - 1, 1), (rope_grid - 1) / max(grid.w - 1, 1)
    positions = ids // frame, ids % frame // grid.w * rows, ids % grid.w * cols
    frequencies = 10000.0 ** (-torch.arange(part // 2, device=ids.device) / max(part // 2, 1))
    angles = torch.cat([position[..., None] * frequencies for position in positions], dim=-1)
    return F.pad(angles.repeat_interleave(2, dim=-1), (0, head_dim - 3 * part))[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of x (B, heads, K, head_dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


# The transformer block of encoder and predictor.


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


def init_weights(module: nn.Module, blocks: nn.ModuleList) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    for i, block in enumerate(blocks, start=1):
        block.attn.proj.weight.data /= math.sqrt(2 * i)
        block.mlp.fc2.weight.data /= math.sqrt(2 * i)


class Encoder(nn.Module):
    """1. Tokenize, 2. say where and what, 4. encode: pixels (B, C, T, H, W) to L levels (B, K, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        p, t, D = config.patch_size, config.tubelet_size, config.width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(config.channels, D, (t, p, p), (t, p, p))})
        self.patch_embed_img = nn.ModuleDict({"proj": nn.Conv3d(config.channels, D, (1, p, p), (1, p, p))})
        self.video_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, D))
        self.img_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, D))
        self.blocks = nn.ModuleList(Block(D, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norms_block = nn.ModuleList(nn.LayerNorm(D, eps=NORM_EPS) for _ in config.levels)
        init_weights(self, self.blocks)

    def grid(self, pixels: Tensor) -> Grid:
        return self.config.grid(*pixels.shape[2:])

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> list[Tensor]:
        grid = self.grid(pixels)
        if grid_is_image(pixels):
            x = self.patch_embed_img["proj"](pixels).flatten(2).transpose(1, 2) + self.img_mod_embed
        else:
            x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2) + self.video_mod_embed
        if ids is None:
            ids = torch.arange(grid.tokens, device=pixels.device)[None]
        else:
            x = gather(x, ids)
        angles = rotary_angles(ids, grid, self.config.width // self.config.heads, self.config.rope_grid)
        cos, sin = angles.cos(), angles.sin()
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if i in self.config.levels:
                levels.append(self.norms_block[self.config.levels.index(i)](x))
        return levels[-self.config.num_output_levels :]


def grid_is_image(pixels: Tensor) -> bool:
    return pixels.shape[2] == 1


def gather(x: Tensor, ids: Tensor) -> Tensor:
    """Tokens `ids` (B, K) of x (B, N, D)."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


class Predictor(nn.Module):
    """5. Fuse the levels, 6. add mask tokens, 7. predict: (B, Kt, L·D) at targets, (B, Kc, L·D) at the context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, L, D = config.predictor, config.num_output_levels, config.width
        fuse = [nn.Linear(L * D, D), nn.GELU(), nn.Linear(D, size.width)]
        self.predictor_embed = nn.Linear(D, size.width) if L == 1 else nn.Sequential(*fuse)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, size.width) for _ in range(size.mask_tokens))
        self.video_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, size.width))
        self.img_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, size.width))
        blocks = [Block(size.width, size.heads, size.mlp_ratio) for _ in range(size.depth)]
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(size.width, config.prediction_width)
        self.predictor_proj_context = nn.Linear(size.width, config.prediction_width)
        init_weights(self, self.predictor_blocks)

    def forward(
        self, levels: list[Tensor], mask: Mask, grid: Grid, modality: Modality, mask_token: int = 0
    ) -> tuple[Tensor, Tensor]:
        context = self.predictor_embed(torch.cat(levels, dim=-1))
        hidden = self.mask_tokens[mask_token].to(context.dtype).expand(*mask.target.shape, -1)
        ids = torch.cat([mask.context, mask.target], dim=1)
        order = ids.argsort(dim=1)  # the sequence is in grid order
        x = gather(torch.cat([context, hidden], dim=1), order)
        x = x + (self.img_mod_embed if modality is Modality.IMAGE else self.video_mod_embed)
        size = self.config.predictor
        rope_grid = self.config.rope_grid if size.rescale_rope else None
        angles = rotary_angles(ids.gather(1, order), grid, size.width // size.heads, rope_grid)
        cos, sin = angles.cos(), angles.sin()
        for block in self.predictor_blocks:
            x = block(x, cos, sin)
        x = gather(self.predictor_norm(x), order.argsort(dim=1))
        seen, masked = x.split([mask.context.shape[1], mask.target.shape[1]], dim=1)
        return self.predictor_proj(masked), self.predictor_proj_context(seen)


# 8. Targets and loss.


def normalize_targets(levels: list[Tensor]) -> Tensor:
    """Each level's tokens brought to mean 0 and variance 1: (B, N, L·D)."""
    return torch.cat([F.layer_norm(level.float(), level.shape[-1:]) for level in levels], dim=-1)


def target_distance(mask: Mask, grid: Grid) -> Tensor:
    """(B, Kc) distance in the grid from each context token to the nearest target token."""
    frame = grid.h * grid.w
    context, target = (
        torch.stack([ids // frame, ids % frame // grid.w, ids % grid.w], dim=-1).float()
        for ids in (mask.context, mask.target)
    )
    return torch.cdist(context, target).amin(dim=-1)


class System(nn.Module):
    """Student, predictor and teacher."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.student = Encoder(config)
        self.predictor = Predictor(config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, pixels: Tensor, masks: list[Mask], context_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Total, prediction and context loss, averaged over masks."""
        grid = self.student.grid(pixels)
        modality = Modality.IMAGE if grid_is_image(pixels) else Modality.VIDEO
        with torch.no_grad():
            targets = normalize_targets(self.teacher(pixels))
        prediction = context = torch.zeros((), device=pixels.device)
        for mask in masks:
            predicted, reconstructed = self.predictor(self.student(pixels, mask.context), mask, grid, modality)
            error = (predicted - gather(targets, mask.target)).abs().mean()
            context_error = (reconstructed - gather(targets, mask.context)).abs().mean(dim=-1)
            prediction = prediction + error / len(masks)
            context = context + (context_error / target_distance(mask, grid).sqrt()).mean() / len(masks)
        return prediction + context_weight * context, prediction, context

    def update_teacher(self, momentum: float) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)


def optimizer(
    system: System, lr: float, weight_decay: float = 0.04, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    trained = [*system.student.parameters(), *system.predictor.parameters()]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


# Checkpoints in the released layout.

PREFIX = "module.backbone."


def load(system: System, path: Path, teacher: str) -> None:
    """Read a released checkpoint; `teacher` is the key of its teacher."""
    file = torch.load(path, map_location="cpu", weights_only=True)
    for part, key in ((system.student, "encoder"), (system.predictor, "predictor"), (system.teacher, teacher)):
        part.load_state_dict({name.removeprefix(PREFIX): value for name, value in file[key].items()})


def save(system: System, path: Path) -> None:
    """Write a checkpoint in the released layout."""
    parts = {"encoder": system.student, "predictor": system.predictor, "target_encoder": system.teacher}
    torch.save({key: {PREFIX + n: v for n, v in part.state_dict().items()} for key, part in parts.items()}, path)
