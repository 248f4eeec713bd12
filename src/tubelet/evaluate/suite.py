"""The evaluation: segmentation, depth, camera motion and tracking from frozen features, beside two references.

What the trained encoder is worth is what its features give beyond those of the same architecture with random weights
and beyond the pixels themselves, under one protocol: the same clips, tokens, targets and penalties, and probes that are
linear and solved to their optimum. Tracking has no probe: points are followed by the likeness of tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor

from tubelet.checkpoint import checkpoints, describe_os_error, load_vjepa
from tubelet.config import ModelConfig
from tubelet.data.sample.truth import SampleEntry, read_description, read_index
from tubelet.evaluate.correspondence import headline, scores_of_kinds
from tubelet.evaluate.features import FEATURES, RANDOM, TRAINED, View, batches, random_encoder
from tubelet.evaluate.metrics import accuracy, confusion, explained_variance, iou_by_class, mean_iou, rmse
from tubelet.evaluate.points import measure_points
from tubelet.evaluate.probes import Probe, Scaling, scaling_of, select_ridge, select_softmax
from tubelet.model.encoder import Encoder
from tubelet.types import TubeletError

MAX_TRAIN_CLIPS, MAX_VAL_CLIPS = 400, 200
MAX_TRAIN_TOKENS = 16_000  # 40 of each of 400 clips; neighbours are too alike for more to add much
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """What one task came to.

    Attributes:
        name: segmentation, depth, camera motion or tracking.
        metric: what the values are.
        higher_is_better: which way the metric goes.
        values: kind of feature -> metric; None for all where the set has nothing to measure it on.
        details: more figures, ready for JSON.
    """

    name: str
    metric: str
    higher_is_better: bool
    values: dict[str, float | None]
    details: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The content of evaluation.json.

    Attributes:
        checkpoint: the file that was evaluated.
        step: optimiser steps that it has seen; None for a released file, which does not say.
        data: the sample set.
        seed: of the random encoder and of all choices of clips and tokens.
        clips: split -> how many were used.
        features: the kinds of features, the trained one first.
        tasks: the results.
    """

    checkpoint: str
    step: int | None
    data: str
    seed: int
    clips: dict[str, int]
    features: list[str]
    tasks: list[Task]


@dataclass(frozen=True)
class _Rows:
    """What probes are fitted to.

    Attributes:
        tokens, clips: kind of feature -> (n, D) features of single tokens, and of clips, averaged over their tokens.
        labels: (n,) class of each token's patch, -1 where none is known.
        log_depth: (n,) NaN where it is not known.
        motion: (clips,) index of the motion.
        held_out_tokens, held_out_clips: bool, what chooses the penalty; the tokens are those of the clips.
    """

    tokens: dict[str, Tensor]
    clips: dict[str, Tensor]
    labels: Tensor
    log_depth: Tensor
    motion: Tensor
    held_out_tokens: Tensor
    held_out_clips: Tensor


@dataclass(frozen=True)
class _Probes:
    """What one kind of feature is read with: a scaling of tokens and of clips, and a probe for each task."""

    token_scaling: Scaling
    clip_scaling: Scaling
    segmentation: Probe
    depth: Probe
    motion: Probe


