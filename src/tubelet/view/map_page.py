"""The page of a collection as a map: clips as points to color, search, select, name and export."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.embed.clip_vectors import ClipVectors
from tubelet.embed.duplicates import DuplicatePair, group_duplicates
from tubelet.embed.layout import ClipLayout
from tubelet.embed.search import common_folder
from tubelet.errors import TubeletError
from tubelet.prediction.label_colors import NONE_COLOR, label_colors
from tubelet.view.page import binary_block, json_block, write_page

_SIDE, _FRAMES, _QUALITY = 96, 6, 55  # of thumbnails: pixels, frames side by side, of WebP
_NEIGHBORS = 8  # of each clip
_OUTLIERS, _GROUPS, _LABELS = 60, 300, 20  # on the page, at most; labels that have colors


@dataclass(frozen=True)
class Coloring:
    """A value of each clip that points are colored by.

    Attributes:
        name: heading of the legend.
        about: sentence for the reader.
        values: (n,) text, "" for none; or float64, NaN for none.
    """

    name: str
    about: str
    values: NDArray[Any]


@dataclass(frozen=True)
class MapContent:
    """What a map shows.

    Attributes:
        table: name of the table.
        clips: its clips.
        layout: where they are.
        colorings: values of the clips; the first is of their clusters.
        duplicates: pairs of files that show the same.
        picks: clips to label first.
    """

    table: str
    clips: ClipVectors
    layout: ClipLayout
    colorings: Sequence[Coloring]
    duplicates: Sequence[DuplicatePair]
    picks: Sequence[int]


def write_map_page(content: MapContent, out: Path, thumbnails: int) -> None:
    """Write a map as one file that needs no other.

    Args:
        content: what it shows.
        out: the page.
        thumbnails: largest number of clips with a thumbnail.

    Raises:
        FileError: if it cannot be written.
    """
    clips, layout = content.clips, content.layout
    outliers = np.argsort(-layout.outlier_scores, kind="stable")[:_OUTLIERS]
    strips = _strips(clips, _choose_thumbnails(content, outliers, thumbnails))
    folder = common_folder(clips.paths)
    neighbors, similarities = _neighbors_of_other_files(clips, layout)
    low, high = layout.positions.min(0), layout.positions.max(0)
    positions = (layout.positions - low) / max(float((high - low).max()), 1e-9)
    arrays = {
        "places": (positions * 65535).astype("<u2"),
        "file": clips.file.astype("<u4"),
        "start": clips.start_s.astype("<f4"),
        "end": clips.end_s.astype("<f4"),
        "neighbors": neighbors.astype("<u4"),
        "similarities": similarities.astype("<f4"),
    }
    legends = []
    for number, coloring in enumerate(content.colorings):
        legend, arrays[f"color{number}"] = _legend(coloring)
        legends.append(legend)
    blob, index = _pack(arrays)
    groups = group_duplicates(content.duplicates)
    data = {
        "folder": folder,
        "files": [path.removeprefix(folder) for path in clips.paths],
        "clips": len(clips.file),
        "neighbors": neighbors.shape[1],
        "arrays": index,
        "colorings": legends,
        "duplicates": [_group(group, content.duplicates) for group in groups[:_GROUPS]],
        "outliers": [[int(i), round(float(layout.outlier_scores[i]), 4)] for i in outliers],
        "picks": list(map(int, content.picks)),
        "thumbnails": strips,
        "frames": _FRAMES,
        "noneColor": NONE_COLOR,
    }
    values = {
        "table": content.table,
        "clips": len(clips.file),
        "files": len(clips.paths),
        "shown": len(strips),
        "groups": len(groups),
        "left_out": max(0, len(groups) - _GROUPS),
        "data": json_block("data", data),
        "binary": binary_block("binary", blob),
    }
    write_page("map.html", out, values)


def _neighbors_of_other_files(clips: ClipVectors, layout: ClipLayout) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest clips of each clip and their cosines, those of its own file last."""
    same_file = clips.file[layout.neighbors] == clips.file[:, None]
    order = np.argsort(same_file, axis=1, kind="stable")[:, :_NEIGHBORS]
    return np.take_along_axis(layout.neighbors, order, 1), np.take_along_axis(layout.similarities, order, 1)


