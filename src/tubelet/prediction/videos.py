"""Videos with the predictions of all heads drawn in."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tubelet.data.sample_index import build_index
from tubelet.data.sources import MediaList
from tubelet.errors import BadFile, DecodeError, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import atomic_write
from tubelet.io.text import read_json
from tubelet.prediction.draw import draw_video
from tubelet.prediction.media_predictions import MediaPredictions

logger = logging.getLogger(__name__)

DRAWN = "_drawn.json"
"""What the videos in a folder were drawn from: name of the video -> hash."""


def _read_drawn(folder: Path) -> dict[str, str]:
    if not (folder / DRAWN).is_file():
        return {}
    drawn: dict[str, str] = read_json(folder / DRAWN, dict[str, str], "remove it, and the videos are drawn again")
    return drawn


def _digest(each: MediaPredictions, version: tuple[int, float] | None, classes: Sequence[str]) -> str:
    """Hash of what a video is drawn from."""
    curves = [
        (curve.name, *(x.tobytes() for x in (curve.starts_s, curve.ends_s, curve.values))) for curve in each.curves
    ]
    text = repr((each.path, version, tuple(classes), list(each.labels), curves)) + each.note
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def unique_names(paths: Sequence[str]) -> list[str]:
    """A file name for each path: its last part without suffix; of equal ones, with the folders that tell them apart.

    Args:
        paths: different paths, URLs, or names of members of shards.
    """
    parts = [PurePosixPath(path.replace(":", "/")).parts for path in paths]
    names = [""] * len(paths)
    open_, depth = list(range(len(paths))), 1
    while open_:
        indices_of_name: dict[str, list[int]] = {}
        for i in open_:
            name_parts = [PurePosixPath(parts[i][-1]).stem if depth <= len(parts[i]) else parts[i][-1]]
            name_parts = [*parts[i][-depth:-1], *name_parts]
            indices_of_name.setdefault("_".join(part.strip("/") for part in name_parts), []).append(i)
        deepest = depth > max(len(parts[i]) for i in open_)
        open_ = []
        for name, group in indices_of_name.items():
            if len(group) == 1 or deepest:
                for number, i in enumerate(group):
                    names[i] = name if len(group) == 1 else f"{name}_{number}"
            else:
                open_ += group
        depth += 1
    return names


def draw_videos(
    files: Sequence[MediaPredictions],
    media: MediaList,
    folder: Path,
    classes: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
    caution: str = "",
) -> tuple[list[MediaPredictions], list[BadFile]]:
    """Write each video with its predictions drawn in, as `folder/NAME.mp4`.

    One that was drawn from the same predictions and the same version of the source is kept.

    Args:
        files: the predictions.
        media: the sources.
        folder: the folder of the videos.
        classes: the classes of the heads, for the colors.
        progress: called with the number of written videos and of all.
        caution: sentence about the heads that each video shows, before the note about the file.

    Returns:
        The predictions, with the drawn videos in them, and videos that could not be read.

    Raises:
        FileError: if a video cannot be written.
    """
    index = build_index(media, Modality.VIDEO)
    samples = {escape_filename(index.name(sample)): sample for sample in range(len(index))}
    videos = [each for each in files if each.path in samples]
    names = dict(zip((each.path for each in videos), unique_names([each.path for each in videos]), strict=True))
    drawn = _read_drawn(folder)
    predictions: list[MediaPredictions] = []
    bad: list[BadFile] = []
    for each in files:
        if each.path in names:
            progress(len(predictions), len(files))
            out = folder / f"{names[each.path]}.mp4"
            noted = replace(each, note=". ".join(filter(None, (caution, each.note))))
            digest = _digest(noted, index.version(samples[each.path]), classes)
            try:
                if drawn.get(out.name) != digest or not out.is_file():
                    draw_video(index.read(samples[each.path]).media, noted, out, classes)
                    drawn[out.name] = digest
                    with atomic_write(folder / DRAWN) as partial:
                        partial.write_text(json.dumps(drawn, indent=0) + "\n", encoding="utf-8")
                each = replace(each, drawn=out)
            except DecodeError as error:
                bad.append(BadFile(error.path, error.reason))
                logger.warning("no video of %s", bad[-1])
        predictions.append(each)
    progress(len(files), len(files))
    return predictions, bad
