"""What the scripts of the explain page draw from: one input's tokens under every draw of its masks.

Arrays travel as base64, little-endian and in C order. All colors of a level are of one basis, that of the teacher's
tokens: the same color means the same in the teacher, the student, a prediction, and a network between the two.
"""

import base64
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import to_colors
from tubelet.grid import Modality
from tubelet.model.rope import axis_size
from tubelet.objective import normalize_targets
from tubelet.view.input_trace import MaskTrace, Trace
from tubelet.view.page import TARGET_RGBA, data_uri
from tubelet.view.pca import Projection, fit_projection

HEAT = {"loss": "magma", "weight": "viridis"}


def scene_data(trace: Trace) -> dict[str, Any]:
    """Frames, positions, features and errors of a trace, ready for JSON.

    N tokens, L levels. "u8" arrays of colors are (L, N, 3); errors and weights are "f32".
    """
    config, grid = trace.model.config, trace.grid
    colors = to_colors(trace.source.pixels, config.pixels)
    bases = [fit_projection(level) for level in _levels(trace, trace.targets)]
    fused = fit_projection(torch.cat([mask.fused[0] for draw in trace.draws for mask in draw.masks]))
    head_dim = config.width // config.heads
    reach = config.rope_grid if config.rope == "2.1" else None
    scales = [1.0 if reach is None else (reach - 1) / max(size - 1, 1) for size in (grid.h, grid.w)]
    return {
        "grid": list(grid.shape),
        "patch": config.patch_size,
        "frames_per_step": trace.source.pixels.shape[1] // grid.t,
        "frames": [data_uri(frame.permute(1, 2, 0).numpy(), "jpeg") for frame in colors.unbind(1)],
        "times": [float(time) for time in trace.source.times],
        "image": trace.modality is Modality.IMAGE,
        "pairs": axis_size(head_dim) // 2,
        "scales": [1.0, *scales],
        "width": trace.tokens.shape[-1],
        "context_weight": trace.context_weight,
        "distance_weighting": trace.model.distance_weighting,
        "chosen": _contrasting_token(trace),
        "colors": {"target": TARGET_RGBA},
        "heat": {use: _encode(matplotlib.colormaps[name](range(256), bytes=True)[:, :3]) for use, name in HEAT.items()},
        "level_blocks": [i + 1 for i in config.levels[-len(bases) :]],
        "teacher": _colors(trace, trace.targets, bases),
        "blends": [
            {"momentum": blend.momentum, "colors": _colors(trace, blend.targets, bases)} for blend in trace.blends
        ],
        "draws": [
            {"name": draw.name, "masks": [_mask_data(trace, mask, bases, fused) for mask in draw.masks]}
            for draw in trace.draws
        ],
    }


def _mask_data(trace: Trace, mask: MaskTrace, bases: list[Projection], fused: Projection) -> dict[str, Any]:
    context, target = mask.mask.context[0], mask.mask.target[0]
    hidden = torch.zeros(trace.grid.tokens, dtype=torch.uint8)
    hidden[target] = 1
    data: dict[str, Any] = {
        "blocks": mask.spec.blocks,
        "shape": list(mask.block),
        "hidden": _encode(hidden.numpy()),
        "weights": _encode(_on_grid(trace, (context, mask.counts[0])).numpy()),
        "student": _colors(trace, _on_grid(trace, (context, normalize_targets(mask.levels)[0])), bases),
        "fused": _encode(fused.colors(_on_grid(trace, (context, mask.fused[0]))).numpy()),
    }
    if mask.losses is not None:
        predicted = _on_grid(trace, (context, mask.reconstructed[0]), (target, mask.predicted[0]))
        errors = (predicted - trace.targets[0]).abs()
        data |= {
            "predicted": _colors(trace, predicted, bases),
            "errors": _encode(torch.stack([level.mean(-1) for level in _levels(trace, errors)]).numpy()),
            "losses": [float(part) for part in (mask.losses.prediction, mask.losses.context)],
        }
    return data


def _levels(trace: Trace, tokens: Tensor) -> list[Tensor]:
    """(N, L·D) or (1, N, L·D) -> L tensors (N, D)."""
    return list(tokens.view(trace.grid.tokens, -1).split(trace.level_width, dim=-1))


def _colors(trace: Trace, tokens: Tensor, bases: list[Projection]) -> str:
    pairs = zip(bases, _levels(trace, tokens), strict=True)
    return _encode(torch.stack([basis.colors(level) for basis, level in pairs]).numpy())


def _on_grid(trace: Trace, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of indices (K,) and values (K, ...) at their places among all N tokens, 0 elsewhere; fp32."""
    values = torch.zeros(trace.grid.tokens, *parts[0][1].shape[1:])
    for ids, part in parts:
        values[ids] = part.float()
    return values


def _encode(array: NDArray[Any]) -> str:
    kind = np.dtype("u1") if array.dtype == np.uint8 else np.dtype("<f4")
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def _contrasting_token(trace: Trace) -> int:
    """The token with the most contrast halfway through the clip."""
    grid, p = trace.grid, trace.model.config.patch_size
    t = grid.t // 2
    frame = trace.source.pixels[:, t * (trace.source.pixels.shape[1] // grid.t)].float()
    contrast = frame.view(-1, grid.h, p, grid.w, p).std(dim=(2, 4)).mean(0)
    return t * grid.h * grid.w + int(contrast.argmax())
