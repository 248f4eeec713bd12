"""Metrics of timelines: by hand, and against implementations frame by frame and pair by pair."""

import numpy as np
import pytest

from tubelet.heads.spans import Span
from tubelet.tasks.metrics import timeline
from tubelet.tasks.metrics.timeline import VideoSpans


def video(truth, found, duration_s=100.0):
    return VideoSpans(truth=[Span(*s) for s in truth], predicted=[Span(*s) for s in found], duration_s=duration_s)


def random_video(rng, classes=3, overlapping=False):
    """Spans of whole seconds within a hundred; the predictions are the labels with noise."""
    sides = []
    for _ in range(2):
        spans = []
        for k in range(classes) if overlapping else [None]:
            cuts = np.sort(rng.choice(np.arange(1, 100), 10, replace=False))
            spans += [
                (int(rng.integers(classes)) if k is None else k, float(a), float(b), float(rng.uniform()))
                for a, b in zip(cuts[::2], cuts[1::2], strict=True)
            ]
        sides.append(spans)
    truth, noise = sides
    found = [(k, s + rng.integers(-1, 2), e + rng.integers(-1, 2), rng.uniform()) for k, s, e, _ in truth if e - s > 3]
    return video([s[:3] for s in truth], found if rng.uniform() < 0.7 else noise)


def f1_by_frames(videos, overlap):
    """Lea et al.'s count, as its public implementations have it: lists of segments, one prediction at a time."""
    tp = fp = fn = 0
    for one in videos:
        hit = [False] * len(one.truth)
        for p in one.predicted:
            ious = []
            for q in one.truth:
                frames_p, frames_q = (set(range(int(s.start_s), int(s.end_s))) for s in (p, q))
                same = p.class_index == q.class_index
                ious.append(len(frames_p & frames_q) / len(frames_p | frames_q) if same else 0.0)
            j = int(np.argmax(ious)) if ious else -1
            if j >= 0 and ious[j] >= overlap and not hit[j]:
                tp, hit[j] = tp + 1, True
            else:
                fp += 1
        fn += hit.count(False)
    return 100 * 2 * tp / (2 * tp + fp + fn)


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("overlapping", [False, True])
def test_f1_is_that_of_a_count_frame_by_frame(overlap, overlapping):
    rng = np.random.default_rng(0)
    videos = [random_video(rng, overlapping=overlapping) for _ in range(20)]
    assert timeline.segmental_f1(videos, 3, overlap) == pytest.approx(f1_by_frames(videos, overlap))


def test_a_true_span_is_hit_once():
    one = video([(0, 10, 20)], [(0, 10, 16), (0, 16, 20), (1, 10, 20)])
    assert timeline.segment_counts(one, 2, 0.1).tolist() == [[1, 0], [2, 1], [1, 0]]
    assert timeline.span_hits(one, 0.1).tolist() == [True, False, False]
    assert timeline.segmental_f1([one], 2, 0.5) == pytest.approx(100 * 2 / 4)


