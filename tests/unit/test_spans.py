"""Scores over time to spans: by hand, in chunks of any sizes, and against a second implementation."""

import itertools
import sys

import numpy as np
import pytest

from tubelet.heads.head_file import SpanRule
from tubelet.heads.spans import Span, SpanDecoder, decode_spans, divide_gap, span_coverage


def rule(on=0.5, off=0.5, min_length_s=0.0, max_gap_s=0.0):
    return SpanRule(on=on, off=off, min_length_s=min_length_s, max_gap_s=max_gap_s)


def column(*values):
    return np.array(values, float)[:, None]


def test_edges_lie_where_the_score_crosses_between_the_centers_of_two_steps():
    (span,) = decode_spans(column(0, 0.25, 0.75, 1, 1, 0.2, 0), 2.0, [rule()], False)
    assert span.class_index == 0
    # From 0.25 to 0.75 half way between the centers 3 s and 5 s; from 1 to 0.2 at 5/8 of the way from 9 s to 11 s.
    assert (span.start_s, span.end_s) == pytest.approx((4.0, 10.25))
    assert span.score == pytest.approx((0.75 + 1 + 1) / 3)


def test_a_span_reaches_the_ends_of_the_video():
    assert decode_spans(column(1, 1), 2.0, [rule()], False) == [Span(0, 0.0, 4.0, 1.0)]
    assert decode_spans(column(1, 1), 2.0, [rule()], False, duration_s=3.5) == [Span(0, 0.0, 3.5, 1.0)]
    assert decode_spans(np.zeros((0, 1)), 2.0, [rule()], False) == []


def test_no_span_ends_after_a_video_whose_last_step_is_cut_short():
    scores = column(0, 1, 1, 0.1)  # crosses at 2.5 + 5/9 s of steps
    (span,) = decode_spans(scores, 1.0, [rule()], False, duration_s=3.05)
    assert span.end_s == 3.05
    assert decode_spans(column(0, 0, 0, 0.51), 1.0, [rule()], False, duration_s=3.05) == []


def test_hysteresis_keeps_runs_that_reach_the_upper_threshold_and_extends_them_to_the_lower():
    scores = column(0, 0.4, 0.9, 0.4, 0, 0.4, 0.4, 0)
    (span,) = decode_spans(scores, 1.0, [rule(on=0.8, off=0.3)], False)
    assert (span.start_s, span.end_s) == pytest.approx((0.5 + 0.75, 3.5 + 0.25))


def test_gaps_are_joined_before_short_spans_are_dropped():
    scores = column(0, 1, 0, 1, 0, 0, 0, 0, 1, 0)
    spans = decode_spans(scores, 1.0, [rule(min_length_s=2.0, max_gap_s=1.0)], False)
    assert [(s.start_s, s.end_s) for s in spans] == [(1.0, 4.0)]
    assert spans[0].score == pytest.approx(2 / 3)


def test_classes_overlap_unless_they_exclude_each_other():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.6, 0.9], [0.1, 0.9]])
    both = decode_spans(scores, 1.0, [rule(), rule()], False)
    assert both[0].end_s > both[1].start_s
    first, second = decode_spans(scores, 1.0, [rule(on=0, off=0)] * 2, True)
    # 0.8 - 0.7 falls to 0.6 - 0.9: a quarter of the way from 1.5 s to 2.5 s.
    assert (first.class_index, second.class_index) == (0, 1)
    assert first.end_s == second.start_s == pytest.approx(1.75)


def test_where_every_moment_has_a_class_the_time_of_a_dropped_run_goes_to_its_neighbors():
    rules = [rule(on=0, off=0, min_length_s=1.5)] * 3
    scores = np.array([[9, 0, 1], [9, 0, 1], [4, 5, 1], [1, 5, 3], [2, 0, 7], [1, 0, 9]], float) / 10
    spans = decode_spans(scores, 1.0, rules, True)
    # Without class 1, class 0 is ahead of class 2 by 0.3 at 2.5 s and behind by 0.2 at 3.5 s.
    assert [s[:2] for s in spans] == [(0, 0.0), (2, pytest.approx(3.1))]
    assert spans[0].end_s == spans[1].start_s and spans[1].end_s == 6.0


def test_where_every_moment_has_a_class_neighbors_of_one_class_are_one_span():
    rules = [rule(on=0, off=0, min_length_s=1.5)] * 3
    (whole,) = decode_spans(np.eye(3)[[0, 0, 0, 1, 0, 0, 0]], 1.0, rules, True)
    assert whole[:3] == (0, 0.0, 7.0)


def test_a_gap_is_divided_where_the_scores_say():
    # Twice the first class falls behind the second: after the second time for longer.
    scores = column(0.9, 0.4, 0.6, 0.6, 0.3, 0.3, 0.1)
    assert divide_gap(np.hstack([scores, 1 - scores])) == pytest.approx(3 + 0.2 / (0.2 + 0.4))
    assert divide_gap(np.full((4, 2), 0.5)) == 0.5


def test_long_gaps_are_divided_in_the_middle_also_in_chunks():
    rng = np.random.default_rng(0)
    flicker = np.eye(4)[2 + np.arange(600) % 2] + rng.uniform(0, 0.1, (600, 4))
    scores = np.concatenate([np.eye(4)[[0] * 9], flicker, np.eye(4)[[1] * 9]])
    rules = [rule(on=0, off=0, min_length_s=4)] * 4
    spans = decode_spans(scores, 1.0, rules, True)
    assert [s.class_index for s in spans] == [0, 1] and spans[0].end_s == pytest.approx(309, abs=1)
    decoder = SpanDecoder(1.0, rules, True)
    found = [span for step in scores for span in decoder.add(step[None])]
    assert found + decoder.finish() == spans
    assert len(decoder._recent) < 300


