"""Exact nearest-neighbor search in a table: all features are compared, part by part, without an index.

All features of a trained encoder share a large component, so that the cosines of any two are close to 1. The mean of
the table is therefore subtracted first. Clips are then compared by cosine. A region is compared with each token by a
linear discriminant of its features against all tokens of the table (Hariharan et al., "Discriminative decorrelation for
clustering and classification", 2012): (x - mean) · inverse covariance · (query - mean), divided by its value for the
query. 0 is as similar as any two clips or tokens of the table are, 1 is the same.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tubelet.data.decode import Video
from tubelet.data.part_table import parts
from tubelet.data.stacks import is_image_file
from tubelet.data.storage import is_url, suffix_of
from tubelet.embed.regions import Box, frame_size, grow_box, region_weights
from tubelet.embed.table import PartRemovedError, dense_rows, pooled_rows, read_settings
from tubelet.errors import ConfigError, DataError, MissingFileError, TubeletError, escape_filename
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.load import load
from tubelet.user_warnings import warn_user

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # to read a table that another process changes at the same time
_CHUNK_VALUES = 2**24  # values of dense features that are compared at once
_TOKENS_EACH = 64  # tokens of a clip that the covariance is estimated from, spread evenly
_SHRINKAGE = 0.01  # variance added in all directions, as a fraction of the mean variance


@dataclass(frozen=True)
class Hit:
    """A search result.

    Attributes:
        path: file of the clip.
        start_s: timestamp of its first frame, in seconds.
        end_s: timestamp of its last frame, in seconds.
        similarity: 0 for the mean of the table, 1 for the query: the cosine of the clip's features and the query's,
            both less the mean of the table, -1 to 1; for a region the linear discriminant, which has no bounds.
        time_s: timestamp of the most similar time step, in seconds; None if whole clips were compared.
        box: x, y, width and height of the region around the most similar token, in pixels of the file's frames; None if
            whole clips were compared, or the file cannot be read.
    """

    path: str
    start_s: float
    end_s: float
    similarity: float
    time_s: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class _Candidate:
    """A hit before its box is known.

    Attributes:
        hit: without a box.
        similarities: (rows, columns) of the tokens of the most similar time step; None for whole clips.
    """

    hit: Hit
    similarities: NDArray[np.float32] | None = None


def search(
    index: str | Path,
    file: str | Path,
    top: int = 10,
    model: Backbone | None = None,
    at_s: float | None = None,
    box: Box | None = None,
    other_files: bool = False,
) -> list[Hit]:
    """Find the clips of a table that are most similar to an image, to a clip of a video, or to a region of either.

    Clips of the query's own file that overlap the query are not ranked, since they are the query itself; their number
    is logged.

    Args:
        index: a folder that `tubelet embed` wrote.
        file: the query.
        top: number of clips.
        model: the encoder; None loads the model of the table.
        at_s: a moment of the query in seconds, which its clip is centered on; None takes the middle of the video.
        box: x, y, width and height of a region of the query, in pixels of its frames. The mean of its tokens at the
            moment is compared with each token of the table.
        other_files: leave out all clips of the query's file.

    Raises:
        TubeletError: if the table is missing or empty, or has no tokens for a box; the model is another one; the file
            cannot be read; or the moment or the box is not in it.

    Warns:
        UserWarning: if rows are not ranked because their features are not finite or all zero, or boxes are unknown
            because files cannot be read.
    """
    index = Path(index)
    if top < 1:
        raise ConfigError(f"top is {top}, expected at least 1 clip")
    settings = read_settings(index)
    if not parts(index):
        raise DataError(f"{index}: has no rows yet; wait for `tubelet embed` to finish")
    if box is not None and not settings["dense"]:
        raise DataError(f"{index}: has no tokens, which a region is compared with; embed the collection with --dense")
    model = model or _load(index, settings["model"])
    if model.weights_id != settings["weights"]:
        raise DataError(
            f"{index}: features are from {settings['model_id']}, the model is {model.model_id}; pass the model of the "
            "table with --model, or embed the collection again"
        )
    features = _encode(model, file, settings, at_s)
    logger.info("query: %s%s", file, _query_times(features))
    query = _query(features, file, at_s, box)
    length = np.linalg.norm(query)
    if not (np.isfinite(length) and length > 0):
        raise DataError(f"{file}: features have no direction (norm {length}); check the weights of {model.model_id}")
    own = _QueryClips(file, features, settings["fps"], other_files)
    for left in reversed(range(ATTEMPTS)):
        own.skipped = 0
        try:
            center = _center(index, len(query))
            if box is None:
                hits = _nearest_clips(index, query - center, center, top, own)
            else:
                hits = _nearest_moments(index, _discriminant(index, query - center, center), center, top, own)
        except PartRemovedError:  # `tubelet embed` replaces rows of changed files: read the table again
            if not left:
                raise
        else:
            if own.skipped:
                logger.info("%s", own)
            return _with_boxes(hits)
    raise AssertionError


class _QueryClips:
    """The rows of a table that are the query itself, which are counted and not ranked.

    Attributes:
        skipped: number of rows that were left out.
    """

    def __init__(self, file: str | Path, features: DenseFeatures, fps: float, whole_file: bool) -> None:
        name = str(file)
        self._path = name if is_url(name) else escape_filename(str(Path(name).expanduser().resolve()))
        self._whole_file, self.skipped = whole_file, 0
        # Times of steps lie in the middle of their frames: half a step on either side belongs to the clip.
        times = features.times
        if times is None:
            self._start_s, self._end_s = -math.inf, math.inf
        else:
            steps = times[0].numpy()
            half_s = max(float(steps[-1] - steps[0]) / max(1, len(steps) - 1), 1 / fps) / 2
            self._start_s, self._end_s = float(steps[0]) - half_s, float(steps[-1]) + half_s

    def keep(self, columns: pa.Table) -> NDArray[np.bool_]:
        """Which of some rows are ranked; the others are added to `skipped`."""
        own = np.array([path == self._path for path in columns["path"].to_pylist()], bool)
        if not self._whole_file and own.any():
            starts, ends = (columns[name].to_numpy() for name in ("start_s", "end_s"))
            own &= (starts < self._end_s) & (ends > self._start_s)
        self.skipped += int(own.sum())
        return ~own

    def __str__(self) -> str:
        clips = f"{self.skipped} clip{'s' * (self.skipped != 1)} of the query's file"
        if self._whole_file:
            return f"left out: {clips}"
        return f"left out: {clips}, overlapping the query; --other-files leaves out the whole file"


def _query_times(features: DenseFeatures) -> str:
    """The times of a query's clip in words; empty for an image."""
    if features.times is None or features.grid.t == 1:
        return ""
    return f", time steps from {float(features.times[0, 0]):.2f} to {float(features.times[0, -1]):.2f} s"


