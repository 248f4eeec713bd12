"""The report of a fit: its sentences, figures, and clips that play."""

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.media import indexed_image, write_image, write_video
from tubelet.errors import BadFile
from tubelet.fitting.clip_task import FROZEN
from tubelet.fitting.result import FitResult, HeldOutError, LearningCurvePoint, ReliabilityBin, Suggestion
from tubelet.heads.head_file import EncoderId, HeadInput, HeadSpec, MetricInterval, ModelMetrics
from tubelet.tasks.common.result import RANDOM_WEIGHTS
from tubelet.view.fit_report import (
    caution,
    common_confusions,
    curve_sentence,
    is_clearly_better,
    reliability_sentence,
    score_bars,
    trust_sentence,
    write_fit_report,
)
from tubelet.view.thumbnails import make_thumbnail


def metric(value, width=5.0, name="top-1 accuracy", unit="%", higher=True):
    return MetricInterval(
        name=name, value=value, low=value - width, high=value + width, unit=unit, higher_is_better=higher
    )


def scores(head, *baselines):
    return tuple(
        ModelMetrics(model=name, metrics=(found,))
        for name, found in zip(("this head", "majority class", RANDOM_WEIGHTS), (head, *baselines), strict=False)
    )


def spec(classes=("walk", "rear"), scores=(), task="classification"):
    return HeadSpec(
        task=task,
        network="linear",
        options={},
        width=8,
        classes=classes,
        input=HeadInput(image_size=64, frames=8, fps=4.0, stride_s=2.0),
        encoder=EncoderId(source="run", model_id="vit-0123", weights_id="w", config_hash="c"),
        labels_file="labels.csv",
        labels_rows=30,
        scores=scores,
    )


def write(result, folder):
    write_fit_report(result, folder / "report.html")
    return html.unescape((folder / "report.html").read_text())


def test_the_sentence_on_trust_compares_with_the_best_simple_baseline():
    assert "not known" in trust_sentence(())
    assert "no simple baseline" in trust_sentence(scores(metric(80)))
    clear = trust_sentence(scores(metric(80), metric(20), metric(60)))
    assert "clearly better than the best simple baseline (majority class) 20.0 % (between 15.0 and 25.0 %" in clear
    assert "random" not in clear
    assert "may be chance" in trust_sentence(scores(metric(62), metric(60)))
    assert is_clearly_better(scores(metric(80), metric(20))) and not is_clearly_better(scores(metric(62), metric(60)))
    assert "do not rely on this head" in trust_sentence(scores(metric(59), metric(60)))
    assert caution(scores(metric(80), metric(20))) == "" and caution(()) == "not measured on held-out files"
    assert caution(scores(metric(59), metric(60))).endswith(": do not rely on it")
    assert caution(scores(metric(62), metric(60))).startswith("not clearly better than")
    error = [metric(x, 0.1, "RMSE", "m", higher=False) for x in (0.5, 0.9, 1.5)]
    assert "clearly better than the best simple baseline (majority class) 0.900 m" in trust_sentence(scores(*error))
    assert "do not rely" in trust_sentence(scores(error[1], error[0]))


def test_random_weights_judge_the_encoder_and_not_the_head():
    # 34 of 36 spans found, as with random weights: the head works, whatever makes it work.
    same = scores(metric(99.1, 2), metric(40), metric(99.1, 2))
    sentence = trust_sentence(same)
    assert "do not rely" not in sentence and "trust it as far as that is good enough" in sentence
    assert sentence.endswith("a smaller or another encoder may do as well.") and caution(same) == ""
    assert trust_sentence(scores(metric(80), metric(20), metric(78))).endswith("not clear from these files.")
    assert "do not rely" in trust_sentence(scores(metric(30), metric(40), metric(30)))
    assert "may be chance" in trust_sentence(scores(metric(42), metric(40), metric(10)))
    lower = scores(*(metric(x, 0.1, "RMSE", "m", higher=False) for x in (0.5, 0.9, 0.4)))
    assert "random weights reaches 0.400 m" in trust_sentence(lower)


