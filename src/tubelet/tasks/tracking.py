"""Point tracking by the similarity of tokens, through occlusion, without training."""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.decode import read_frames
from tubelet.datasets import TrackedVideo, TrackingDataset
from tubelet.errors import ConfigError, DataError, DecodeError
from tubelet.grid import Grid
from tubelet.tasks.common.correspondence import (
    MOVED,
    WITHIN,
    WITHIN_PATCHES,
    StepTracks,
    concat_errors,
    moved_accuracy,
    point_errors,
    query_points,
    track_points,
    tracking_accuracy,
    tracks_by_step,
)
from tubelet.tasks.common.drawing import draw_matches, draw_tracks
from tubelet.tasks.common.extract import Source, subsample_evenly
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.sample_clips import crop_tracks, frames_that_fit, temporal_windows
from tubelet.tasks.common.task import EvaluationContext, Task

_EXAMPLES, _POINTS_DRAWN = 12, 12


@dataclass(frozen=True, kw_only=True)
class TrackingProtocol:
    """As in TAP-Vid's "query first" mode (Doersch et al. 2022, arXiv 2211.03726), each step matched by itself.

    Attributes:
        frames: frames of a window; a shorter clip is one window.
    """

    frames: int = 16


PROTOCOL = TrackingProtocol()


def evaluate(context: EvaluationContext) -> Result:
    """Track the points of the test videos.

    Raises:
        TubeletError: if there is no such data set, it does not fit the model, or nothing in it moves.
    """
    model, data, config = context.model, context.data, context.config
    dataset: TrackingDataset = context.dataset
    size = context.native_size(max(dataset.image_size - dataset.image_size % model.patch_size, model.patch_size))
    window = context.native_frames(frames_that_fit(PROTOCOL.frames, dataset.frames, model.config.tubelet_size))
    if window > dataset.frames:
        raise ConfigError(f"frames is {window}, but the clips of {data} have {dataset.frames}")
    grid = model.config.grid(window, size, size)
    videos = subsample_evenly(dataset.test, config.max_samples)
    recipe = {"transform": "whole clip in windows", "size": size, "window": window}
    sources = [Source(files=(video.path,)) for video in videos]
    features = context.extract(
        sources,
        recipe,
        partial(_windows, window=window, size=size),
    )
    clips = [_Clip(dataset, videos[n], window, size, grid, model.patch_size) for n in features.indices]
    pairs, scores = [], []
    for number, clip in enumerate(clips):
        pairs.append(point_errors(clip.maps(features[number]), clip.tracks()))
        value = moved_accuracy(pairs[-1])
        if value is not None:
            scores.append((value, number))
        context.progress("following", number + 1, len(clips))
    joined = concat_errors(pairs)
    shares = tracking_accuracy(joined, (grid.h, grid.w))
    moved = joined.moved > MOVED
    if not moved.any():
        raise DataError(f"{data}: no tracked point moves by more than {MOVED:g} patch of {model.patch_size} pixels")
    worst = sorted(scores)[:_EXAMPLES]
    return context.result(
        benchmark=dataset.name,
        protocol=(
            "Each point is looked for, by the cosine of tokens, at every time step after the first at which it is "
            f"visible: views of {size} px, windows of {window} frames, {grid.t} steps in each. A point has moved if it "
            f"is more than {MOVED:g} patch ({model.patch_size} px) from its first place: staying is then wrong."
        ),
        metrics=_metrics(shares),
        counts={
            "clips": len(clips),
            "points at later steps": len(joined.error),
            "of them moved": int(moved.sum()),
            "of them hidden in between": int((moved & joined.reappeared).sum()),
        },
        skipped=features.bad_files,
        details={"shares": shares, "protocol": asdict(PROTOCOL) | {"image_size": size, "window": window}},
        examples=[_example(clips[number], features[number], value) for value, number in worst],
    )