def _encode(model: Backbone, file: str | Path, settings: dict[str, Any], at_s: float | None) -> DenseFeatures:
    """Features of the query's clip."""
    if not (suffix_of(str(file)) or is_url(str(file)) or Path(file).exists()):
        raise MissingFileError(f"{file}: no such file; search by an image or a video, words cannot be compared")
    clip = {"resize": settings["image_size"], "frames": settings["frames"], "fps": settings["fps"]}
    causal = settings["causal"] and not is_image_file(file)
    if at_s is None and not causal:
        return model.encode(file, **clip)
    if is_image_file(file):
        raise ConfigError(f"at is {at_s:g} s, but {file} is an image, which has no moments; leave it out")
    with Video(file, stack_fps=settings["fps"], display=True) as video:
        duration_s = video.info.duration_s
    at_s = duration_s / 2 if at_s is None else at_s
    if not 0 <= at_s <= duration_s:
        raise ConfigError(f"at is {at_s:g} s, but {file} lasts {duration_s:.2f} s; choose a moment within it")
    if causal:
        return _encode_time_step(model, file, clip, min(at_s, duration_s - 0.5 / settings["fps"]))
    length_s = (settings["frames"] - 1) / settings["fps"]
    last_s = duration_s - length_s - 1e-3
    if last_s < 0:  # too short for the rate: the whole video, at a higher one
        return model.encode(file, **clip)
    return model.encode(file, **clip, start=min(max(0.0, at_s - length_s / 2), last_s))


