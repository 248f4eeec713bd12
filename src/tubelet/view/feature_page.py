"""`tubelet view`: one page in which videos and images play under the features of a model."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tubelet.checkpoint.weights import EncoderName
from tubelet.config import ViewConfig
from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.stacks import is_stack
from tubelet.errors import ConfigError, escape_filename, escape_unprintable
from tubelet.io.overwrite_checks import check_output
from tubelet.prediction.video_writer import round_to_even, span_frames, write_frames
from tubelet.pretrained.load import load
from tubelet.view.encoder_view import (
    EncoderView,
    choose_directions,
    count_tokens,
    encode_files,
    frame_sampling,
    window_size,
)
from tubelet.view.page import binary_block, colormap, data_uri, json_block, write_page
from tubelet.view.pca_video import write_pca_video
from tubelet.view.viewed_files import ViewedFile, find_files

MEDIA_LINES = 360
_COLORMAPS = {"similarity": "magma", "surprise": "cividis"}

Progress = Callable[[int, int], None]


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
    files = find_files(sources, settings.fps)
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
    clips = [window_size(model, settings) for _, model in encoders]
    if any(each.video and is_stack(each.path) for each in files):  # their duration depends on the rate
        files = find_files(sources, clips[0].fps)
    samplings = [
        [frame_sampling(each, model, clip) for each in files] for (_, model), clip in zip(encoders, clips, strict=True)
    ]
    tokens = max(count_tokens(model, files, sampling) for (_, model), sampling in zip(encoders, samplings, strict=True))
    directions = choose_directions([model for _, model in encoders], tokens, settings)
    views = []
    for number, ((name_or_path, model), sampling) in enumerate(zip(encoders, samplings, strict=True)):

        def report(done: int, start: int = number * len(files)) -> None:
            progress(start + done, len(files) * len(encoders))

        views.append(encode_files(name_or_path, model, files, sampling, settings, directions[number], report))
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


def _encoder_names(settings: ViewConfig) -> tuple[EncoderName | None, ...]:
    return ("teacher", "student") if settings.encoder == "both" else (settings.encoder,)


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