def _metrics(shares: dict) -> dict[str, Metric]:
    """Fractions of the moved points found within each distance, after occlusion, and by trivial predictions."""

    def percent(which: str, points: str, within: str, better: bool | None = True) -> Metric:
        return Metric(value=100 * shares[which][points][within], unit="%", higher_is_better=better)

    near = f"{WITHIN:g} patch"
    metrics = {f"moved points found within {near}": percent("moved", "found", near)}
    hidden = shares["moved, hidden in between"]
    if hidden["pairs"]:
        metrics[f"the same, after occlusion ({hidden['pairs']:,} cases)"] = percent(
            "moved, hidden in between", "found", near
        )
    metrics["the same by chance"] = percent("moved", "chance", near, None)
    for within in WITHIN_PATCHES:
        if within != WITHIN:
            name = f"{within:g} patch{'es' * (within > 1)}"
            metrics[f"moved points found within {name}"] = percent("moved", "found", name)
    metrics[f"all points found within {near}"] = percent("all", "found", near)
    metrics[f"all points within {near} if none had moved"] = percent("all", "no motion", near, None)
    return metrics


def _windows(source: Source, window: int, size: int) -> Tensor:
    frames = read_frames(source.files[0]).pixels
    if len(frames) < window:
        raise DecodeError(str(source.files[0]), f"{len(frames)} frames, but a window has {window}")
    return temporal_windows(frames, window, size)


@dataclass(frozen=True)
class _Clip:
    dataset: TrackingDataset
    video: TrackedVideo
    window: int
    size: int
    grid: Grid
    patch_size: int

    def maps(self, features: dict[str, Tensor]) -> Tensor:
        """(S, H', W', D) of what `extract` kept."""
        tokens = features["tokens"].float()
        return tokens.view(-1, self.grid.h, self.grid.w, tokens.shape[-1])

    def tracks(self) -> StepTracks:
        tracks = self.dataset.load_tracks(self.video)
        points, visible = crop_tracks(tracks.points, tracks.visible, tracks.shape[1:], self.window, self.size)
        return tracks_by_step(points, visible, self.window // self.grid.t, self.patch_size)

    def images(self) -> NDArray[np.uint8]:
        """(S, size, size, 3) the mean frame of each step, as a token sees it."""
        frames = read_frames(self.video.path).pixels
        shape = self.dataset.load_tracks(self.video).shape
        if frames.shape[:3] != shape:
            raise DataError(
                f"{self.video.path}: {tuple(frames.shape[:3])} frames x rows x columns, expected {shape} as in "
                f"{self.video.annotation}"
            )
        windows = temporal_windows(frames, self.window, self.size).float()
        steps = windows.unflatten(2, (self.grid.t, -1)).mean(3).permute(0, 2, 3, 4, 1).flatten(0, 1)
        return steps.round().to(torch.uint8).numpy()


def _example(clip: _Clip, features: dict[str, Tensor], value: float) -> Example:
    """The step at which most of the points that move are first seen, and two later ones."""
    tracks = clip.tracks()
    queried, first = query_points(tracks)
    tracks = tracks[queried]
    steps = torch.arange(tracks.visible.shape[1])
    start = tracks.points[torch.arange(len(queried)), first]
    moved = (tracks.points - start.unsqueeze(1)).norm(dim=-1) > MOVED
    counted = tracks.visible & moved & (steps > first.unsqueeze(1))
    begin = int(torch.bincount(first, counted.sum(1).double()).argmax())
    chosen = torch.tensor(
        subsample_evenly(((first == begin) & counted.any(1)).nonzero().squeeze(1).tolist(), _POINTS_DRAWN)
    )
    points = tracks.points[chosen]
    predicted = track_points(clip.maps(features), points[:, begin], first[chosen])
    later = counted[chosen].any(0).nonzero().squeeze(1).tolist()
    images, patch = clip.images(), clip.patch_size
    drawn = {
        f"asked for at step {begin + 1}, and where they go": draw_tracks(
            images[begin], [(track[begin : later[-1] + 1] * patch).numpy() for track in points]
        )
    }
    for step in dict.fromkeys([later[len(later) // 2], later[-1]]):
        visible = tracks.visible[chosen, step]
        truth, guess = points[visible, step], predicted[visible, step]
        right = (truth - guess).norm(dim=-1) <= WITHIN
        drawn[f"step {step + 1}: true (ring) and found (dot)"] = draw_matches(
            images[step], (truth * patch).numpy(), (guess * patch).numpy(), right.numpy()
        )
    return Example(
        name=clip.video.path.name,
        score=100 * value,
        images=drawn,
        note=f"camera: {clip.video.motion}; of {len(queried)} points {len(chosen)} are drawn",
    )


TASK = Task(name="tracking", evaluate=evaluate, dataset=TrackingDataset, metric="moved points found within 1 patch")
