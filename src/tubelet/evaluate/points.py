"""True point tracks of sample clips beside the features of the whole clip, for matching by likeness.

A clip is longer than what a model was trained at, so it is encoded in windows, end to end: each frame belongs to one
time step, and no feature has seen more frames than the model is used to.
"""

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import normalise, resize_centre_crop, resize_shape
from tubelet.data.decode import read_frames
from tubelet.data.sample.truth import SampleEntry, read_truth
from tubelet.evaluate.correspondence import Pairs, join, measure, step_tracks
from tubelet.evaluate.features import FEATURES, frozen_features
from tubelet.model.encoder import Encoder
from tubelet.types import TubeletError


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


def read_tracked(entry: SampleEntry, window: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (n, 3, window, size, size) of a sample clip, and the tracks and visibility of its points in them.

    Raises:
        TubeletError: a clip or its truth cannot be read, they do not fit together, or the clip is shorter than one
            window.
    """
    frames, truth = read_frames(entry.media).pixels, read_truth(entry.truth)
    if truth.tracks.shape[1] != len(frames):
        raise TubeletError(
            f"{entry.media}: {len(frames)} frames, but {entry.truth} follows points through {truth.tracks.shape[1]}; "
            "make the sample set anew"
        )
    if len(frames) < window:
        raise TubeletError(f"{entry.media}: {len(frames)} frames, but a window has {window}")
    shape = (frames.shape[1], frames.shape[2])
    return cut_windows(frames, window, size), *cut_tracks(truth.tracks, truth.visible, shape, window, size)


def measure_points(
    entries: Sequence[SampleEntry], encoders: Mapping[str, Encoder], window: int, size: int
) -> dict[str, Pairs]:
    """Follow the points of sample clips by each kind of features.

    Args:
        entries: the clips.
        encoders: kind of feature -> encoder; all of the same configuration and on the same device.
        window: frames that an encoder sees at once.
        size: pixels along the side of the view.

    Returns:
        kind of feature -> pairs of all clips.
    """
    first = next(iter(encoders.values()))
    grid, device = first.config.grid(window, size, size), first.tokenizer.video.weight.device
    found: dict[str, list[Pairs]] = {kind: [] for kind in FEATURES}
    for entry in entries:
        windows, tracks, visible = read_tracked(entry, window, size)
        steps = step_tracks(tracks, visible, window // grid.t, first.config.patch_size)
        for kind, x in frozen_features(encoders, normalise(windows.to(device)), grid).items():
            found[kind].append(measure(x.view(-1, grid.h, grid.w, x.shape[-1]), steps))
    return {kind: join(pairs) for kind, pairs in found.items()}
