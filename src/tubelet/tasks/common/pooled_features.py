"""The mean token of each file of a classification data set, in one table on disk.

n training and m test vectors of width D, K classes. Vectors are kept in float16 and mapped from their file.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.data.worker_loader import WorkerLoader
from tubelet.datasets import ProbeProtocol
from tubelet.errors import BadFile
from tubelet.io.files import atomic_write
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.classification_plan import make_plan, training_settings
from tubelet.tasks.common.classification_report import (
    confusion_details,
    majority_baseline,
    metrics,
    metrics_with_intervals,
    sweep_details,
    worst_examples,
)
from tubelet.tasks.common.classification_scores import Pooled, dataset_fingerprint, score_heads, train_classifiers
from tubelet.tasks.common.extract import FeatureSet
from tubelet.tasks.common.result import Result
from tubelet.tasks.common.task import EvaluationContext


class PooledDataset:
    """The pooled features of a classification data set.

    Attributes:
        plan: the data set, and how its files are cropped.
        train: features of the training files.
        val: features of the test files.
        labels: (n, 1) int64 classes of the training files.
        truth: (m,) int64 classes of the test files.
        table: (n, D) float16 training vectors.
        queries: (m, D) float16 test vectors.
    """

    def __init__(self, context: EvaluationContext) -> None:
        """Read the data set in the context's folder and extract its features.

        Raises:
            TubeletError: if the folder holds no classification data set, or something in it is wrong.
        """
        self.plan = make_plan(context)
        view = self.plan.train_view
        recipe = view.recipe | {"features": "pooled"}
        self.train = context.extract(self.plan.train.sources, recipe, view, pooled_level)
        self.val = context.extract(self.plan.val.sources, recipe, view, pooled_level)
        self.labels = self.plan.train.labels(self.train.indices)
        self.truth = self.plan.val.labels(self.val.indices)[:, 0]
        self.table = table_of(self.train, context.cache.folder, context.config.workers)
        self.queries = table_of(self.val, context.cache.folder, context.config.workers)

    @property
    def skipped(self) -> list[BadFile]:
        """Files that are listed but missing, and files that cannot be read."""
        return [*self.plan.train.missing, *self.plan.val.missing, *self.train.bad_files, *self.val.bad_files]

    @property
    def counts(self) -> dict[str, int]:
        """The counts of a result."""
        return {
            "classes": len(self.plan.classes),
            "training files": len(self.train),
            "test files": len(self.val),
            "channels": self.table.shape[1],
        } | dict(self.plan.excluded)


def evaluate_heads(
    context: EvaluationContext,
    data: PooledDataset,
    make_head: Callable[[], nn.Module],
    protocol: ProbeProtocol,
    text: str,
) -> Result:
    """Train heads on the training vectors and score them on the test vectors.

    Args:
        context: the evaluation.
        data: the vectors and their classes.
        make_head: returns a head with random weights, (B, D) -> one output's (B, K), in a list.
        protocol: how the heads are trained.
        text: a phrase on the heads, for the protocol of the result.

    Raises:
        TubeletError: if the state of the training cannot be written or read.
    """
    settings = training_settings(protocol, context.config, len(data.table))
    classes = data.plan.classes
    identity = {"samples": dataset_fingerprint(data.train, data.labels), "classes": len(classes)}
    samples, tests = Pooled(data.table, data.labels), Pooled(data.queries, data.truth.unsqueeze(1))
    heads = train_classifiers(context, make_head, settings, samples, F.cross_entropy, identity)
    scores = [
        head_scores[0]
        for head_scores in score_heads(context, heads, tests, partial(torch.softmax, dim=-1), batch_size=1024)
    ]
    values = [metrics(head_scores, data.truth) for head_scores in scores]
    best = max(range(len(scores)), key=lambda i: values[i]["top-1"].value)
    return context.result(
        benchmark=data.plan.name,
        protocol=(
            f"{text}, AdamW for {settings.epochs} epochs; the best of {len(heads)} heads by the metrics on the test "
            f"files themselves; {data.plan.describe_views()}."
        ),
        metrics=metrics_with_intervals(scores[best], data.truth),
        baselines=majority_baseline(data.labels[:, 0], data.truth, len(classes)),
        counts=data.counts,
        skipped=data.skipped,
        details=sweep_details(settings, values, best) | confusion_details(scores[best], data.truth, classes),
        examples=worst_examples(scores[best], data.truth, data.val, data.plan),
    )


def pooled_level(model: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    """`pooled` (B, D): the mean of the deepest level's tokens of normalized pixels (B, C, T, H, W)."""
    return {"pooled": model.forward_features(pixels).float().mean(1)}


def table_of(features: FeatureSet, folder: Path, workers: int) -> Tensor:
    """(n, D) float16: the pooled vector of each source, mapped from a file that is written once.

    Raises:
        TubeletError: if the file cannot be written.
    """
    width = features[0]["pooled"].shape[-1]
    names = "".join(f"{media_path.parent.name}{media_path.stem}" for media_path in features.paths)
    path = folder / "tables" / f"{hashlib.blake2b(names.encode(), digest_size=16).hexdigest()}.f16"
    if not path.exists() or path.stat().st_size != 2 * len(features) * width:  # a machine's crash can empty a file
        loader: WorkerLoader[Tensor] = WorkerLoader(features, workers, batch_size=256, collate_fn=_rows)
        with atomic_write(path, remedy="choose another --cache") as partial, partial.open("wb") as file:
            for rows in loader:
                file.write(rows.numpy().tobytes())
    return torch.from_file(str(path), shared=False, size=len(features) * width, dtype=torch.float16).view(-1, width)


def _rows(features: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([tensors["pooled"].float().mean((0, 1)).half() for tensors in features])