def test_without_an_interval_no_head_is_clearly_better():
    few = replace(metric(80), low=None, high=None)
    assert "too few files to be sure" in trust_sentence(scores(few, metric(20)))
    assert score_bars(scores(few, metric(20)))[0].span is None
    assert "too few files to be sure" in curve_sentence([points(50, 60)[0], LearningCurvePoint(labels=60, metric=few)])


def test_a_fine_tuned_head_is_not_judged_by_the_frozen_one():
    frozen = ModelMetrics(model=FROZEN, metrics=(metric(90),))
    assert "clearly better" in trust_sentence((*scores(metric(80), metric(20)), frozen))


def points(*values, higher=True):
    labels = [30 * 2**i for i in range(len(values))]
    return [
        LearningCurvePoint(labels=n, metric=metric(value, 4, higher=higher))
        for n, value in zip(labels, values, strict=True)
    ]


def test_the_sentence_on_more_labels_follows_the_last_doubling():
    assert curve_sentence(points(50)) == ""
    assert curve_sentence(points(40, 50, 60)).startswith("From 60 to 120 labels, the metric improved by 10.0 points")
    assert curve_sentence(points(40, 50, 60)).endswith("more labels would pay.")
    assert "would pay little" in curve_sentence(points(40, 59, 60))
    assert "would not pay" in curve_sentence(points(40, 60, 60))
    values = ((40, 50, 60), (40, 59, 60), (40, 60, 60))
    sentences = [curve_sentence(points(*each), trusted=False) for each in values]
    for sentence, words in zip(sentences, ("may become one to rely on", "only show", "try other labels"), strict=True):
        assert words in sentence and "pay" not in sentence
    assert curve_sentence(points(60, 50, 40, higher=False)).endswith("more labels would pay.")


def test_equal_numbers_of_labels_are_one_point_of_the_curve():
    few, many = points(50, 60)
    assert curve_sentence([many]) == curve_sentence([many, many]) == ""
    worse = replace(few, metric=metric(10))
    assert curve_sentence([worse, few, many]) == curve_sentence([few, many])


def bins(*pairs):
    return [ReliabilityBin(score=score, accuracy=accuracy, count=10) for score, accuracy in pairs]


def test_the_sentence_on_scores_says_whether_they_are_probabilities():
    assert reliability_sentence(()) == ""
    assert "read as probabilities" in reliability_sentence(bins((0.5, 0.51), (0.9, 0.88)))
    assert "too sure" in reliability_sentence(bins((0.8, 0.5), (0.9, 0.7)))
    assert "less sure" in reliability_sentence(bins((0.5, 0.8)))


def test_bars_share_an_axis_that_reaches_below_zero_where_a_value_does():
    own, baseline = score_bars(scores(metric(80), metric(20)))
    assert (own.start, own.width, own.low, own.span) == (0, 80, 75, 10)
    assert baseline.width == 20
    below = score_bars(scores(metric(0.5, 0.1, "R²", None), metric(-0.5, 0.1, "R²", None)))
    assert below[0].start > 0 and abs(below[0].start + below[0].width - 100 * 1.1 / 1.2) < 0.1
    assert below[1].start + below[1].width == pytest.approx(below[0].start, abs=0.1)


def test_the_most_frequent_errors_are_named_first():
    counts = np.array([[5, 3, 0], [2, 9, 1], [0, 7, 4]])
    assert common_confusions(counts, "abc") == [("c", "b", 7, 11), ("a", "b", 3, 8), ("b", "a", 2, 12)]


