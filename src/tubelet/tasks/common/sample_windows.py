"""Whole clips of a sample set, beside their true tracks and motion.

A clip is longer than what a model was trained at, so it is encoded in windows, end to end: each frame belongs to one
time step, and no feature has seen more frames than the model is used to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import normalise, resize_centre_crop, resize_shape
from tubelet.data.decode import read_frames
from tubelet.model.encoder import Encoder
from tubelet.sample_data.truth import SampleEntry, read_truth
from tubelet.tasks.common.correspondence import StepTracks, step_tracks
from tubelet.tasks.common.frozen import check_truth, frozen_features


def cut_windows(frames: Tensor, window: int, size: int) -> Tensor:
    """The middle of a clip (T, H, W, 3) in as many whole windows as it has: (windows, 3, window, size, size) uint8."""
    count = len(frames) // window
    first = (len(frames) - count * window) // 2
    pixels = resize_centre_crop(frames[first : first + count * window], size)
    return pixels.unflatten(1, (count, window)).transpose(0, 1).contiguous()


def cut_tracks(
    tracks: NDArray, visible: NDArray, shape: tuple[int, int], window: int, size: int
) -> tuple[Tensor, Tensor]:
    """The tracks of the pixels that `cut_windows` keeps.

    Args:
        tracks: (P, T, 2) x, y in pixels of the frames.
        visible: (P, T) bool.
        shape: H, W of the frames.
        window: frames.
        size: pixels.

    Returns:
        (P, windows · window, 2) float32 x, y in pixels of the view, and whether each is visible in it.
    """
    count = tracks.shape[1] // window
    first = (tracks.shape[1] - count * window) // 2
    middle = slice(first, first + count * window)
    height, width = resize_shape(*shape, size)
    scale = torch.tensor([width / shape[1], height / shape[0]])
    margin = torch.tensor([(width - size) // 2, (height - size) // 2])
    places = torch.from_numpy(tracks[:, middle]) * scale - margin
    return places, torch.from_numpy(visible[:, middle]) & ((places >= 0) & (places < size)).all(-1)


@dataclass(frozen=True)
class WholeClip:
    """A clip of S time steps, on the CPU.

    Attributes:
        maps: kind of feature -> (S, H', W', D) float32.
        tracks: of its points.
        motion: index of the camera's motion.
    """

    maps: dict[str, Tensor]
    tracks: StepTracks
    motion: int


def whole_clips(
    entries: Sequence[SampleEntry], encoders: Mapping[str, Encoder], window: int, size: int
) -> Iterator[WholeClip]:
    """Features of whole clips, one after the other.

    Args:
        entries: the clips.
        encoders: kind of feature -> encoder; all of the same configuration and on the same device.
        window: frames that an encoder sees at once.
        size: pixels along the side of the view.

    Raises:
        TubeletError: a clip or its truth cannot be read, they do not fit together, or the clip is shorter than one
            window.
    """
    first = next(iter(encoders.values()))
    grid, device = first.config.grid(window, size, size), first.tokenizer.video.weight.device
    for entry in entries:
        frames, truth = read_frames(entry.media).pixels, read_truth(entry.truth)
        check_truth(entry, frames, truth, window)
        pixels = normalise(cut_windows(frames, window, size).to(device))
        features = frozen_features(encoders, pixels, grid)
        places, visible = cut_tracks(truth.tracks, truth.visible, truth.classes.shape[1:], window, size)
        yield WholeClip(
            {kind: x.view(-1, grid.h, grid.w, x.shape[-1]) for kind, x in features.items()},
            step_tracks(places, visible, window // grid.t, first.config.patch_size),
            truth.motion,
        )
