"""The data of one optimizer step: batches of clips or images, and media files in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tubelet.errors import BadFile
from tubelet.grid import Mask, Modality

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MediaBytes:
    """A media file in memory.

    Attributes:
        name: name of the file in error messages.
        data: contents of the file.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Batch:
    """Samples of one modality and their masks.

    Attributes:
        modality: the tokenizer that they go through.
        pixels: (B, C, T, H, W) uint8 colors, or normalized floats; T = 1 for images.
        masks: masks of the samples; the losses are averaged over them.
        weight: fraction of the step's samples in this batch; the weights of a step sum to 1 over all ranks.
    """

    modality: Modality
    pixels: Tensor
    masks: list[Mask]
    weight: float

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, so that copies to a CUDA device overlap with work."""
        masks = [Mask(m.context.pin_memory(), m.target.pin_memory()) for m in self.masks]
        return Batch(self.modality, self.pixels.pin_memory(), masks, self.weight)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        masks = [mask.to(device) for mask in self.masks]
        return Batch(self.modality, self.pixels.to(device, non_blocking=True), masks, self.weight)


@dataclass(frozen=True)
class StepData:
    """The data of one optimizer step.

    Attributes:
        batches: one batch per modality, or several with gradient accumulation.
        bad: files that could not be read for this step, and were replaced by others.
        short_clips: number of clips whose video was shorter than frames / fps and was sampled at a higher rate.
        failure: reason why the step has no data, or None; `batches` is then empty.
        seconds: time that one process took to make it.
    """

    batches: list[Batch]
    bad: list[BadFile]
    short_clips: int = 0
    failure: str | None = None
    seconds: float = 0.0

    def pin_memory(self) -> StepData:
        """The same data in page-locked memory."""
        return replace(self, batches=[b.pin_memory() for b in self.batches])
