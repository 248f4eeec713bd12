"""What the scores of predicted spans mean: how often spans of about that score are right."""

from pathlib import Path

import numpy as np
import torch

from tubelet.fitting.features import VideoSteps
from tubelet.fitting.tasks.timeline import _Measured, _reliability
from tubelet.fitting.timeline_fit import LabeledVideo, TimelineData
from tubelet.heads.head_file import ModelMetrics, SpanRule
from tubelet.heads.spans import Span


def test_spans_are_right_if_they_overlap_a_label_of_their_class_by_a_half():
    empty = torch.zeros(8, 1)
    steps = VideoSteps(path=Path("a.mp4"), tokens=empty, pixels=empty, motion=empty, duration_s=8.0)
    labels = [Span(0, 1.0, 3.0), Span(1, 5.0, 8.0)]
    video = LabeledVideo(steps=steps, spans=labels, targets=torch.zeros(8, 2), unit=0)
    data = TimelineData(videos=[video], classes=("a", "b"), exclusive=False, step_s=1.0, splits=[([], [0])], skipped=[])
    scores = torch.zeros(8, 2)
    scores[1:3, 0] = 0.92  # right
    scores[5:6, 0] = 0.94  # of the other class
    scores[4:5, 1] = 0.61  # too short
    rule = SpanRule(on=0.5, off=0.5, min_length_s=0, max_gap_s=0)
    own = _Measured(scores=[scores], rules=(rule, rule), metrics=ModelMetrics(model="m", metrics=()), networks=[])
    found = _reliability(data, own)
    assert [(one.count, one.accuracy) for one in found] == [(1, 0.0), (2, 0.5)]
    np.testing.assert_allclose([one.score for one in found], [0.61, 0.93], atol=1e-6)
    silent = _Measured(scores=[scores * 0], rules=own.rules, metrics=own.metrics, networks=[])
    assert _reliability(data, silent) == []
