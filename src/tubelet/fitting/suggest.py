"""Suggestions of unlabeled clips to label next (active learning).

Among the clips for which the head is least sure (smallest margin: Scheffer et al. 2001), some that differ from each
other (farthest-first traversal), since the least sure clips are often near-duplicates.

n clips, D channels, K classes or targets.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.embed.pick import farthest_first
from tubelet.errors import ConfigError, DataError, FileError, TubeletError, escape_filename
from tubelet.fitting.features import ClipFeatures, extract_rows, mean_by_row
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.result import Suggestion
from tubelet.grid import Modality
from tubelet.heads.head_file import Head, HeadInput
from tubelet.io.csv_tables import CLIP_COLUMNS, CsvDialect, Kind, write_csv
from tubelet.labels.media_facts import read_media_facts
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.labels.table import read_labels

logger = logging.getLogger(__name__)

MIN_CANDIDATES, CANDIDATES_EACH = 500, 10
"""Clips that are looked at: at least so many, and so many for each suggestion."""
_POOL = 4  # least sure clips, for each suggestion, among which diverse ones are chosen
_BATCH = 64
_EVEN = 0.5
Item = TypeVar("Item")


@dataclass(frozen=True)
class UnlabeledClips:
    """Clips without a label.

    Attributes:
        rows: a row without label for each.
        durations_s: media file -> seconds of a video, 0 for an image.
    """

    rows: list[LabelRow]
    durations_s: dict[Path, float]


@dataclass(frozen=True)
class _ClipPredictions:
    """Predictions of a head for clips.

    Attributes:
        texts: answer of each.
        certainty: (n,) how sure it is, from 0 to 1.
        margins: (n,) what clips are ranked by; lower is less sure.
    """

    texts: list[str]
    certainty: NDArray[np.float64]
    margins: NDArray[np.float64]


def suggest_clips(context: FitContext, head: Head, unlabeled: UnlabeledClips) -> list[Suggestion]:
    """Choose unlabeled clips to label next; for timelines whole videos, which have to be labeled as a whole.

    Args:
        context: the fit.
        head: the fitted head.
        unlabeled: the clips to choose from.

    Returns:
        At most `config.suggest` clips, in the order in which they were chosen.

    Raises:
        TubeletError: if files cannot be read.
    """
    context = context.with_model(head.adapt(context.model))
    table = replace(context.table, rows=unlabeled.rows, durations_s=unlabeled.durations_s)
    features = extract_rows(context.extract, unlabeled.rows, table, context.head_input, context.model.config.pixels)
    rows, answers, pooled = features.rows, _answers(head, features), features.pooled.double().numpy()
    if context.task == "timeline":
        rows, answers, pooled = _by_video(rows, answers, pooled, unlabeled.durations_s)
    return [
        Suggestion(
            path=rows[i].path,
            start_s=rows[i].start_s or 0.0,
            end_s=rows[i].end_s or 0.0,
            answer=answers.texts[i],
            score=float(answers.certainty[i]),
        )
        for i in choose_clips(answers.margins, pooled, context.config.suggest)
    ]


def choose_clips(margins: NDArray[np.float64], features: NDArray[np.float64], count: int) -> list[int]:
    """The clips to label next.

    The least sure one is first; each next one is the farthest from those before it, among the `_POOL` · count least
    sure clips.

    Args:
        margins: (n,) lower is less sure.
        features: (n, D) pooled features.
        count: number of clips.

    Returns:
        Indices, the same for the same arguments.
    """
    pool = np.argsort(margins, kind="stable")[: _POOL * count]
    if not len(pool):
        return []
    rows = features[pool]
    rows = (rows - features.mean(0)) / np.maximum(features.std(0), 1e-9 + 1e-6 * np.abs(features).max())
    return [int(i) for i in pool[farthest_first(rows, count)]]


def check_suggestions(path: Path) -> None:
    """Check that a table of suggestions may be written: an earlier one that was filled in is not overwritten.

    Raises:
        FileError: if the file has labels, or is something else.
    """
    if not path.exists():
        return
    try:
        table = read_labels(path)
    except TubeletError as error:
        raise FileError(f"{path}: exists and is not a table of suggestions; choose another --out") from error
    if table.faults:
        raise FileError(f"{path}: exists and is not a table of suggestions; choose another --out")
    if table.targets or any(row.labels for row in table.rows):
        raise FileError(f"{path}: has labels that would be lost; rename it, or choose another --out")


def write_suggestions(
    suggestions: Sequence[Suggestion], path: Path, targets: Sequence[str] = (), dialect: CsvDialect = "comma"
) -> None:
    """Write suggestions as a table of labels to be filled in.

    Args:
        suggestions: the clips.
        path: the CSV file.
        targets: names of the number columns of a regression; a column `label` without any.
        dialect: dialect of the CSV.

    Raises:
        FileError: if it cannot be written.
    """
    names = list(targets) or ["label"]
    own: list[tuple[str, Kind]] = [(name, "text") for name in names]
    columns: list[tuple[str, Kind]] = [*CLIP_COLUMNS, *own, ("answer", "text"), ("answer_score", "score")]
    rows = [
        (
            str(suggestion.path),
            *((None, None) if suggestion.end_s <= 0 else (suggestion.start_s, suggestion.end_s)),
            *(None for _ in names),
            suggestion.answer,
            suggestion.score,
        )
        for suggestion in suggestions
    ]
    write_csv(path, columns, rows, dialect)


def find_unlabeled(context: FitContext) -> UnlabeledClips:
    """Clips without a label, evenly from all files in `config.unlabeled`, or in the folders of the labeled files.

    They are of files without a label, and of parts of videos that no label overlaps; of lists with spans, in the spans.

    Raises:
        TubeletError: if there is none, or the task has no suggestions.
    """
    table, config = context.table, context.config
    if context.task in ("segmentation", "depth"):
        raise ConfigError(f"suggest is {config.suggest}, but is not supported by {context.task}; remove it")
    limit = max(MIN_CANDIDATES, CANDIDATES_EACH * config.suggest)
    sources = config.unlabeled or sorted({str(row.path.parent) for row in table.rows})
    media = list_media(sources)
    for note in media.notes:
        logger.info(escape_filename(note))
    index = build_index(media, Modality.IMAGE if context.head_input.frames == 1 else Modality.VIDEO)
    clips = [(Path(path), index.span(number) or (0.0, None)) for number, path in enumerate(index.files)]
    labeled_files = {row.path.resolve() for row in table.rows if row.start_s is None or context.task == "timeline"}
    spans: dict[Path, list[tuple[float, float]]] = {}
    for row in table.rows:
        if row.start_s is not None and row.end_s is not None:
            spans.setdefault(row.path.resolve(), []).append((row.start_s, row.end_s))
    parts = _evenly([(file, span) for file, span in clips if file.resolve() not in labeled_files], limit)
    files = list(dict.fromkeys(file for file, _ in parts))
    bare = LabelTable(path=table.path, format="", digest="", columns=(), rows=[_row(file) for file in files])
    facts = read_media_facts(bare, context.task, max(1, config.workers))
    broken = [file for file in files if facts[file].fault]
    if broken:
        logger.warning("%d unlabeled files cannot be read and are not suggested, such as %s", len(broken), broken[0])
    durations_s = {file: facts[file].duration_s for file in files if not facts[file].fault}
    rows = [
        row
        for file, (start_s, end_s) in parts
        if file in durations_s
        for row in _clips_of(
            file,
            start_s,
            durations_s[file] if end_s is None else min(end_s, durations_s[file]),
            context.head_input,
            spans.get(file.resolve(), []),
        )
    ]
    if not rows:
        raise DataError(
            f"suggest is {config.suggest}, but nothing in {', '.join(sources[:3])} is unlabeled; name folders or files "
            "that are with --unlabeled"
        )
    return UnlabeledClips(_evenly(rows, limit), durations_s)


def _row(path: Path, start_s: float | None = None, end_s: float | None = None) -> LabelRow:
    return LabelRow(line=0, path=path, start_s=start_s, end_s=end_s)


def _clips_of(
    file: Path, start_s: float, end_s: float, head_input: HeadInput, labeled: Sequence[tuple[float, float]]
) -> list[LabelRow]:
    """Clips of a file or span side by side that no labeled span overlaps; an image, or a short one, is one."""
    clip_s = head_input.frames / head_input.fps
    if head_input.frames == 1:
        return [_row(file)]
    if start_s >= end_s:
        return []
    count = max(1, int((end_s - start_s) / clip_s + 1e-6))
    ends = [(start_s + i * clip_s, min(start_s + (i + 1) * clip_s, end_s)) for i in range(count)]
    return [_row(file, a, b) for a, b in ends if not any(s < b - 1e-3 and a < e - 1e-3 for s, e in labeled)]


def _evenly(items: list[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spaced."""
    if len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


