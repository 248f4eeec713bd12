"""Intervals of metrics: width, coverage, few files; and the metrics that have them, against scikit-learn and SciPy."""

import numpy as np
import pytest
import torch

from tubelet.tasks.metrics import intervals, ranking, values
from tubelet.tasks.metrics.multilabel import (
    average_precision,
    f1_by_class,
    multilabel_metrics,
    weighted_average_precision,
)


def mean_interval(rows, units, **options):
    index, count = intervals.index_units(units)
    sums = intervals.sum_by_unit(np.stack([rows, np.ones(len(rows))], 1), index, count)

    def mean(weights):
        total = weights @ sums
        return intervals.ratio(total[:, 0], total[:, 1])

    return intervals.bootstrap_interval("mean", mean, count, **{"bounds": (-np.inf, np.inf)} | options)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    rows = np.random.default_rng(0).normal(size=400)
    found = mean_interval(rows, np.arange(400), resamples=4000)
    assert found.value == pytest.approx(rows.mean()) and found.files == 400
    half = 1.96 * rows.std() / 20
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)


def test_rows_of_one_file_do_not_make_the_interval_narrower():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=40)
    once, often = mean_interval(rows, np.arange(40)), mean_interval(np.repeat(rows, 25), np.repeat(np.arange(40), 25))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_same_seed_gives_the_same_interval():
    rows = np.random.default_rng(2).normal(size=30)
    assert mean_interval(rows, np.arange(30), seed=3) == mean_interval(rows, np.arange(30), seed=3)
    assert mean_interval(rows, np.arange(30), seed=3).low != mean_interval(rows, np.arange(30), seed=4).low


@pytest.mark.parametrize("units", [3, 5, 9, 30])
def test_intervals_cover_the_true_mean_as_often_as_they_claim(units):
    rng = np.random.default_rng(units)
    found = [mean_interval(rng.normal(size=units), np.arange(units), resamples=300) for _ in range(300)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert covered > 0.9  # of 300 trials at 95 %, three standard deviations are 0.038


def test_few_files_are_measured_by_students_t():
    import scipy.stats

    rows = np.array([1.0, 2.0, 4.0])
    found = mean_interval(rows, np.arange(3))
    half = scipy.stats.t.ppf(0.975, 2) * rows.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((rows.mean() - half, rows.mean() + half), rel=1e-3)
    expected = [scipy.stats.t.ppf(0.975, freedom) for freedom in range(1, intervals.FEW - 1)]
    np.testing.assert_allclose(intervals._T_975, expected, atol=5e-4)


def test_a_perfect_score_on_few_files_is_not_certain():
    found = mean_interval(np.full(5, 100.0), np.arange(5), bounds=(0, 100))
    assert found.high == 100.0
    # Of five files, none is missed with a chance of 2.5 % if 52.2 % of all files would be.
    assert found.low == pytest.approx(100 * 0.025 ** (1 / 5))
    many = mean_interval(np.full(500, 100.0), np.arange(500), bounds=(0, 100))
    assert 99 < many.low < 100
    half = mean_interval(np.full(5, 50.0), np.arange(5), bounds=(0, 100))
    assert half.low < 50 < half.high


def test_one_file_says_nothing():
    found = mean_interval(np.array([70.0, 80.0]), np.zeros(2), bounds=(0, 100))
    assert (found.value, found.low, found.high, found.files) == (75.0, 0.0, 100.0, 1)
    found = mean_interval(np.array([7.0, 8.0]), np.zeros(2), bounds=(0, np.inf))
    assert (found.low, found.high) == (None, None)
    assert str(found) == "7.500 [?, ?]"


def test_a_metric_that_is_not_defined_is_an_error():
    with pytest.raises(ValueError, match="mean is nan over all 2 files, expected a number"):
        mean_interval(np.full(2, np.nan), np.arange(2))


def by_name(found):
    return {metric.name: metric for metric in found}


def test_metrics_of_classes_are_scikit_learns():
    from sklearn import metrics

    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 200)
    scores = rng.normal(size=(200, 5)) + 2 * np.eye(5)[truth]
    found = by_name(ranking.classification_metrics(scores, truth, rng.integers(0, 30, 200)))
    answers = scores.argmax(1)
    assert found["top-1"].value == pytest.approx(100 * metrics.accuracy_score(truth, answers))
    place = ranking.ranks(torch.from_numpy(scores), torch.from_numpy(truth))
    assert found["balanced accuracy"].value == pytest.approx(
        ranking.class_mean_recall(place, torch.from_numpy(truth), 1)
    )
    expected = metrics.f1_score(truth, answers, labels=range(4), average=None)
    assert found["macro F1"].value == pytest.approx(100 * expected.mean())
    one_hot = by_name(ranking.classification_metrics(scores, np.eye(5)[truth], np.arange(200)))
    assert {name: metric.value for name, metric in one_hot.items()} == {n: m.value for n, m in found.items()}
    assert all(metric.low < metric.value < metric.high and metric.unit == "%" for metric in found.values())


