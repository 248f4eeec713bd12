"""Action anticipation as in V-JEPA 2 (arXiv 2506.09985): the action that begins one second later.

The frozen encoder encodes a clip that ends one second before the action. The frozen predictor takes all of its tokens
as context and predicts those of the first frames of the action, at mask tokens that many steps later. An attentive
probe with one query each for verb, noun and action classifies from both.

B clips, N tokens of a clip, (T', H', W') its grid, L levels, D width.
"""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.config import EvaluateConfig
from tubelet.data.clips import resize_center_crop, to_colors
from tubelet.data.decode import Frames
from tubelet.data.model_frames import open_frames
from tubelet.datasets import ActionSegment, AnticipationDataset, ProbeProtocol
from tubelet.datasets.records import drop_missing_files
from tubelet.errors import BadFile, ConfigError, DataError
from tubelet.grid import Grid, Mask, MaskedGrid, Modality
from tubelet.heads.attentive import BLOCKS, AttentiveProbe, probe_heads
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.classification_plan import training_settings
from tubelet.tasks.common.classification_report import describe_answers, most_confident_errors, sweep_details
from tubelet.tasks.common.classification_scores import (
    Scores,
    Tokens,
    dataset_fingerprint,
    score_heads,
    train_classifiers,
)
from tubelet.tasks.common.clip_transforms import frames_by_time
from tubelet.tasks.common.extract import FeatureSet, Source, subsample_evenly
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.task import EvaluationContext, Task
from tubelet.tasks.metrics.ranking import class_mean_recall, top_k

FPS = 8.0
ANTICIPATION_S = 1.0
PROTOCOL = ProbeProtocol(frames=32, batch_size=128, weight_decays=(1e-4, 1e-3, 1e-2, 1e-1))
_HEADS = ("verb", "noun", "action")
_K = 5


@dataclass(frozen=True, kw_only=True)
class PreActionClip:
    """The clip before an action; a transform of `extract`; `part` of the source is the start of the action in seconds.

    Attributes:
        size: side of the center crop in pixels.
        frames: T.
        fps: frames per second.
        gap_s: seconds from the clip's end to the action.
    """

    size: int
    frames: int
    fps: float = FPS
    gap_s: float = ANTICIPATION_S

    def __call__(self, source: Source) -> Tensor:
        """(1, 1, C, T, H, W) uint8, or normalized floats: one view of one segment."""
        return resize_center_crop(self.read(source).pixels, self.size)[None, None]

    def read(self, source: Source) -> Frames:
        """The clip as it is in the file."""
        steps = np.arange(self.frames, dtype=np.float64) - self.frames
        # What lies before the start of the video is its first frame.
        times = np.maximum(float(source.part[0]) - self.gap_s + steps / self.fps, 0.0)
        with open_frames(source.files[0], source.pixels) as video:
            return video.clips([times])[0]


def encode_and_predict(model: Backbone, pixels: Tensor, steps: int) -> dict[str, Tensor]:
    """`tokens` (B, N + H'·W', D): the last level of a clip, and the predicted tokens `steps` after its end.

    Args:
        model: an encoder with its predictor.
        pixels: (B, C, T, H, W) normalized.
        steps: time steps between the clip's last and the predicted one.
    """
    assert model.predictor is not None
    grid, B = model.tokenizer.grid(pixels), len(pixels)
    levels = model(pixels)
    frame = grid.h * grid.w
    context = torch.arange(grid.tokens, device=pixels.device).expand(B, -1)
    target = grid.tokens + steps * frame + torch.arange(frame, device=pixels.device).expand(B, -1)
    longer = Grid(grid.t + steps + 1, grid.h, grid.w)
    masked = MaskedGrid(Mask(context, target), longer, Modality.VIDEO)
    predicted, _ = model.predictor(levels, [masked])[0]
    return {"tokens": torch.cat([levels[-1], predicted[..., -model.config.width :].to(levels[-1].dtype)], dim=1)}