@torch.no_grad()
def _answers(head: Head, features: ClipFeatures) -> _ClipPredictions:
    """What the head says about each row."""
    outputs = torch.cat([head(part.float()).cpu() for part in features.tokens.split(_BATCH)])
    if head.spec.task == "timeline":  # (n, T, K): a clip is as sure as its steps are on average
        by_clip = _margins(outputs, head, ()).mean(1).double().numpy()
        return _ClipPredictions([_text(prediction, head) for prediction in outputs.mean(1)], by_clip, by_clip)
    values = mean_by_row(outputs, features.owner)
    texts = [_text(prediction, head) for prediction in values]
    if head.spec.task == "regression":
        return _far_answers(head, features.pooled, texts)
    margins = _margins(values, head, head.spec.thresholds).double().numpy()
    certainty = values.max(1).values.double().numpy() if head.spec.exclusive else margins
    return _ClipPredictions(texts, certainty, margins)


def _margins(scores: Tensor, head: Head, thresholds: Sequence[float]) -> Tensor:
    """(..., K) scores -> (...) from 0 to 1: the distance of the best two classes, or from the nearest threshold."""
    if head.spec.exclusive:
        if scores.shape[-1] == 1:
            return scores[..., 0]
        best = scores.topk(2, -1).values
        return best[..., 0] - best[..., 1]
    limits = torch.tensor(tuple(thresholds) or (_EVEN,) * scores.shape[-1])
    return (2 * (scores - limits).abs()).clamp(max=1).amin(-1)


