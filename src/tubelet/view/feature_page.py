"""`tubelet view`: one page in which videos and images play under the features of a model."""

import base64
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tubelet.checkpoint.native_clip import NativeClip, log_native
from tubelet.checkpoint.run import list_checkpoints, load_vjepa, resolve_best
from tubelet.checkpoint.weights import EncoderName
from tubelet.config import MaskConfig, ViewConfig
from tubelet.console import duration
from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.listed_rows import span_name
from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.data.stacks import is_stack
from tubelet.data.storage import is_url
from tubelet.device import pick_device, pick_dtype
from tubelet.errors import ConfigError, DataError, escape_filename, escape_unprintable
from tubelet.grid import Modality
from tubelet.io.overwrite_checks import check_output
from tubelet.prediction.video_writer import round_to_even, span_frames, write_frames
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load
from tubelet.view.page import binary_block, colormap, data_uri, json_block, write_page
from tubelet.view.pca_video import write_pca_video
from tubelet.view.quantization import QuantizedTokens, quantize_tokens
from tubelet.view.token_maps import FileTokens, FrameSampling, encode_file, fine_size, surprise

logger = logging.getLogger(__name__)

_LOGGED_S = 5
PATCHES = 24  # along the shorter side, unless a size is requested
MEDIA_LINES = 360
MAX_TOKENS = 200_000
_FEATURE_BYTES = 13_000_000  # of all levels and encoders; as base64 17 MB
_MIN_DIRECTIONS = 16
_COLORMAPS = {"similarity": "magma", "surprise": "cividis"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ViewedFile:
    """A file of the page, or a span of one.

    Attributes:
        path: the file.
        video: whether it is a video, not an image.
        height, width: size in pixels.
        duration_s: duration of the video or span in seconds, 0 for an image.
        span: start and end of the span as it is listed, in seconds of the video; None for a whole file.
        stack_fps: frames per second of a stack that states no rate.
    """

    path: Path
    video: bool
    height: int
    width: int
    duration_s: float
    span: tuple[float, float | None] | None = None
    stack_fps: float | None = None

    @property
    def name(self) -> str:
        """The name of the file, with the times of a span."""
        return self.path.name if self.span is None else span_name(self.path.name, *self.span)

    @property
    def bounds_s(self) -> tuple[float, float | None]:
        """Start and end in seconds of the video; None for its end."""
        return (0.0, None) if self.span is None else (self.span[0], self.span[0] + self.duration_s)


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


@dataclass(frozen=True)
class ViewSummary:
    """What was written.

    Attributes:
        files: number of files.
        tokens: number of tokens of one level of all files.
        size: of the page in bytes.
        encoders: what the page has of each encoder.
    """

    files: int
    tokens: int
    size: int
    encoders: list[EncoderView]


def write_feature_page(
    sources: Sequence[str],
    models: Sequence[str],
    out: Path,
    settings: ViewConfig,
    video: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> ViewSummary:
    """Encode files by models and write the page, and perhaps a video in its colors.

    Args:
        sources: folders, files, globs and lists of local videos and images.
        models: arguments of `tubelet.load`.
        out: the page.
        settings: see `ViewConfig`.
        video: a video to write, of the only video among the sources: next to the original, the deepest level of each
            model in the colors that the page begins with.
        progress: called with the number of encoded files and of all, each counted once for each encoder.

    Raises:
        ConfigError: if a setting does not fit the models.
        TubeletError: if a file or a model cannot be read, or the page cannot be written.
    """
    files = _find_files(sources, settings.fps)
    inputs = [each.path for each in files]
    check_output(out, "page", [*inputs, *models])
    if video is not None:
        check_output(video, "video", [*inputs, *models])
        if sum(each.video for each in files) != 1:
            raise ConfigError(
                f"--video {video} needs one video among the sources, found {sum(each.video for each in files)}"
            )
    encoders = [
        (name_or_path, load(name_or_path, encoder=name)) for name_or_path in models for name in _encoder_names(settings)
    ]
    clips = [_native_clip(model, settings) for _, model in encoders]
    if any(each.video and is_stack(each.path) for each in files):  # their duration depends on the rate
        files = _find_files(sources, clips[0].fps)
    samplings = [
        [_sampling(each, model, clip) for each in files] for (_, model), clip in zip(encoders, clips, strict=True)
    ]
    tokens = max(
        _count_tokens(model, files, sampling) for (_, model), sampling in zip(encoders, samplings, strict=True)
    )
    directions = _directions([model for _, model in encoders], tokens, settings)
    views = []
    for number, ((name_or_path, model), sampling) in enumerate(zip(encoders, samplings, strict=True)):

        def report(done: int, start: int = number * len(files)) -> None:
            progress(start + done, len(files) * len(encoders))

        views.append(_view(name_or_path, model, files, sampling, settings, directions[number], report))
    views = _with_unique_names(views, [name_or_path for name_or_path, _ in encoders])
    write_page("view.html", out, page_values(files, views))
    if video is not None:
        _write_video(video, files, views)
    return ViewSummary(len(files), tokens, out.stat().st_size, views)


def _with_unique_names(views: Sequence[EncoderView], models: Sequence[str]) -> list[EncoderView]:
    """The views, named by what was passed where several models have one name, such as checkpoints of equal steps."""
    names: dict[str, set[str]] = {}
    for view, name_or_path in zip(views, models, strict=True):
        names.setdefault(view.model, set()).add(name_or_path)
    return [
        replace(view, model=name_or_path) if len(names[view.model]) > 1 else view
        for view, name_or_path in zip(views, models, strict=True)
    ]


def _find_files(sources: Sequence[str], fps: float | None) -> list[ViewedFile]:
    media = list_media(sources)
    if media.shards:
        raise DataError(f"{media.shards[0].root}: shards cannot be shown on a page; pass the videos they were made of")
    if urls := [name for name in (*media.videos, *media.images) if is_url(name)]:
        raise DataError(f"{urls[0]}: is a URL, and a page is made of files on this machine; copy it, and pass the copy")
    files = []
    index = build_index(media, Modality.VIDEO)
    for sample in range(len(index)):
        source = index.read(sample)
        with Video(source.media, stack_fps=fps, display=True) as video:
            info = source.limit(video.info)
        path = Path(index.name(sample))
        files.append(ViewedFile(path, True, info.height, info.width, info.duration_s, index.span(sample), fps))
    for name in media.images:
        height, width = read_image(name, display=True).shape[:2]
        files.append(ViewedFile(Path(name), False, height, width, 0.0))
    return files


def _encoder_names(settings: ViewConfig) -> tuple[EncoderName | None, ...]:
    return ("teacher", "student") if settings.encoder == "both" else (settings.encoder,)


def _native_clip(model: Backbone, settings: ViewConfig) -> NativeClip:
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


def _sampling(file: ViewedFile, model: Backbone, clip: NativeClip) -> FrameSampling:
    height, width = fine_size(file.height, file.width, clip.image_size, model.config.patch_size)
    return FrameSampling(height, width, clip.frames, clip.fps, *file.bounds_s)


def _count_tokens(model: Backbone, files: Sequence[ViewedFile], samplings: Sequence[FrameSampling]) -> int:
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


def _directions(models: Sequence[Backbone], tokens: int, settings: ViewConfig) -> list[int]:
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


def _view(
    name_or_path: str,
    model: Backbone,
    files: Sequence[ViewedFile],
    samplings: Sequence[FrameSampling],
    settings: ViewConfig,
    directions: int,
    report: Callable[[int], None],
) -> EncoderView:
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


def page_values(
    files: Sequence[ViewedFile], views: Sequence[EncoderView], media: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Values of the template.

    Args:
        files: the files.
        views: what the page has of each encoder.
        media: size and address of each file, for a page that is served; None embeds media and features in the page.
    """
    blocks: list[Markup] = []
    sizes = [_embed_media(number, file, blocks) for number, file in enumerate(files)] if media is None else media
    data = {
        "files": [_describe_file(file) | size for file, size in zip(files, sizes, strict=True)],
        "encoders": [_encoder(number, view, blocks, media is None) for number, view in enumerate(views)],
        "colormaps": {use: colormap(name).tobytes().hex() for use, name in _COLORMAPS.items()},
    }
    names = dict.fromkeys(view.model for view in views)
    return {
        "title": escape_unprintable(files[0].name) if len(files) == 1 else f"{len(files)} files",
        "models": [escape_unprintable(name) for name in names],
        "files": files,
        "videos": sum(file.video for file in files),
        "data": json_block("data", data),
        "blocks": blocks,
        "views": views,
        "tokens": sum(each.grid.tokens for each in views[0].files),
        "served": media is not None,
    }


def _embed_media(number: int, file: ViewedFile, blocks: list[Markup]) -> dict[str, Any]:
    scale = min(1.0, MEDIA_LINES / file.height)
    height, width = round_to_even(file.height * scale), round_to_even(file.width * scale)
    if file.video:
        buffer = BytesIO()
        with Video(file.path, stack_fps=file.stack_fps, display=True) as video:
            frames = span_frames(video, (height, width), *file.bounds_s)
            write_frames(frames, buffer, video.time_base, file.duration_s, crf=27)
        blocks.append(binary_block(f"media-{number}", buffer.getvalue()))
    else:
        blocks.append(binary_block(f"media-{number}", encode_image(file.path, height, width)))
    return {"height": height, "width": width}


def encode_image(path: Path, height: int, width: int) -> bytes:
    """An image at a size, as JPEG."""
    pixels = Image.fromarray(read_image(str(path), display=True).numpy()).resize((width, height))
    return base64.b64decode(data_uri(np.asarray(pixels), "jpeg").partition(",")[2])


def _describe_file(file: ViewedFile) -> dict[str, Any]:
    return {"name": escape_filename(file.name), "video": file.video, "duration": round(file.duration_s, 4)}


def _encoder(number: int, view: EncoderView, blocks: list[Markup], embedded: bool) -> dict[str, Any]:
    levels = []
    for i, (name, level) in enumerate(zip(view.names, view.levels, strict=True)):
        if embedded:
            blocks.append(binary_block(f"tokens-{number}-{i}", level.values.tobytes()))
        colors = level.colors
        levels.append(
            {
                "name": name,
                "directions": level.values.shape[1],
                "error": round(level.mean_error, 6),
                "largest": round(level.largest_error, 6),
                "pca": {
                    "mean": colors.mean.tolist(),
                    "axes": colors.axes.T.tolist(),
                    "low": colors.low.tolist(),
                    "high": colors.high.tolist(),
                    "shares": colors.shares.tolist(),
                },
            }
        )
    return {
        "model": escape_unprintable(view.model),
        "encoder": view.encoder,
        "grids": [[*each.grid.shape] for each in view.files],
        "times": [[round(float(second), 4) for second in each.times] for each in view.files],
        "levels": levels,
        "surprise": _quantize_surprise(number, view.surprise, blocks),
        "note": view.note,
    }


def _quantize_surprise(
    number: int, errors: list[NDArray[np.float32]] | None, blocks: list[Markup]
) -> dict[str, float] | None:
    """Errors as bytes: 1 to 255 from the smallest to the largest, 0 where a token was never hidden."""
    if errors is None:
        return None
    values = np.concatenate([each.ravel() for each in errors])
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
    scaled = 1 + np.nan_to_num((values - low) / max(high - low, 1e-12)) * 254
    blocks.append(
        binary_block(f"surprise-{number}", np.where(np.isnan(values), 0, scaled.round()).astype(np.uint8).tobytes())
    )
    ends = np.nanquantile(values, [0.02, 0.995]) if np.isfinite(values).any() else (0.0, 1.0)
    return {"low": low, "high": high, "dark": float(ends[0]), "bright": float(ends[1])}


def _write_video(out: Path, files: Sequence[ViewedFile], views: Sequence[EncoderView]) -> None:
    """The only video among the files, and the deepest level of each encoder as colors."""
    number = next(i for i, file in enumerate(files) if file.video)
    maps = []
    for view in views:
        level, before = view.levels[-1], sum(each.grid.tokens for each in view.files[:number])
        grid = view.files[number].grid
        colors = level.colors.colors(level.units()[before : before + grid.tokens])
        maps.append((colors.view(*grid.shape, 3).numpy(), view.files[number].times))
    file = files[number]
    write_pca_video(file.path, maps, out, bounds_s=file.bounds_s, stack_fps=file.stack_fps)