def require_predictor(model: Backbone) -> None:
    """Check that a model has a predictor of its own features.

    Raises:
        TubeletError: if it has none, or one that predicts another model's levels.
    """
    config = model.config
    if model.predictor is None:
        raise ConfigError(
            f"{model.model_id}: anticipation requires the predictor, which was not loaded with the encoder"
        )
    if config.prediction_width != config.num_output_levels * config.width:
        raise DataError(
            f"{model.model_id}: anticipation needs a predictor of the encoder's own {config.num_output_levels} levels "
            f"of width {config.width}, but this one predicts {config.prediction_width} channels of its "
            "teacher in distillation; use a model that was pre-trained without distillation"
        )


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The sigmoid focal loss (arXiv 1708.02002), summed over samples and classes.

    Args:
        logits: (B, K).
        labels: (B,) int64; a label that is no class of the head makes all its classes negatives.
        alpha: weight of the true class; the others' is 1 - alpha.
        gamma: focusing parameter: how much less well-classified samples count.
    """
    truth = (labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)).float()
    surprise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = torch.where(truth > 0, 1 - logits.sigmoid(), logits.sigmoid())
    return ((alpha * truth + (1 - alpha) * (1 - truth)) * missed.pow(gamma) * surprise).sum()


def evaluate(context: EvaluationContext) -> Result:
    """Train attentive probes on clips before the training actions and score them on the validation actions.

    Raises:
        TubeletError: if the folder is not EPIC-KITCHENS-100, something in it is wrong, or the model has no predictor
            of its own.
    """
    model, config = context.model, context.config
    require_predictor(model)
    benchmark: AnticipationDataset = context.dataset
    view, steps = _view(context)
    segments, skipped = _segments(benchmark, config)
    recipe, encode = {"transform": "before", "steps": steps} | asdict(view), partial(encode_and_predict, steps=steps)
    train, val = (
        context.extract([_source(s) for s in segments[split]], recipe, view, encode) for split in ("train", "val")
    )
    used = {
        "train": [segments["train"][n] for n in train.indices],
        "val": [segments["val"][n] for n in val.indices],
    }
    actions = _actions(used)
    train_labels, truth = _labels(used["train"], actions), _labels(used["val"], actions)
    trained = len({(s.verb, s.noun) for s in used["train"]})
    classes = (len(benchmark.verbs), len(benchmark.nouns), trained)
    settings = training_settings(PROTOCOL, config, len(train))
    heads = probe_heads(model.config.width, model.config.heads)
    probes = train_classifiers(
        context,
        partial(AttentiveProbe, model.config.width, classes, heads),
        settings,
        Tokens(train, train_labels),
        focal_loss,
        {"samples": dataset_fingerprint(train, train_labels), "classes": classes},
        config.workers,
    )
    trained_classes = truth[:, 2] < trained
    allowed = [_occurring(truth[trained_classes, h], count) for h, count in enumerate(classes)]
    scores = score_heads(
        context, probes, Tokens(val, truth), torch.sigmoid, allowed_classes=allowed, workers=config.workers
    )
    values = [_metrics(head_scores, truth, trained_classes) for head_scores in scores]
    best = max(range(len(scores)), key=lambda i: values[i]["action recall@5"].value)
    return context.result(
        benchmark=benchmark.name,
        protocol=_describe_protocol(view, steps, len(probes), heads),
        metrics=values[best],
        counts={
            "training actions": len(train),
            "validation actions": len(val),
            "of classes never trained on": int((~trained_classes).sum()),
            "verbs": classes[0],
            "nouns": classes[1],
            "pairs trained on": trained,
            "probes side by side": len(probes),
        },
        skipped=[*skipped, *train.bad_files, *val.bad_files],
        details=sweep_details(settings, values, best),
        examples=_examples(scores[best], used["val"], val, view, benchmark, actions),
    )


def _view(context: EvaluationContext) -> tuple[PreActionClip, int]:
    """The clip that the encoder sees, and the number of time steps from its end to the predicted one."""
    size, frames = context.native_size(PROTOCOL.image_size), context.native_frames(PROTOCOL.frames)
    context.model.config.grid(frames, size, size)
    return PreActionClip(size=size, frames=frames), int(ANTICIPATION_S * FPS / context.model.config.tubelet_size)


def _segments(
    benchmark: AnticipationDataset, config: EvaluateConfig
) -> tuple[dict[str, list[ActionSegment]], list[BadFile]]:
    """The actions of each split whose video exists, and the missing videos."""
    by_video: dict[str, list[ActionSegment]] = {}
    skipped: list[BadFile] = []
    for split, listed in (("train", benchmark.train), ("val", benchmark.test)):
        chosen = subsample_evenly(listed, config.max_samples)
        by_video[split], gone = drop_missing_files(chosen, split, config.max_failed_fraction)
        skipped += gone
    return by_video, skipped


def _source(segment: ActionSegment) -> Source:
    return Source(files=(segment.path,), part=(segment.start_s,))


def _actions(used: dict[str, list[ActionSegment]]) -> dict[tuple[int, int], int]:
    """Index of each pair of verb and noun; the pairs of the train split come first, as the head has only those."""
    pairs = [sorted({(s.verb, s.noun) for s in used[split]}) for split in ("train", "val")]
    return {pair: number for number, pair in enumerate(dict.fromkeys(pairs[0] + pairs[1]))}


def _labels(segments: list[ActionSegment], actions: dict[tuple[int, int], int]) -> Tensor:
    """(n, 3) int64 verb, noun and action."""
    return torch.tensor([[s.verb, s.noun, actions[s.verb, s.noun]] for s in segments])


def _occurring(labels: Tensor, count: int) -> Tensor:
    """(count,) bool: the classes that occur in labels."""
    return torch.bincount(labels, minlength=count).bool()


def _metrics(scores: list[Scores], truth: Tensor, trained: Tensor) -> dict[str, Metric]:
    """The official metric of each output; then V-JEPA 2's, which leaves out actions that are not trained on."""
    values: dict[str, float] = {}
    for h in (2, 0, 1):
        values[f"{_HEADS[h]} recall@{_K}"] = class_mean_recall(scores[h].ranks, truth[:, h], _K)
    for h in (2, 0, 1) if trained.any() else ():
        name = f"{_HEADS[h]} recall@{_K} among known actions"
        values[name] = class_mean_recall(scores[h].ranks_among[trained], truth[trained, h], _K)
    values["action top-1"] = top_k(scores[2].ranks, 1)
    return {name: Metric(value=value, unit="%") for name, value in values.items()}


