"""Near-duplicates: files, or parts of them, with the same content at corresponding times.

Pairs of clips that are much more similar than a clip is to the rest of the collection are matches. Matches of two files
vote for a line: time in one file = offset + speed x time in the other. Along the best lines the similarities of all
clips are compared, and the longest stretch that they support is kept (a local alignment). The method is robust to
whatever features are robust to (re-encoding, scaling, crops, changes of color) and, since it follows time, to cuts at
either end and changes of speed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tubelet.config.embed import DUPLICATE_MARGIN
from tubelet.embed.clip_vectors import ClipVectors, nearest_clips

SPEEDS = (0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0)
"""How much faster one of two duplicates may be."""
_MATCHES = 10  # nearest clips of other files, for each clip
_BACKGROUND = slice(10, 20)  # the neighbors whose mean similarity is what a clip has with the collection
_MIN_CLIPS = 2  # of a stretch, where both files have as many
_LINES = 4  # lines that are compared for two files


@dataclass(frozen=True)
class DuplicatePair:
    """Two files with a stretch that shows the same.

    Attributes:
        files: indices of the files, ascending.
        spans_s: start and end of the stretch in each, in seconds.
        speed: seconds of the second file that pass in one of the first.
        similarity: mean cosine of the clips along the stretch.
        margin: by how much it exceeds the similarity of these clips with the rest of the collection.
    """

    files: tuple[int, int]
    spans_s: tuple[tuple[float, float], tuple[float, float]]
    speed: float
    similarity: float
    margin: float


@dataclass(frozen=True)
class _Clips:
    """The clips of a file.

    Attributes:
        middle_s: (n,) seconds.
        step_s: seconds from clip to clip, or the length of a single one.
        half_s: (n,) half the length of each in seconds.
        vectors: (n, d) of length 1.
        background: (n,) similarity with the rest of the collection.
    """

    middle_s: NDArray[np.float64]
    step_s: float
    half_s: NDArray[np.float64]
    vectors: NDArray[np.float32]
    background: NDArray[np.float32]


def find_duplicates(clips: ClipVectors, margin: float = DUPLICATE_MARGIN) -> list[DuplicatePair]:
    """Pairs of files that show the same, by descending margin.

    The work is n² for n clips, in products of matrices (100,000 clips: minutes), and in the number of matches after.

    Args:
        clips: the clips.
        margin: least margin of a pair, see `DuplicatePair`.
    """
    if len(clips.paths) < 2:
        return []
    nearest, similarity = nearest_clips(clips.vectors, _BACKGROUND.stop, clips.file)
    background = _mean_of_finite(similarity[:, _BACKGROUND] if similarity.shape[1] > _BACKGROUND.start else similarity)
    nearest, similarity = nearest[:, :_MATCHES], similarity[:, :_MATCHES]
    excess = similarity - 0.5 * (background[:, None] + background[nearest])
    first, rank = np.nonzero(np.isfinite(similarity) & (excess >= margin))
    second = nearest[first, rank]
    low, high = np.minimum(first, second), np.maximum(first, second)
    matches = np.unique(np.stack([clips.file[low], clips.file[high], low, high], 1), axis=0)
    begins = np.searchsorted(clips.file, np.arange(len(clips.paths) + 1))

    def clips_of(file: int) -> _Clips:
        rows = slice(begins[file], begins[file + 1])
        middle, half = (clips.start_s[rows] + clips.end_s[rows]) / 2, (clips.end_s[rows] - clips.start_s[rows]) / 2
        step = float(np.diff(middle).mean()) if len(middle) > 1 else float(2 * half[0])
        return _Clips(middle, max(step, 1e-3), half, clips.vectors[rows], background[rows])

    pairs = []
    for group in _groups(matches):
        a, b = int(group[0, 0]), int(group[0, 1])
        pair = _align((a, b), clips_of(a), clips_of(b), group[:, 2] - begins[a], group[:, 3] - begins[b])
        if pair is not None and pair.margin >= margin:
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: (-pair.margin, pair.files))


def group_duplicates(pairs: Sequence[DuplicatePair]) -> list[list[int]]:
    """Files that are connected by pairs, the largest group first."""
    group_of: dict[int, list[int]] = {}
    for pair in pairs:
        a, b = (group_of.setdefault(file, [file]) for file in pair.files)
        if a is not b:
            a += b
            group_of |= dict.fromkeys(b, a)
    groups = {id(group): sorted(group) for group in group_of.values()}
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def _mean_of_finite(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, k) -> (n,) means over values that are not -inf; 0 for none."""
    finite = np.isfinite(x)
    return np.asarray(np.where(finite, x, 0).sum(1) / np.maximum(finite.sum(1), 1), np.float32)