def test_a_gap_is_not_joined_over_another_class():
    scores = np.eye(2)[[0, 0, 1, 1, 0, 0]]
    spans = decode_spans(scores, 1.0, [rule(off=0.1, max_gap_s=9.0)] * 2, True)
    assert [s.class_index for s in spans] == [0, 1, 0]


def random_scores(rng, steps, classes, exclusive):
    noise = rng.normal(size=(steps + 8, classes))
    smooth = sum(noise[i : i + steps] for i in range(1 + int(rng.integers(8))))
    return np.exp(smooth) / np.exp(smooth).sum(1, keepdims=True) if exclusive else 1 / (1 + np.exp(-smooth))


def random_rules(rng, classes, exclusive):
    off = rng.choice([0.0, 0.2, 0.35]) if exclusive else rng.uniform(0.2, 0.6)
    return [
        rule(off + rng.uniform(0, 0.3), off, rng.choice([0, 0.3, 1.0, 3.0]), rng.choice([0, 0.3, 1.0]))
        for _ in range(classes)
    ]


@pytest.mark.parametrize("exclusive", [False, True])
def test_chunks_of_any_sizes_give_exactly_the_same_spans_in_the_same_order(exclusive):
    rng = np.random.default_rng(1)
    for _ in range(30):
        steps, classes = int(rng.integers(1, 400)), int(rng.integers(1, 5))
        scores, rules = random_scores(rng, steps, classes, exclusive), random_rules(rng, classes, exclusive)
        duration_s = 0.4 * steps - 0.1
        expected = decode_spans(scores, 0.4, rules, exclusive, duration_s)
        decoder, found, start = SpanDecoder(0.4, rules, exclusive, duration_s), [], 0
        while start < steps:
            size = int(rng.integers(0, 12))
            found += decoder.add(scores[start : start + size])
            start += size
        assert found + decoder.finish() == expected
        assert expected == sorted(expected, key=lambda span: (span.start_s, span.class_index))
        if exclusive:
            assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(expected))
            if not any(rule.off for rule in rules) and expected:
                assert sum(s.end_s - s.start_s for s in expected) == pytest.approx(duration_s)


def decode_step_by_step(scores, step_s, own):
    """Spans of one class without NumPy, as the module's description has it."""
    runs, inside = [], None
    for i, score in enumerate([*scores, None]):
        if score is not None and score >= own.off:
            if inside is None:
                start = 0.0 if i == 0 else i - 0.5 + (own.off - scores[i - 1]) / (score - scores[i - 1])
                inside = [start, 0.0, i, i, score]
            inside[3], inside[4] = i + 1, max(inside[4], score)
        elif inside is not None:
            before = scores[i - 1]
            inside[1] = float(len(scores)) if score is None else i - 0.5 + (before - own.off) / (before - score)
            if inside[4] >= own.on and inside[1] > inside[0]:
                runs.append(inside)
            inside = None
    joined = []
    for run in runs:
        if joined and (run[0] - joined[-1][1]) * step_s <= own.max_gap_s + 1e-9:
            joined[-1][1], joined[-1][3] = run[1], run[3]
        else:
            joined.append(run)
    return [
        (start * step_s, end * step_s, float(np.mean(scores[first:last])))
        for start, end, first, last, _ in joined
        if (end - start) * step_s >= own.min_length_s - 1e-9
    ]


def test_spans_are_those_of_a_second_implementation():
    rng = np.random.default_rng(2)
    for _ in range(100):
        scores, (own,) = random_scores(rng, 80, 1, False), random_rules(rng, 1, False)
        spans = decode_spans(scores, 0.4, [own], False)
        expected = decode_step_by_step(scores[:, 0].tolist(), 0.4, own)
        np.testing.assert_allclose(
            np.reshape([s[1:] for s in spans], (-1, 3)), np.reshape(expected, (-1, 3)), atol=1e-9
        )


def test_memory_does_not_grow_with_the_video():
    decoder = SpanDecoder(0.25, [rule(), rule(max_gap_s=1.0)], False)
    rng = np.random.default_rng(3)
    for _ in range(300):
        decoder.add(rng.uniform(size=(40, 2)))
        assert len(decoder._ready) < 100  # of thousands


def test_coverage_of_steps_gives_the_spans_back_within_a_tenth_of_a_step():
    rng = np.random.default_rng(4)
    for _ in range(30):
        times = np.sort(rng.uniform(2, 98, 6)) + np.arange(6) * 5
        truth = [Span(0, *times[:2]), Span(1, *times[2:4]), Span(0, *times[4:])]
        coverage = span_coverage(truth, 140, 1.0, 2)
        assert coverage.sum() == pytest.approx(sum(s.end_s - s.start_s for s in truth), rel=1e-5)
        spans = decode_spans(coverage, 1.0, [rule()] * 2, False)
        assert [s.class_index for s in spans] == [0, 1, 0]
        np.testing.assert_allclose([s[1:3] for s in spans], [s[1:3] for s in truth], atol=0.1)


@pytest.mark.parametrize("exclusive", [False, True])
def test_work_grows_with_spans_and_not_with_time_steps(exclusive):
    scores = random_scores(np.random.default_rng(5), 28_800, 5, exclusive)  # two hours
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        spans = decode_spans(scores, 0.25, [rule(0.4, 0.3, 0.5, 0.5)] * 5, exclusive)
    finally:
        sys.setprofile(None)
    assert len(spans) > 100 and calls < 10 * len(spans)