def distance_by_recursion(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance_by_recursion(a[1:], b) + 1,
        distance_by_recursion(a, b[1:]) + 1,
        distance_by_recursion(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_the_edit_score_counts_insertions_deletions_and_replacements():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = (rng.integers(0, 3, int(rng.integers(0, 6))).tolist() for _ in range(2))
        one = video([(k, 2 * i, 2 * i + 1) for i, k in enumerate(a)], [(k, i, i + 1) for i, k in enumerate(b)])
        expected = 100 * (1 - distance_by_recursion(a, b) / max(len(a), len(b), 1))
        assert timeline.edit_score(one) == pytest.approx(expected)


def test_frames_are_right_where_class_or_its_absence_agrees():
    one = video([(0, 10, 20), (1, 20, 40)], [(0, 10, 30), (1, 30, 45)])
    # Right: 0 to 10 s, 10 to 20 s, 30 to 40 s, 45 to 100 s.
    assert timeline.frame_seconds(one, 2).tolist() == [10 + 10 + 10 + 55, 100]
    rng = np.random.default_rng(2)
    for _ in range(20):
        one = random_video(rng)
        frames = np.full((2, 100), -1)
        for row, spans in zip(frames, (one.truth, one.predicted), strict=True):
            for span in spans:
                row[int(span.start_s) : int(span.end_s)] = span.class_index
        if not timeline._overlapping(timeline._columns(one.predicted)):
            assert timeline.frame_seconds(one, 3).tolist() == [(frames[0] == frames[1]).sum(), 100]


def test_overlapping_classes_are_right_where_each_agrees():
    one = video([(0, 10, 30), (1, 20, 40)], [(0, 10, 30), (1, 25, 45)])
    assert timeline.frame_seconds(one, 2).tolist() == [20 + 15, 20 + 25]


def test_edges_are_compared_for_matched_spans_inside_the_video():
    one = video([(0, 0, 10), (1, 10, 30), (0, 80, 100)], [(0, 0, 12), (1, 12, 29), (0, 40, 41)])
    # The start of the first span is that of the video; the last span is not found.
    assert sorted(timeline.edge_errors(one)) == [1, 2, 2]


def average_precision_pair_by_pair(videos, k, overlap):
    """ActivityNet's rule in plain loops."""
    ranked = sorted(
        ((s.score, i, s) for i, one in enumerate(videos) for s in one.predicted if s.class_index == k),
        key=lambda row: -row[0],
    )
    total = sum(s.class_index == k for one in videos for s in one.truth)
    taken, hits = set(), []
    for _, i, p in ranked:
        best = []
        for j, q in enumerate(videos[i].truth):
            common = min(p.end_s, q.end_s) - max(p.start_s, q.start_s)
            if q.class_index == k and common > 0:
                iou = common / (p.end_s - p.start_s + q.end_s - q.start_s - common)
                best += [(-iou, j)] if iou >= overlap and (i, j) not in taken else []
        taken |= {(i, min(best)[1])} if best else set()
        hits.append(bool(best))
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    area, before = 0.0, 0.0
    for n, r in enumerate(recall):
        area += (r - before) * max(precision[n:])
        before = r
    return 100 * area


def test_average_precision_is_activitynets():
    rng = np.random.default_rng(3)
    videos = [random_video(rng, overlapping=True) for _ in range(12)]
    found = timeline.average_precisions(videos, 4)
    assert found.shape == (5, 4) and np.isnan(found[:, 3]).all()
    for row, overlap in zip(found, timeline.MAP_OVERLAPS, strict=True):
        expected = [average_precision_pair_by_pair(videos, k, overlap) for k in range(3)]
        np.testing.assert_allclose(row[:3], expected)
    assert (np.diff(found[:, :3], axis=0) <= 1e-9).all()  # a higher overlap is harder


def test_all_metrics_have_intervals():
    rng = np.random.default_rng(4)
    videos = [random_video(rng) for _ in range(15)]
    found = {metric.name: metric for metric in timeline.timeline_metrics(videos, 3, np.arange(15), 2.0)}
    assert list(found) == [
        "F1@50", "F1@25", "F1@10", "edit score", "mAP@0.3:0.7", "frame accuracy", "median edge error",
        "median edge error, time steps",
    ]  # fmt: skip
    assert all(metric.low < metric.value < metric.high for name, metric in found.items() if "edge" not in name)
    assert found["F1@50"].value == pytest.approx(timeline.segmental_f1(videos, 3, 0.5))
    assert found["edit score"].value == pytest.approx(np.mean([timeline.edit_score(one) for one in videos]))
    assert found["mAP@0.3:0.7"].value == pytest.approx(np.nanmean(timeline.average_precisions(videos, 3)))
    errors = np.concatenate([timeline.edge_errors(one) for one in videos])
    edges = found["median edge error"]
    assert edges.value == np.median(errors)
    assert found["median edge error, time steps"].value == edges.value / 2


def test_medians_of_an_even_number_of_errors_are_between_the_two_in_the_middle():
    one = video([(0, 10, 20), (1, 30, 40)], [(0, 11, 22), (1, 34, 40.5)])
    found = {metric.name: metric.value for metric in timeline.timeline_metrics([one], 2, [0])}
    assert found["median edge error"] == pytest.approx(1.5)  # of 0.5, 1, 2, 4


def test_the_error_of_edges_has_an_interval():
    rng = np.random.default_rng(5)
    starts = rng.uniform(10, 20, 40)
    videos = [video([(0, s, s + 50)], [(0, s + rng.normal(), s + 50 + rng.normal())]) for s in starts]
    (edges,) = [m for m in timeline.timeline_metrics(videos, 1, np.arange(40)) if m.name == "median edge error"]
    assert edges.low < edges.value < edges.high and edges.unit == "s" and not edges.higher_is_better
    assert edges.low > 0.4 and edges.high < 1.0  # the median of |N(0, 1)| is 0.67


def test_a_timeline_without_any_answer_has_no_error_of_edges():
    found = {m.name: m for m in timeline.timeline_metrics([video([(0, 1, 2)], [])], 1, [0])}
    assert found["F1@50"].value == 0 and found["mAP@0.3:0.7"].value == 0 and "median edge error" not in found
    assert (found["F1@50"].low, found["F1@50"].high) == (0, 100)  # one video says nothing