def _groups(matches: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Runs of rows that are equal in the first two columns."""
    if len(matches):
        changes = np.flatnonzero((np.diff(matches[:, :2], axis=0) != 0).any(1)) + 1
        yield from np.split(matches, changes)


def _align(
    files: tuple[int, int], a: _Clips, b: _Clips, i: NDArray[np.int64], j: NDArray[np.int64]
) -> DuplicatePair | None:
    """The best stretch along the lines that most matches lie on.

    Args:
        files: indices of the files.
        a: clips of the first file.
        b: clips of the second file.
        i: (m,) clips of the first file that match.
        j: (m,) clips of the second file that match them.
    """
    similarity = a.vectors @ b.vectors.T
    excess = similarity - 0.5 * (a.background[:, None] + b.background[None, :])
    votes: list[tuple[float, float, float]] = []
    for speed in SPEEDS:
        offsets = b.middle_s[j] - speed * a.middle_s[i]
        _, inverse = np.unique((2 * offsets / b.step_s).round(), return_inverse=True)
        weights = np.bincount(inverse, excess[i, j])
        for k in np.argsort(-weights, kind="stable")[:_LINES]:
            votes.append((float(weights[k]), speed, float(np.median(offsets[inverse == k]))))
    votes.sort(key=lambda vote: (-vote[0], abs(np.log(vote[1]))))
    best: tuple[float, DuplicatePair] | None = None
    for _, speed, offset in votes[:_LINES]:
        there = offset + speed * a.middle_s
        k = np.abs(there[:, None] - b.middle_s[None, :]).argmin(1)
        inside = np.abs(there - b.middle_s[k]) <= 0.75 * max(b.step_s, speed * a.step_s)
        along = np.where(inside, excess[np.arange(len(k)), k], -1.0)
        begin, end, total = _longest_stretch(along - 0.5 * DUPLICATE_MARGIN)
        if end - begin < min(_MIN_CLIPS, len(a.middle_s), len(b.middle_s)):
            continue  # a single pair of clips may be alike by chance
        total *= min(1.0, speed)  # clips of the first file that share one of the second count once
        if best is None or total > best[0]:
            indices = np.arange(begin, end)
            spans = (
                (float(a.middle_s[begin] - a.half_s[begin]), float(a.middle_s[end - 1] + a.half_s[end - 1])),
                (
                    float(b.middle_s[k[begin]] - b.half_s[k[begin]]),
                    float(b.middle_s[k[end - 1]] + b.half_s[k[end - 1]]),
                ),
            )
            mean = float(similarity[indices, k[indices]].mean())
            best = total, DuplicatePair(files, spans, speed, mean, float(along[indices].mean()))
    return None if best is None else best[1]


def _longest_stretch(values: NDArray[np.float64]) -> tuple[int, int, float]:
    """Begin, end and sum of the run of values with the largest sum."""
    best, begin, total = (0, 0, 0.0), 0, 0.0
    for i, value in enumerate(values):
        if total <= 0:
            begin, total = i, 0.0
        total += float(value)
        if total > best[2]:
            best = begin, i + 1, total
    return best
