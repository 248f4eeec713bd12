"""Preprocessing inside an exported graph: uint8 frames of any size to the pixels of an encoder.

B clips of T frames of H x W pixels; S is the side of the crop in pixels.
"""

import torch
from torch import Tensor, nn

from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD


class FramePreprocessing(nn.Module):
    """Resizes, crops and normalizes frames like the functions of `tubelet.data.clips`.

    The short side is resized to `resize` by antialiased bilinear interpolation, rounded to whole colors, then the frame
    is cropped. Interpolation is a product with weights, so that every runtime computes the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, resize: int | None = None, views: int = 1) -> None:
        """Create the module.

        Args:
            size: S.
            resize: length of the resized short side; None is `size`.
            views: V, squares along the long side; one is the center.
        """
        super().__init__()
        self.size, self.resize = size, resize or size
        self.crop_positions: list[float | None] = [k / (views - 1) for k in range(views)] if views > 1 else [None]
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (V * B, 3, T, S, S) normalized float32, view by view."""
        crops = [self.crop(frames.flatten(0, 1), place).unflatten(0, frames.shape[:2]) for place in self.crop_positions]
        return (torch.cat(crops).permute(0, 4, 1, 2, 3) - self.mean) / self.std

    def crop(self, frames: Tensor, place: float | None = None) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, S, S, 3) float32 with whole numbers from 0 to 255.

        Args:
            frames: the frames.
            place: fraction of the way from one end of the long side to the other; None is the center.
        """
        colors = frames.float()
        # Sizes as tensors: in the graph they are those of the input.
        height, width = torch.ones_like(colors[0, :, 0, 0]).sum(), torch.ones_like(colors[0, 0, :, 0]).sum()
        short = torch.minimum(height, width)
        across = self._weights(colors[0, 0, :, 0], width, short, place)
        along = self._weights(colors[0, :, 0, 0], height, short, place)
        # The uint8 kernel of PyTorch rounds after each direction, halves upward.
        colors = torch.einsum("sw,thwc->thsc", across, colors).add(0.5).floor().clamp(0, 255)
        return torch.einsum("sh,thwc->tswc", along, colors).add(0.5).floor().clamp(0, 255)

    def _weights(self, line: Tensor, length: Tensor, short: Tensor, place: float | None) -> Tensor:
        """(S, length) weights of the source pixels of a direction for each pixel of the crop.

        Args:
            line: (length,) any pixels of the direction.
            length: their number.
            short: length of the short side.
            place: see `crop`.
        """
        resized = torch.clamp((length * self.resize / short).round(), min=self.resize)
        room = resized - self.size
        first = torch.floor(room / 2) if place is None else torch.round(room * place)
        scale = length / resized
        centers = (torch.arange(self.size, device=line.device) + first + 0.5) * scale
        positions = torch.cumsum(torch.ones_like(line), 0) - 0.5
        distances = (positions[None] - centers[:, None]).abs() / torch.clamp(scale, min=1.0)
        weights = torch.clamp(1 - distances, min=0.0)
        return weights / weights.sum(1, keepdim=True)
