"""Camera motion and tracking on whole clips, from the correspondence of tokens of successive time steps.

Camera motion cannot be read off mean tokens by a linear probe, nor off their signed differences: what a moving edge
adds to a token depends on the edge as much as on the motion, and the sum over the content of many clips carries no
information. (Accuracy among seven motions, on the sample set's 200 validation clips at 64 pixels, for trained, random
and raw features: mean token of two time steps 0.14, 0.14, 0.14; both steps in 2 x 2 cells, fitted to four windows of
each of 800 clips, 0.15, 0.15, 0.19; their differences 0.21, 0.21, 0.24. Always one answer: 0.15.)

What does not depend on content is the displacement of tokens. So each kind of features is described by the cosine
similarity of tokens to those around their position at the next time step, averaged over the clip and over each of 2 x 2
cells: the coarsest grid on which a view that grows (forward) differs from one that shifts. The description has the same
size whatever the width of the features, so that the linear probe is the same for all, and its similarity is that by
which points are tracked. With it the three kinds score 0.62, 0.45 and 0.45. With the mean token of the clip subtracted
first they would score 0.64, 0.70 and 0.67, about the same: trained features encode directions in their plain
similarity, the others do not.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.heads.regression import fit_scaling, select_softmax
from tubelet.model.encoder import Encoder
from tubelet.sample_data.truth import SampleEntry
from tubelet.tasks.common.correspondence import (
    PointErrors,
    accuracy_by_features,
    concat_errors,
    moved_accuracy,
    point_errors,
)
from tubelet.tasks.common.extract import Progress
from tubelet.tasks.common.sample_clips import FEATURES, TRAINED, ClipCrop, iter_whole_clips
from tubelet.tasks.common.suite_score import SuiteScore
from tubelet.tasks.metrics.dense import accuracy, confusion

CELLS = 2
REACH = 8  # of the view's side; a token is compared with those within one such part of it


def evaluate_motion_and_tracking(
    train: Sequence[SampleEntry],
    val: Sequence[SampleEntry],
    encoders: dict[str, Encoder],
    view: ClipCrop,
    held_out: Tensor,
    progress: Progress,
) -> list[SuiteScore]:
    """Camera motion by a linear probe, and tracking without one.

    Args:
        train: clips that the probe is fitted to.
        val: clips that both are measured on.
        encoders: kind of feature -> encoder.
        view: how clips are cropped; its frames are those of a window.
        held_out: (train clips,) bool, what chooses the probe's penalty.
        progress: called with a stage's name, what is done of it, and its total.
    """
    rows: dict[str, list[Tensor]] = {kind: [] for kind in FEATURES}
    pairs: dict[str, list[PointErrors]] = {kind: [] for kind in FEATURES}
    motions = []
    for number, clip in enumerate(iter_whole_clips([*train, *val], encoders, view.frames, view.image_size)):
        motions.append(clip.motion)
        for kind, maps in clip.maps.items():
            rows[kind].append(displacements(maps))
            if number >= len(train):
                pairs[kind].append(point_errors(maps, clip.tracks))
        progress("following motion and points", number + 1, len(train) + len(val))
    joined = {kind: concat_errors(found) for kind, found in pairs.items()}
    shared = {"image_size": view.image_size, "frames in a window": view.frames, "time steps": len(maps)}
    features = {kind: torch.stack(found) for kind, found in rows.items()}
    return [
        _motion(features, torch.tensor(motions), len(train), view, held_out, shared),
        SuiteScore(
            "tracking",
            "share found within a patch, of points that moved more",
            True,
            {kind: moved_accuracy(found) for kind, found in joined.items()},
            {**accuracy_by_features(joined, (maps.shape[1], maps.shape[2])), "clips": len(val), **shared},
        ),
    ]


def displacements(maps: Tensor) -> Tensor:
    """Similarity of the tokens of a clip to those around their position at the next time step.

    Args:
        maps: (S, H', W', D) float.

    Returns:
        (CELLS · CELLS · (2r + 1)²,) mean cosine over all successive steps and the tokens of a cell, for each
        displacement of up to r = H' / REACH tokens (at least 1) along rows and columns; empty for one time step.
    """
    S, rows, columns, _ = maps.shape
    if S < 2:
        return torch.empty(0)
    reach = max(1, round(min(rows, columns) / REACH))
    tokens = F.normalize(maps, dim=-1).permute(0, 3, 1, 2)
    around = F.pad(tokens[1:], (reach,) * 4)
    inside = F.pad(torch.ones(rows, columns), (reach,) * 4)
    similarity, valid = [], []
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            window = (..., slice(dy, dy + rows), slice(dx, dx + columns))
            similarity.append((tokens[:-1] * around[window]).sum(1).mean(0))
            valid.append(inside[window])
    sums, counts = (F.adaptive_avg_pool2d(torch.stack(x), CELLS) for x in (similarity, valid))
    return (sums / counts.clamp(min=1e-6)).flatten()


def _motion(
    features: dict[str, Tensor],
    motions: Tensor,
    trained_on: int,
    view: ClipCrop,
    held_out: Tensor,
    shared: dict[str, int],
) -> SuiteScore:
    M = len(view.motions)
    truth = motions[trained_on:]
    class_counts = torch.bincount(truth, minlength=M)
    values: dict[str, float | None] = dict.fromkeys(features)
    confusions, penalties = {}, {}
    for kind, x in features.items():
        if not x.shape[1]:
            continue  # a single time step: nothing moves
        scaling = fit_scaling(x[:trained_on])
        x = scaling.apply_(x.clone())
        probe = select_softmax(x[:trained_on], motions[:trained_on], M, held_out)
        counts = confusion(probe(x[trained_on:]).argmax(-1), truth, M)
        values[kind], penalties[kind] = accuracy(counts), probe.l2
        confusions[kind] = dict(zip(view.motions, counts.tolist(), strict=True))
    return SuiteScore(
        "camera motion",
        "accuracy",
        True,
        values,
        {
            "chance": int(class_counts.max()) / len(truth),
            "classes": dict(zip(view.motions, class_counts.tolist(), strict=True)),
            "confusion, truth by prediction": confusions,
            "l2": penalties,
            "features": features[TRAINED].shape[1],
            **shared,
        },
    )
