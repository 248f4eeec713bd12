"""Video object segmentation without training: masks of the first frame are propagated by the similarity of tokens."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import resize
from tubelet.data.images import read_image
from tubelet.data.palette_png import VOID, davis_palette, read_indexed, write_indexed
from tubelet.datasets import VideoObjectDataset, VideoObjectSequence
from tubelet.datasets.annotations import image_shape, read_object_mask
from tubelet.errors import BadFile, DataError, DecodeError
from tubelet.grid import round_to_patches
from tubelet.heads.propagation import Propagation, segment
from tubelet.io.files import file_errors
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.drawing import draw_objects
from tubelet.tasks.common.extract import FeatureSet, Source, subsample_evenly
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.task import EvaluationContext, Task
from tubelet.tasks.metrics.j_and_f import Statistics, measure_objects

_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class VosProtocol:
    """How frames become features; each through the image tokenizer, unless --frames is more than 1.

    A video token stands for two frames: its one feature would have to be the mask of both, and the protocol, with all
    that was published by it, gives each frame its own. So frames are images. For a model that was trained on videos
    only, --frames N takes windows of N frames, each frame shown for a whole tubelet, so that every time step is one.

    Attributes:
        short_side: pixels; a smaller frame keeps its size. Both sides go to the nearest multiple of the patch.
        propagation: how labels are carried on.
    """

    short_side: int = 480
    propagation: Propagation = field(default_factory=Propagation)


PROTOCOL = VosProtocol()


@dataclass(frozen=True)
class _SequenceScore:
    """A sequence with its score.

    Attributes:
        sequence: the sequence.
        folder: folder of its predicted masks.
        objects: J and F of each object; empty if the ground truth is not public.
    """

    sequence: VideoObjectSequence
    folder: Path
    objects: list[tuple[Statistics, Statistics]]

    @property
    def score(self) -> float | None:
        """J&F, the mean over the objects."""
        if not self.objects:
            return None
        return float(np.mean([(j.mean + f.mean) / 2 for j, f in self.objects]))


def evaluate(context: EvaluationContext) -> Result:
    """Segment the validation sequences of DAVIS 2017 or YouTube-VOS.

    Raises:
        TubeletError: if the folder has neither layout, or a file in it is wrong.
    """
    model, data, config = context.model, context.data, context.config
    dataset: VideoObjectDataset = context.dataset
    sequences = subsample_evenly(dataset.sequences, config.max_samples)
    short, window = context.dense_size(PROTOCOL.short_side), config.frames or 1
    windows = [(n, part) for n, sequence in enumerate(sequences) for part in _windows(sequence, window)]
    options: dict[str, Any] = {"short": short, "patch": model.patch_size}
    options["repeat"] = model.config.tubelet_size if window > 1 else 1
    features = context.extract(
        [part for _, part in windows],
        {"transform": "whole frames"} | options,
        partial(_whole_frames, **options),
    )
    bad = list(features.bad_files)
    measured = []
    readable = _readable_sequences(len(sequences), windows, features)
    if not readable:
        raise DataError(f"{data}: no sequence is readable; the first problem is {bad[0].path}: {bad[0].reason}")
    for done, (n, indices) in enumerate(readable.items()):
        context.progress("segmenting", done, len(readable))
        sequence = sequences[n]
        files = [*sequence.frames, *sequence.reference_masks.values()]
        folder = context.cache.path_for(_recipe(sequence, window, options), files).with_suffix("")
        try:
            if not folder.is_dir():
                _write_masks(folder, sequence, _frame_features(features, indices, sequence, short, model), model)
            measured.append(_SequenceScore(sequence, folder, _measure(sequence, folder, bad)))
        except DecodeError as error:
            raise DataError(str(error)) from error
    context.progress("segmenting", len(readable), len(readable))
    return _result(context, measured, bad, len(sequences) - len(measured), short, window)


def _result(
    context: EvaluationContext,
    measured: list[_SequenceScore],
    bad: list[BadFile],
    skipped: int,
    short: int,
    window: int,
) -> Result:
    dataset: VideoObjectDataset = context.dataset
    public = measured[0].sequence.masks is not None
    size = "each an image" if window == 1 else f"in windows of {window} through the video tokenizer"
    p = PROTOCOL.propagation
    return context.result(
        benchmark=dataset.name,
        protocol=(
            f"Labels of the first frame and of the last {p.context} are propagated by the {p.neighbors} most similar "
            f"tokens within {p.radius} tokens (temperature {p.temperature}), as for DINOv3; no training. Frames of "
            f"at most {short} px, {size}."
            + ("" if public else " The ground truth is not public: the masks are for the benchmark's server.")
        ),
        metrics=_metrics(measured) if public else {},
        counts={
            "sequences": len(measured),
            "objects": sum(len(_numbers(m)) for m in measured),
            "frames": sum(len(m.sequence.frames) for m in measured),
            "masks written": sum(len(m.sequence.frames_to_predict) for m in measured),
        }
        | ({"sequences skipped for a frame": skipped} if skipped else {}),
        skipped=bad,
        details={"sequences": _details(measured), "protocol": asdict(PROTOCOL) | {"short_side": short}},
        examples=[_example(m) for m in _chosen(measured)],
        files={f"{dataset.output_folder}/{m.sequence.name}": m.folder for m in measured},
    )


def _recipe(sequence: VideoObjectSequence, window: int, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that the masks of a sequence depend on besides the model and the contents of its files."""
    settings = {
        "wanted": [sequence.frames[n].stem for n in sequence.frames_to_predict],
        "given": list(sequence.reference_masks),
    }
    objects = None if sequence.first_frames is None else list(sequence.first_frames.items())
    return options | settings | {"masks": asdict(PROTOCOL.propagation), "window": window, "objects": objects}


