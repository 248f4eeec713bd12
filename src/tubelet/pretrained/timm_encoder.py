"""The encoder behind the interface that heads for the vision transformers of `timm` expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD
from tubelet.errors import ConfigError, DataError
from tubelet.model.encoder import Encoder

_LARGEST_NORMALIZED = 16  # far above the largest normalized color


class TimmEncoder(Encoder):
    """An encoder with `forward_features`, `forward_intermediates` and the attributes around them.

    Features have the data type of the weights, as those of any `nn.Module`; only `encode` and `stream` always return
    float32.
    """

    num_prefix_tokens = 0
    num_classes = 0

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.tokenizer.video.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.tokenizer.video.weight.dtype

    @property
    def embed_dim(self) -> int:
        """D, under timm's name."""
        return self.config.width

    @property
    def num_features(self) -> int:
        """D, under timm's other name."""
        return self.config.width

    @property
    def patch_size(self) -> int:
        """Pixels along a patch's side."""
        return self.config.patch_size

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Normalization of colors from 0 to 1, (x - mean) / std per channel, in timm's format.

        Of a model with statistics of its own, 0 and 1 are the ends of `config.pixels.window`.
        """
        pixels = self.config.pixels
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if pixels is None else (pixels.mean, pixels.std)
        return {"mean": mean, "std": std, "interpolation": "bilinear"}

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Module, channels and reduction of each block, in timm's format."""
        sizes = {"num_chs": self.embed_dim, "reduction": self.patch_size}
        return [{"module": f"blocks.{i}"} | sizes for i in range(self.config.depth)]

    def forward(self, pixels: Tensor | Sequence[Tensor], ids: Tensor | Sequence[Tensor] | None = None) -> list[Tensor]:
        """Features of all output levels, differentiable.

        Args:
            pixels: normalized pixels (B, C, H, W) or (B, C, T, H, W), floats of any precision; they are cast to the
                data type of the weights. Or a sequence of such batches.
            ids: (B, K) indices of the tokens to encode, or None for all N; or a sequence, one for each batch.

        Returns:
            L tensors (B, K, D), or (1, ΣB·K, D) packed for several batches, shallow to deep, each after its own
            LayerNorm, in the data type of the weights: bfloat16 by default where the device supports it natively,
            float32 after `tubelet.load(..., dtype=torch.float32)`.

        Raises:
            DataError: if pixels are integers, or (on CPUs) floats from 0 to 255.
        """
        if isinstance(pixels, Tensor):
            return super().forward(self._as_clip(pixels), ids)
        return super().forward([self._as_clip(batch) for batch in pixels], ids)

    def forward_features(self, x: Tensor) -> Tensor:
        """Final features, differentiable.

        Args:
            x: normalized pixels (B, C, H, W) or (B, C, T, H, W), as for `forward`.

        Returns:
            (B, N, D) in the data type of the weights, as of `forward`.

        Raises:
            DataError: if pixels are integers, or (on CPUs) floats from 0 to 255.
        """
        return self.norms[-1](self.get_intermediate_layers(self._as_clip(x), [self.config.depth - 1])[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of selected blocks, in the formats of timm's vision transformers.

        Args:
            x: normalized pixels (B, C, H, W) or (B, C, T, H, W), as for `forward`.
            indices: block numbers, negative from the end; a number n selects the last n blocks, None all. The result is
                ordered from shallow to deep, without repetitions.
            return_prefix_tokens: accepted, but there are none.
            norm: apply LayerNorm: an output level's own norm, for other blocks the last one.
            stop_early: accepted; blocks after the last requested one are never computed.
            output_fmt: "NCHW", which is (B, D, H', W') for images and (B, D, T', H', W') for clips, or "NLC" (B, N, D).
            intermediates_only: omit the final features.
            output_dict: return a dictionary of `image_intermediates` and `image_features` instead.

        Returns:
            the list of intermediates, or the pair (final features (B, N, D), intermediates), or that as a dictionary,
            all in the data type of the weights.

        Raises:
            ConfigError: if a block does not exist, or the format is unknown.
            DataError: if pixels are integers, or (on CPUs) floats from 0 to 255.
        """
        depth = self.config.depth
        requested = range(depth) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        blocks = sorted({int(i) + depth if i < 0 else int(i) for i in requested})
        if output_fmt not in ("NCHW", "NLC") or not blocks or not all(0 <= i < depth for i in blocks):
            raise ConfigError(
                f"blocks {indices} as {output_fmt!r}: expected some of 0..{depth - 1}, as 'NCHW' or 'NLC'"
            )
        clip = self._as_clip(x)
        numbers = sorted({*blocks} if intermediates_only else {*blocks, depth - 1})
        outputs = dict(zip(numbers, self.get_intermediate_layers(clip, numbers), strict=True))
        intermediates = [self._norm_of(i)(outputs[i]) if norm else outputs[i] for i in blocks]
        if output_fmt == "NCHW":
            grid = self.tokenizer.grid(clip).shape if x.dim() == 5 else self.tokenizer.grid(clip).shape[1:]
            intermediates = [y.mT.unflatten(2, grid).contiguous() for y in intermediates]
        if intermediates_only:
            return {"image_intermediates": intermediates} if output_dict else intermediates
        final = self.norms[-1](outputs[depth - 1])
        return (
            {"image_intermediates": intermediates, "image_features": final} if output_dict else (final, intermediates)
        )

    def _norm_of(self, block: int) -> nn.Module:
        return self.norms[self.config.levels.index(block) if block in self.config.levels else -1]

    def _as_clip(self, x: Tensor) -> Tensor:
        """Normalized pixels (B, C, H, W) or (B, C, T, H, W) as clips in the data type of the weights.

        Raises:
            DataError: they are integers, or floats from 0 to 255, which are not normalized.
        """
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise DataError(f"pixels are {kind}, expected normalized floats; model.encode takes colors of uint8")
        # On other devices a look at the values would wait for them at every training step, and compilers cannot.
        if x.device.type == "cpu" and self.config.pixels is None and not torch.compiler.is_compiling():
            _check_normalized(x.detach())
        return (x.unsqueeze(2) if x.dim() == 4 else x).to(self.dtype)


def _check_normalized(x: Tensor) -> None:
    """Raise a `DataError` for colors from 0 to 255; normalized ones end at 2.7, those of other conventions nearby."""
    if type(x) is not Tensor or not x.numel():  # fake tensors, for example, have no values
        return
    low, high = (value.item() for value in x.aminmax())
    if low >= 0 and _LARGEST_NORMALIZED < high <= 255:
        raise DataError(
            f"pixels are floats from {low:.4g} to {high:.4g}, expected normalized floats, (x / 255 - mean) / std with "
            "the values of model.pretrained_cfg; model.encode takes colors of uint8"
        )
