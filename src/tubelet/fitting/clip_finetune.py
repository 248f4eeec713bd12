"""Fine-tuning of the encoder on labeled clips.

For each split, the encoder and the network that was chosen on frozen features are trained on the training rows and
evaluated on the held-out rows. Calibration uses training rows that were held back from one further training.

h held-out rows, c rows of the calibration, K classes or targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.errors import DataError
from tubelet.fitting.clip_fit import (
    ClipData,
    ClipFit,
    ClipObjective,
    inner_split,
    load_clip_data,
    predict_rows,
    train_clips,
    weighted_clips,
)
from tubelet.fitting.features import ClipFeatures, extract_rows, span_of
from tubelet.fitting.finetune import FinetuneRecipe, TrainingClip, finetune
from tubelet.fitting.label_task import FitContext
from tubelet.heads.adaptation import with_encoder_weights
from tubelet.io.files import temporary_directory
from tubelet.labels.records import LabelRow
from tubelet.tasks.common.cache import FeatureCache


@dataclass(frozen=True, kw_only=True)
class _FinetunedModel:
    """A network and an encoder that were trained together.

    Attributes:
        network: the network.
        weights: the trained weights of the encoder.
        scale: (2, K) mean and standard deviation of the targets.
        features: features of the requested rows by the trained encoder.
        logits: logits, or values in the unit of the targets, of those rows, (r, K).
    """

    network: nn.Module
    weights: dict[str, Tensor]
    scale: Tensor
    features: ClipFeatures
    logits: Tensor


def finetune_clips(
    context: FitContext, objective: ClipObjective, frozen: ClipFit, recipe: FinetuneRecipe
) -> tuple[ClipFit, dict[str, Tensor]]:
    """Train the encoder and the network of a fit on labeled clips.

    Args:
        context: the fit.
        objective: the task.
        frozen: the fit with the frozen encoder, whose candidate is trained on.
        recipe: how they are trained.

    Returns:
        The same fit with the trained network and the features and logits of the trained encoder, and the weights of
        that encoder for the head file.

    Raises:
        TubeletError: if files cannot be read, the loss is not finite, or a signal stops the fit.
    """
    data, splits = load_clip_data(context, objective, frozen.features)
    tune = partial(_tune, objective=objective, data=data, frozen=frozen, recipe=recipe)
    everything = np.arange(len(data.targets))
    fitting, choosing = inner_split(context, data, splits[0][0])
    calibration = tune(context.in_round("calibration"), train=fitting, test=choosing)
    if len(splits) == 1:
        train, held_out = splits[0]
        head = tune(context, train=train, test=everything)
        logits = head.logits[torch.from_numpy(held_out)]
    else:  # measured by folds: the head itself learns from all rows
        logits = torch.cat(
            [tune(context.in_fold(i), train=train, test=test).logits for i, (train, test) in enumerate(splits)]
        )
        head = tune(context.in_round("all rows"), train=everything, test=everything)
    tuned = replace(
        frozen,
        network=head.network,
        scale=head.scale,
        features=replace(head.features, bad_files=frozen.features.bad_files),
        logits=logits,
        chosen_logits=calibration.logits,
        chosen_targets=data.targets[choosing],
    )
    return tuned, head.weights


def _tune(
    context: FitContext,
    objective: ClipObjective,
    data: ClipData,
    frozen: ClipFit,
    recipe: FinetuneRecipe,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
) -> _FinetunedModel:
    """Train on some rows and give the logits of others."""
    network = train_clips(context, objective, data, [frozen.candidate], train, test[:1])[0][0]
    learned = weighted_clips(objective, data, train)
    numbers = _numbers_in_row(data.features.owner)[learned.clips].tolist()
    clips = [
        _training_clip(context, data.features.rows[row], number, target, weight)
        for row, number, target, weight in zip(
            learned.owner.tolist(), numbers, learned.targets, learned.weights.tolist(), strict=True
        )
    ]
    network, weights = finetune(context, recipe, network, clips, objective.loss)
    features = adapted_features(context, recipe, weights, [data.features.rows[row] for row in test])
    mean, std = learned.scale
    logits = predict_rows(network, features, np.arange(len(test))) * std + mean
    return _FinetunedModel(network=network, weights=weights, scale=learned.scale, features=features, logits=logits)


def adapted_features(
    context: FitContext, recipe: FinetuneRecipe, weights: dict[str, Tensor], rows: Sequence[LabelRow]
) -> ClipFeatures:
    """Features of rows by the encoder with trained weights; they are not kept on disk.

    Raises:
        DataError: if a file cannot be read any more.
    """
    adapted = with_encoder_weights(context.model, weights, recipe.finetuned)
    with temporary_directory("finetuned") as (folder, _):
        adapted_context = replace(context, model=adapted, cache=FeatureCache(folder, adapted))
        features = extract_rows(
            adapted_context.extract, rows, context.table, context.head_input, context.model.config.pixels
        )
    if features.bad_files:  # with the frozen encoder all of them could be read
        raise DataError(f"{features.bad_files[0]}; it could be read before; run the command again")
    return features


def _training_clip(context: FitContext, row: LabelRow, number: int, target: Tensor, weight: float) -> TrainingClip:
    start_s, end_s = span_of(row, context.table)
    return TrainingClip(path=row.path, start_s=start_s, end_s=end_s, number=number, target=target, weight=weight)


def _numbers_in_row(owner: Tensor) -> Tensor:
    """(M,) ascending rows of clips -> (M,) the number of each clip among those of its row."""
    counts = torch.bincount(owner)
    return torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