def evaluate_run(
    run: Path,
    data: Path,
    *,
    seed: int = 0,
    max_train_clips: int = MAX_TRAIN_CLIPS,
    max_val_clips: int = MAX_VAL_CLIPS,
    image_size: int | None = None,
    frames: int | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Evaluate the teacher of a run's newest checkpoint and write the result as evaluation.json into the run's folder.

    Args:
        run: a run folder; or one of its checkpoints or a released .pt file, whose result is written beside it as
            NAME.evaluation.json.
        data: a folder that `tubelet sample-data` wrote.
        seed: of the random encoder and of all choices of clips and tokens.
        max_train_clips: how many train clips are used at most.
        max_val_clips: how many val clips are used at most.
        image_size: side of the centre crop in pixels; what the run was trained at unless told.
        frames: frames of a clip; what the run was trained at unless told, or as many as the clips have.
        device: where the encoders run; an accelerator if there is one.

    Raises:
        TubeletError: no such run or sample set, they do not fit together, or the result cannot be written.
    """
    found = checkpoints(run) if run.is_dir() else []
    checkpoint = found[-1] if found else run
    model, config = load_vjepa(checkpoint)
    if config is not None:
        image_size, frames = (
            image_size or config.data.image_size,
            frames or _usable(config.data.frames, data, model.config),
        )
    chosen = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    clips, tasks = evaluate_encoder(
        model.teacher.to(chosen),
        data,
        seed=seed,
        max_train_clips=max_train_clips,
        max_val_clips=max_val_clips,
        image_size=image_size,
        frames=frames,
    )
    step = None if config is None else _step_of(checkpoint)
    evaluation = Evaluation(str(checkpoint), step, str(data), seed, clips, list(FEATURES), tasks)
    write_evaluation(evaluation, run / "evaluation.json" if run.is_dir() else run.with_suffix(".evaluation.json"))
    return evaluation


def evaluate_encoder(
    encoder: Encoder,
    data: Path,
    *,
    seed: int = 0,
    max_train_clips: int = MAX_TRAIN_CLIPS,
    max_val_clips: int = MAX_VAL_CLIPS,
    image_size: int | None = None,
    frames: int | None = None,
) -> tuple[dict[str, int], list[Task]]:
    """Evaluate an encoder in memory, on the device that it is on; neither it nor any generator is changed.

    Args:
        encoder: usually a VJEPA's teacher.
        data: a folder that `tubelet sample-data` wrote.
        seed: of the random encoder and of all choices of clips and tokens.
        max_train_clips: how many train clips are used at most.
        max_val_clips: how many val clips are used at most.
        image_size: side of the centre crop in pixels; the data's size unless told.
        frames: frames of a clip, from its middle; as many as the clips have unless told.

    Returns:
        split -> clips used, and the results.

    Raises:
        TubeletError: no sample set, too few clips in it, or they do not fit the encoder.
    """
    view = _view(data, encoder.config, image_size, frames)
    train = _some(read_index(data, "train"), max_train_clips, seed)
    val = _some(read_index(data, "val"), max_val_clips, seed)
    if len(train) < 2 or not val:
        raise TubeletError(f"{data}: {len(train)} train and {len(val)} val clips, expected at least 2 and 1")
    device = encoder.tokenizer.video.weight.device
    encoders = {TRAINED: encoder, RANDOM: random_encoder(encoder.config, seed).to(device)}
    rows = _training_rows(train, encoders, view, seed)
    if not rows.log_depth.isfinite().any() or (rows.labels < 0).all():
        raise TubeletError(f"{data}: the training clips have no pixel of known depth or class")
    # A kind's rows go when its probes are fitted: the pixels of many patches fill memory.
    probes = {kind: _fit(rows.tokens.pop(kind), rows.clips.pop(kind), rows, view) for kind in FEATURES}
    tasks = _score(val, encoders, probes, view, len(rows.labels))
    return {"train": len(train), "val": len(val)}, [*tasks, _follow_points(val, encoders, view)]


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, beside and renamed.

    Raises:
        TubeletError: if it cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(asdict(evaluation), indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise TubeletError(f"{path}: the evaluation could not be written: {describe_os_error(error)}") from error


def print_table(evaluation: Evaluation, console: Console) -> None:
    """One row a task, one column a kind of feature, the best of each row in bold."""
    what = f"{evaluation.checkpoint} on {evaluation.data}"
    table = Table(title=what, caption=f"{evaluation.clips['train']} train and {evaluation.clips['val']} val clips")
    table.add_column("task")
    table.add_column("metric")
    for kind in evaluation.features:
        table.add_column(kind, justify="right")
    for task in evaluation.tasks:
        known = [value for value in task.values.values() if value is not None]
        best = (max if task.higher_is_better else min)(known, default=None)
        cells = [
            "–" if value is None else f"[bold]{value:.3f}[/bold]" if value == best else f"{value:.3f}"
            for value in (task.values[kind] for kind in evaluation.features)
        ]
        table.add_row(task.name, f"{task.metric} {'↑' if task.higher_is_better else '↓'}", *cells)
    console.print(table)


def _step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(file.metadata()["step"])


def _usable(frames: int, data: Path, config: ModelConfig) -> int:
    """As many of the frames that a run was trained at as the clips of a set have, in whole tubelets."""
    there = min(frames, int(read_description(data)["parameters"]["frames"]))
    return there if there == 1 else max(there - there % config.tubelet_size, config.tubelet_size)


def _view(data: Path, config: ModelConfig, image_size: int | None, frames: int | None) -> View:
    description = read_description(data)
    made = description["parameters"]
    size = image_size or max(made["size"] - made["size"] % config.patch_size, config.patch_size)
    count = frames or _usable(made["frames"], data, config)
    if count > made["frames"]:
        raise TubeletError(f"frames is {count}, but the clips of {data} have {made['frames']}")
    config.grid(count, size, size)  # refuses what does not divide into patches
    return View(size, count, tuple(description["classes"]), tuple(description["motions"]))


def _some(entries: list[SampleEntry], at_most: int, seed: int) -> list[SampleEntry]:
    """All entries, or a random choice of them, in their order."""
    if len(entries) <= at_most:
        return entries
    chosen = np.random.default_rng([seed, 0]).choice(len(entries), at_most, replace=False)
    return [entries[i] for i in sorted(chosen)]


def _training_rows(entries: Sequence[SampleEntry], encoders: dict[str, Encoder], view: View, seed: int) -> _Rows:
    """Features and targets of training clips: of each the same number of tokens, drawn once for all features."""
    rng = np.random.default_rng([seed, 1])
    order = torch.from_numpy(rng.permutation(len(entries)))
    held_out_clips = torch.zeros(len(entries), dtype=torch.bool)
    held_out_clips[order[: max(1, round(HELD_OUT_SHARE * len(entries)))]] = True
    tokens: dict[str, list[Tensor]] = {kind: [] for kind in FEATURES}
    clips: dict[str, list[Tensor]] = {kind: [] for kind in FEATURES}
    labels, log_depth, motion = [], [], []
    for batch in batches(entries, encoders, view):
        B, N = batch.log_depth.shape
        share = min(N, max(1, MAX_TRAIN_TOKENS // len(entries)))
        chosen = torch.from_numpy(np.stack([np.sort(rng.choice(N, share, replace=False)) for _ in range(B)]))
        row = torch.arange(B).unsqueeze(1)
        for kind, x in batch.features.items():
            tokens[kind].append(x[row, chosen].flatten(0, 1))
            clips[kind].append(x.mean(1))
        labels.append(_majority(batch.class_pixels)[row, chosen].flatten())
        log_depth.append(batch.log_depth[row, chosen].flatten())
        motion.append(batch.motion)
    return _Rows(
        tokens={kind: torch.cat(tokens.pop(kind)) for kind in FEATURES},
        clips={kind: torch.cat(clips[kind]) for kind in FEATURES},
        labels=torch.cat(labels),
        log_depth=torch.cat(log_depth),
        motion=torch.cat(motion),
        held_out_tokens=held_out_clips.repeat_interleave(share),
        held_out_clips=held_out_clips,
    )


def _majority(class_pixels: Tensor) -> Tensor:
    """(..., K) counts -> (...) the most frequent class, -1 where nothing was counted."""
    return torch.where(class_pixels.sum(-1) > 0, class_pixels.argmax(-1), -1)


def _fit(tokens: Tensor, clips: Tensor, rows: _Rows, view: View) -> _Probes:
    """All probes of one kind of feature, whose tokens and clips are scaled in place."""
    token_scaling, clip_scaling = scaling_of(tokens), scaling_of(clips)
    tokens, clips = token_scaling.apply_(tokens), clip_scaling.apply_(clips)
    named, deep, held_out = rows.labels >= 0, rows.log_depth.isfinite(), rows.held_out_tokens
    return _Probes(
        token_scaling,
        clip_scaling,
        segmentation=select_softmax(tokens[named], rows.labels[named], len(view.classes), held_out[named]),
        depth=select_ridge(tokens[deep], rows.log_depth[deep], held_out[deep]),
        motion=select_softmax(clips, rows.motion, len(view.motions), rows.held_out_clips),
    )


def _score(
    entries: Sequence[SampleEntry],
    encoders: dict[str, Encoder],
    probes: dict[str, _Probes],
    view: View,
    train_tokens: int,
) -> list[Task]:
    """What the probes say of validation clips, beside the truth. All tokens count; features are not kept."""
    K, M = len(view.classes), len(view.motions)
    patch_counts = {kind: torch.zeros(K, K, dtype=torch.int64) for kind in FEATURES}
    motion_counts = {kind: torch.zeros(M, M, dtype=torch.int64) for kind in FEATURES}
    right_pixels, depths = dict.fromkeys(FEATURES, 0), {kind: [] for kind in FEATURES}  # type: ignore[var-annotated]
    pixels, truths = 0, []
    for batch in batches(entries, encoders, view):
        labels = _majority(batch.class_pixels)
        named, deep = labels >= 0, batch.log_depth.isfinite()
        pixels += int(batch.class_pixels.sum())
        truths.append(batch.log_depth[deep])
        for kind, x in batch.features.items():
            probe = probes[kind]
            motion = probe.motion(probe.clip_scaling.apply_(x.mean(1))).argmax(-1)
            motion_counts[kind] += confusion(motion, batch.motion, M)
            tokens = probe.token_scaling.apply_(x.flatten(0, 1))
            classes = probe.segmentation(tokens).argmax(-1).view_as(labels)
            patch_counts[kind] += confusion(classes[named], labels[named], K)
            right_pixels[kind] += int(batch.class_pixels.gather(-1, classes.unsqueeze(-1)).sum())
            depths[kind].append(probe.depth(tokens).view_as(batch.log_depth)[deep])
    truth = torch.cat(truths)
    predicted = {kind: torch.cat(parts) for kind, parts in depths.items()}
    motions = motion_counts[TRAINED].sum(1)
    common = {"image_size": view.image_size, "frames": view.frames}
    return [
        Task(
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
        Task(
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
        Task(
            "camera motion",
            "accuracy",
            True,
            {kind: accuracy(counts) for kind, counts in motion_counts.items()},
            {
                "chance": int(motions.max()) / int(motions.sum()),
                "classes": {view.motions[m]: n for m, n in enumerate(motions.tolist())},
                "l2": {kind: probe.motion.l2 for kind, probe in probes.items()},
                **common,
            },
        ),
    ]


def _follow_points(entries: Sequence[SampleEntry], encoders: dict[str, Encoder], view: View) -> Task:
    """Points of whole validation clips followed by the likeness of tokens, in windows of the view's frames."""
    grid = encoders[TRAINED].config.grid(view.frames, view.image_size, view.image_size)
    pairs = measure_points(entries, encoders, view.frames, view.image_size)
    return Task(
        "tracking",
        "share found within a patch, of points that moved more",
        True,
        {kind: headline(some) for kind, some in pairs.items()},
        {
            **scores_of_kinds(pairs, (grid.h, grid.w)),
            "clips": len(entries),
            "image_size": view.image_size,
            "frames in a window": view.frames,
        },
    )
