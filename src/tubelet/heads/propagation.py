"""Labels propagated from frame to frame by the similarity of tokens, without training.

h x w tokens of a frame, D width, C frames of context, M labels (the background and the objects).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_AFFINITIES = 32 * 2**20  # in memory at once, in float32


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Settings of label propagation.

    The values are those of DINOv3 (Siméoni et al. 2025, arXiv 2508.10104; its notebook on segmentation tracking), after
    DINO (Caron et al. 2021), whose bilinear interpolation from tokens to pixels is used here, and Jabri et al. 2020.

    Attributes:
        context: number of the latest frames whose labels are propagated, besides the frames with reference masks.
        neighbors: number k of the most similar tokens of the whole context that vote.
        radius: tokens; those farther away along rows and columns (a disk) do not.
        temperature: of the softmax over the votes' cosines.
    """

    context: int = 7
    neighbors: int = 5
    radius: int = 12
    temperature: float = 0.2


def propagate(
    current: Tensor, context: Tensor, labels: Tensor, settings: Propagation, top_k: int = _AFFINITIES
) -> Tensor:
    """The label shares of a frame's tokens from those of its context.

    Args:
        current: (h, w, D) unit vectors.
        context: (C, h, w, D) unit vectors.
        labels: (C, h, w, M) shares that sum to 1.
        settings: the settings.
        top_k: largest number of affinities in memory; a frame is processed in strips of rows.

    Returns:
        (h, w, M) shares that sum to 1.
    """
    C, h, w, D = context.shape
    r = settings.radius
    rows_at_once = max(1, min(h, top_k // (w * C * w * min(h, 2 * r + 1))))
    columns = torch.arange(w, device=current.device)
    across = (columns.unsqueeze(1) - columns).square()
    strips = []
    for first in range(0, h, rows_at_once):
        last = min(h, first + rows_at_once)
        low, high = max(0, first - r), min(h, last + r)
        around = context[:, low:high].reshape(-1, D)
        rows = torch.arange(first, last, device=current.device).unsqueeze(1)
        down = (rows - torch.arange(low, high, device=current.device)).square()
        in_radius = (down[:, None, :, None] + across[None, :, None, :] <= r * r).view((last - first) * w, 1, -1)
        similarity = current[first:last].reshape(-1, D) @ around.T
        similarity = similarity.view(len(in_radius), C, -1).masked_fill_(~in_radius, -torch.inf).flatten(1)
        best, where = similarity.topk(min(settings.neighbors, similarity.shape[1]), dim=1)
        votes = (best / settings.temperature).softmax(1)
        chosen = labels[:, low:high].reshape(-1, labels.shape[-1])[where]
        strips.append((votes.unsqueeze(-1) * chosen).sum(1))
    probs = torch.cat(strips).view(h, w, -1)
    return probs / probs.sum(-1, keepdim=True)


def segment(
    features: Iterator[Tensor],
    given: Mapping[int, Mapping[int, NDArray[np.bool_]]],
    size: tuple[int, int],
    settings: Propagation,
) -> Iterator[NDArray[np.uint8]]:
    """Segment objects through a sequence.

    Args:
        features: (h, w, D) of one frame after the other.
        given: frame -> object -> its reference mask (H, W): the objects that are new there. Frames
            before the first of them are background.
        size: H, W.
        settings: the settings.

    Yields:
        (H, W) numbers of objects, of each frame.
    """
    numbers = sorted({number for masks in given.values() for number in masks})
    reference_frames: list[tuple[Tensor, Tensor]] = []
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.context)
    for frame, tokens in enumerate(features):
        units = F.normalize(tokens.float(), dim=-1)
        new = given.get(frame, {})
        pixels = np.zeros(size, np.uint8)
        probs = _background(units, len(numbers) + 1)
        if reference_frames:
            context = [*reference_frames, *recent]
            probs = propagate(
                units, torch.stack([x for x, _ in context]), torch.stack([y for _, y in context]), settings
            )
            pixels = np.array([0, *numbers], np.uint8)[to_pixels(probs, size).cpu().numpy()]
        for number, mask in new.items():
            pixels[mask] = number
            inside = torch.from_numpy(mask)[None, None].float()
            known = F.interpolate(inside, units.shape[:2], mode="nearest-exact")[0, 0].bool().to(probs.device)
            probs[known] = F.one_hot(torch.tensor(numbers.index(number) + 1), len(numbers) + 1).to(probs)
        if new:
            reference_frames.append((units, probs))
        elif reference_frames:
            recent.append((units, probs))
        yield pixels


def _background(units: Tensor, labels: int) -> Tensor:
    probs = torch.zeros(*units.shape[:2], labels, device=units.device)
    probs[..., 0] = 1
    return probs


def to_pixels(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w, M) shares -> (H, W) the most likely label, each label's map first stretched to 0..1 over the frame."""
    maps = F.interpolate(shares.permute(2, 0, 1).unsqueeze(0), size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-12)).argmax(0)