def _encode_time_step(model: Backbone, file: str | Path, clip: dict[str, Any], at_s: float) -> DenseFeatures:
    """Causal features of the time step that a moment is in."""
    tubelet, fps = model.config.tubelet_size, clip["fps"]
    last = (int(at_s * fps) // tubelet + 1) * tubelet
    span = {"start": max(0, last - clip["frames"]) / fps, "end": last / fps}
    return deque(model.stream(file, **clip, **span, causal=True), maxlen=1)[0]


def _query(features: DenseFeatures, file: str | Path, at_s: float | None, box: Box | None) -> NDArray[np.float32]:
    """(D,) features of the query: the mean of its tokens, or of those in the box at the moment."""
    if box is None:
        return features.pooled[0].cpu().numpy()
    assert features.times is not None
    times = features.times[0].numpy()
    step = int(np.abs(times - (times.mean() if at_s is None else at_s)).argmin())
    height, width = frame_size(str(file))
    weights = region_weights(box, height, width, features.grid.h, features.grid.w, str(file))
    tokens = features.map[0, step].cpu().numpy()
    return np.asarray((tokens * weights[..., None]).sum((0, 1)), np.float32)


def _center(index: Path, width: int) -> NDArray[np.float32]:
    """(D,) mean over the rows of a table, which is the mean of all their tokens, too.

    Raises:
        TubeletError: if vectors do not have the width of the query.
    """
    total, count = np.zeros(width), 0
    for _, pooled in pooled_rows(index, ["path"]):
        if pooled.shape[1] != width:
            raise DataError(
                f"{index}: a part has vectors of {pooled.shape[1]} channels, expected {width} as of the model; "
                "embed the collection again into another folder"
            )
        healthy = _healthy(pooled)
        total, count = total + pooled[healthy].sum(0, dtype=np.float64), count + len(healthy)
    return (total / max(1, count)).astype(np.float32)


def _healthy(pooled: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows whose features have a direction."""
    lengths = np.linalg.norm(pooled, axis=1)
    return np.flatnonzero(np.isfinite(lengths) & (lengths > 0))


def _discriminant(index: Path, query: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D,) the direction that separates a query (D,), with the center subtracted, from the tokens of a table."""
    total, count = np.zeros((len(query), len(query))), 0
    for _, tokens, _ in dense_rows(index, ["path"], _CHUNK_VALUES):
        each = tokens.reshape(len(tokens), -1, len(query))
        chosen = each[:, :: max(1, each.shape[1] // _TOKENS_EACH)].reshape(-1, len(query)) - center
        chosen = chosen[np.isfinite(chosen).all(1)]
        total, count = total + chosen.T @ chosen, count + len(chosen)
    covariance = total / max(1, count)
    covariance += np.eye(len(query)) * max(_SHRINKAGE * float(np.trace(covariance)) / len(query), 1e-12)
    direction = np.linalg.solve(covariance, query.astype(np.float64))
    return np.asarray(direction / max(float(direction @ query), 1e-30), np.float32)


def _nearest_clips(
    index: Path, query: NDArray[np.float32], center: NDArray[np.float32], top: int, own: _QueryClips
) -> list[_Candidate]:
    """The clips most similar to a query (D,), from which the center (D,) was subtracted."""
    query = query / max(float(np.linalg.norm(query)), 1e-30)
    best: list[_Candidate] = []
    rows = unranked = 0
    first = ""
    for columns, pooled in pooled_rows(index, ["path", "start_s", "end_s"]):
        healthy = _healthy(pooled)
        if len(healthy) < len(pooled):
            first = first or columns["path"][int(np.setdiff1d(np.arange(len(pooled)), healthy)[0])].as_py()
        rows, unranked = rows + len(pooled), unranked + len(pooled) - len(healthy)
        healthy = healthy[own.keep(columns)[healthy]]
        centered = pooled[healthy] - center
        similarity = centered @ query / np.maximum(np.linalg.norm(centered, axis=1), 1e-30)
        nearest = np.argsort(-similarity, kind="stable")[:top]
        found = columns.take(healthy[nearest]).to_pylist()
        best += [_Candidate(Hit(**row, similarity=float(similarity[i]))) for row, i in zip(found, nearest, strict=True)]
        best = _top(best, top)
    if unranked:
        warn_user(
            f"{index}: {unranked} of {rows} rows have features without a direction (NaN, infinity or zero) and are not "
            f"ranked, the first of {first}; delete the table and embed the collection again"
        )
    return best


def _nearest_moments(
    index: Path, direction: NDArray[np.float32], center: NDArray[np.float32], top: int, own: _QueryClips
) -> list[_Candidate]:
    """The clips with the most similar tokens, by the product with a direction (D,)."""
    best: list[_Candidate] = []
    rows = unranked = 0
    for columns, tokens, times in dense_rows(index, ["path", "start_s", "end_s"], _CHUNK_VALUES):
        similarity = (tokens - center) @ direction  # (n, t, h, w)
        steps = similarity.max((2, 3))  # (n, t)
        ranked = own.keep(columns)
        for i, row in enumerate(columns.to_pylist()):
            rows += 1
            if not np.isfinite(steps[i]).all():
                unranked += 1
                continue
            if not ranked[i]:
                continue
            step = int(steps[i].argmax())
            hit = Hit(**row, similarity=float(steps[i, step]), time_s=float(times[i, step]))
            best.append(_Candidate(hit, similarity[i, step]))
        best = _top(best, top)
    if unranked:
        warn_user(f"{index}: {unranked} of {rows} rows have features that are not finite")
    return best


def _top(candidates: list[_Candidate], top: int) -> list[_Candidate]:
    return sorted(candidates, key=lambda candidate: -candidate.hit.similarity)[:top]


def _with_boxes(candidates: list[_Candidate]) -> list[Hit]:
    """Hits, with their boxes if there are similarities of tokens."""
    hits, unknown = [], []
    known_size = cache(frame_size)
    for candidate in candidates:
        box = None
        if candidate.similarities is not None:
            try:
                box = grow_box(candidate.similarities, *known_size(candidate.hit.path))
            except TubeletError as error:
                unknown.append(error)
        hits.append(replace(candidate.hit, box=box))
    if unknown:
        warn_user(
            f"the boxes of {len(unknown)} of {len(hits)} results are unknown, since their files cannot be read "
            f"({unknown[0]})"
        )
    return hits


def _load(index: Path, name: str) -> Backbone:
    try:
        return load(name)
    except TubeletError as error:
        raise DataError(
            f"{index}: its model {name} cannot be loaded ({error}); pass its new location with --model"
        ) from error


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder of all paths or URLs, with a slash at its end; empty for none."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = []
    for names in zip(*folders, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "/".join([*shared, ""]) if any(shared) else ""
