"""Scores over time to spans, and the rules by which.

A video has T time steps of equal length; the score of step i belongs to its center, (i + 0.5) · step_s. K classes.

Where classes may overlap, a run of a class is a longest sequence of steps whose score is at least `off`. Where they
exclude each other, a step belongs to the class with the highest score, if that is at least `off` of the class, and a
run is a longest sequence of steps of one class. From runs to spans:

1. A run of which no step reaches `on` is dropped (hysteresis with two thresholds, the same in both directions of time).
2. Neighbors of one class at most `max_gap_s` apart are joined, unless a run of another class that excludes it, and was
   not dropped, lies between.
3. Spans shorter than `min_length_s` are dropped; then 2. is repeated.
4. If classes exclude each other and `off` is 0 for all, every moment has a class: neighbors of one class are joined,
   and what dropped runs leave between two classes is divided where the sum of the scores of the first class before, and
   of the second after, is highest.

An edge lies where the score crosses `off`, or that of the next class, on the straight line between the centers of two
steps; so it is finer than a step. The first and the last step reach to the ends of the video.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tubelet.heads.head_file import SpanRule

Floats = NDArray[np.float64]
_ROUNDING_S = 1e-9
_NONE = -1
_LONGEST_GAP = 256  # time steps of dropped runs; longer gaps are divided in the middle, so that memory is constant


class Span(NamedTuple):
    """A class from a time to another.

    Attributes:
        class_index: index of the class.
        start_s: start in seconds.
        end_s: end in seconds.
        score: mean score of the class over its steps; 1 for a label.
    """

    class_index: int
    start_s: float
    end_s: float
    score: float = 1.0


def decode_spans(
    scores: ArrayLike, step_s: float, rules: Sequence[SpanRule], exclusive: bool, duration_s: float | None = None
) -> list[Span]:
    """The spans of a video.

    Args:
        scores: (T, K) scores of the classes in each time step.
        step_s: seconds of a time step.
        rules: K rules.
        exclusive: whether one class excludes the others; spans of different classes then never overlap.
        duration_s: seconds of the video, where its last step is cut short; None for T whole steps.

    Returns:
        The spans by start, then by class.
    """
    decoder = SpanDecoder(step_s, rules, exclusive, duration_s)
    return decoder.add(scores) + decoder.finish()


@dataclass
class Runs:
    """Runs of one or more classes in the order of time, as columns of equal length.

    Attributes:
        classes: class indices.
        start_s, end_s: seconds.
        first, last: first step, and the one after the last.
        before, after: sum of the scores of the class over all steps before `first`, and before `last`.
        peak: highest score.
    """

    classes: NDArray[np.int64]
    start_s: Floats
    end_s: Floats
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    before: Floats
    after: Floats
    peak: Floats

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: "slice | NDArray[np.bool_] | NDArray[np.int64]") -> "Runs":
        return Runs(*(column[rows] for column in vars(self).values()))

    @staticmethod
    def join(tables: "Sequence[Runs]") -> "Runs":
        """All runs of several tables, one table after the other."""
        return Runs(*map(np.concatenate, zip(*(vars(table).values() for table in tables), strict=True)))

    @staticmethod
    def empty() -> "Runs":
        """No runs."""
        whole, number = np.zeros(0, np.int64), np.zeros(0)
        return Runs(whole, number, number, whole, whole, number, number, number)

    def merge_neighbors(self, max_gap_s: Floats) -> "Runs":
        """Join neighbors of one class that are at most `max_gap_s` (K,) of the class apart."""
        if len(self) < 2:
            return self
        gap = self.start_s[1:] - self.end_s[:-1]
        apart = (self.classes[1:] != self.classes[:-1]) | (gap > max_gap_s[self.classes[1:]] + _ROUNDING_S)
        heads = np.flatnonzero(np.concatenate(([True], apart)))
        tails = np.concatenate((heads[1:], [len(self)])) - 1
        joined = self[heads]
        joined.end_s, joined.last, joined.after = self.end_s[tails], self.last[tails], self.after[tails]
        joined.peak = np.maximum.reduceat(self.peak, heads)
        return joined


@dataclass
class _Track:
    """Runs among which order matters: those of one class, or of all classes that exclude each other.

    Attributes:
        merged: the last run after step 2, which a later one may still extend.
        kept: the last span after step 3, which a later one may still extend.
        open_class: class of the run that the last step belongs to, -1 for none.
        open_start_s: its start in seconds.
        open_first: its first step.
        open_before: sum of the scores of its class before its first step.
        open_peak: its highest score so far.
    """

    merged: Runs = field(default_factory=Runs.empty)
    kept: Runs = field(default_factory=Runs.empty)
    open_class: int = _NONE
    open_start_s: float = 0.0
    open_first: int = 0
    open_before: float = 0.0
    open_peak: float = -np.inf


class SpanDecoder:
    """The spans of a video whose scores arrive in chunks of any sizes, the same as those of `decode_spans`.

    Memory grows neither with the steps nor with the spans, except for spans that wait for one that began before them.
    """

    def __init__(
        self, step_s: float, rules: Sequence[SpanRule], exclusive: bool, duration_s: float | None = None
    ) -> None:
        """Start at the beginning of a video.

        Args:
            step_s: seconds of a time step.
            rules: K rules.
            exclusive: whether one class excludes the others.
            duration_s: seconds of the video, where its last step is cut short; None for whole steps.
        """
        self._step_s, self._exclusive, self._duration_s = step_s, exclusive, duration_s
        self._on, self._off, self._min_length_s, self._max_gap_s = (
            np.array([getattr(rule, name) for rule in rules], float)
            for name in ("on", "off", "min_length_s", "max_gap_s")
        )
        self._dense = exclusive and not self._off.any()
        self._tracks = [_Track() for _ in range(1 if exclusive else len(rules))]
        self._steps = 0
        self._previous: Floats | None = None  # scores of the last step
        self._total = np.zeros(len(rules))  # of the scores of all steps so far
        self._ready: list[_Found] = []  # that wait for one that began before them
        self._undivided: _Found | None = None  # the last span of step 4, whose end may move
        self._recent = np.zeros((0, len(rules)))  # scores of the last steps, for step 4
        self._before: dict[int, Floats] = {}  # first step of a span that waits -> scores of the steps up to it

    def add(self, scores: ArrayLike) -> list[Span]:
        """Take the scores (n, K) of the next n time steps.

        Returns:
            The spans that no later score can change, by start, then by class, over all calls.
        """
        chunk = np.asarray(scores, float).reshape(-1, len(self._on))
        for track, runs in zip(self._tracks, self.closed_runs(chunk), strict=True):
            self._ready += self._advance(track, runs, final=False)
        if self._dense:
            self._recent = np.concatenate((self._recent, chunk))
        spans = self._emit(final=False)
        if self._dense:
            self._forget()
        return spans

    def finish(self) -> list[Span]:
        """End the video.

        Returns:
            The remaining spans, by start, then by class.
        """
        for track, runs in zip(self._tracks, self.open_runs(), strict=True):
            track.open_class = _NONE
            self._ready += self._advance(track, runs, final=True)
        spans = self._emit(final=True)
        if self._undivided is not None:
            spans.append(self._undivided.span._replace(end_s=self._end_s()))
        return spans

    def closed_runs(self, scores: ArrayLike) -> list[Runs]:
        """For each track, the runs that end within the next time steps, whose scores (n, K) are given."""
        chunk = np.asarray(scores, float).reshape(-1, len(self._on))
        if not len(chunk):
            return [Runs.empty() for _ in self._tracks]
        totals = np.cumsum(np.concatenate((self._total[None], chunk)), axis=0)
        rows = chunk if self._previous is None else np.concatenate((self._previous[None], chunk))
        states, signals = self._states(rows)
        closed = [
            self._close(track, rows, state, signals, totals) for track, state in zip(self._tracks, states, strict=True)
        ]
        self._total, self._previous = totals[-1], chunk[-1].copy()
        self._steps += len(chunk)
        return closed

    def open_runs(self) -> list[Runs]:
        """For each track, the run that the last step belongs to, as if the video ended here."""
        runs = []
        for track in self._tracks:
            k, start_s = track.open_class, track.open_start_s
            if k == _NONE:
                runs.append(Runs.empty())
                continue
            columns = (k, start_s, self._end_s(), track.open_first, self._steps, track.open_before, self._total[k])
            runs.append(_table(*([value] for value in (*columns, track.open_peak))))
        return runs

    def _end_s(self) -> float:
        return self._steps * self._step_s if self._duration_s is None else self._duration_s

    def _states(self, rows: Floats) -> tuple[list[NDArray[np.int64]], Floats]:
        """The class of each row in each track, -1 for none, and the signal (n, K) that is at least 0 where it is."""
        signals = rows - self._off
        if not self._exclusive:
            return [np.where(signals[:, k] >= 0, k, _NONE) for k in range(rows.shape[1])], signals
        best = rows.argmax(1)
        state = np.where(np.take_along_axis(signals, best[:, None], 1)[:, 0] >= 0, best, _NONE)
        if rows.shape[1] > 1:
            highest, second = np.sort(rows, axis=1)[:, :-3:-1].T
            others = np.where(np.arange(rows.shape[1]) == best[:, None], second[:, None], highest[:, None])
            signals = np.minimum(signals, rows - others)
        return [state], signals

    def _close(self, track: _Track, rows: Floats, state: NDArray[np.int64], signals: Floats, totals: Floats) -> Runs:
        """The runs that end in these rows; the last one, which may go on, becomes the track's open one.

        The first row is the last one of the chunk before, except in the first chunk.
        """
        offset = 0 if self._previous is None else 1
        changes = np.flatnonzero(state[1:] != state[:-1]) + 1
        classes = np.append(state[0], state[changes])
        starts_s = np.append(track.open_start_s, self._edges(changes, state, rows, signals, offset))
        firsts = np.append(track.open_first, changes - offset + self._steps)
        before = np.append(track.open_before, totals[changes - offset, classes[1:]])
        score = np.where(state >= 0, np.take_along_axis(rows, np.maximum(state, 0)[:, None], 1)[:, 0], -np.inf)
        peaks = np.maximum.reduceat(score, np.append(0, changes))
        peaks[0] = max(peaks[0], track.open_peak)
        track.open_class, track.open_start_s, track.open_first = int(classes[-1]), float(starts_s[-1]), int(firsts[-1])
        track.open_before, track.open_peak = float(before[-1]), float(peaks[-1])
        after = totals[changes - offset, classes[:-1]]
        closed = _table(
            classes[:-1], starts_s[:-1], starts_s[1:], firsts[:-1], firsts[1:], before[:-1], after, peaks[:-1]
        )
        return closed[closed.classes >= 0]

    def _edges(
        self, changes: NDArray[np.int64], state: NDArray[np.int64], rows: Floats, signals: Floats, offset: int
    ) -> Floats:
        """Seconds at which the class changes between each row in `changes` and the one before."""
        before, after = state[changes - 1], state[changes]
        both = (before >= 0) & (after >= 0)
        one = np.where(after >= 0, after, before)
        low = np.where(both, rows[changes - 1, after] - rows[changes - 1, before], signals[changes - 1, one])
        high = np.where(both, rows[changes, after] - rows[changes, before], signals[changes, one])
        rise = high - low
        fraction = np.where(rise == 0, 0.5, -low / np.where(rise == 0, 1.0, rise))
        centers = changes - offset + self._steps - 0.5  # of the rows before
        times = (centers + fraction.clip(0, 1)) * self._step_s
        return times if self._duration_s is None else np.minimum(times, self._duration_s)

    def _advance(self, track: _Track, runs: Runs, final: bool) -> "list[_Found]":
        """Add runs to a track; returns the spans that are final."""
        next_s = self._earliest_start(track)
        runs = runs[(runs.peak >= self._on[runs.classes]) & (runs.end_s > runs.start_s)]
        groups = Runs.join([track.merged, runs]).merge_neighbors(self._max_gap_s)
        done = self._count_final(groups, self._max_gap_s, next_s, final)
        track.merged = groups[done:]
        if len(track.merged):
            next_s = min(next_s, float(track.merged.start_s[0]))
        long = groups[:done]
        long = long[long.end_s - long.start_s >= self._min_length_s[long.classes] - _ROUNDING_S]
        gaps = np.full_like(self._max_gap_s, np.inf) if self._dense else self._max_gap_s
        spans = Runs.join([track.kept, long]).merge_neighbors(gaps)
        done = self._count_final(spans, gaps, next_s, final)
        track.kept = spans[done:]
        ready = spans[:done]
        means = (ready.after - ready.before) / (ready.last - ready.first)
        found = map(Span, ready.classes.tolist(), ready.start_s.tolist(), ready.end_s.tolist(), means.tolist())
        return list(map(_Found, found, ready.first.tolist(), ready.last.tolist()))

    def _earliest_start(self, track: _Track) -> float:
        """Seconds before which no run starts that is not closed yet."""
        return (self._steps - 0.5) * self._step_s if track.open_class == _NONE else track.open_start_s

    def _count_final(self, runs: Runs, gaps_s: Floats, next_s: float, final: bool) -> int:
        """How many of the runs no later run can extend, if none starts before `next_s`."""
        if final or not len(runs):
            return len(runs)
        apart = next_s - runs.end_s[-1] > gaps_s[runs.classes[-1]] + _ROUNDING_S
        return len(runs) if apart else len(runs) - 1

    def _emit(self, final: bool) -> list[Span]:
        """Spans that are ready and that none can precede any more, in order."""
        earliest = np.inf
        for track in [] if final else self._tracks:
            starts = [float(runs.start_s[0]) for runs in (track.merged, track.kept) if len(runs)]
            earliest = min(earliest, self._earliest_start(track), *starts)
        self._ready.sort(key=lambda found: (found.span.start_s, found.span.class_index))
        count = sum(found.span.start_s < earliest for found in self._ready)
        ready, self._ready = self._ready[:count], self._ready[count:]
        return self._divide_gaps(ready) if self._dense else [found.span for found in ready]

    def _divide_gaps(self, ready: "Sequence[_Found]") -> list[Span]:
        """Step 4: all spans but the last, each reaching to the next one."""
        divided = []
        for found in ready:
            if self._undivided is None:
                self._undivided = found._replace(span=found.span._replace(start_s=0.0))
                continue
            before = self._undivided
            edge_s = self._edge_between(before, found)
            divided.append(before.span._replace(end_s=edge_s))
            self._undivided = found._replace(span=found.span._replace(start_s=edge_s))
        return divided

    def _edge_between(self, before: "_Found", after: "_Found") -> float:
        """Seconds at which one span ends and the next one begins."""
        gap = after.first - before.last
        if not gap or gap > _LONGEST_GAP:
            return (before.span.end_s + after.span.start_s) / 2
        rows = self._before.get(after.first)
        if rows is None:
            end = after.first + 1 - self._steps + len(self._recent)
            rows = self._recent[:end]
        edge_s = before.last - 0.5 + divide_gap(rows[-gap - 2 :, [before.span.class_index, after.span.class_index]])
        edge_s *= self._step_s
        return edge_s if self._duration_s is None else min(edge_s, self._duration_s)

    def _forget(self) -> None:
        """Keep only the scores that a later call may need: those before spans that wait, and the last ones."""
        (track,) = self._tracks
        firsts = [track.open_first] if track.open_class != _NONE else []
        firsts += [int(first) for runs in (track.merged, track.kept) for first in runs.first]
        firsts += [found.first for found in self._ready]
        begin = self._steps - len(self._recent)
        self._before = {
            first: self._before[first]
            if first in self._before
            else self._recent[: first + 1 - begin][-_LONGEST_GAP - 2 :].copy()
            for first in firsts
        }
        self._recent = self._recent[-_LONGEST_GAP - 2 :].copy()


class _Found(NamedTuple):
    """A span and its steps.

    Attributes:
        span: the span.
        first: its first step.
        last: the step after its last one.
    """

    span: Span
    first: int
    last: int


def divide_gap(scores: Floats) -> float:
    """Where one class ends and another begins, between two steps that have these classes.

    Args:
        scores: (n, 2) scores of the first and of the second class, from the last step of the one to the first step of
            the other.

    Returns:
        Time steps from the center of the first row: where the difference of the scores crosses 0 between two steps. Of
        several such places that of the highest sum of the first class's scores before and the second one's after.
    """
    difference = scores[:, 0] - scores[:, 1]
    split = int(np.cumsum(difference)[:-1].argmax())
    low, high = difference[split], difference[split + 1]
    return split + float(low / (low - high) if low >= 0 >= high and low > high else 0.5)


def _table(*columns: ArrayLike) -> Runs:
    kinds = (np.int64, float, float, np.int64, np.int64, float, float, float)
    return Runs(*(np.asarray(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def find_runs(
    scores: ArrayLike, step_s: float, off: float, classes: int, exclusive: bool, duration_s: float | None = None
) -> Runs:
    """The runs of all classes of a video, before any step of the decoding; those of a class are in the order of time.

    Args:
        scores: (T, K) scores of the classes in each time step.
        step_s: seconds of a time step.
        off: score from which a step belongs to a run, of all classes.
        classes: K.
        exclusive: whether one class excludes the others; all runs are then in the order of time.
        duration_s: seconds of the video, where its last step is cut short; None for T whole steps.
    """
    rule = SpanRule(on=off, off=off, min_length_s=0.0, max_gap_s=0.0)
    decoder = SpanDecoder(step_s, [rule] * classes, exclusive, duration_s)
    closed = decoder.closed_runs(scores)
    return Runs.join([table for pair in zip(closed, decoder.open_runs(), strict=True) for table in pair])


def span_coverage(spans: Sequence[Span], steps: int, step_s: float, classes: int) -> NDArray[np.float32]:
    """The fraction of each time step that is covered by spans of each class: targets of training.

    A score that equals them gives the spans back: it crosses one half where the span begins or ends.

    Args:
        spans: spans of a video, of a class without overlap.
        steps: T.
        step_s: seconds of a time step.
        classes: K.

    Returns:
        (T, K) from 0 to 1.
    """
    covered = np.zeros((steps, classes))
    starts = np.arange(steps) * step_s
    for span in spans:
        first, last = int(max(0, span.start_s // step_s)), int(min(steps, span.end_s // step_s + 1))
        step_starts = starts[first:last]
        inside = np.minimum(step_starts + step_s, span.end_s) - np.maximum(step_starts, span.start_s)
        covered[first:last, span.class_index] += inside.clip(0) / step_s
    return covered.clip(0, 1).astype(np.float32)
