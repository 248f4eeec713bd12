"""What a page of features has of one encoder: tokens, colors and surprise of all files."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.checkpoint.native_clip import NativeClip, log_native
from tubelet.checkpoint.run import list_checkpoints, load_vjepa, resolve_best
from tubelet.config import MaskConfig, ViewConfig
from tubelet.console import duration
from tubelet.device import pick_device, pick_dtype
from tubelet.errors import ConfigError, DataError
from tubelet.pretrained.backbone import Backbone
from tubelet.view.quantization import QuantizedTokens, quantize_tokens
from tubelet.view.token_maps import FileTokens, FrameSampling, encode_file, fine_size, surprise
from tubelet.view.viewed_files import ViewedFile

logger = logging.getLogger(__name__)

_LOGGED_S = 5
PATCHES = 24  # along the shorter side, unless a size is requested
MAX_TOKENS = 200_000
_FEATURE_BYTES = 13_000_000  # of all levels and encoders; as base64 17 MB
_MIN_DIRECTIONS = 16


@dataclass(frozen=True)
class EncoderView:
    """What a page has of one encoder.

    Attributes:
        model: name of the model.
        encoder: teacher or student; empty where that is unknown.
        files: grid and times of each file; their features are in `levels`.
        names: names of the levels, for a reader.
        levels: the tokens of all files, level by level.
        surprise: (T', H', W') errors of each file, None where there is no predictor.
        note: why there is no surprise, for a reader; empty if there is.
    """

    model: str
    encoder: str
    files: list[FileTokens]
    names: list[str]
    levels: list[QuantizedTokens]
    surprise: list[NDArray[np.float32]] | None
    note: str


def window_size(model: Backbone, settings: ViewConfig) -> NativeClip:
    """Short side, length and rate of the windows; a small model gets larger frames, for a finer picture."""
    native = model.native_clip
    side = max(native.image_size, PATCHES * model.config.patch_size)
    clip = native._replace(image_size=side).override(settings.image_size, settings.frames, settings.fps)
    options = {"--image-size": settings.image_size, "--frames": settings.frames, "--fps": settings.fps}
    whole = f"whole frames with a short side of {clip.image_size} px, {clip.frames} frames at {clip.fps:g} fps"
    log_native(model.name, native, whole, options)
    tubelet = model.config.tubelet_size
    if clip.frames % tubelet:
        raise ConfigError(f"--frames is {clip.frames}, expected a multiple of the tubelet of {tubelet} frames")
    return clip


def frame_sampling(file: ViewedFile, model: Backbone, clip: NativeClip) -> FrameSampling:
    """How a file is encoded: whole frames, with the short side and rate of the windows."""
    height, width = fine_size(file.height, file.width, clip.image_size, model.config.patch_size)
    return FrameSampling(height, width, clip.frames, clip.fps, *file.bounds_s)


def count_tokens(model: Backbone, files: Sequence[ViewedFile], samplings: Sequence[FrameSampling]) -> int:
    """Number of tokens of all files in one level.

    Raises:
        DataError: if a page could not answer quickly.
    """
    patch, tubelet = model.config.patch_size, model.config.tubelet_size
    total = 0
    for file, sampling in zip(files, samplings, strict=True):
        steps = math.ceil(math.ceil(file.duration_s * sampling.fps - 1e-3) / tubelet) if file.video else 1
        total += max(1, steps) * (sampling.height // patch) * (sampling.width // patch)
    if total > MAX_TOKENS:
        seconds = sum(file.duration_s for file in files)
        side = min(samplings[0].height, samplings[0].width)
        raise DataError(
            f"{len(files)} files of {seconds:.0f} s are {total:,} tokens, expected at most {MAX_TOKENS:,} in a page; "
            f"reduce --fps (here {samplings[0].fps:g}) or --image-size (here {side} pixels), or pass fewer files"
        )
    return total


def choose_directions(models: Sequence[Backbone], tokens: int, settings: ViewConfig) -> list[int]:
    """Directions of each encoder's levels, so that the page is not too large.

    Raises:
        ConfigError: if it would be.
    """
    levels = sum(len(_levels(model, settings)) for model in models)
    affordable = _FEATURE_BYTES // (tokens * levels)
    if affordable < min(_MIN_DIRECTIONS, settings.directions):
        raise ConfigError(
            f"{levels} levels of {tokens:,} tokens do not fit into {_FEATURE_BYTES / 1e6:.0f} MB; choose fewer by "
            "--levels, such as --levels -1, or reduce --fps or --image-size"
        )
    return [min(settings.directions, affordable, model.config.width) for model in models]


def _levels(model: Backbone, settings: ViewConfig) -> list[int]:
    """Numbers of the levels in the page, shallow to deep."""
    count = len(model.config.levels)
    for level in settings.levels:
        if not -count <= level < count:
            raise ConfigError(f"--levels has {level}, but {model.name} has {count} output levels")
    return sorted({level % count for level in settings.levels}) or list(range(count))


def encode_files(
    name_or_path: str,
    model: Backbone,
    files: Sequence[ViewedFile],
    samplings: Sequence[FrameSampling],
    settings: ViewConfig,
    directions: int,
    report: Callable[[int], None],
) -> EncoderView:
    """Encode files and quantize their tokens.

    Args:
        name_or_path: where the model is, for its predictor.
        model: the encoder.
        files: the files.
        samplings: how each file is encoded.
        settings: see `ViewConfig`.
        directions: directions that the tokens of a level are projected on.
        report: called with the number of encoded files.

    Raises:
        TubeletError: if a file or the predictor cannot be read.
    """
    numbers, found = _levels(model, settings), []
    for done, (file, sampling) in enumerate(zip(files, samplings, strict=True)):
        report(done)
        found.append(encode_file(model, file.path, file.video, sampling, numbers))
    blocks = model.config.levels
    errors, note = _surprise(name_or_path, files, samplings, settings)
    levels = [quantize_tokens([each.levels[i] for each in found], directions) for i in range(len(numbers))]
    report(len(files))
    return EncoderView(
        model.name,
        model.encoder_name,
        [FileTokens(each.grid, each.times, ()) for each in found],
        [f"level {number + 1} of {len(blocks)} (block {blocks[number] + 1})" for number in numbers],
        levels,
        errors,
        note,
    )


def _surprise(
    name_or_path: str, files: Sequence[ViewedFile], samplings: Sequence[FrameSampling], settings: ViewConfig
) -> tuple[list[NDArray[np.float32]] | None, str]:
    """The predictor's errors in each file, or None and the reason."""
    if not settings.surprise:
        return None, "It was left out by --no-surprise."
    path = resolve_best(Path(name_or_path).expanduser())
    if not (path.parent.name == "checkpoints" or (path.is_dir() and list_checkpoints(path))):
        return None, "It needs the predictor and both encoders, as checkpoints of training runs have them."
    model, config = load_vjepa(name_or_path)
    if model.config.prediction_width != model.config.num_output_levels * model.config.width:
        return None, "The predictor of this run was trained for the features of another model."
    device = pick_device()
    model, masks = model.to(device, pick_dtype("auto", device)), config.masks if config else MaskConfig()
    report = _SurpriseTime(files, samplings)
    pairs = zip(files, samplings, strict=True)
    return [
        surprise(model, file.path, file.video, sampling, masks, progress=report.add) for file, sampling in pairs
    ], ""


class _SurpriseTime:
    """Logs how long the surprise of all files takes, once, if that is long."""

    def __init__(self, files: Sequence[ViewedFile], samplings: Sequence[FrameSampling]) -> None:
        self.files = len(files)
        self.windows = sum(
            max(1, math.ceil(file.duration_s * sampling.fps / sampling.frames - 1e-3))
            for file, sampling in zip(files, samplings, strict=True)
        )
        self.done, self.start = 0, time.monotonic()

    def add(self) -> None:
        """Count a window; after the first one, the time of all is known."""
        self.done += 1
        seconds = (time.monotonic() - self.start) * self.windows
        if self.done == 1 and seconds > _LOGGED_S:
            logger.info(
                "surprise of %d files, %d windows, takes about %s (--no-surprise leaves it out)",
                *(self.files, self.windows, duration(seconds)),
            )
