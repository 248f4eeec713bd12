"""Action and image classification by attentive probes of V-JEPA 2 on frozen tokens."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from tubelet.config import EvaluateConfig
from tubelet.heads.attentive import BLOCKS, AttentiveProbe, probe_heads
from tubelet.heads.training import Tokens, score, state_path, told_samples, train_side_by_side
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.classification_report import confusion_details, metrics, sweep_details, worst_examples
from tubelet.tasks.common.clip_benchmarks import Plan, plan, training
from tubelet.tasks.common.extract import Progress, extract, reading_options
from tubelet.tasks.common.result import Result

_softmax = partial(torch.softmax, dim=-1)


def evaluate(model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress) -> Result:
    """Train attentive probes on the tokens of the training files and score them on the test files.

    Raises:
        TubeletError: if the folder holds none of the benchmarks, or something in it is wrong.
    """
    task = plan(model, data, config)
    options = reading_options(config, progress)
    train = extract(model, cache, task.train.sources, task.train_view.recipe, task.train_view, **options)
    val = extract(model, cache, task.val.sources, task.val_view.recipe, task.val_view, **options)
    train_labels, truth = task.train.labels(train.numbers), task.val.labels(val.numbers)
    candidates, schedule = training(task.protocol, config, len(train))
    heads = probe_heads(model.config.width, model.config.heads)
    recipe = {"task": "classification", "samples": told_samples(train, train_labels), "classes": len(task.classes)}
    probes = train_side_by_side(
        partial(AttentiveProbe, model.config.width, (len(task.classes),), heads),
        candidates,
        schedule,
        Tokens(train, train_labels),
        F.cross_entropy,
        state_path(cache.folder, recipe, candidates, schedule),
        model.device,
        workers=config.workers,
        progress=progress,
    )
    scores = [
        own[0]
        for own in score(probes, Tokens(val, truth), _softmax, model.device, workers=config.workers, progress=progress)
    ]
    figures = [metrics(own, truth[:, 0]) for own in scores]
    best = max(range(len(scores)), key=lambda i: figures[i]["top-1"].value)
    parameters = sum(p.numel() for p in probes[best].parameters())
    return Result(
        task="classification",
        benchmark=task.name,
        data=str(data),
        model_id=model.model_id,
        protocol=_in_words(task, len(candidates), heads),
        metrics=figures[best],
        counts={
            "classes": len(task.classes),
            "training files": len(train),
            "test files": len(val),
            "probes side by side": len(candidates),
            "parameters of a probe": parameters,
        }
        | dict(task.left_out),
        skipped=[*task.train.gone, *task.val.gone, *train.bad, *val.bad],
        details=sweep_details(candidates, schedule, figures, best)
        | confusion_details(scores[best], truth[:, 0], task.classes),
        examples=worst_examples(scores[best], truth[:, 0], val, task),
    )


def _in_words(task: Plan, count: int, heads: int) -> str:
    views = task.protocol.views
    averaged = f"; probabilities are averaged over {views} squares along the long side" if views > 1 else ""
    return (
        f"Attentive probe of V-JEPA 2 (arXiv 2506.09985): {BLOCKS} blocks of {heads} heads, the last a learnable "
        f"query's cross-attention, on the tokens of the last level; {task.cut_in_words()}{averaged}. The best of "
        f"{count} probes by the figures on the test files themselves, as published. Training files are seen without "
        "augmentation, which the published protocol has: features are computed once."
    )
