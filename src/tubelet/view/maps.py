"""What a trained teacher sees in clips: features as colors, and an object of a sample set followed through time.

A random encoder of the same sizes is shown beside it everywhere: what both show is no sign of learning.
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

from tubelet.config import ModelConfig
from tubelet.data.clips import center_clip_times, normalize, resize_center_crop
from tubelet.data.decode import Video, read_frames
from tubelet.grid import Grid
from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, SampleEntry, read_truth
from tubelet.tasks.common.sample_clips import crop_nearest
from tubelet.view.pca import fit_projection
from tubelet.view.pictures import Cell, Row, Scale, Strip, boundary, columns, data_uri, gradient, heat

TRAINED, RANDOM = "trained teacher", "random encoder"
SIMILARITY = "magma"
SEARCHED_CLIPS = 100
TRANSIENT = CLASSES.index("effect")


class Clip(NamedTuple):
    """A clip as the model takes it.

    Attributes:
        file: where it is from.
        said: what is said of it.
        first: which of the file's frames is its first.
        pixels: (3, T, S, S) uint8.
    """

    file: str
    said: str
    first: int
    pixels: Tensor


@dataclass(frozen=True)
class Track:
    """An object that stays in view for a whole clip.

    Attributes:
        clip: where.
        name: its class.
        region: (T, S, S) bool, its pixels.
        cover: (T', H', W') how much of each token's pixels it covers.
        token: index of a token of the first time step: of those that it covers (nearly) most, the one at its center.
    """

    clip: Clip
    name: str
    region: NDArray[np.bool_]
    cover: NDArray[np.float64]
    token: int


@dataclass(frozen=True)
class Following:
    """Where a token of an object is found again.

    Attributes:
        strip: frames, then one row of similarities for each encoder.
        scales: color scale of each of these rows.
        hits: encoder -> share of the object's tokens among as many most similar ones, mean over later time steps.
        chance: the same for tokens taken at random.
        name: the object's class.
        file: the clip.
    """

    strip: Strip
    scales: list[tuple[str, Scale]]
    hits: dict[str, float]
    chance: float
    name: str
    file: str


class Gallery:
    """Collects the frames that a page shows; a cell refers to one by its number."""

    def __init__(self) -> None:
        self.frames: list[Markup] = []

    def add(self, pixels: Tensor) -> int:
        """Keep an (3, S, S) uint8 frame and return its number."""
        self.frames.append(data_uri(pixels.permute(1, 2, 0).numpy(), "jpeg"))
        return len(self.frames) - 1


def read_clip(entry: SampleEntry, size: int, frames: int, tubelet: int) -> Clip:
    """The middle `frames` frames of a file (fewer if it has fewer, always whole tubelets), cropped to `size` pixels."""
    pixels = read_frames(entry.media).pixels
    length = min(frames, len(pixels)) // tubelet * tubelet
    first = (len(pixels) - length) // 2
    name = entry.media.name
    return Clip(name, f"{name}, {entry.motion}", first, resize_center_crop(pixels[first : first + length], size))


def read_own_clip(file: str, size: int, frames: int, tubelet: int, fps: float) -> Clip:
    """The middle of any video, at the rate and length that a run was trained at, cropped to `size` pixels.

    Raises:
        DecodeError: if it cannot be read.
    """
    length = max(frames // tubelet, 1) * tubelet
    with Video(file) as video:
        (clip,) = video.clips([center_clip_times(video.info, length, fps)[0]])
    name = PurePosixPath(file).name
    said = f"{name}, {clip.times[0]:.1f} to {clip.times[-1]:.1f} s"
    return Clip(name, said, 0, resize_center_crop(clip.pixels, size))


@torch.inference_mode()
def last_level(encoder: Encoder, clip: Clip) -> tuple[Tensor, Grid]:
    """(N, D) the encoder's last level of a clip, normalized token by token as a target is, and the grid."""
    pixels = normalize(clip.pixels.unsqueeze(0))
    level = encoder(pixels)[-1][0]
    return F.layer_norm(level.float(), level.shape[-1:]), encoder.tokenizer.grid(pixels)


def component_strips(clips: Sequence[Clip], encoders: dict[str, Encoder], gallery: Gallery) -> list[Strip]:
    """For each clip its frames, and each encoder's last level on three principal components common to all clips."""
    views = {name: [last_level(encoder, clip) for clip in clips] for name, encoder in encoders.items()}
    projections = {name: fit_projection(torch.cat([x for x, _ in seen])) for name, seen in views.items()}
    strips = []
    for i, clip in enumerate(clips):
        grid = views[TRAINED][i][1]
        steps = columns(grid.t)
        rows = [Row("frames", _frame_cells(clip, grid, steps, gallery), clip.said)]
        for name, seen in views.items():
            colors = projections[name].colors(seen[i][0]).view(*grid.shape, 3).numpy()
            rows.append(Row(name, [Cell(None, data_uri(colors[t])) for t in steps]))
        strips.append(Strip(_heads(grid, steps), rows))
    return strips


def find_tracks(entries: Sequence[SampleEntry], config: ModelConfig, size: int, frames: int, most: int) -> list[Track]:
    """Objects worth following, from different clips: in view throughout, a few tokens large, and moving.

    Args:
        entries: the clips to search.
        config: the model's patch and tubelet.
        size: side of the crop in pixels.
        frames: frames of a clip.
        most: how many at most.
    """
    found: list[tuple[float, SampleEntry, int]] = []
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
            found.append((min(float(areas.min()), 16.0) * (1 + min(travel, 4.0)), entry, int(number)))
    found.sort(key=lambda item: -item[0])
    tracks: list[Track] = []
    for _, entry, number in found:
        if len(tracks) == most:
            break
        if all(entry.media.name != track.clip.file for track in tracks):
            track = _track(entry, number, config, size, frames)
            if track.cover[0].max() > 0.7:
                tracks.append(track)
    return tracks


def follow_object(track: Track, encoders: dict[str, Encoder], gallery: Gallery) -> Following:
    """Cosine similarity of every token of the clip to the object's token in the first time step, for each encoder."""
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
        likeness = (unit @ unit[track.token]).view(grid.shape).numpy()
        low, high = (float(q) for q in np.quantile(likeness, [0.05, 0.995]))
        layers = [
            Cell(number, data_uri(heat(likeness[t], low, high, SIMILARITY)), outline, box, "object", 0.82)
            for number, outline, t in zip(numbers, outlines, steps, strict=True)
        ]
        rows.append(Row(name, layers))
        scales.append((name, Scale(low, high, gradient(SIMILARITY), "cosine")))
        hits[name] = _hits(likeness, on)
    later = on[1:].mean(axis=(1, 2))
    chance = float(later[later > 0].mean()) if (later > 0).any() else 0.0
    return Following(Strip(_heads(grid, steps), rows), scales, hits, chance, track.name, clip.file)


def _hits(likeness: NDArray, on: NDArray[np.bool_]) -> float:
    """Of the k most similar tokens of a time step, k as many as the object covers, the share that it covers; mean."""
    shares = []
    for values, region in zip(likeness[1:], on[1:], strict=True):
        k = int(region.sum())
        if k:
            shares.append(float(region.ravel()[np.argsort(-values.ravel(), kind="stable")[:k]].mean()))
    return float(np.mean(shares)) if shares else float("nan")


def _class(classes: NDArray[np.uint8], region: NDArray[np.bool_]) -> int | None:
    """The class that most pixels of a region are of; None where that is no object."""
    most = int(np.bincount(classes[region]).argmax())
    return most if most >= FIRST_OBJECT else None


def _track(entry: SampleEntry, number: int, config: ModelConfig, size: int, frames: int) -> Track:
    clip = read_clip(entry, size, frames, config.tubelet_size)
    truth = read_truth(entry.truth)
    length = clip.pixels.shape[1]
    part = slice(clip.first, clip.first + length)
    original = truth.instances[part] == number
    region = crop_nearest(original, size)
    grid = config.grid(length, size, size)
    patches = patchify(region[None, None].float(), grid)
    cover = patches.mean(-1).view(grid.shape).double().numpy()
    kind = _class(truth.classes[part], original)
    return Track(clip, CLASSES[kind or FIRST_OBJECT], region.numpy(), cover, _central_token(cover[0]))


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
