"""Temperatures, thresholds, reliability; distances from the training features."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tubelet.heads.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability_bins,
)
from tubelet.heads.novelty import NoveltyModel, fit_novelty, novelty_quantiles
from tubelet.tasks.metrics.multilabel import f1_by_class


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_the_temperature_that_made_scores_wrong_is_found(exclusive, temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    if exclusive:
        targets = F.one_hot(logits.softmax(1).multinomial(1, generator=generator)[:, 0], 4)
    else:
        targets = (torch.rand(logits.shape, generator=generator) < logits.sigmoid()).float()
    found = fit_temperature(logits * temperature, targets, exclusive)
    assert found == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_the_minimum_of_the_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(30, 3, generator=generator), torch.randint(3, (30,), generator=generator)
    found = fit_temperature(logits + F.one_hot(labels, 3), F.one_hot(labels, 3), True)
    loss = {
        t: F.cross_entropy((logits + F.one_hot(labels, 3)) / t, labels) for t in (found, 0.99 * found, 1.01 * found)
    }
    assert min(loss, key=loss.get) == found


def test_samples_that_are_all_right_or_all_wrong_have_a_bounded_temperature():
    logits = np.array([[3.0, -3.0], [-2.0, 2.0]])
    assert fit_temperature(logits, np.eye(2), True) == pytest.approx(0.05)
    assert fit_temperature(logits, np.eye(2)[::-1], True) == pytest.approx(20.0)


def test_thresholds_have_the_highest_f1_of_all():
    rng = np.random.default_rng(2)
    truth = rng.uniform(size=(60, 3)) < [0.5, 0.1, 0.8]
    scores = (rng.uniform(size=(60, 3)) * 0.8 + 0.2 * truth).round(2)
    found = f1_by_class(scores, truth, fit_thresholds(scores, truth))
    grid = np.linspace(0, 1.01, 203)
    np.testing.assert_allclose(found, np.max([f1_by_class(scores, truth, value) for value in grid], axis=0))


def test_the_threshold_of_separable_scores_is_half_way():
    scores, truth = np.array([[0.1], [0.2], [0.6], [0.9]]), np.array([[0], [0], [1], [1]])
    assert fit_thresholds(scores, truth) == pytest.approx([0.4])
    assert fit_thresholds(scores, np.zeros((4, 1))).tolist() == [0.5]
    assert fit_thresholds(scores, np.ones((4, 1))).tolist() == [0.5]


def test_reliability_compares_scores_with_frequencies():
    bins = reliability_bins([0.05, 0.92, 0.98, 1.0, 0.55], [0, 1, 0, 1, 1])
    assert [one.samples for one in bins] == [1, 1, 3]
    assert bins[2] == pytest.approx((np.mean([0.92, 0.98, 1.0]), 2 / 3, 3))
    expected = (1 * 0.05 + 1 * 0.45 + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_scores_that_are_frequencies_have_no_calibration_error():
    rng = np.random.default_rng(3)
    scores = rng.uniform(size=50_000)
    assert expected_calibration_error(reliability_bins(scores, rng.uniform(size=50_000) < scores)) < 0.01
    assert expected_calibration_error(reliability_bins(scores, rng.uniform(size=50_000) < scores**2)) > 0.1


def features(n, channels=48, seed=0):
    """Rows that vary along a few directions much more than along the others."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(9))).Q
    scale = torch.cat([torch.tensor([10.0, 5.0, 2.0]), torch.full((channels - 3,), 0.3)])
    return 4.0 + torch.randn(n, channels, generator=generator) * scale @ basis


@pytest.mark.parametrize("count", [100, 400])
def test_distances_are_those_of_scikit_learns_probabilistic_pca(count):
    from sklearn.decomposition import PCA

    rows, others = features(count), features(50, seed=1)
    model = NoveltyModel.fit(rows)
    pca = PCA(len(model.scale), svd_solver="full").fit(rows.double().numpy())
    difference = others.double().numpy() - pca.mean_
    expected = np.sqrt(np.einsum("nd,de,ne->n", difference, pca.get_precision(), difference) / 48)
    np.testing.assert_allclose(model(others), expected, rtol=1e-3)


def test_with_many_clips_the_distance_is_mahalanobis():
    from sklearn.covariance import EmpiricalCovariance

    rows, others = features(4000, channels=8), features(50, channels=8, seed=1)
    expected = np.sqrt(EmpiricalCovariance().fit(rows.numpy()).mahalanobis(others.numpy()) / 8)
    np.testing.assert_allclose(NoveltyModel.fit(rows)(others), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [12, 40, 400])
def test_clips_from_elsewhere_are_farther_than_held_out_clips(count):
    model = NoveltyModel.fit(features(count))
    limit = novelty_quantiles(model(features(200, seed=1)))[99]
    within = model(features(200, seed=2)) <= limit
    assert within.float().mean() > 0.95
    # Elsewhere: a shift along a direction in which training clips hardly differ, and one of their mean.
    generator = torch.Generator().manual_seed(3)
    shift = 8 * F.normalize(torch.randn(48, generator=generator), dim=0)
    assert (model(features(200, seed=4) + shift) > limit).float().mean() > 0.9
    assert (model(0.3 * torch.randn(200, 48, generator=generator) - 4.0) > limit).all()


@pytest.mark.parametrize("rows", [torch.ones(1, 6), torch.ones(5, 6), torch.eye(2, 6)])
def test_one_or_equal_clips_give_finite_distances(rows):
    model = NoveltyModel.fit(rows)
    distances = model(torch.cat([rows, rows + 3.0]))
    assert distances.isfinite().all()
    assert distances[: len(rows)].max() < distances[len(rows) :].min()


def test_quantiles_are_distances_that_occur():
    quantiles = novelty_quantiles(torch.tensor([3.0, 1.0, 2.0]))
    assert len(quantiles) == 101
    assert (quantiles[0], quantiles[50], quantiles[51], quantiles[99]) == (1.0, 2.0, 3.0, 3.0)


def test_quantiles_are_of_clips_that_the_model_was_not_fitted_to():
    rows = features(60)
    train, held_out = range(40), range(40, 60)
    model, quantiles = fit_novelty(rows, [(train, held_out)])
    assert torch.equal(model.mean, NoveltyModel.fit(rows[:40]).mean)
    assert quantiles == novelty_quantiles(NoveltyModel.fit(rows[:40])(rows[40:]))


def test_in_a_cross_validation_each_clip_is_measured_by_the_model_of_its_fold():
    rows = features(60)
    folds = [([i for i in range(60) if i % 3 != k], list(range(k, 60, 3))) for k in range(3)]
    model, quantiles = fit_novelty(rows, folds)
    assert torch.equal(model.mean, NoveltyModel.fit(rows).mean)
    distances = torch.cat([NoveltyModel.fit(rows[train])(rows[held_out]) for train, held_out in folds])
    assert quantiles == novelty_quantiles(distances)
    # Clips that a model was fitted to are nearer: their quantiles would call too many others novel.
    assert quantiles[99] > novelty_quantiles(model(rows))[99]