def _pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, list[Any]]]:
    """Arrays as bytes, and for each its offset, its length and its type in JavaScript."""
    kinds = {"u2": "Uint16Array", "u4": "Uint32Array", "f4": "Float32Array"}
    blob, index = bytearray(), {}
    for name, array in arrays.items():
        blob += b"\0" * (-len(blob) % 4)
        index[name] = [len(blob), array.size, kinds[array.dtype.str[1:]]]
        blob += array.tobytes()
    return bytes(blob), index


def _legend(coloring: Coloring) -> tuple[dict[str, Any], NDArray[Any]]:
    """A coloring as the page's script takes it: numbers, or indices of labels, of which 0 is none."""
    legend: dict[str, Any] = {"name": coloring.name, "about": coloring.about}
    if coloring.values.dtype.kind == "f":
        finite = coloring.values[np.isfinite(coloring.values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        return legend | {"low": low, "high": high}, coloring.values.astype("<f4")
    names, inverse, counts = np.unique(coloring.values.astype(str), return_inverse=True, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable") if names[i] != ""]
    colored = order[:_LABELS]
    code = np.zeros(len(names), np.int64)
    code[order] = len(colored) + 1  # the rest
    code[colored] = np.arange(1, len(colored) + 1)
    labels = [
        {"name": str(names[i]), "color": color, "count": int(counts[i])}
        for i, color in zip(colored, label_colors(len(colored)), strict=True)
    ]
    if len(order) > len(colored):
        rest = sum(int(counts[i]) for i in order[len(colored) :])
        labels.append({"name": f"{len(order) - len(colored)} others", "color": NONE_COLOR, "count": rest})
    return legend | {"labels": labels}, code[inverse].astype("<u2")


def _group(files: Sequence[int], pairs: Sequence[DuplicatePair]) -> dict[str, Any]:
    """A group of near-duplicates as the page's script takes it."""
    members = set(files)
    group_pairs = [pair for pair in pairs if members.issuperset(pair.files)]
    return {
        "files": list(files),
        "pairs": [
            [*pair.files, *(round(second, 2) for span in pair.spans_s for second in span), pair.speed, pair.similarity]
            for pair in group_pairs[:20]
        ],
    }


def _choose_thumbnails(content: MapContent, outliers: NDArray[np.int64], limit: int) -> list[int]:
    """Clips that get a thumbnail: those in lists first, the others evenly."""
    clips = content.clips
    first_clip = np.searchsorted(clips.file, np.arange(len(clips.paths)))
    listed = [*content.picks, *outliers.tolist()]
    listed += [int(first_clip[file]) for pair in content.duplicates[:limit] for file in pair.files]
    chosen = dict.fromkeys(listed[:limit])
    rest = np.setdiff1d(np.arange(len(clips.file)), list(chosen))
    room = min(len(rest), limit - len(chosen))
    if room > 0:
        chosen |= dict.fromkeys(rest[np.linspace(0, len(rest) - 1, room).round().astype(int)].tolist())
    return sorted(chosen)


def _strips(clips: ClipVectors, chosen: Iterable[int]) -> dict[int, str]:
    """Thumbnails as data URIs: frames of the central square, side by side. Files that cannot be read have none."""
    strips = {}
    for file, group in groupby(chosen, key=lambda i: int(clips.file[i])):
        clip_indices, path = list(group), clips.paths[file]
        try:
            if clips.end_s[clip_indices[0]] <= clips.start_s[clip_indices[0]]:
                frames = [read_image(path, display=True).numpy()]
            else:
                times = np.concatenate([np.linspace(clips.start_s[i], clips.end_s[i], _FRAMES) for i in clip_indices])
                order = np.argsort(times, kind="stable")
                with Video(path, stack_fps=clips.fps, display=True) as video:
                    scanned = [pixels for pixels, _, repeats in video.scan(times[order]) for _ in range(repeats)]
                frames = [scanned[k] for k in np.argsort(order, kind="stable")]
        except TubeletError:
            continue
        for number, i in enumerate(clip_indices):
            strips[i] = _strip([_square(frame) for frame in frames[number * _FRAMES : (number + 1) * _FRAMES]])
    return strips


def _square(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE))


def _strip(frames: Sequence[Image.Image]) -> str:
    strip = Image.new("RGB", (_SIDE * len(frames), _SIDE))
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * _SIDE, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "webp", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
