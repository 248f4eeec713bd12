"""Point tracking by the similarity of tokens, and its accuracy against true tracks.

P points, S time steps, (H', W') tokens of a step, D width, n pairs of a point and a later time step. Lengths are in
patches throughout, since the resolution of features depends on the size of tokens and not on that of the image.

A time step of a video tokenizer consists of t frames (the tubelet), so it has one feature where the point has t
positions. The position of a point at a step is the mean over the t frames. It counts as visible if it is visible in all
of them, and as hidden if it is visible in none; steps in between are not evaluated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

# A prediction is right within these distances. TAP-Vid's (Doersch et al. 2022, arXiv 2211.03726) are pixels of a frame
# of 256 x 256, and their mean is its "average position accuracy".
WITHIN_PATCHES = (0.5, 1.0, 2.0)
WITHIN_PIXELS_OF_256 = (1, 2, 4, 8, 16)
WITHIN = 1.0
MOVED = 1.0  # patches from its first place from which on a point counts as moved; staying is then wrong by definition


@dataclass(frozen=True)
class StepTracks:
    """The true tracks of a clip by time steps.

    Attributes:
        points: (P, S, 2) float32 x, y in patches from the top left corner of the view.
        visible: (P, S) bool, in all frames of the step.
        hidden: (P, S) bool, in none of them.
    """

    points: Tensor
    visible: Tensor
    hidden: Tensor

    def __getitem__(self, chosen: Tensor) -> "StepTracks":
        return StepTracks(self.points[chosen], self.visible[chosen], self.hidden[chosen])


@dataclass(frozen=True)
class PointErrors:
    """Points at later time steps, at which they are visible; distances in patches.

    Attributes:
        error: (n,) from the predicted place to the true one.
        moved: (n,) from the true place at the first step to the one now: the error of predicting no motion.
        chance: (n, thresholds) share of all tokens whose centers are within each of the thresholds of the true place.
        reappeared: (n,) bool, hidden at a step in between.
    """

    error: Tensor
    moved: Tensor
    chance: Tensor
    reappeared: Tensor

    def __getitem__(self, chosen: Tensor) -> "PointErrors":
        return PointErrors(*(getattr(self, field.name)[chosen] for field in fields(self)))


def tracks_by_step(tracks: Tensor, visible: Tensor, frames_per_step: int, patch_size: int) -> StepTracks:
    """Tracks by frames to tracks by time steps.

    Args:
        tracks: (P, T, 2) x, y in pixels of the view; T divides into steps.
        visible: (P, T) bool; a point outside the view is not.
        frames_per_step: t.
        patch_size: pixels.
    """
    visible_frames = visible.unflatten(1, (-1, frames_per_step))
    positions = tracks.float().unflatten(1, (-1, frames_per_step)).mean(2) / patch_size
    return StepTracks(positions, visible_frames.all(2), ~visible_frames.any(2))


def query_points(tracks: StepTracks) -> tuple[Tensor, Tensor]:
    """Each point's first visible step, for those that are also visible later: (Q,) numbers of points, (Q,) steps."""
    first = tracks.visible.int().argmax(1)
    queried = (tracks.visible.sum(1) > 1).nonzero().squeeze(1)
    return queried, first[queried]


def track_points(features: Tensor, queries: Tensor, steps: Tensor) -> Tensor:
    """Track query points: at every step, the position of the token that is most similar to each query.

    A query's feature is read bilinearly between token centers. The similarity is the cosine; around the most similar
    token of a step the maximum is refined by a parabola through it and its two neighbors, along columns and rows: no
    temperature has to be chosen, which would suit some features more than others.

    Args:
        features: (S, H', W', D) float.
        queries: (Q, 2) x, y of the query points in patches.
        steps: (Q,) time step of each query point.

    Returns:
        (Q, S, 2) x, y in patches.
    """
    S, rows, columns, D = features.shape
    at = queries / queries.new_tensor([columns, rows]) * 2 - 1  # -1 and 1 are the view's edges
    query = torch.empty(len(queries), D)
    for step in steps.unique().tolist():
        at_step = steps == step
        image = features[step].permute(2, 0, 1).unsqueeze(0)
        positions = F.grid_sample(image, at[at_step].view(1, 1, -1, 2), padding_mode="border", align_corners=False)
        query[at_step] = positions[0, :, 0].T
    tokens = F.normalize(features.flatten(0, 2), dim=-1)
    similarity = (F.normalize(query, dim=-1) @ tokens.T).view(-1, rows, columns)
    best = similarity.flatten(1).argmax(1)
    row, column = best // columns, best % columns
    x = column + 0.5 + _refinement(similarity[torch.arange(len(best)), row], column)
    y = row + 0.5 + _refinement(similarity[torch.arange(len(best)), :, column], row)
    return torch.stack([x, y], dim=-1).view(-1, S, 2)