def _windows(sequence: VideoObjectSequence, window: int) -> list[Source]:
    """The frames of a sequence in windows."""
    frames = sequence.frames
    return [Source(files=tuple(frames[i : i + window])) for i in range(0, len(frames), window)]


def _readable_sequences(count: int, windows: list[tuple[int, Source]], features: FeatureSet) -> dict[int, list[int]]:
    """Number of each sequence whose frames could all be read -> indices of its windows in the features."""
    indices: dict[int, list[int]] = {n: [] for n in range(count)}
    for index, number in enumerate(features.indices):
        indices[windows[number][0]].append(index)
    expected = Counter(owner for owner, _ in windows)
    return {n: frames for n, frames in indices.items() if len(frames) == expected[n]}


def frame_size(frame: tuple[int, int], short: int, patch: int) -> tuple[int, int]:
    """Height and width of a frame as it is encoded: its short side at most `short`, both in whole patches."""
    scale = min(1.0, short / min(frame))
    height, width = (round_to_patches(side * scale, patch) for side in frame)
    return height, width


def _whole_frames(source: Source, short: int, patch: int, repeat: int) -> Tensor:
    """(1, 3, T · repeat, H, W) the frames of a window."""
    frames = [read_image(path) for path in source.files]
    sizes = {tuple(frame.shape) for frame in frames}
    if len(sizes) > 1:
        raise DecodeError(str(source.files[0]), f"frames of one window differ in size: {sorted(sizes)}")
    size = frame_size((frames[0].shape[0], frames[0].shape[1]), short, patch)
    return resize(torch.stack(frames), *size).repeat_interleave(repeat, dim=1).unsqueeze(0)


