"""Action and image classification by attentive probes of V-JEPA 2 on frozen tokens."""

from functools import partial

import torch
import torch.nn.functional as F

from tubelet.datasets import ClassificationDataset
from tubelet.heads.attentive import BLOCKS, AttentiveProbe, probe_heads
from tubelet.tasks.common.classification_plan import ClassificationPlan, make_plan, training_settings
from tubelet.tasks.common.classification_report import (
    confusion_details,
    majority_baseline,
    metrics,
    metrics_with_intervals,
    sweep_details,
    worst_examples,
)
from tubelet.tasks.common.classification_scores import Tokens, dataset_fingerprint, score_heads, train_classifiers
from tubelet.tasks.common.result import Result
from tubelet.tasks.common.task import EvaluationContext, Task

_softmax = partial(torch.softmax, dim=-1)


def evaluate(context: EvaluationContext) -> Result:
    """Train attentive probes on the tokens of the training files and score them on the test files.

    Raises:
        TubeletError: if the folder holds none of the benchmarks, or something in it is wrong.
    """
    model, config = context.model, context.config
    plan = make_plan(context)
    train = context.extract(plan.train.sources, plan.train_view.recipe, plan.train_view)
    val = context.extract(plan.val.sources, plan.val_view.recipe, plan.val_view)
    train_labels, truth = plan.train.labels(train.indices), plan.val.labels(val.indices)
    settings = training_settings(plan.protocol, config, len(train))
    heads = probe_heads(model.config.width, model.config.heads)
    probes = train_classifiers(
        context,
        partial(AttentiveProbe, model.config.width, (len(plan.classes),), heads),
        settings,
        Tokens(train, train_labels),
        F.cross_entropy,
        {"samples": dataset_fingerprint(train, train_labels), "classes": len(plan.classes)},
        config.workers,
    )
    samples = Tokens(val, truth)
    scores = [head_scores[0] for head_scores in score_heads(context, probes, samples, _softmax, workers=config.workers)]
    values = [metrics(head_scores, truth[:, 0]) for head_scores in scores]
    best = max(range(len(scores)), key=lambda i: values[i]["top-1"].value)
    parameters = sum(p.numel() for p in probes[best].parameters())
    return context.result(
        benchmark=plan.name,
        protocol=_describe_protocol(plan, len(probes), heads),
        metrics=metrics_with_intervals(scores[best], truth[:, 0]),
        baselines=majority_baseline(train_labels[:, 0], truth[:, 0], len(plan.classes)),
        counts={
            "classes": len(plan.classes),
            "training files": len(train),
            "test files": len(val),
            "probes side by side": len(probes),
            "parameters of a probe": parameters,
        }
        | dict(plan.excluded),
        skipped=[*plan.train.missing, *plan.val.missing, *train.bad_files, *val.bad_files],
        details=sweep_details(settings, values, best) | confusion_details(scores[best], truth[:, 0], plan.classes),
        examples=worst_examples(scores[best], truth[:, 0], val, plan),
    )


def _describe_protocol(plan: ClassificationPlan, count: int, heads: int) -> str:
    views = plan.protocol.views
    averaged = f"; probabilities are averaged over {views} squares along the long side" if views > 1 else ""
    return (
        f"Attentive probe of V-JEPA 2 (arXiv 2506.09985): {BLOCKS} blocks of {heads} heads, the last a learnable "
        f"query's cross-attention, on the tokens of the last level; {plan.describe_views()}{averaged}. The best of "
        f"{count} probes by the metrics on the test files themselves, as published. Training files are seen without "
        "augmentation, which the published protocol has: features are computed once."
    )


TASK = Task(
    name="classification", evaluate=evaluate, dataset=ClassificationDataset, metric="top-1", head=AttentiveProbe
)
