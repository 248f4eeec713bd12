"""Classification by linear heads on the mean token of a file."""

from functools import partial

import torch
import torch.nn.functional as F

from tubelet.datasets import ClassificationDataset, ProbeProtocol
from tubelet.heads.linear import LinearProbe, fit_standardization
from tubelet.tasks.common.classification_plan import training_settings
from tubelet.tasks.common.classification_report import confusion_details, metrics, sweep_details, worst_examples
from tubelet.tasks.common.classification_scores import Pooled, dataset_fingerprint, score, train_classifiers
from tubelet.tasks.common.pooled_features import PooledDataset
from tubelet.tasks.common.result import Result
from tubelet.tasks.common.task import EvaluationContext, Task

PROTOCOL = ProbeProtocol(
    epochs=50, batch_size=256, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), weight_decays=(0.0, 0.03, 0.3)
)


def evaluate(context: EvaluationContext) -> Result:
    """Train linear heads on pooled features and score them on the test files.

    Raises:
        TubeletError: if the folder holds no classification data set, or something in it is wrong.
    """
    data = PooledDataset(context)
    settings = training_settings(PROTOCOL, context.config, len(data.table))
    classes = data.plan.classes
    heads = train_classifiers(
        context,
        partial(LinearProbe, *fit_standardization(data.table), len(classes)),
        settings,
        Pooled(data.table, data.labels),
        F.cross_entropy,
        {"samples": dataset_fingerprint(data.train, data.labels), "classes": len(classes)},
    )
    samples = Pooled(data.queries, data.truth.unsqueeze(1))
    scores = [own[0] for own in score(context, heads, samples, partial(torch.softmax, dim=-1), batch_size=1024)]
    values = [metrics(own, data.truth) for own in scores]
    best = max(range(len(scores)), key=lambda i: values[i]["top-1"].value)
    return context.result(
        benchmark=data.plan.name,
        protocol=(
            f"Softmax regression on the mean token of the last level, channels standardized, AdamW for "
            f"{settings.epochs} epochs; the best of {len(heads)} heads by the figures on the test files "
            f"themselves; {data.plan.describe_views()}."
        ),
        metrics=values[best],
        counts=data.counts,
        skipped=data.skipped,
        details=sweep_details(settings, values, best) | confusion_details(scores[best], data.truth, classes),
        examples=worst_examples(scores[best], data.truth, data.val, data.plan),
    )


TASK = Task(evaluate=evaluate, dataset=ClassificationDataset, metric="top-1", head=LinearProbe)