def _refinement(line: Tensor, best: Tensor) -> Tensor:
    """(m,) how far beyond its maximum at `best` (m,) each line (m, K) peaks, in -0.5 to 0.5; 0 at a line's end."""
    K = line.shape[1]
    before, here, after = (
        line.gather(1, (best + i).clamp(0, K - 1).unsqueeze(1)).squeeze(1).double() for i in (-1, 0, 1)
    )
    bend = before - 2 * here + after
    inside = (best > 0) & (best < K - 1) & (bend < 0)
    return torch.where(inside, (before - after) / (2 * torch.where(inside, bend, 1.0)), 0.0).clamp(-0.5, 0.5).float()


def point_errors(features: Tensor, tracks: StepTracks) -> PointErrors:
    """Track every point of a clip from the first step at which it is visible to every later one at which it is.

    Args:
        features: (S, H', W', D) float.
        tracks: of S steps.
    """
    queried, first = query_points(tracks)
    points = torch.arange(len(queried))
    queried_tracks = tracks[queried]
    start = queried_tracks.points[points, first]
    predicted = track_points(features, start, first)
    return _pairs(predicted, queried_tracks, start, first, (features.shape[1], features.shape[2]))


def _pairs(predicted: Tensor, tracks: StepTracks, start: Tensor, first: Tensor, size: tuple[int, int]) -> PointErrors:
    later = torch.arange(tracks.visible.shape[1]) > first.unsqueeze(1)
    chosen = later & tracks.visible
    been_hidden = (tracks.hidden & later).cumsum(1) > 0
    truth = tracks.points[chosen]
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    away = torch.cdist(truth, torch.stack([x, y], dim=-1).view(-1, 2))
    return PointErrors(
        error=(predicted[chosen] - truth).norm(dim=-1),
        moved=(tracks.points - start.unsqueeze(1))[chosen].norm(dim=-1),
        chance=torch.stack([(away <= within).float().mean(1) for within in _thresholds(size)], dim=1),
        reappeared=been_hidden[chosen],
    )


def concat_errors(pairs: Sequence[PointErrors]) -> PointErrors:
    """The pairs of several clips as one."""
    return PointErrors(*(torch.cat([getattr(p, field.name) for p in pairs]) for field in fields(PointErrors)))


def _thresholds(size: tuple[int, int]) -> list[float]:
    """All distances within which a prediction can be right, in patches, of a view of (H', W') patches."""
    return [*WITHIN_PATCHES, *(pixels * max(size) / 256 for pixels in WITHIN_PIXELS_OF_256)]


def moved_accuracy(pairs: PointErrors) -> float | None:
    """Share of the pairs that moved which are found within one patch; None where nothing moved.

    In most clips most points stay near where they were, so that "stay" is a good answer. Only of those that moved by
    more than a patch is it a wrong one.
    """
    moved = pairs[pairs.moved > MOVED]
    return float((moved.error <= WITHIN).float().mean()) if len(moved.error) else None


def tracking_accuracy(pairs: PointErrors, size: tuple[int, int]) -> dict[str, dict[str, dict[str, float] | int]]:
    """All shares: of the pairs that moved, of those among them that were hidden in between, and of all.

    Args:
        pairs: of all clips.
        size: (H', W').

    Returns:
        which pairs -> "pairs": their number; and, where there are any, "found", "no motion" and "chance", each
        threshold -> share.
    """
    names = [f"{p:g} patch{'es' * (p > 1)}" for p in WITHIN_PATCHES]
    moved = pairs.moved > MOVED
    chosen = {
        "moved": moved,
        "moved, hidden in between": moved & pairs.reappeared,
        "all": torch.ones_like(moved),
        "all, hidden in between": pairs.reappeared,
    }
    result: dict[str, dict[str, dict[str, float] | int]] = {}
    for which, mask in chosen.items():
        subset = pairs[mask]
        result[which] = {"pairs": len(subset.error)}
        if not len(subset.error):
            continue
        limits = torch.tensor(_thresholds(size))
        for what, shares in (
            ("found", (subset.error.unsqueeze(1) <= limits).float().mean(0)),
            ("no motion", (subset.moved.unsqueeze(1) <= limits).float().mean(0)),
            ("chance", subset.chance.mean(0)),
        ):
            values = shares.tolist()
            result[which][what] = dict(zip(names, values, strict=False)) | {
                "mean of 1, 2, 4, 8, 16 px of 256": sum(values[len(names) :]) / len(WITHIN_PIXELS_OF_256)
            }
    return result


def accuracy_by_features(pairs: Mapping[str, PointErrors], size: tuple[int, int]) -> dict[str, object]:
    """`tracking_accuracy` of several kinds of features over the same pairs; what all have in common is there once."""
    scores = {kind: tracking_accuracy(kind_pairs, size) for kind, kind_pairs in pairs.items()}
    first = next(iter(scores.values()))
    return {
        which: {"pairs": shared["pairs"]}
        | {
            f"found by {kind}": accuracy[which]["found"]
            for kind, accuracy in scores.items()
            if "found" in accuracy[which]
        }
        | {what: shared[what] for what in ("no motion", "chance") if what in shared}
        for which, shared in first.items()
    }
