"""Ranked classes against cases worked out by hand and against scikit-learn."""

import numpy as np
import pytest
import torch

from tubelet.tasks.common.classification_report import majority_baseline, metrics_with_intervals
from tubelet.tasks.common.classification_scores import scores_of
from tubelet.tasks.metrics.ranking import best_answers, class_mean_recall, ranks, recall_by_class, top_k

# Three classes; the true one is in turn first, second, last, and first.
SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
TRUTH = torch.tensor([0, 1, 2, 2])


def test_a_case_worked_out_by_hand():
    place = ranks(SCORES, TRUTH)
    assert place.tolist() == [0, 1, 2, 0]
    assert top_k(place, 1) == 50.0 and top_k(place, 2) == 75.0 and top_k(place, 3) == 100.0
    # Class 0 is found once of once, class 1 never of once, class 2 once of twice: (1 + 0 + 1/2) / 3.
    assert recall_by_class(place, TRUTH, 1) == {0: 1.0, 1: 0.0, 2: 0.5}
    assert class_mean_recall(place, TRUTH, 1) == pytest.approx(50.0)
    # Among two answers: 1, 1, 1/2.
    assert class_mean_recall(place, TRUTH, 2) == pytest.approx(100 * 2.5 / 3)
    assert best_answers(SCORES, 2).tolist() == [[0, 1], [0, 1], [0, 1], [2, 1]]


def test_results_of_few_files_have_wide_intervals_and_the_most_frequent_class_beside_them():
    found = metrics_with_intervals(scores_of(SCORES, TRUTH), TRUTH)
    assert {name: metric.value for name, metric in found.items()} == {"top-1": 50.0, "mean per class": 50.0}
    assert all(metric.low <= 10 and metric.high >= 90 for metric in found.values())
    many = metrics_with_intervals(scores_of(SCORES.repeat(100, 1), TRUTH.repeat(100)), TRUTH.repeat(100))
    error = 100 * 1.96 * np.sqrt(0.5 * 0.5 / 400)
    assert [many["top-1"].low, many["top-1"].high] == pytest.approx([50 - error, 50 + error], abs=0.8)
    # Class 2 is the most frequent in training, and two of four files; a class that training lacks is never right.
    (constant,) = majority_baseline(torch.tensor([2, 2, 0]), TRUTH, 3).values()
    assert constant["top-1"].value == 50 and constant["mean per class"].value == pytest.approx(100 / 3)
    (unknown,) = majority_baseline(torch.tensor([1, 1, 0]), TRUTH, 2).values()
    assert unknown["top-1"].value == 25


def test_perfect_and_useless_answers():
    perfect = torch.eye(3)[TRUTH]
    assert top_k(ranks(perfect, TRUTH), 1) == 100.0 and class_mean_recall(ranks(perfect, TRUTH), TRUTH, 1) == 100.0
    assert top_k(ranks(1 - perfect, TRUTH), 2) == 0.0


def test_an_answer_that_is_the_same_for_all_classes_is_never_right():
    constant = ranks(torch.zeros(4, 3), TRUTH)
    assert top_k(constant, 1) == 0.0 and top_k(constant, 2) == 0.0 and top_k(constant, 3) == 100.0


def test_a_class_without_a_sample_is_ignored():
    truth = torch.tensor([0, 3])
    assert class_mean_recall(torch.tensor([0, 9]), truth, 5) == 50.0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_figures_are_scikit_learns(k):
    from sklearn.metrics import recall_score, top_k_accuracy_score

    rng = np.random.default_rng(k)
    scores, truth = rng.normal(size=(200, 12)), rng.integers(0, 12, 200)
    scores[np.arange(200), truth] += 0.8
    place = ranks(torch.from_numpy(scores), torch.from_numpy(truth))
    assert top_k(place, k) == pytest.approx(100 * top_k_accuracy_score(truth, scores, k=k, labels=np.arange(12)))
    # Recall at k of a class is its ordinary recall once every sample within reach is given its own class.
    reached = np.where(place.numpy() < k, truth, (truth + 1) % 12)
    expected = recall_score(truth, reached, average="macro", labels=np.unique(truth))
    assert class_mean_recall(place, torch.from_numpy(truth), k) == pytest.approx(100 * expected)
