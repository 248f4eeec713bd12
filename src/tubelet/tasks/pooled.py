"""Quick looks at pooled features: nearest neighbours, which train nothing, and linear heads.

n training and m test vectors of width D, K classes. Vectors lie in one file, in float16, mapped rather than read.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.config import EvaluateConfig
from tubelet.data.worker_loader import WorkerLoader
from tubelet.datasets import ProbeProtocol
from tubelet.errors import BadFile
from tubelet.heads.attentive import LinearProbe
from tubelet.heads.training import (
    ANSWERS,
    Pooled,
    Scores,
    join,
    score,
    state_path,
    told_samples,
    train_side_by_side,
)
from tubelet.io.files import atomic_write
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.classification_report import confusion_details, metrics, sweep_details, worst_examples
from tubelet.tasks.common.clip_benchmarks import plan, training
from tubelet.tasks.common.extract import FeatureSet, Progress, extract, reading_options
from tubelet.tasks.common.result import Metric, Result
from tubelet.tasks.metrics.ranking import best_answers, ranks

NEIGHBOURS = (10, 20)
TEMPERATURE = 0.07  # of DINO's vote (arXiv 2104.14294): a neighbour counts exp(cosine / temperature)
LINEAR = ProbeProtocol(
    epochs=50, batch_size=256, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), weight_decays=(0.0, 0.03, 0.3)
)
_ROWS = 4096
_softmax = partial(torch.softmax, dim=-1)


class _Set:
    """A benchmark's pooled features."""

    def __init__(
        self, model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress
    ) -> None:
        self.plan = plan(model, data, config)
        view = self.plan.train_view
        recipe = view.recipe | {"features": "pooled"}
        options = reading_options(config, progress)
        self.train = extract(model, cache, self.plan.train.sources, recipe, view, pooled_level, **options)
        self.val = extract(model, cache, self.plan.val.sources, recipe, view, pooled_level, **options)
        self.labels = self.plan.train.labels(self.train.numbers)
        self.truth = self.plan.val.labels(self.val.numbers)[:, 0]
        self.table = table_of(self.train, cache.folder, config.workers)
        self.queries = table_of(self.val, cache.folder, config.workers)

    @property
    def skipped(self) -> list[BadFile]:
        return [*self.plan.train.gone, *self.plan.val.gone, *self.train.bad, *self.val.bad]

    @property
    def counts(self) -> dict[str, int]:
        return {
            "classes": len(self.plan.classes),
            "training files": len(self.train),
            "test files": len(self.val),
            "channels": self.table.shape[1],
        } | dict(self.plan.left_out)