def full_result(folder: Path, classes=("walk", "rear <b>", "groom\x1b")):
    video = write_video(folder / "a.mp4", frames=96)
    image = write_image(folder / "i.png")
    K = len(classes)
    return FitResult(
        spec=spec(classes, scores(metric(80), metric(20), metric(60))),
        protocol="Whole files on one side.",
        counts={"held-out rows": 12},
        confusion=np.arange(K * K).reshape(K, K),
        reliability=bins((0.5, 0.51), (0.9, 0.88)),
        curve=points(40, 50, 60),
        errors=[
            HeldOutError(path=video, start_s=1.0, end_s=3.0, truth=classes[0], answer=classes[1], score=0.9),
            HeldOutError(path=video, start_s=0.0, end_s=8.0, truth=classes[0], answer=classes[1], score=0.8),
            HeldOutError(path=image, start_s=0.0, end_s=0.0, truth=classes[0], answer=classes[1], score=0.7),
            HeldOutError(path=folder / "gone.mp4", start_s=0.0, end_s=1.0, truth="x", answer="y", score=0.7),
        ],
        sweep=[{"network": "linear", "learning_rate": 1e-3, "score": 0.75}, {"network": "mlp", "score": 0.7}],
        examples=dict.fromkeys(classes, 7),
        suggestions=[Suggestion(path=video, start_s=4.0, end_s=6.0, answer=classes[0], score=0.5)],
        skipped=[BadFile("bad.mp4", "corrupt <i>")],
        legend={"wall <b>": (1, 2, 3)},
        figures={"a.png": {"input": indexed_image(1), "truth": indexed_image(2), "answer": indexed_image(3)}},
    )


def test_a_report_has_all_parts_and_needs_no_other_file(tmp_path):
    page = write(full_result(tmp_path), tmp_path)
    raw = (tmp_path / "report.html").read_text()
    for part in ("confusion", "reliability", "errors", "figures", "curve", "suggestions", "examples", "sweep"):
        assert f'<section id="{part}">' in page
    assert "clearly better than" in page and "more labels would pay" in page
    assert raw.count("data:video/mp4;base64,") == 3 and raw.count("data:image/jpeg;base64,") == 4
    assert 'style="background: rgb(1, 2, 3)"></i>wall <b></span>' in page
    assert "gone.mp4: does not exist" in page
    assert "plays 2.0 times as fast" in page
    assert "7 of 21 rows of “groom\\x1b” were taken for “rear <b>”" in page
    assert "rear <b>" not in raw and "wall <b>" not in raw and "corrupt <i>" not in raw and "\x1b" not in raw
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", raw)
    assert len(raw) < 1_000_000


def test_a_report_of_little_is_written(tmp_path):
    page = write(FitResult(spec=spec(), protocol="One.", counts={}), tmp_path)
    assert "how far to trust this head is not known" in page
    assert "<section" not in page


@pytest.mark.parametrize("classes", [2, 100])
def test_the_confusion_matrix_is_drawn_for_few_and_many_classes(classes, tmp_path):
    names = tuple(f"class {i}" for i in range(classes))
    counts = np.eye(classes, dtype=np.int64) * 5
    counts[0, 1] = 3
    result = FitResult(spec=spec(names), protocol="One.", counts={}, confusion=counts)
    page = write(result, tmp_path)
    assert page.count('class="cell') == classes + 1
    assert page.count('class="cell wrong"') == 1
    assert "3 of 8 rows of “class 0” were taken for “class 1”" in page
    assert (">3</text>" in page) == (classes == 2)
    assert len(page) < 200_000


def test_thumbnails_are_small_and_time_lapses_of_long_spans(tmp_path):
    video = write_video(tmp_path / "a.mp4", frames=120, size=192)
    short, long = make_thumbnail(video, 1, 2), make_thumbnail(video, 0, 10)
    assert (short.speed, long.speed) == (1.0, 2.5)
    assert len(long.clip) < 120_000
    assert make_thumbnail(tmp_path / "no.mp4", 0, 1).fault.endswith("does not exist")


@pytest.mark.browser
@pytest.mark.slow
def test_errors_play_under_the_pointer_and_by_a_click(browser, tmp_path):
    write(full_result(tmp_path), tmp_path)
    browser.open(tmp_path / "report.html")
    video = "document.querySelector('button.frame video')"
    browser.wait(f"{video}.readyState >= 2")
    assert browser.evaluate(f"{video}.paused")
    browser.hover("button.frame")
    browser.wait(f"!{video}.paused && {video}.currentTime > 0.1")
    browser.hover("h1")
    browser.wait(f"{video}.paused")
    browser.click("button.frame")
    browser.hover("h1")
    browser.wait(f"!{video}.paused")
    browser.click("button.frame")
    browser.wait(f"{video}.paused")
    for width, dark in ((400, False), (1400, True)):
        browser.open(tmp_path / "report.html", width=width, dark=dark)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
