"""Fitting heads of timelines: labels over time in long videos.

T time steps of a video, S cells, D channels, K classes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import BadFile, DataError
from tubelet.fitting.features import VideoSteps, extract_videos, span_of
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.training import Candidate, device_of, tensor_digest, train_candidates
from tubelet.heads.head_file import NO_LABEL, make_network
from tubelet.heads.spans import Span, span_coverage
from tubelet.heads.window_grid import step_seconds
from tubelet.labels.records import LabelError
from tubelet.labels.splits import row_units, split_rows

SEQUENCE_STEPS = 128
"""Time steps of a training sequence."""
_ROUNDING_S, _TOUCHING_S = 1e-6, 1e-3


@dataclass(frozen=True, kw_only=True)
class LabeledVideo:
    """A video with its labels.

    Attributes:
        steps: features of the time steps.
        spans: the labeled spans.
        targets: (T, K) float32, fraction of each time step that a class covers.
        unit: number of the group that the video is of.
    """

    steps: VideoSteps
    spans: list[Span]
    targets: Tensor
    unit: int


@dataclass(frozen=True, kw_only=True)
class TimelineData:
    """Videos with labels.

    Attributes:
        videos: the readable videos.
        classes: K names; the last is `NO_LABEL` where classes exclude each other and some time has no label.
        exclusive: whether no two spans overlap.
        step_s: seconds of a time step.
        splits: for each split, indices of the training videos and of the held-out videos.
        skipped: unreadable files, with the reasons.
    """

    videos: list[LabeledVideo]
    classes: tuple[str, ...]
    exclusive: bool
    step_s: float
    splits: list[tuple[list[int], list[int]]]
    skipped: list[BadFile]


def load_timelines(context: FitContext) -> TimelineData:
    """Features and labels of all videos.

    Raises:
        TubeletError: if videos cannot be read, or a split has none left.
    """
    table = context.table
    tubelet = context.model.config.tubelet_size
    step_s = step_seconds(context.head_input, tubelet)
    paths = list(dict.fromkeys(row.path for row in table.rows))
    durations = [table.durations_s[path] for path in paths]
    videos, skipped = extract_videos(
        context.extract, paths, durations, context.head_input, tubelet, context.model.config.pixels
    )
    index = {name: k for k, name in enumerate(table.classes)}
    spans: dict[Path, list[Span]] = {path: [] for path in paths}
    units = dict(zip((row.path for row in table.rows), row_units(table).tolist(), strict=True))
    for row in table.rows:
        spans[row.path] += [Span(index[label], *span_of(row, table)) for label in row.labels]
    exclusive = not any(_overlaps(values) for values in spans.values())
    K = len(table.classes)
    targets = [torch.from_numpy(span_coverage(spans[v.path], len(v.tokens), step_s, K)) for v in videos]
    classes = table.classes
    if exclusive and any(bool((values.sum(1) < 0.5).any()) for values in targets):
        classes = (*classes, NO_LABEL)
        targets = [torch.cat([values, (1 - values.sum(1, keepdim=True)).clamp(min=0)], dim=1) for values in targets]
    labeled = [
        LabeledVideo(steps=video, spans=_joined(spans[video.path]), targets=values, unit=units[video.path])
        for video, values in zip(videos, targets, strict=True)
    ]
    video_index = {video.path: i for i, video in enumerate(videos)}
    splits = []
    for split in context.splits:
        path_splits = [dict.fromkeys(table.rows[row].path for row in rows) for rows in split]
        train, held_out = ([video_index[path] for path in side if path in video_index] for side in path_splits)
        if not train or not held_out:
            raise DataError(f"{table.path}: after unreadable files, no videos are left to train on or to measure on")
        splits.append((train, held_out))
    return TimelineData(
        videos=labeled, classes=classes, exclusive=exclusive, step_s=step_s, splits=splits, skipped=skipped
    )


def _by_start(span: Span) -> tuple[float, float]:
    return span.start_s, span.end_s


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans by start; those of one class that touch are one, for no score over time could tell them apart."""
    joined: list[Span] = []
    latest: dict[int, int] = {}  # class -> place of its last span
    for span in sorted(spans, key=_by_start):
        index = latest.get(span.class_index)
        if index is not None and span.start_s <= joined[index].end_s + _TOUCHING_S:
            joined[index] = joined[index]._replace(end_s=max(joined[index].end_s, span.end_s))
        else:
            latest[span.class_index] = len(joined)
            joined.append(span)
    return joined