def pooled_level(model: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    """`pooled` (B, D): the mean of the deepest level's tokens of normalised pixels (B, C, T, H, W)."""
    return {"pooled": model.forward_features(pixels).float().mean(1)}


def knn(model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress) -> Result:
    """Classify test files by their nearest training files.

    Raises:
        TubeletError: if the folder holds none of the benchmarks, or something in it is wrong.
    """
    found = _Set(model, data, config, cache, progress)
    neighbours = [k for k in NEIGHBOURS if k <= len(found.table)] or [len(found.table)]
    votes = neighbour_scores(
        found.table, found.labels[:, 0], found.queries, found.truth, len(found.plan.classes), neighbours
    )
    figures = {k: metrics(scores, found.truth) for k, scores in votes.items()}
    best = max(neighbours, key=lambda k: figures[k]["top-1"].value)
    return Result(
        task="knn",
        benchmark=found.plan.name,
        data=str(data),
        model_id=model.model_id,
        protocol=(
            f"Weighted nearest neighbours as in DINO (arXiv 2104.14294): cosine of the mean token of the last level, "
            f"weights exp(cosine / {TEMPERATURE}), the better of k = {' and '.join(map(str, neighbours))} "
            f"(here {best}); {found.plan.cut_in_words()}."
        ),
        metrics=figures[best],
        counts=found.counts,
        skipped=found.skipped,
        details={"by k": {str(k): {name: m.value for name, m in own.items()} for k, own in figures.items()}}
        | confusion_details(votes[best], found.truth, found.plan.classes),
        examples=worst_examples(votes[best], found.truth, found.val, found.plan),
    )


def linear(model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress) -> Result:
    """Train linear heads on pooled features and score them on the test files.

    Raises:
        TubeletError: if the folder holds none of the benchmarks, or something in it is wrong.
    """
    found = _Set(model, data, config, cache, progress)
    candidates, schedule = training(LINEAR, config, len(found.table))
    mean, scale = moments(found.table)
    recipe = {
        "task": "linear",
        "samples": told_samples(found.train, found.labels),
        "classes": len(found.plan.classes),
    }
    heads = train_side_by_side(
        partial(LinearProbe, mean, scale, len(found.plan.classes)),
        candidates,
        schedule,
        Pooled(found.table, found.labels),
        F.cross_entropy,
        state_path(cache.folder, recipe, candidates, schedule),
        model.device,
        progress=progress,
    )
    samples = Pooled(found.queries, found.truth.unsqueeze(1))
    scores = [own[0] for own in score(heads, samples, _softmax, model.device, batch_size=1024, progress=progress)]
    figures: list[dict[str, Metric]] = [metrics(own, found.truth) for own in scores]
    best = max(range(len(scores)), key=lambda i: figures[i]["top-1"].value)
    return Result(
        task="linear",
        benchmark=found.plan.name,
        data=str(data),
        model_id=model.model_id,
        protocol=(
            f"Softmax regression on the mean token of the last level, channels standardised, AdamW for "
            f"{schedule.epochs} epochs; the best of {len(candidates)} heads by the figures on the test files "
            f"themselves; {found.plan.cut_in_words()}."
        ),
        metrics=figures[best],
        counts=found.counts,
        skipped=found.skipped,
        details=sweep_details(candidates, schedule, figures, best)
        | confusion_details(scores[best], found.truth, found.plan.classes),
        examples=worst_examples(scores[best], found.truth, found.val, found.plan),
    )


def table_of(features: FeatureSet, folder: Path, workers: int) -> Tensor:
    """(n, D) float16: the pooled vector of each source, mapped from a file that is written once.

    Raises:
        TubeletError: if the file cannot be written.
    """
    width = features[0]["pooled"].shape[-1]
    names = "".join(f"{place.parent.name}{place.stem}" for place in features.places)
    path = folder / "tables" / f"{hashlib.blake2b(names.encode(), digest_size=16).hexdigest()}.f16"
    if not path.exists() or path.stat().st_size != 2 * len(features) * width:  # a machine's crash can empty a file
        loader: WorkerLoader[Tensor] = WorkerLoader(features, workers, batch_size=256, collate_fn=_rows)
        with atomic_write(path, remedy="choose another --cache") as partial, partial.open("wb") as file:
            for rows in loader:
                file.write(rows.numpy().tobytes())
    return torch.from_file(str(path), shared=False, size=len(features) * width, dtype=torch.float16).view(-1, width)


def _rows(features: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([own["pooled"].float().mean((0, 1)).half() for own in features])


def moments(table: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation of each channel, 1 where it does not vary."""
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows in table.split(_ROWS):
        total += rows.double().sum(0)
        squares += rows.double().square().sum(0)
    mean = total / len(table)
    std = (squares / len(table) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0).float()


def neighbour_scores(
    table: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, classes: int, neighbours: list[int]
) -> dict[int, Scores]:
    """The votes of the nearest rows, in memory that the number of rows does not change.

    Args:
        table: (n, D) training vectors.
        labels: (n,) their classes.
        queries: (m, D) test vectors.
        truth: (m,) their classes.
        classes: K.
        neighbours: numbers of neighbours, none above n.

    Returns:
        number of neighbours -> scores; the shares are shares of the vote.
    """
    parts: dict[int, list[Scores]] = {k: [] for k in neighbours}
    for start in range(0, len(queries), _ROWS):
        block = _directions(queries[start : start + _ROWS])
        similarity, voters = _nearest(table, labels, block, max(neighbours))
        own = truth[start : start + _ROWS]
        for k in neighbours:
            weights = (similarity[:, :k] / TEMPERATURE).softmax(1)
            votes = torch.zeros(len(block), classes).scatter_add_(1, voters[:, :k], weights)
            answers = best_answers(votes, ANSWERS)
            place = ranks(votes, own)
            parts[k].append(Scores(place, place, answers, votes.gather(1, answers)))
    return {k: join(chunks) for k, chunks in parts.items()}


def _nearest(table: Tensor, labels: Tensor, block: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(b, count) cosines, the highest first, and the classes of the rows that they are of."""
    best, voters = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
    for rows, row_labels in _chunks(table, labels):
        cosines = torch.cat([best, block @ _directions(rows).T], dim=1)
        found = torch.cat([voters, row_labels.expand(len(block), -1)], dim=1)
        best, order = cosines.topk(min(count, cosines.shape[1]), dim=1)
        voters = found.gather(1, order)
    return best, voters


def _directions(rows: Tensor) -> Tensor:
    """(n, D) unit vectors; of what is not finite nothing is known, and it is like nothing."""
    return F.normalize(rows.float().nan_to_num(0.0, 0.0, 0.0), dim=1)


def _chunks(table: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(table.split(_ROWS), labels.split(_ROWS), strict=True)
