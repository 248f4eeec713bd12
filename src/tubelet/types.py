"""Shapes and units that every room of the house shares.

Shape legend, used in all docstrings: B clips in a batch, C channels, T frames, H x W pixels, (T', H', W') the token
grid, N = T'·H'·W' tokens, K tokens of an index list, D width, L levels.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    import torch
    from torch import Tensor


class Modality(StrEnum):
    """Which tokenizer an input goes through."""

    VIDEO = "video"
    IMAGE = "image"


class Grid(NamedTuple):
    """The token grid (T', H', W'): time steps, rows, columns. Tokens are numbered in (t, h, w) order."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        return self.t * self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T', H', W')."""
        return (self.t, self.h, self.w)

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class Mask:
    """One mask of a batch: which tokens the student sees and which it must predict.

    Attributes:
        context: (B, Kc) int64 token indices that the student sees, sorted.
        target: (B, Kt) int64 token indices that it must predict, sorted.
    """

    context: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return Mask(self.context.to(device, non_blocking=True), self.target.to(device, non_blocking=True))


def printable(name: str) -> str:
    """A file's name as text that can be stored: bytes of it that are not UTF-8 become escapes (\\udcff).

    To show a name, use `visible`.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str, keep: str = "") -> str:
    """Text that names files, safe to show: characters that control a terminal or a page become escapes.

    These are control characters (ESC, line feeds), format characters (right-to-left marks, zero-width spaces), line and
    paragraph separators, and surrogates, which stand for bytes that are not UTF-8. The result is shown as it is.

    Args:
        text: any string.
        keep: characters that are left as they are, such as line feeds in a page.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text
    )


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return visible(f"{self.path}: {self.reason}")


@dataclass(frozen=True)
class Blob:
    """A media file that is in memory.

    Attributes:
        name: what errors call it.
        data: its bytes.
    """

    name: str
    data: bytes


class TubeletError(Exception):
    """An error that a person can act on: one sentence that names the file or field, what was expected, what to do.

    What it names may come from a file: line feeds and codes that steer a terminal are shown as escapes.

    Attributes:
        told: whether the person has been told, by this process or by another one of the same run.
    """

    told = False

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


def one_line(error: Exception) -> str:
    """What a library's error says, as a part of a sentence; its class where it says nothing."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


class DecodeError(TubeletError):
    """A media file that cannot be decoded.

    Attributes:
        path: the file, or the name of a `Blob`.
        reason: why, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Exceptions cross process borders by pickle, which calls the class with its message alone unless told.
        return (DecodeError, (self.path, self.reason))


@dataclass(frozen=True)
class Batch:
    """Samples of one modality, and what is hidden of them.

    Attributes:
        modality: which tokenizer they go through.
        pixels: (B, 3, T, H, W) uint8, T = 1 for images.
        masks: the masks drawn for them; the losses are averaged over them.
        weight: these samples' share of their step's; the weights of a step sum to 1 over all processes.
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
    """All that one optimiser step works on.

    Attributes:
        batches: one of each modality, or several where the step is accumulated in parts.
        bad: files that could not be read while the step was made, and were replaced by others.
        short_clips: clips whose video was shorter than frames / fps and was read at a higher rate.
        failure: why the step could not be made, if it could not; `batches` is then empty.
    """

    batches: list[Batch]
    bad: list[BadFile]
    short_clips: int = 0
    failure: str | None = None

    def pin_memory(self) -> StepData:
        """The same data in page-locked memory."""
        return StepData([b.pin_memory() for b in self.batches], self.bad, self.short_clips, self.failure)
