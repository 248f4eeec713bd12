"""The suite: segmentation, depth, camera motion and tracking from frozen features, compared with two baselines.

What the trained encoder is worth is what its features give beyond those of the same architecture with random weights
and beyond the pixels themselves, under one protocol: the same clips, tokens, targets and penalties, and probes that are
linear and solved to their optimum. Segmentation and depth are read off single tokens; for camera motion and tracking,
see `camera_motion`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tubelet.checkpoint.run import list_checkpoints, resolve_best, step_from_header
from tubelet.checkpoint.sharded import read_header
from tubelet.config import ModelConfig, TrainConfig
from tubelet.errors import ConfigError, DataError, MissingFileError
from tubelet.heads.regression import ChannelScaling, Probe, fit_scaling, select_ridge, select_softmax
from tubelet.heads.training import held_out_count
from tubelet.model.encoder import Encoder, random_encoder
from tubelet.sample_data.truth import SampleEntry, read_description, read_index
from tubelet.tasks.common.camera_motion import evaluate_motion_and_tracking
from tubelet.tasks.common.extract import Progress
from tubelet.tasks.common.result import Metric, Result
from tubelet.tasks.common.sample_clips import (
    FEATURES,
    RANDOM,
    TRAINED,
    ClipCrop,
    TokenTargets,
    frames_that_fit,
    iter_token_targets,
)
from tubelet.tasks.common.suite_score import SuiteScore
from tubelet.tasks.common.task import EvaluationContext, Task
from tubelet.tasks.metrics.dense import accuracy, confusion, explained_variance, iou_by_class, mean_iou, rmse

MAX_TRAIN_CLIPS, MAX_VAL_CLIPS = 400, 200
MAX_TRAIN_TOKENS = 16_000  # 40 of each of 400 clips; neighbors are too alike for more to add much
HELD_OUT_FRACTION = 0.2
PROTOCOL = (
    "Linear probes of single tokens, solved to their optimum, for segmentation and depth; a linear probe of how tokens "
    "correspond over time for camera motion; tracking by the cosine of tokens, without training. Baselines have the "
    "same clips, tokens and penalties to choose from."
)


@dataclass(frozen=True)
class _Rows:
    """Training data of the probes.

    Attributes:
        tokens: kind of feature -> (n, D) features of single tokens.
        labels: (n,) class of each token's patch, -1 where none is known.
        log_depth: (n,) NaN where it is not known.
        held_out_tokens, held_out_clips: bool, the rows that choose the penalty; the tokens are those of the clips.
    """

    tokens: dict[str, Tensor]
    labels: Tensor
    log_depth: Tensor
    held_out_tokens: Tensor
    held_out_clips: Tensor


@dataclass(frozen=True)
class _Probes:
    """The scaling and the probes of one kind of features."""

    token_scaling: ChannelScaling
    segmentation: Probe
    depth: Probe


def evaluate(context: EvaluationContext) -> Result:
    """Evaluate a model on a sample set, at its own size and number of frames by default.

    Raises:
        TubeletError: if there is no sample set, or it does not fit the model.
    """
    data, config, model = context.data, context.config, context.model
    require_sample_set(data)
    path = resolve_best(Path(context.source).expanduser())
    checkpoints = list_checkpoints(path)
    checkpoint = checkpoints[-1] if checkpoints else path
    step = None
    if checkpoints or path in list_checkpoints(path.parent.parent):
        step = step_from_header(read_header(checkpoint), checkpoint)
    parameters = read_description(data)["parameters"]
    frames = frames_that_fit(parameters["frames"], parameters["frames"], model.config.tubelet_size)
    result = evaluate_encoder(
        model,
        data,
        seed=config.seed,
        max_train_clips=config.max_samples or MAX_TRAIN_CLIPS,
        max_val_clips=config.max_samples or MAX_VAL_CLIPS,
        image_size=context.native_size(_whole_patches(parameters["size"], model.config.patch_size)),
        frames=context.native_frames(frames),
        model_id=model.model_id,
        progress=context.progress,
    )
    return replace(result, details={**result.details, "step": step})


def evaluate_encoder(
    encoder: Encoder,
    data: Path,
    *,
    seed: int = 0,
    max_train_clips: int = MAX_TRAIN_CLIPS,
    max_val_clips: int = MAX_VAL_CLIPS,
    image_size: int | None = None,
    frames: int | None = None,
    model_id: str = "",
    progress: Progress = lambda what, done, total: None,
) -> Result:
    """Evaluate an encoder in memory, on the device that it is on; neither it nor any generator is changed.

    Args:
        encoder: usually a VJEPA's teacher.
        data: a folder that `tubelet sample-data` wrote.
        seed: seed of the random encoder and of all choices of clips and tokens.
        max_train_clips: largest number of train clips.
        max_val_clips: largest number of val clips.
        image_size: side of the center crop in pixels; the data's size by default.
        frames: frames of a clip, from its middle; as many as the clips have by default.
        model_id: id of the encoder in the result.
        progress: called with a stage's name, what is done of it, and its total.

    Returns:
        the result, with random weights and raw patches as baselines.

    Raises:
        TubeletError: no sample set, too few clips in it, or they do not fit the encoder.
    """
    view = _view(data, encoder.config, image_size, frames)
    train = _some(read_index(data, "train"), max_train_clips, seed)
    val = _some(read_index(data, "val"), max_val_clips, seed)
    if len(train) < 2 or not val:
        raise DataError(f"{data}: {len(train)} train and {len(val)} val clips, expected at least 2 and 1")
    device = encoder.tokenizer.video.weight.device
    encoders = {TRAINED: encoder, RANDOM: random_encoder(encoder.config, seed).to(device)}
    rows = _training_rows(train, encoders, view, seed, progress)
    if not rows.log_depth.isfinite().any() or (rows.labels < 0).all():
        raise DataError(f"{data}: the training clips have no pixel of known depth or class")
    # A kind's rows go when its probes are fitted: the pixels of many patches fill memory.
    probes = {}
    for number, kind in enumerate(FEATURES):
        progress("fitting probes", number, len(FEATURES))
        probes[kind] = _fit(rows.tokens.pop(kind), rows, view)
    progress("fitting probes", len(FEATURES), len(FEATURES))
    scores = _score(val, encoders, probes, view, len(rows.labels), progress)
    scores += evaluate_motion_and_tracking(train, val, encoders, view, rows.held_out_clips, progress)
    counts = {"train clips": len(train), "val clips": len(val)}
    return _result(scores, counts, data, seed, model_id)


def _result(scores: Sequence[SuiteScore], counts: dict[str, int], data: Path, seed: int, model_id: str) -> Result:
    """The scores as one result: the trained features are the model, the others its baselines."""
    columns = {
        kind: {
            f"{score.name}, {score.metric}": Metric(value=value, higher_is_better=score.higher_is_better)
            for score in scores
            if (value := score.values[kind]) is not None
        }
        for kind in FEATURES
    }
    return Result(
        task="suite",
        benchmark="sample set",
        data=str(data),
        model_id=model_id,
        protocol=PROTOCOL,
        metrics=columns.pop(TRAINED),
        baselines=columns,
        counts=counts,
        details={score.name: score.details for score in scores} | {"seed": seed},
    )


class TeacherEvaluator:
    """Evaluates a run's teacher while it trains, by `evaluate_encoder` at the run's own sizes.

    Attributes:
        metrics: name of each metric in the rows of metrics -> whether higher is better.
    """

    metrics = MappingProxyType(
        {"eval_segmentation": True, "eval_depth": False, "eval_camera_motion": True, "eval_tracking": True}
    )

    def __init__(self, config: TrainConfig) -> None:
        """Check that the data set fits the run.

        Args:
            config: the run, with `eval_data`.

        Raises:
            TubeletError: `eval_data` is no sample data set, or it does not fit the model.
        """
        self.data, self.size, self.seed = Path(config.eval_data or ""), config.data.image_size, config.seed
        require_sample_set(self.data)
        self.frames = frames_that_fit(
            config.data.frames, read_description(self.data)["parameters"]["frames"], config.model.tubelet_size
        )
        _view(self.data, config.model, self.size, self.frames)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """The value of each metric; NaN where the data set has nothing to measure it on."""
        result = evaluate_encoder(encoder, self.data, seed=self.seed, image_size=self.size, frames=self.frames)
        values = {name.partition(",")[0]: metric.value for name, metric in result.metrics.items()}
        return {name: values.get(name.removeprefix("eval_").replace("_", " "), float("nan")) for name in self.metrics}


def teacher_evaluator(config: TrainConfig) -> TeacherEvaluator | None:
    """What evaluates a run's teacher while it trains; None for a run that is not evaluated.

    Raises:
        TubeletError: `config.eval_data` is no sample data set, or it does not fit the model.
    """
    return TeacherEvaluator(config) if config.eval_every else None


def require_sample_set(data: Path) -> None:
    """Refuse a folder that `tubelet sample-data` did not write.

    Raises:
        TubeletError: it has no dataset.json.
    """
    if not (data / "dataset.json").is_file():
        raise MissingFileError(
            f"{data}: no sample set here, which --task suite and --eval-data need; create one with "
            "`tubelet sample-data FOLDER`, or choose another --task"
        )


def _whole_patches(size: int, patch: int) -> int:
    return max(size - size % patch, patch)


def _view(data: Path, config: ModelConfig, image_size: int | None, frames: int | None) -> ClipCrop:
    description = read_description(data)
    parameters = description["parameters"]
    size = image_size or _whole_patches(parameters["size"], config.patch_size)
    count = frames or frames_that_fit(parameters["frames"], parameters["frames"], config.tubelet_size)
    if count > parameters["frames"]:
        raise ConfigError(f"frames is {count}, but the clips of {data} have {parameters['frames']}")
    config.grid(count, size, size)  # refuses what does not divide into patches
    return ClipCrop(size, count, tuple(description["classes"]), tuple(description["motions"]))


def _some(entries: list[SampleEntry], at_most: int, seed: int) -> list[SampleEntry]:
    """All entries, or a random choice of them, in their order."""
    if len(entries) <= at_most:
        return entries
    chosen = np.random.default_rng([seed, 0]).choice(len(entries), at_most, replace=False)
    return [entries[i] for i in sorted(chosen)]


def _batches(
    entries: Sequence[SampleEntry], encoders: dict[str, Encoder], view: ClipCrop, stage: str, progress: Progress
) -> Iterator[TokenTargets]:
    """`iter_token_targets`, reporting the clips that are done."""
    done = 0
    progress(stage, done, len(entries))
    for batch in iter_token_targets(entries, encoders, view):
        yield batch
        done += len(batch.log_depth)
        progress(stage, done, len(entries))


def _training_rows(
    entries: Sequence[SampleEntry], encoders: dict[str, Encoder], view: ClipCrop, seed: int, progress: Progress
) -> _Rows:
    """Features and targets of training clips: of each the same number of tokens, drawn once for all features."""
    rng = np.random.default_rng([seed, 1])
    order = torch.from_numpy(rng.permutation(len(entries)))
    held_out_clips = torch.zeros(len(entries), dtype=torch.bool)
    held_out_clips[order[: held_out_count(len(entries), HELD_OUT_FRACTION)]] = True
    tokens: dict[str, list[Tensor]] = {kind: [] for kind in FEATURES}
    labels, log_depth = [], []
    for batch in _batches(entries, encoders, view, "encoding training clips", progress):
        B, N = batch.log_depth.shape
        rows_per_clip = min(N, max(1, MAX_TRAIN_TOKENS // len(entries)))
        chosen = torch.from_numpy(np.stack([np.sort(rng.choice(N, rows_per_clip, replace=False)) for _ in range(B)]))
        row = torch.arange(B).unsqueeze(1)
        for kind, x in batch.features.items():
            tokens[kind].append(x[row, chosen].flatten(0, 1))
        labels.append(_majority(batch.class_pixels)[row, chosen].flatten())
        log_depth.append(batch.log_depth[row, chosen].flatten())
    return _Rows(
        tokens={kind: torch.cat(tokens.pop(kind)) for kind in FEATURES},
        labels=torch.cat(labels),
        log_depth=torch.cat(log_depth),
        held_out_tokens=held_out_clips.repeat_interleave(rows_per_clip),
        held_out_clips=held_out_clips,
    )


def _majority(class_pixels: Tensor) -> Tensor:
    """(..., K) counts -> (...) the most frequent class, -1 where nothing was counted."""
    return torch.where(class_pixels.sum(-1) > 0, class_pixels.argmax(-1), -1)


def _fit(tokens: Tensor, rows: _Rows, view: ClipCrop) -> _Probes:
    """All probes of one kind of feature, whose tokens are scaled in place."""
    token_scaling = fit_scaling(tokens)
    tokens = token_scaling.apply_(tokens)
    named, deep, held_out = rows.labels >= 0, rows.log_depth.isfinite(), rows.held_out_tokens
    return _Probes(
        token_scaling,
        segmentation=select_softmax(tokens[named], rows.labels[named], len(view.classes), held_out[named]),
        depth=select_ridge(tokens[deep], rows.log_depth[deep], held_out[deep]),
    )


def _score(
    entries: Sequence[SampleEntry],
    encoders: dict[str, Encoder],
    probes: dict[str, _Probes],
    view: ClipCrop,
    train_tokens: int,
    progress: Progress,
) -> list[SuiteScore]:
    """Scores of the probes on validation clips, over all tokens; features are not stored."""
    K = len(view.classes)
    patch_counts = {kind: torch.zeros(K, K, dtype=torch.int64) for kind in FEATURES}
    right_pixels, depths = dict.fromkeys(FEATURES, 0), {kind: [] for kind in FEATURES}  # type: ignore[var-annotated]
    pixels, truths = 0, []
    for batch in _batches(entries, encoders, view, "scoring validation clips", progress):
        labels = _majority(batch.class_pixels)
        named, deep = labels >= 0, batch.log_depth.isfinite()
        pixels += int(batch.class_pixels.sum())
        truths.append(batch.log_depth[deep])
        for kind, x in batch.features.items():
            probe = probes[kind]
            tokens = probe.token_scaling.apply_(x.flatten(0, 1))
            classes = probe.segmentation(tokens).argmax(-1).view_as(labels)
            patch_counts[kind] += confusion(classes[named], labels[named], K)
            right_pixels[kind] += int(batch.class_pixels.gather(-1, classes.unsqueeze(-1)).sum())
            depths[kind].append(probe.depth(tokens).view_as(batch.log_depth)[deep])
    truth = torch.cat(truths)
    predicted = {kind: torch.cat(parts) for kind, parts in depths.items()}
    common = {"image_size": view.image_size, "frames": view.frames}
    return [
        SuiteScore(
            "segmentation",
            "mIoU",
            True,
            {kind: mean_iou(counts) for kind, counts in patch_counts.items()},
            {
                "IoU": {
                    kind: {view.classes[k]: value for k, value in iou_by_class(counts).items()}
                    for kind, counts in patch_counts.items()
                },
                "pixel accuracy": {kind: right / pixels for kind, right in right_pixels.items()},
                "patch accuracy": {kind: accuracy(counts) for kind, counts in patch_counts.items()},
                "l2": {kind: probe.segmentation.l2 for kind, probe in probes.items()},
                "tokens": {"train": train_tokens, "val": int(patch_counts[TRAINED].sum())},
                **common,
            },
        ),
        SuiteScore(
            "depth",
            "RMSE of log depth",
            False,
            {kind: rmse(values, truth) for kind, values in predicted.items()},
            {
                "R2": {kind: explained_variance(values, truth) for kind, values in predicted.items()},
                "spread of the truth": float(truth.double().std(correction=0)),
                "l2": {kind: probe.depth.l2 for kind, probe in probes.items()},
                "tokens": {"train": train_tokens, "val": len(truth)},
                **common,
            },
        ),
    ]


TASK = Task(
    name="suite",
    evaluate=evaluate,
    metric="segmentation, mIoU",
    unused=("max_failed_fraction",),
    load_options={"dtype": torch.float32},
)