def test_a_class_that_never_occurs_does_not_count_though_predicting_it_costs_the_others():
    found = by_name(ranking.classification_metrics(np.eye(3)[[0, 2, 1, 1]], [0, 0, 1, 1], np.arange(4)))
    assert found["top-1"].value == 75 and found["balanced accuracy"].value == 75
    assert found["macro F1"].value == pytest.approx(100 * (2 / 3 + 1) / 2)


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_of_several_labels_are_scikit_learns(ties):
    from sklearn import metrics

    rng = np.random.default_rng(6)
    truth = rng.uniform(size=(150, 4)) < [0.5, 0.2, 0.05, 0.3]
    scores = rng.uniform(size=(150, 4)) * 0.7 + 0.3 * truth
    scores = scores.round(1) if ties else scores
    thresholds = [0.3, 0.5, 0.6, 0.7]
    precision = metrics.average_precision_score(truth, scores, average=None)
    np.testing.assert_allclose(average_precision(scores, truth), precision)
    f1 = metrics.f1_score(truth, scores >= thresholds, average=None)
    np.testing.assert_allclose(f1_by_class(scores, truth, thresholds), f1)
    found = by_name(multilabel_metrics(scores, truth, rng.integers(0, 25, 150), thresholds))
    assert found["mAP"].value == pytest.approx(100 * precision.mean())
    assert found["macro F1"].value == pytest.approx(100 * f1.mean())
    micro = metrics.f1_score(truth, scores >= thresholds, average="micro")
    assert found["micro F1"].value == pytest.approx(100 * micro)
    assert all(metric.low < metric.value < metric.high for metric in found.values())


def test_weights_of_samples_are_repetitions_of_them():
    from sklearn import metrics

    rng = np.random.default_rng(7)
    truth, scores = rng.uniform(size=(40, 2)) < 0.4, rng.uniform(size=(40, 2)).round(1)
    repeats = rng.integers(0, 4, 40)
    for k in range(2):
        weighted = weighted_average_precision(scores[:, k], truth[:, k])(repeats[None].astype(float))[0]
        rows = np.repeat(np.arange(40), repeats)
        assert weighted == pytest.approx(metrics.average_precision_score(truth[rows, k], scores[rows, k]))


def test_metrics_of_values_are_scikit_learns():
    import scipy.stats
    from sklearn import metrics

    rng = np.random.default_rng(8)
    truth = rng.normal(1e4, [1.0, 50.0], size=(80, 2))
    predicted = truth + rng.normal(0, [0.5, 40.0], size=(80, 2))
    squared = metrics.r2_score(truth, predicted, multioutput="raw_values")
    found = by_name(values.value_metrics(predicted, truth, rng.integers(0, 20, 80), ["speed", "turn"]))
    assert list(found) == [
        "R²", "R² speed", "R² turn", "RMSE speed", "RMSE turn", "Pearson r speed", "Pearson r turn",
    ]  # fmt: skip
    assert found["R²"].value == pytest.approx(squared.mean())
    assert [found["R² speed"].value, found["R² turn"].value] == pytest.approx(squared)
    for k, name in enumerate(("speed", "turn")):
        rmse = metrics.root_mean_squared_error(truth[:, k], predicted[:, k])
        assert found[f"RMSE {name}"].value == pytest.approx(rmse) and not found[f"RMSE {name}"].higher_is_better
        r = scipy.stats.pearsonr(truth[:, k], predicted[:, k]).statistic
        assert found[f"Pearson r {name}"].value == pytest.approx(r)
    assert all(metric.low < metric.value < metric.high for metric in found.values())


def test_constant_predictions_have_an_error_but_no_correlation():
    found = by_name(values.value_metrics(np.full((6, 1), 2.5), np.arange(6.0)[:, None], np.arange(6), ["speed"]))
    assert list(found) == ["R²", "RMSE"]
    assert found["R²"].value == pytest.approx(0.0)
