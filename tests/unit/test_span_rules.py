"""Rules of spans that are fitted to videos whose spans are known."""

import time

import numpy as np
import pytest

from tubelet.heads.span_rules import _collect, _Fitter, _Rules, fit_span_rules
from tubelet.heads.spans import Span, decode_spans, span_coverage
from tubelet.tasks.metrics.timeline import VideoSpans, segment_counts

STEP_S, STEPS = 0.5, 240


def timelines(rng, videos, classes, exclusive, noise=0.25):
    """True spans, and scores that are smoothed, noisy, and squeezed from 0 to 1 into 0.1 to 0.7."""
    truth, scores = [], []
    for _ in range(videos):
        spans = []
        for k in [None] if exclusive else range(classes):
            times = np.cumsum(rng.uniform(6, 14, 2 * int(STEPS * STEP_S / 20)))
            times = times[times < STEPS * STEP_S]
            spans += [
                Span(int(rng.integers(classes)) if k is None else k, a, b)
                for a, b in zip(times[::2], times[1::2], strict=False)
            ]
        coverage = span_coverage(spans, STEPS, STEP_S, classes)
        if exclusive:
            coverage = np.concatenate([coverage, 1 - coverage.sum(1, keepdims=True)], 1)
        noisy = coverage + rng.normal(0, noise, coverage.shape)
        if exclusive:
            own = np.exp(3 * noisy) / np.exp(3 * noisy).sum(1, keepdims=True)
        else:
            own = (0.1 + 0.6 * noisy).clip(0, 1)
        truth.append(spans)
        scores.append(own)
    return truth, scores


def counts(truth, scores, rules, exclusive, classes):
    return np.sum(
        [
            segment_counts(
                VideoSpans(
                    truth=own,
                    predicted=[s for s in decode_spans(rows, STEP_S, rules, exclusive) if s.class_index < classes],
                    duration_s=STEPS * STEP_S,
                ),
                classes,
                0.5,
            )
            for own, rows in zip(truth, scores, strict=True)
        ],
        axis=0,
    )


def f1(truth, scores, rules, exclusive, classes):
    hits, found, true = counts(truth, scores, rules, exclusive, classes)
    return (2 * hits / (found + true)).mean()


@pytest.mark.parametrize("exclusive", [False, True])
def test_fitted_rules_are_better_on_other_videos_than_rules_that_change_nothing(exclusive):
    rng = np.random.default_rng(0)
    truth, scores = timelines(rng, 6, 3, exclusive)
    started = time.process_time()
    rules = fit_span_rules(scores, truth, STEP_S, exclusive)
    assert time.process_time() - started < 20  # about 1 s
    assert len(rules) == 3 + exclusive
    off = 0.0 if exclusive else 0.5
    plain = [type(rules[0])(on=off, off=off, min_length_s=0, max_gap_s=0)] * len(rules)
    truth, scores = timelines(rng, 6, 3, exclusive)
    assert f1(truth, scores, rules, exclusive, 3) > f1(truth, scores, plain, exclusive, 3) + 0.1
    assert f1(truth, scores, rules, exclusive, 3) > 0.85
    assert all(rule.on >= rule.off for rule in rules)


def test_without_overlap_thresholds_follow_the_scores():
    truth, scores = timelines(np.random.default_rng(1), 6, 1, False, noise=0.02)
    (rule,) = fit_span_rules(scores, truth, STEP_S, False)
    assert rule.off == pytest.approx(0.4, abs=0.05)  # half way from 0.1 to 0.7
    found = [decode_spans(own, STEP_S, [rule], False) for own in scores]
    errors = [
        abs(np.subtract(a[1:3], b[1:3])) for x, y in zip(found, truth, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert np.median(errors) < 0.1 * STEP_S


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_counts_that_rules_are_chosen_by_are_those_of_decoding(exclusive):
    rng = np.random.default_rng(2)
    truth, scores = timelines(rng, 4, 3, exclusive)
    K = 3 + exclusive
    ends = [STEPS * STEP_S] * 4
    target = _collect(truth, ends, STEP_S, K)
    fitter = _Fitter(scores, ends, target, exclusive)
    for _ in range(10):
        off = np.zeros(K) if exclusive else rng.choice([0.3, 0.4, 0.5], K)
        rules = _Rules(off + rng.uniform(0, 0.3, K), off, rng.uniform(0, 0.4, K), rng.uniform(0, 3, K))
        spans = fitter._spans(rules, np.arange(K))
        hits, _ = fitter._match(spans)
        kind = type(fit_span_rules([np.zeros((1, 1))], [[]], 1.0, False)[0])
        own = [
            kind(on=on, off=low, min_length_s=length, max_gap_s=gap)
            for on, low, length, gap in zip(
                rules.on, rules.off, rules.lengths * target.median_s, rules.gaps * STEP_S, strict=True
            )
        ]
        expected = counts(truth, scores, own, exclusive, 3)
        assert hits[:3].tolist() == expected[0].tolist()
        assert np.bincount(spans.classes, minlength=K)[:3].tolist() == expected[1].tolist()


def test_without_any_true_span_scores_stay_as_they_are():
    (rule,) = fit_span_rules([np.zeros((4, 1))], [[]], 1.0, False)
    assert (rule.on, rule.off, rule.min_length_s, rule.max_gap_s) == (0.5, 0.5, 0.0, 0.0)
    (rule,) = fit_span_rules([np.zeros((4, 1))], [[]], 1.0, True)
    assert (rule.on, rule.off) == (0.0, 0.0)


def test_a_class_of_few_spans_has_the_rule_that_is_best_for_all():
    truth, scores = timelines(np.random.default_rng(3), 2, 2, False)
    few = [[span for span in spans if span.class_index == 0][:2] for spans in truth]
    few[0] += [span for span in truth[0] if span.class_index == 1][:2]
    first, second = fit_span_rules(scores, few, STEP_S, False)
    assert (first.on, first.off, first.max_gap_s) == (second.on, second.off, second.max_gap_s)
