"""The rules by which scores become spans, fitted to videos whose spans are known.

The rules have the highest F1 at an overlap of one half (Lea et al. 2017, arXiv 1611.05267); of rules of equal F1 those
whose spans overlap the true ones more, so that edges lie where they should. R runs, K classes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tubelet.heads.head_file import SpanRule
from tubelet.heads.spans import Runs, Span, divide_gap, find_runs

Floats = NDArray[np.float64]

# The grid. Lengths are in median lengths of the true spans of the class, gaps in time steps.
_OFF = (0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.7)
_RISE = (0.0, 0.1, 0.2, 0.35)  # of `on` above `off`
_ON = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8)  # where classes exclude each other
_LENGTHS = (0.0, 0.15, 0.3, 0.5)
_GAPS = (0.0, 1.0, 2.0, 4.0)
_FEWEST = 5
"""True spans below which a class has the rule that is best for all classes."""
_OVERLAP = 0.5
_ERRORS = 2.0
_MAX_STEPS = 50_000
"""Time steps of videos that rules are fitted to: more make them hardly better, and take minutes."""
_SAME = 1e-9
_MOST = 0.98  # of `on`


@dataclass(frozen=True)
class _Rules:
    """Rules of all classes.

    Attributes:
        on, off: (K,) scores.
        lengths: (K,) least length in median lengths of the true spans of the class.
        gaps: (K,) largest gap in time steps.
    """

    on: Floats
    off: Floats
    lengths: Floats
    gaps: Floats

    def with_class(self, k: int, other: "_Rules") -> "_Rules":
        """These rules, with that of one class from others."""
        is_class = np.arange(len(self.on)) == k
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Rules(*(np.where(is_class, new, current) for current, new in pairs))


@dataclass(frozen=True)
class _Truth:
    """The true spans of all videos, one after the other in time, and a copy of the time line for each class.

    Attributes:
        start_s, end_s: seconds, ascending.
        counts: (K,) number of spans.
        median_s: (K,) median length; that of all spans for a class without one.
        shifts_s: where each video begins.
        ends_s: where each video ends.
        copy_s: seconds from the copy of a class to that of the next.
        step_s: seconds of a time step.
    """

    start_s: Floats
    end_s: Floats
    counts: NDArray[np.int64]
    median_s: Floats
    shifts_s: Floats
    ends_s: Floats
    copy_s: float
    step_s: float


def fit_span_rules(
    scores: Sequence[ArrayLike],
    truth: Sequence[Sequence[Span]],
    step_s: float,
    exclusive: bool,
    durations_s: Sequence[float] | None = None,
) -> list[SpanRule]:
    """Choose the rules of all classes on videos that the head was not trained on.

    One rule is fitted to all classes together, over a coarse grid and a finer one around its best point. A class with
    at least `_FEWEST` spans has a rule of its own if its F1 rises by more than two standard errors: the best of many
    rules on a few spans is better by chance. Where classes exclude each other, `off` stays 0: every moment has the
    class with the highest score, and moments without any label must have a class of their own.

    Args:
        scores: for each video (T, K); the first videos are used, up to `_MAX_STEPS` steps.
        truth: for each video its spans.
        step_s: seconds of a time step.
        exclusive: whether one class excludes the others.
        durations_s: seconds of each video; None for whole steps.

    Returns:
        K rules. Without any true span they keep scores from 0.5 on, or the highest score, as they are.
    """
    count = max(1, int((np.cumsum([len(table) for table in scores]) <= _MAX_STEPS).sum()))  # type: ignore[arg-type]
    tables = [np.asarray(table, float) for table in scores[:count]]
    K = tables[0].shape[1]
    ends = [len(table) * step_s for table in tables] if durations_s is None else list(durations_s[:count])
    target = _collect(truth[:count], ends, step_s, K)
    fitter = _Fitter(tables, ends, target, exclusive)
    off = 0.0 if exclusive else 0.5
    rules = _Rules(np.full(K, off), np.full(K, off), np.zeros(K), np.zeros(K))
    if target.counts.any():
        everything = np.arange(K)
        rules = fitter.search(rules, everything)
        for k in range(K):
            if target.counts[k] >= _FEWEST or (exclusive and not target.counts[k]):
                rules = fitter.search_class(rules, k)
    return [
        SpanRule(on=float(on), off=float(low), min_length_s=float(length), max_gap_s=float(gap))
        for on, low, length, gap in zip(
            rules.on, rules.off, rules.lengths * target.median_s, rules.gaps * step_s, strict=True
        )
    ]


def _collect(truth: Sequence[Sequence[Span]], ends: Sequence[float], step_s: float, classes: int) -> _Truth:
    pause = 1000 * step_s + max(ends)  # that no gap of the grid bridges
    shifts = np.concatenate(([0.0], np.cumsum(np.array(ends) + pause)))
    rows = [
        (span.class_index, span.start_s + shift + span.class_index * shifts[-1], span.end_s - span.start_s)
        for spans, shift in zip(truth, shifts[:-1], strict=True)
        for span in spans
    ]
    rows.sort(key=lambda row: row[1])
    owner = np.array([row[0] for row in rows], np.int64)
    start, length = (np.array([row[i] for row in rows], float) for i in (1, 2))
    typical = float(np.median(length)) if len(rows) else step_s
    by_class = [length[owner == k] for k in range(classes)]
    return _Truth(
        start_s=start,
        end_s=start + length,
        counts=np.bincount(owner, minlength=classes),
        median_s=np.array([np.median(part) if len(part) else typical for part in by_class]),
        shifts_s=shifts[:-1],
        ends_s=shifts[:-1] + np.array(ends),
        copy_s=float(shifts[-1]),
        step_s=step_s,
    )


class _Fitter:
    """Scores rules on the runs of all videos, which are found once for each value of `off`."""

    def __init__(self, scores: Sequence[Floats], ends: Sequence[float], truth: _Truth, exclusive: bool) -> None:
        self._scores, self._ends, self._truth, self._exclusive = scores, ends, truth, exclusive
        self._found: dict[float, Runs] = {}
        self._edges: dict[tuple[int, int, int, int, int], float] = {}

    def search(self, rules: _Rules, classes: NDArray[np.int64]) -> _Rules:
        """The best rules that differ from the present ones in the rule of some classes, the same for all of those."""
        scored = np.arange(len(rules.on)) if self._exclusive else classes
        best, highest = rules, self._score(rules, scored)
        for fine in (False, True):
            center = best
            for on, off, length, gap in self._fine(center, classes[0]) if fine else self._coarse():
                values = _Rules(*(np.full(len(rules.on), value) for value in (on, off, length, gap)))
                candidate = rules
                for k in classes:
                    candidate = candidate.with_class(k, values)
                score = self._score(candidate, scored)
                if score[0] > highest[0] + _SAME or (score[0] > highest[0] - _SAME and score[1] > highest[1] + _SAME):
                    best, highest = candidate, score
        return best

    def search_class(self, rules: _Rules, k: int) -> _Rules:
        """The best rules that differ in the rule of one class, or the present ones if those are about as good."""
        counts = self._truth.counts
        classes = np.flatnonzero(counts) if self._exclusive else np.array([k])
        best = self.search(rules, np.array([k]))
        before, after = (self._score(each, classes)[0] for each in (rules, best))
        spans = counts[k] or counts.sum() / np.count_nonzero(counts)
        error = np.sqrt(before * (1 - before) / spans) / len(classes)  # of the mean, of which this class is a part
        return best if after >= before + _ERRORS * error else rules

    def _coarse(self) -> list[tuple[float, float, float, float]]:
        if self._exclusive:
            levels = [(on, 0.0) for on in _ON]
        else:
            levels = [(min(off + rise, _MOST), off) for off, rise in itertools.product(_OFF, _RISE)]
        return [(on, off, length, gap) for (on, off), length, gap in itertools.product(levels, _LENGTHS, _GAPS)]

    def _fine(self, center: _Rules, k: int) -> list[tuple[float, float, float, float]]:
        on, off, length, gap = (float(values[k]) for values in vars(center).values())
        offs = [0.0] if self._exclusive else [off, off - 0.05, off + 0.05]
        rises = [0.0, -0.05, 0.05]
        return [
            (min(max(on + low - off + rise, low, 0.0), _MOST), low, max(0.0, length + longer), max(0.0, gap + wider))
            for low, rise, longer, wider in itertools.product(offs, rises, (0.0, -0.08, 0.08), (0.0, -0.5, 0.5))
        ]

    def _score(self, rules: _Rules, classes: NDArray[np.int64]) -> tuple[float, float]:
        """Mean F1 of classes that occur, and the same with each match counted by its overlap."""
        present = classes[self._truth.counts[classes] > 0]
        if not len(present):
            return 0.0, 0.0
        spans = self._spans(rules, classes)
        hits, overlaps = self._match(spans)
        total = (np.bincount(spans.classes, minlength=len(rules.on)) + self._truth.counts)[present]
        return float((2 * hits[present] / total).mean()), float((2 * overlaps[present] / total).mean())

    def _spans(self, rules: _Rules, classes: NDArray[np.int64]) -> Runs:
        """The spans by the steps that `tubelet.heads.spans` describes."""
        offs = np.unique(rules.off[classes])
        tables = [self._runs(off) for off in offs.tolist()]
        if not self._exclusive:
            owners = [classes[rules.off[classes] == off] for off in offs]
            tables = [runs[np.isin(runs.classes, class_ids)] for runs, class_ids in zip(tables, owners, strict=True)]
        runs = Runs.join(tables)
        runs = runs[runs.peak >= rules.on[runs.classes]]
        gaps = rules.gaps * self._truth.step_s
        runs = runs.merge_neighbors(gaps)
        length = (rules.lengths * self._truth.median_s)[runs.classes]
        runs = runs[runs.end_s - runs.start_s >= length - _SAME]
        if self._exclusive:
            return self._fill(runs.merge_neighbors(np.full_like(gaps, max(self._ends))))
        return runs.merge_neighbors(gaps)

    def _fill(self, runs: Runs) -> Runs:
        """Step 4 of the decoding: every moment has a class."""
        if not len(runs):
            return runs
        video = np.searchsorted(self._truth.shifts_s, runs.start_s, "right") - 1
        start, end = self._truth.shifts_s[video], self._truth.ends_s[video]
        same = video[1:] == video[:-1]
        edges = runs.start_s[1:].copy()
        gaps = np.flatnonzero(same & (runs.first[1:] > runs.last[:-1]))
        columns = (video[gaps], runs.last[gaps], runs.first[gaps + 1], runs.classes[gaps], runs.classes[gaps + 1])
        computed = [self._edge(*key) for key in zip(*(column.tolist() for column in columns), strict=True)]
        edges[gaps] = np.array(computed) + self._truth.shifts_s[video[gaps]]
        start[1:] = np.where(same, edges, start[1:])
        end[:-1] = np.where(same, edges, end[:-1])
        return replace(runs, start_s=start, end_s=end)

    def _edge(self, video: int, last: int, first: int, before: int, after: int) -> float:
        """Seconds at which one class ends and the next one begins; found once, since most rules leave the same gaps."""
        key = (video, last, first, before, after)
        if key not in self._edges:
            edge = last - 0.5 + divide_gap(self._scores[video][last - 1 : first + 1, [before, after]])
            self._edges[key] = min(edge * self._truth.step_s, self._ends[video])
        return self._edges[key]

    def _match(self, spans: Runs) -> tuple[Floats, Floats]:
        """For each class how many true spans are found, and the sum of their overlaps.

        A span that overlaps a true one by half of their union covers its own middle with it, so there is one candidate.
        """
        truth, classes = self._truth, len(self._truth.counts)
        shift = spans.classes * truth.copy_s
        start, end = spans.start_s + shift, spans.end_s + shift
        candidates = np.searchsorted(truth.start_s, (start + end) / 2, "right") - 1
        indices = np.maximum(candidates, 0)
        common = (np.minimum(end, truth.end_s[indices]) - np.maximum(start, truth.start_s[indices])).clip(0)
        union = end - start + truth.end_s[indices] - truth.start_s[indices] - common
        overlap = np.where((candidates >= 0) & (union > 0), common / np.maximum(union, _SAME), 0.0)
        matched = overlap >= _OVERLAP
        _, first = np.unique(candidates[matched], return_index=True)
        owner, amount = spans.classes[matched][first], overlap[matched][first]
        hits = np.bincount(owner, minlength=classes).astype(float)
        return hits, np.bincount(owner, weights=amount, minlength=classes).astype(float)

    def _runs(self, off: float) -> Runs:
        """The runs of all videos; those of a class in the order of time, or all of exclusive classes."""
        if off not in self._found:
            step_s, K = self._truth.step_s, len(self._truth.counts)
            tables = []
            for scores, end, shift in zip(self._scores, self._ends, self._truth.shifts_s, strict=True):
                runs = find_runs(scores, step_s, off, K, self._exclusive, end)
                runs = runs[runs.end_s > runs.start_s]
                tables.append(replace(runs, start_s=runs.start_s + shift, end_s=runs.end_s + shift))
            runs = Runs.join(tables)
            if not self._exclusive:
                runs = runs[np.lexsort((runs.start_s, runs.classes))]
            self._found[off] = runs
        return self._found[off]
