"""Training of classification heads on features of clips or images, and their scores.

B samples, V views of a sample, K classes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tubelet.data.worker_loader import WorkerLoader
from tubelet.device import pick_dtype
from tubelet.heads.training import EpochBatches, HeadSchedule, train_heads
from tubelet.heads.training_state import state_path
from tubelet.tasks.common.classification_plan import TrainingSettings
from tubelet.tasks.common.extract import FeatureSet
from tubelet.tasks.common.task import EvaluationContext
from tubelet.tasks.metrics.ranking import UNKNOWN, best_answers, ranks

ANSWERS = 5
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tokens(Dataset[tuple[Tensor, Tensor]]):
    """The tokens of each source, the segments of a view one after the other, and its labels.

    Attributes:
        features: whose `tokens` are (V, S, N, D), the S segments of V views.
        labels: (n, heads) int64.
    """

    features: FeatureSet
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(V, S · N, D) float16 and (heads,)."""
        return self.features[index]["tokens"].flatten(1, 2), self.labels[index]


@dataclass(frozen=True)
class Pooled(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a table of pooled vectors, and their labels.

    Attributes:
        table: (n, D), usually mapped from a file.
        labels: (n, heads) int64.
    """

    table: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(1, D) and (heads,)."""
        return self.table[index : index + 1], self.labels[index]


Samples = Tokens | Pooled


@dataclass(frozen=True)
class FeatureBatch:
    """Views of B samples, each of which may have another number of views and of tokens.

    Attributes:
        groups: views (v, ...) of one shape.
        owner: (ΣV,) int64, the sample of each view, group after group.
        labels: (B, heads) int64.
    """

    groups: list[Tensor]
    owner: Tensor
    labels: Tensor

    def pin_memory(self) -> "FeatureBatch":
        """The same batch in page-locked memory, so that copies to a CUDA device overlap with work."""
        return dataclasses.replace(self, groups=[views.pin_memory() for views in self.groups])

    def apply(self, head: nn.Module, device: torch.device) -> list[Tensor]:
        """The outputs of a head for all views, each (ΣV, K) float32 on the device."""
        with _autocast(device):
            parts = [head(views.to(device, non_blocking=True).float()) for views in self.groups]
        return [torch.cat(output).float() for output in zip(*parts, strict=True)]


def collate(samples: list[tuple[Tensor, Tensor]]) -> FeatureBatch:
    """Group samples by the shape of their views."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (views, _) in enumerate(samples):
        groups.setdefault(tuple(views.shape[1:]), []).append(i)
    owner = [torch.full((len(samples[i][0]),), i) for group in groups.values() for i in group]
    together = [torch.cat([samples[i][0] for i in group]) for group in groups.values()]
    return FeatureBatch(together, torch.cat(owner), torch.stack([labels for _, labels in samples]))


def train_classifiers(
    context: EvaluationContext,
    make_head: Callable[[], nn.Module],
    settings: TrainingSettings,
    samples: Samples,
    loss: Loss,
    identity: dict[str, Any],
    workers: int = 0,
) -> nn.ModuleList:
    """Train a head for each combination of hyper-parameters, all on the same batches.

    Args:
        context: the evaluation.
        make_head: returns a head with random weights.
        settings: hyper-parameters, epochs and batch size.
        samples: what the heads are trained on; a sample has one view.
        loss: of the logits (B, K) of an output and its labels (B,); the losses of several outputs are added up.
        identity: everything else that would change the outcome.
        workers: processes that read features.

    Returns:
        the trained heads, in eval mode.

    Raises:
        TubeletError: if the state of the training cannot be written or read.
    """
    device, seed = context.model.device, settings.seed
    per_epoch = len(EpochBatches(len(samples), settings.batch_size, seed, 1))

    def batches(start: int) -> WorkerLoader[Any]:
        order = EpochBatches(len(samples), settings.batch_size, seed, settings.epochs, start)
        return WorkerLoader(samples, workers, batch_sampler=order, collate_fn=collate, pin_memory=device.type == "cuda")

    def backward(heads: nn.ModuleList, batch: FeatureBatch, step: int) -> None:
        labels = batch.labels[batch.owner].to(device, non_blocking=True).unbind(1)
        for head in heads:  # one after the other, so that the activations of one are in memory at a time
            outputs = batch.apply(head, device)
            torch.stack([loss(x, y) for x, y in zip(outputs, labels, strict=True)]).sum().backward()

    return train_heads(
        make_head,
        settings.hparams,
        HeadSchedule(
            steps=settings.epochs * per_epoch,
            warmup_steps=int(settings.warmup_epochs * per_epoch),
            start_lr=settings.start_lr,
        ),
        batches,
        backward,
        state_path(
            context.cache.folder / "heads",
            json.dumps(identity | {"task": context.task, "training": dataclasses.asdict(settings)}, sort_keys=True),
        ),
        device,
        seed=seed,
        progress=context.progress,
    )


def _autocast(device: torch.device) -> torch.autocast:
    dtype = pick_dtype("auto", device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True)
class Scores:
    """Predictions of one output of one head for n samples.

    Attributes:
        ranks: (n,) of the true class among all, see `ranking.ranks`; `UNKNOWN` for a class that the head does not have.
        ranks_among: (n,) the same among the classes that were allowed.
        answers: (n, up to 5) classes, the highest first.
        shares: (n, up to 5) their mean probabilities.
    """

    ranks: Tensor
    ranks_among: Tensor
    answers: Tensor
    shares: Tensor


@torch.no_grad()
def score_heads(
    context: EvaluationContext,
    heads: nn.ModuleList,
    samples: Samples,
    probabilities: Callable[[Tensor], Tensor],
    *,
    allowed_classes: Sequence[Tensor] | None = None,
    batch_size: int = 16,
    workers: int = 0,
) -> list[list[Scores]]:
    """Score every head on all samples; probabilities are averaged over the views of a sample.

    Args:
        context: the evaluation.
        heads: the heads.
        samples: what they are scored on.
        probabilities: logits (B, K) to probabilities.
        allowed_classes: for each output (K,) bool, the classes that the second ranks allow; all by default.
        batch_size: samples at a time.
        workers: processes that read features.

    Returns:
        for each head, for each of its outputs, the scores.
    """
    device, progress = context.model.device, context.progress
    loader: WorkerLoader[Any] = WorkerLoader(
        samples, workers, batch_size=batch_size, collate_fn=collate, pin_memory=device.type == "cuda"
    )
    parts: list[list[list[Scores]]] = [[] for _ in heads]
    for i, batch in enumerate(loader):
        progress("scoring", i * batch_size, len(samples))
        for head, head_parts in zip(heads, parts, strict=True):
            means = [_mean_by_owner(probabilities(x).cpu(), batch.owner) for x in batch.apply(head, device)]
            head_parts.append(
                [
                    scores_of(mean, labels, allowed_classes[h] if allowed_classes else None)
                    for h, (mean, labels) in enumerate(zip(means, batch.labels.unbind(1), strict=True))
                ]
            )
    progress("scoring", len(samples), len(samples))
    return [[join_scores(chunks) for chunks in zip(*head_parts, strict=True)] for head_parts in parts]


def _mean_by_owner(values: Tensor, owner: Tensor) -> Tensor:
    """(ΣV, K) -> (B, K)."""
    counts = torch.bincount(owner)
    return torch.zeros(len(counts), values.shape[1]).index_add_(0, owner, values) / counts.unsqueeze(1)


def scores_of(mean: Tensor, labels: Tensor, allowed: Tensor | None = None) -> Scores:
    """Scores of probabilities (n, K) against labels (n,); `allowed` (K,) are the classes of the second ranks."""
    K = mean.shape[1]
    mean = mean.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # a diverged head knows nothing
    clamped = labels.clamp(max=K - 1)
    answers = best_answers(mean, ANSWERS)
    rank = torch.where(labels < K, ranks(mean, clamped), UNKNOWN)
    narrowed = mean if allowed is None else mean.masked_fill(~allowed, -torch.inf)
    rank_allowed = torch.where(labels < K, ranks(narrowed, clamped), UNKNOWN)
    return Scores(rank, rank_allowed, answers, mean.gather(1, answers))


def join_scores(chunks: Sequence[Scores]) -> Scores:
    """The scores of parts of a set, as those of the set."""
    fields = dataclasses.fields(Scores)
    return Scores(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields))


def dataset_fingerprint(features: FeatureSet, labels: Tensor) -> str:
    """Thirty-two hexadecimal digits of the samples that a training sees, and of their labels."""
    names = "".join(f"{path.parent.name}{path.stem}" for path in features.paths)
    return hashlib.blake2b(names.encode() + labels.numpy().tobytes(), digest_size=16).hexdigest()