def _far_answers(head: Head, pooled: Tensor, texts: list[str]) -> _ClipPredictions:
    """A head of values does not say how sure it is: the farther a clip is from the training clips, the less."""
    if head.novelty is None or not head.spec.novelty_quantiles:
        raise DataError("--suggest needs a head that knows its training features; leave the option out")
    distances = head.novelty(pooled).double().numpy()
    quantiles = head.spec.novelty_quantiles
    nearer = np.interp(distances, quantiles, np.linspace(0, 1, len(quantiles)))
    return _ClipPredictions(texts, 1 - nearer, -distances)


def _text(values: Tensor, head: Head) -> str:
    """The answer as it would be in a label table."""
    spec = head.spec
    if spec.task == "regression":
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(spec.classes, values.tolist(), strict=True))
    if spec.exclusive:
        return spec.classes[int(values.argmax())]
    limits = spec.thresholds or (_EVEN,) * len(spec.classes)
    return "|".join(k for k, value, limit in zip(spec.classes, values.tolist(), limits, strict=True) if value >= limit)


def _by_video(
    rows: Sequence[LabelRow], answers: _ClipPredictions, pooled: NDArray[np.float64], durations_s: dict[Path, float]
) -> tuple[list[LabelRow], _ClipPredictions, NDArray[np.float64]]:
    """Clips -> their videos: means, and the most frequent answer."""
    paths = list(dict.fromkeys(row.path for row in rows))
    groups = [[i for i, row in enumerate(rows) if row.path == path] for path in paths]
    texts = []
    for clips in groups:
        found = [answers.texts[i] for i in clips]
        texts.append(max(dict.fromkeys(found), key=found.count))
    means = _ClipPredictions(
        texts,
        np.array([answers.certainty[clips].mean() for clips in groups]),
        np.array([answers.margins[clips].mean() for clips in groups]),
    )
    videos = [_row(path, 0.0, durations_s[path]) for path in paths]
    return videos, means, np.stack([pooled[clips].mean(0) for clips in groups])