def _frame_features(
    features: FeatureSet, indices: list[int], sequence: VideoObjectSequence, short: int, model: Backbone
) -> Iterator[Tensor]:
    """(h, w, D) of one frame after the other; those of one window are in memory at a time."""
    height, width = frame_size(image_shape(sequence.frames[0]), short, model.patch_size)
    for index in indices:
        tokens = features[index]["tokens"][0].to(model.device)
        yield from tokens.view(-1, height // model.patch_size, width // model.patch_size, tokens.shape[-1])


def _write_masks(folder: Path, sequence: VideoObjectSequence, features: Iterator[Tensor], model: Backbone) -> None:
    """Segment a sequence and write its masks, in a folder that is renamed when complete.

    Raises:
        TubeletError: if they cannot be written.
    """
    partial_folder = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    requested = set(sequence.frames_to_predict)
    with file_errors(folder):
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        masks = segment(features, sequence.load_references(), image_shape(sequence.frames[0]), PROTOCOL.propagation)
        for number, (path, labels) in enumerate(zip(sequence.frames, masks, strict=True)):
            if number in requested:
                write_indexed(partial_folder / f"{path.stem}.png", labels)
        partial_folder.rename(folder)


def _measure(sequence: VideoObjectSequence, folder: Path, notes: list[BadFile]) -> list[tuple[Statistics, Statistics]]:
    """J and F of the objects of the first frame, over all frames but the first and the last."""
    if sequence.masks is None:
        return []
    truth = [read_object_mask(path, frame) for path, frame in zip(sequence.masks, sequence.frames, strict=True)]
    objects = int(truth[0][truth[0] != VOID].max())
    for path, labels in zip(sequence.masks, truth, strict=True):
        strange = sorted({int(n) for n in np.unique(labels) if objects < n < VOID})
        if strange:
            notes.append(
                BadFile(str(path), f"labels {strange} are no objects of the first frame: counted as background")
            )
    predicted = [read_indexed(folder / f"{frame.stem}.png") for frame in sequence.frames[1:-1]]
    return measure_objects(np.stack(predicted), np.stack(truth[1:-1]), objects)


def _metrics(measured: list[_SequenceScore]) -> dict[str, Metric]:
    """Means over all objects of all sequences, in percent as they are published."""
    objects = [pair for m in measured for pair in m.objects]
    values = {
        f"{name} {what}": 100 * float(np.mean([getattr(pair[i], what) for pair in objects]))
        for i, name in enumerate("JF")
        for what in ("mean", "recall", "decay")
    }
    metrics = {"J&F": Metric(value=(values["J mean"] + values["F mean"]) / 2, unit="%")}
    for name, value in values.items():
        metrics[name] = Metric(value=value, unit="%", higher_is_better=not name.endswith("decay"))
    return metrics


def _numbers(measured: _SequenceScore) -> list[int]:
    sequence = measured.sequence
    return list(range(1, len(measured.objects) + 1)) if sequence.first_frames is None else list(sequence.first_frames)


def _details(measured: list[_SequenceScore]) -> dict[str, Any]:
    """Each object of each sequence."""
    return {
        m.sequence.name: {
            str(number): {"J": asdict(j), "F": asdict(f)} for number, (j, f) in enumerate(m.objects, start=1)
        }
        or {"objects": _numbers(m), "begin in frame": list((m.sequence.first_frames or {}).values())}
        for m in measured
    }


def _chosen(measured: list[_SequenceScore]) -> list[_SequenceScore]:
    """The sequences of the lowest J&F, or some of all where the ground truth is not public."""
    scored = [m for m in measured if m.score is not None]
    return sorted(scored, key=lambda m: m.score or 0.0)[:_EXAMPLES] or subsample_evenly(measured, _EXAMPLES)


def _example(measured: _SequenceScore) -> Example:
    """The reference mask, then ground truth and prediction half-way, or predictions half-way and at the end."""
    sequence, palette = measured.sequence, davis_palette()
    frames = sequence.frames_to_predict[1:-1] if sequence.masks is not None else sequence.frames_to_predict[1:]
    start = min(sequence.reference_masks)

    def drawn(number: int, mask: Path) -> NDArray[np.uint8]:
        labels = read_indexed(mask)
        labels[labels == VOID] = 0
        return draw_objects(read_image(sequence.frames[number]).numpy(), labels, palette)

    images = {f"given, frame {sequence.frames[start].stem}": drawn(start, sequence.reference_masks[start])}
    picked = [frames[len(frames) // 2], *(frames[-1:] if sequence.masks is None else ())] if frames else []
    for number in dict.fromkeys(picked):
        stem = sequence.frames[number].stem
        if sequence.masks is not None:
            images[f"truth, frame {stem}"] = drawn(number, sequence.masks[number])
        images[f"predicted, frame {stem}"] = drawn(number, measured.folder / f"{stem}.png")
    count = len(_numbers(measured))
    note = f"{count} object{'s' * (count != 1)}, {len(sequence.frames)} frames"
    each = [
        f"object {k}: J {100 * j.mean:.0f} %, F {100 * f.mean:.0f} %" for k, (j, f) in enumerate(measured.objects, 1)
    ]
    score = measured.score
    return Example(
        name=sequence.name,
        score=None if score is None else 100 * score,
        images=images,
        note="; ".join(each) or note,
    )


TASK = Task(name="vos", evaluate=evaluate, dataset=VideoObjectDataset, metric="J&F")