def _examples(
    scores: list[Scores],
    segments: list[ActionSegment],
    features: FeatureSet,
    view: PreActionClip,
    benchmark: AnticipationDataset,
    actions: dict[tuple[int, int], int],
) -> list[Example]:
    names = {number: f"{benchmark.verbs[v]} {benchmark.nouns[n]}" for (v, n), number in actions.items()}
    examples = []
    for i in most_confident_errors(scores[2], _K):
        segment = segments[i]
        clip = view.read(features.sources[i])
        pixels = to_colors(resize_center_crop(clip.pixels, view.size), features.sources[i].pixels)
        examples.append(
            Example(
                name=segment.name,
                score=0.0,
                images=frames_by_time(pixels, clip.times, 5),
                note=f"{segment.start_s:.2f} s: {segment.narration} ({benchmark.verbs[segment.verb]} "
                f"{benchmark.nouns[segment.noun]}); {describe_answers(scores[2], i, names.__getitem__, _K)}",
            )
        )
    return examples


def _describe_protocol(view: PreActionClip, steps: int, count: int, heads: int) -> str:
    return (
        f"Attentive probe of V-JEPA 2 (arXiv 2506.09985): {BLOCKS} blocks of {heads} heads, a query each for verb, "
        f"noun and action, on the last level of {view.frames} frames at {view.fps:g} a second and {view.size} px "
        f"that end {view.gap_s:g} s before the action, and on the predictor's tokens {steps} time steps later; focal "
        "loss. Recall@5 is the mean over the classes that occur, as the benchmark's evaluator has it; among known "
        "actions, as V-JEPA 2 has it, actions that are not trained on are left out and answers are among the classes "
        f"that occur. The best of {count} probes by the metrics on the validation actions themselves, as published. "
        "Training clips are seen without augmentation and at one distance, where the published protocol draws from "
        "0.25 to 1.75 s."
    )


TASK = Task(
    name="anticipation",
    evaluate=evaluate,
    dataset=AnticipationDataset,
    metric="action recall@5",
    head=AttentiveProbe,
    load_options={"with_predictor": True},
)