def _overlaps(spans: Sequence[Span]) -> bool:
    ordered = sorted(spans, key=_by_start)
    return any(after.start_s < before.end_s - _ROUNDING_S for before, after in itertools.pairwise(ordered))


def inner_split(context: FitContext, data: TimelineData, train: Sequence[int]) -> tuple[list[int], list[int]]:
    """Training videos that candidates learn from, and training videos that choose among them.

    Raises:
        LabelError: if the training videos are a single unit.
    """
    paths = {data.videos[i].steps.path: i for i in train}
    rows = [replace(row, split="") for row in context.table.rows if row.path in paths]
    table = replace(context.table, rows=rows)
    try:
        halves = split_rows(table, context.config.held_out_fraction, context.config.seed)
    except LabelError as error:
        raise LabelError(
            context.table.path,
            [
                "the training rows are of a single video or group, so that no head can be chosen; label at least three "
                "videos (one to train on, one to choose by, one to measure on)"
            ],
        ) from error
    fitting, choosing = (list(dict.fromkeys(paths[rows[r].path] for r in rows_of_half)) for rows_of_half in halves)
    return fitting, choosing


def class_weights(videos: Sequence[LabeledVideo], exclusive: bool) -> Tensor:
    """(K,) weights of the classes: rare ones count more, by the square root of how rare they are.

    Where classes exclude each other they weigh the loss of a step of that class; otherwise the loss of its presence.
    """
    fraction = torch.cat([video.targets for video in videos]).mean(0).clamp(min=1e-4)
    if exclusive:
        weights = fraction.rsqrt()
        return weights / (weights * fraction).sum()
    return ((1 - fraction) / fraction).sqrt().clamp(0.5, 20)


def sequence_count(videos: Sequence[LabeledVideo]) -> int:
    """Number of training sequences that are as long as the videos together."""
    return -(-sum(len(video.targets) for video in videos) // SEQUENCE_STEPS)


def sequence_batches(
    videos: Sequence[LabeledVideo], seed: int, candidate: Candidate, start: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random parts of videos, as a function of the seed and the step; from a step on.

    Yields:
        Tokens (B, T, S, D), targets (B, T, K) and weights (B, T), 0 beyond the end of a shorter video.
    """
    lengths = np.array([len(video.targets) for video in videos])
    T = int(min(SEQUENCE_STEPS, lengths.max()))
    for step in range(start, candidate.steps):
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(len(videos), candidate.batch_size, p=lengths / lengths.sum())
        parts = []
        for i in chosen:
            video, length = videos[i], int(lengths[i])
            first = int(rng.integers(max(1, length - T + 1)))
            tokens, targets = video.steps.tokens[first : first + T], video.targets[first : first + T]
            missing = T - len(tokens)
            weights = F.pad(torch.ones(len(tokens)), (0, missing))
            parts.append((F.pad(tokens, (0, 0, 0, 0, 0, missing)), F.pad(targets, (0, 0, 0, missing)), weights))
        yield tuple(torch.stack(kind) for kind in zip(*parts, strict=True))  # type: ignore[misc]


def train_timelines(
    context: FitContext, data: TimelineData, grid: Sequence[Candidate], train: Sequence[int]
) -> list[nn.Module]:
    """Train candidates on some videos."""
    videos = [data.videos[i] for i in train]
    width, K = videos[0].steps.tokens.shape[-1], len(data.classes)
    weights = class_weights(videos, data.exclusive).to(context.model.device)
    rows = torch.cat([video.steps.tokens.float().mean(1) for video in videos])
    targets = torch.cat([video.targets for video in videos])

    def make(candidate: Candidate) -> nn.Module:
        network = make_network(candidate.network, width, K, candidate.options)
        network.prepare(rows, targets)
        return network

    def loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        if data.exclusive:
            each = -(targets * weights * logits.log_softmax(-1)).sum(-1)
        else:
            each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none").sum(-1)
        return (each * mask).sum() / mask.sum()

    return train_candidates(
        context,
        grid,
        make,
        lambda candidate, start: sequence_batches(videos, context.config.seed, candidate, start),
        loss,
        tensor_digest(*(tensor for video in videos for tensor in (video.steps.tokens, video.targets))),
    )


@torch.no_grad()
def timeline_logits(network: nn.Module, video: VideoSteps) -> Tensor:
    """(T, K) logits of all time steps of a video."""
    return network(video.tokens.unsqueeze(0).to(device_of(network)).float())[0].cpu()
