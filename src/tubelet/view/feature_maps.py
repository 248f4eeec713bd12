"""Maps of a teacher's features: principal components as colors, and an object of a sample set tracked over time.

Every map is compared with that of a random encoder of the same architecture: what both show was not learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from tubelet.config import ModelConfig, PixelStatistics, TrainConfig
from tubelet.data.clips import center_clip_times, normalize, resize_center_crop, to_colors
from tubelet.data.decode import read_frames
from tubelet.data.model_frames import open_frames
from tubelet.data.sample_index import Sample
from tubelet.grid import Grid
from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, SampleEntry, read_truth
from tubelet.tasks.common.sample_clips import crop_nearest
from tubelet.view.page import Cell, Row, Scale, Strip, boundary, columns, data_uri, gradient, heat
from tubelet.view.pca import fit_projection

TRAINED, INITIAL, RANDOM = "trained teacher", "initial weights", "random encoder"
SIMILARITY = "magma"
SEARCHED_CLIPS = 100
MAX_ROWS = 24  # of a map's tokens: more cannot be distinguished at the size of a page
_MAP_FLOPS = 5e11  # of one encoder on one clip: seconds on a CPU
TRANSIENT = CLASSES.index("effect")


class Clip(NamedTuple):
    """A clip and its source.

    Attributes:
        file: name of its file.
        caption: description for a reader.
        first: index of its first frame in the file.
        pixels: (C, T, S, S) as the model takes them.
    """

    file: str
    caption: str
    first: int
    pixels: Tensor


@dataclass(frozen=True)
class ObjectTrack:
    """An object that is visible in a whole clip.

    Attributes:
        clip: the clip.
        name: class of the object.
        region: (T, S, S) bool, its pixels.
        cover: (T', H', W') fraction of each token's pixels that it covers.
        token: index of a token of the first time step near the center of the object.
    """

    clip: Clip
    name: str
    region: NDArray[np.bool_]
    cover: NDArray[np.float64]
    token: int


@dataclass(frozen=True)
class TrackedObject:
    """Similarity of a clip's tokens to a token of an object.

    Attributes:
        strip: a row of frames, and a row of similarities for each encoder.
        scales: color scale of each row of similarities.
        hits: encoder -> fraction of the k most similar tokens that lie on the object, where k is the number of its
            tokens; mean over later time steps.
        chance: expected fraction for random tokens.
        name: class of the object.
        file: file of the clip.
    """

    strip: Strip
    scales: list[tuple[str, Scale]]
    hits: dict[str, float]
    chance: float
    name: str
    file: str


class Gallery:
    """Frames of a page; cells refer to them by number."""

    def __init__(self, statistics: PixelStatistics | None = None) -> None:
        self.statistics = statistics
        self.frames: list[Markup] = []

    def add(self, pixels: Tensor) -> int:
        """Add a frame (C, S, S) of a model with the statistics, and return its number."""
        self.frames.append(data_uri(to_colors(pixels, self.statistics).permute(1, 2, 0).numpy(), "jpeg"))
        return len(self.frames) - 1


def fine_size(config: TrainConfig, side: int) -> int:
    """Size of the frames whose features a run's report shows, in pixels.

    A run often trains on few tokens, and its features show more on a finer grid: as fine as the source and a few
    seconds allow, and never coarser than in training.

    Args:
        config: the run.
        side: the shorter side of the source's frames.
    """
    model, data = config.model, config.data
    steps = max(data.frames // model.tubelet_size, 1)
    trained = data.image_size // model.patch_size
    rows = max(trained, min(side // model.patch_size, MAX_ROWS))
    while rows > trained and _flops(model, steps * rows**2) > _MAP_FLOPS:
        rows -= 1
    return rows * model.patch_size


def _flops(config: ModelConfig, tokens: int) -> float:
    """Operations of an encoder's matrix products over one clip: 12 D² weights a block, and attention."""
    D = config.width
    return config.depth * tokens * ((8 + 4 * config.mlp_ratio) * D**2 + 4 * tokens * D)


def read_sample_clip(entry: SampleEntry, size: int, frames: int, tubelet: int) -> Clip:
    """Middle `frames` frames of a sample, or as many whole tubelets as it has, cropped to `size` pixels."""
    pixels = read_frames(entry.media).pixels
    length = min(frames, len(pixels)) // tubelet * tubelet
    first = (len(pixels) - length) // 2
    name = entry.media.name
    return Clip(name, f"{name}, {entry.motion}", first, resize_center_crop(pixels[first : first + length], size))


def read_video_clip(sample: Sample, size: int, frames: int, model: ModelConfig, fps: float) -> Clip:
    """Middle clip of a video or span at a given rate, cropped to `size` pixels.

    Raises:
        DecodeError: if it cannot be read.
    """
    length = max(frames // model.tubelet_size, 1) * model.tubelet_size
    with open_frames(sample.media, model.pixels, fps) as video:
        (clip,) = video.clips([sample.start_s + center_clip_times(sample.limit(video.info), length, fps)[0]])
        name = PurePosixPath(video.info.path).name
    caption = f"{name}, {clip.times[0]:.1f} to {clip.times[-1]:.1f} s"
    return Clip(name, caption, 0, resize_center_crop(clip.pixels, size))


@torch.inference_mode()
def last_level(encoder: Encoder, clip: Clip) -> tuple[Tensor, Grid]:
    """(N, D) the encoder's last level of a clip, normalized token by token as a target is, and the grid."""
    pixels = normalize(clip.pixels.unsqueeze(0), encoder.config.pixels)
    level = encoder(pixels)[-1][0]
    return F.layer_norm(level.float(), level.shape[-1:]), encoder.tokenizer.grid(pixels)


def pca_strips(clips: Sequence[Clip], encoders: dict[str, Encoder], gallery: Gallery) -> list[Strip]:
    """Frames of each clip, and each encoder's last level on three principal components that all clips share."""
    views = {name: [last_level(encoder, clip) for clip in clips] for name, encoder in encoders.items()}
    projections = {name: fit_projection(torch.cat([x for x, _ in features])) for name, features in views.items()}
    strips = []
    for i, clip in enumerate(clips):
        grid = views[TRAINED][i][1]
        steps = columns(grid.t)
        rows = [Row("frames", _frame_cells(clip, grid, steps, gallery), clip.caption)]
        for name, features in views.items():
            colors = projections[name].colors(features[i][0]).view(*grid.shape, 3).numpy()
            rows.append(Row(name, [Cell(None, data_uri(colors[t])) for t in steps]))
        strips.append(Strip(_heads(grid, steps), rows))
    return strips


def find_tracks(
    entries: Sequence[SampleEntry], config: ModelConfig, size: int, frames: int, limit: int
) -> list[ObjectTrack]:
    """Find objects of different clips that are always visible, a few tokens large, and moving.

    Args:
        entries: the clips to search.
        config: the model's patch and tubelet.
        size: side of the crop in pixels.
        frames: frames of a clip.
        limit: maximum number of objects.
    """
    candidates: list[tuple[float, SampleEntry, int]] = []
    for entry in entries:
        truth = read_truth(entry.truth)
        length = min(frames, len(truth.instances)) // config.tubelet_size * config.tubelet_size
        first = (len(truth.instances) - length) // 2
        instances = truth.instances[first : first + length]
        scale = size / min(instances.shape[1:]) / config.patch_size  # tokens a pixel, along a side
        for number in np.intersect1d(instances[0], instances[-1]):
            region = instances == number
            if number == 0 or _class(truth.classes[first : first + length], region) in (None, TRANSIENT):
                continue
            areas = region.sum(axis=(1, 2)) * scale**2
            if areas.min() < 3 or areas.max() > 0.25 * (size / config.patch_size) ** 2:
                continue
            centers = np.array([np.argwhere(region[t]).mean(0) for t in (0, -1)])
            travel = float(np.linalg.norm(centers[1] - centers[0])) * scale
            candidates.append((min(float(areas.min()), 16.0) * (1 + min(travel, 4.0)), entry, int(number)))
    candidates.sort(key=lambda item: -item[0])
    tracks: list[ObjectTrack] = []
    for _, entry, number in candidates:
        if len(tracks) == limit:
            break
        if all(entry.media.name != track.clip.file for track in tracks):
            track = _track(entry, number, config, size, frames)
            if track.cover[0].max() > 0.7:
                tracks.append(track)
    return tracks


def track_object(track: ObjectTrack, encoders: dict[str, Encoder], gallery: Gallery) -> TrackedObject:
    """Track an object by the cosine similarity of all tokens to its token in the first time step, per encoder."""
    clip, on = track.clip, track.cover > 0.5
    views = {name: last_level(encoder, clip) for name, encoder in encoders.items()}
    grid = views[TRAINED][1]
    steps = columns(grid.t)
    cells = _frame_cells(clip, grid, steps, gallery)
    numbers = [cell.frame for cell in cells]
    _, h, w = (int(i) for i in np.unravel_index(track.token, grid.shape))
    cells[0] = Cell(numbers[0], "", f"M{w} {h}h1v1h-1z", (grid.w, grid.h), "pick")
    rows = [Row("frames", cells, "the chosen token is framed in the first")]
    per = clip.pixels.shape[1] // grid.t
    outlines = [boundary(track.region[t * per]) for t in steps]
    box = (track.region.shape[2], track.region.shape[1])
    scales, hits = [], {}
    for name, (tokens, _) in views.items():
        unit = F.normalize(tokens, dim=-1)
        similarity = (unit @ unit[track.token]).view(grid.shape).numpy()
        low, high = (float(q) for q in np.quantile(similarity, [0.05, 0.995]))
        layers = [
            Cell(number, data_uri(heat(similarity[t], low, high, SIMILARITY)), outline, box, "object", 0.82)
            for number, outline, t in zip(numbers, outlines, steps, strict=True)
        ]
        rows.append(Row(name, layers))
        scales.append((name, Scale(low, high, gradient(SIMILARITY), "cosine")))
        hits[name] = _recall_at_k(similarity, on)
    later = on[1:].mean(axis=(1, 2))
    chance = float(later[later > 0].mean()) if (later > 0).any() else 0.0
    return TrackedObject(Strip(_heads(grid, steps), rows), scales, hits, chance, track.name, clip.file)


def _recall_at_k(similarity: NDArray, on: NDArray[np.bool_]) -> float:
    """Fraction of the k most similar tokens that lie on the object, k the number of its tokens; mean over time."""
    shares = []
    for values, region in zip(similarity[1:], on[1:], strict=True):
        k = int(region.sum())
        if k:
            shares.append(float(region.ravel()[np.argsort(-values.ravel(), kind="stable")[:k]].mean()))
    return float(np.mean(shares)) if shares else float("nan")


def _class(classes: NDArray[np.uint8], region: NDArray[np.bool_]) -> int | None:
    """Most frequent class of a region's pixels; None if it is not an object."""
    class_index = int(np.bincount(classes[region]).argmax())
    return class_index if class_index >= FIRST_OBJECT else None


def _track(entry: SampleEntry, number: int, config: ModelConfig, size: int, frames: int) -> ObjectTrack:
    clip = read_sample_clip(entry, size, frames, config.tubelet_size)
    truth = read_truth(entry.truth)
    length = clip.pixels.shape[1]
    part = slice(clip.first, clip.first + length)
    original = truth.instances[part] == number
    region = crop_nearest(original, size)
    grid = config.grid(length, size, size)
    patches = patchify(region[None, None].float(), grid)
    cover = patches.mean(-1).view(grid.shape).double().numpy()
    kind = _class(truth.classes[part], original)
    return ObjectTrack(clip, CLASSES[kind or FIRST_OBJECT], region.numpy(), cover, _central_token(cover[0]))


def _central_token(cover: NDArray[np.float64]) -> int:
    """Of the tokens of a time step (H', W') that an object covers nearly most, the nearest to its center of mass."""
    positions = np.moveaxis(np.indices(cover.shape), 0, -1)
    center = (positions * cover[..., None]).sum(axis=(0, 1)) / cover.sum()
    apart = np.linalg.norm(positions - center, axis=-1)
    return int(np.where(cover >= 0.9 * cover.max(), apart, np.inf).argmin())


def _frame_cells(clip: Clip, grid: Grid, steps: list[int], gallery: Gallery) -> list[Cell]:
    per = clip.pixels.shape[1] // grid.t
    return [Cell(frame=gallery.add(clip.pixels[:, t * per])) for t in steps]


def _heads(grid: Grid, steps: list[int]) -> list[str]:
    return [f"step {t + 1} of {grid.t}" if i == 0 else f"{t + 1}" for i, t in enumerate(steps)]
