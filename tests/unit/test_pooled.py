"""Neighbors and tables of pooled features."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelet.heads import knn, linear
from tubelet.heads.knn import neighbor_votes
from tubelet.heads.linear import fit_standardization
from tubelet.tasks.common.classification_scores import join_scores, scores_of
from tubelet.tasks.common.extract import FeatureSet, Source
from tubelet.tasks.common.pooled_features import table_of


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90).remainder(4)
    vectors = torch.randn(90, 6, generator=generator) + 1.5 * torch.eye(4, 6)[labels]
    return (vectors[:60], labels[:60]), (vectors[60:], labels[60:])


def neighbor_scores(table, labels, queries, truth, classes, neighbors):
    """Number of neighbors -> scores, as the task has them."""
    parts, start = {k: [] for k in neighbors}, 0
    for votes in neighbor_votes(table, labels, queries, classes, neighbors):
        own = truth[start : start + len(votes[neighbors[0]])]
        start += len(own)
        for k, shares in votes.items():
            parts[k].append(scores_of(shares, own))
    return {k: join_scores(chunks) for k, chunks in parts.items()}


@pytest.mark.parametrize("rows", [4096, 7])
def test_the_votes_are_those_of_scikit_learn_whatever_part_is_in_memory(clouds, rows, monkeypatch):
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(knn, "_ROWS", rows)
    (table, labels), (queries, truth) = clouds
    for k, own in neighbor_scores(table, labels, queries, truth, 4, [5, 20]).items():
        weigh = lambda distance: np.exp((1 - distance) / knn.TEMPERATURE)  # noqa: E731
        model = KNeighborsClassifier(k, weights=weigh, metric="cosine").fit(table, labels)
        expected = torch.from_numpy(model.predict_proba(queries)).float()
        assert torch.allclose(own.shares, expected.sort(1, descending=True).values, atol=1e-5)
        assert ((own.ranks == 0) == (expected.argmax(1) == truth)).all()


def test_a_query_that_is_a_training_vector_is_of_its_class():
    table, labels = torch.eye(3), torch.tensor([2, 0, 1])
    own = neighbor_scores(table, labels, table, labels, 3, [1])[1]
    assert own.ranks.tolist() == [0, 0, 0] and own.answers[:, 0].tolist() == [2, 0, 1]


def test_moments_are_those_of_all_rows_and_a_still_channel_is_left_unchanged(monkeypatch):
    monkeypatch.setattr(linear, "_ROWS", 5)
    table = torch.randn(23, 3, generator=torch.Generator().manual_seed(1)) * 3 + 2
    table[:, 1] = 4
    mean, scale = fit_standardization(table)
    std = table.std(0, correction=0)
    assert torch.allclose(mean, table.mean(0), atol=1e-5)
    assert torch.allclose(scale[[0, 2]], std[[0, 2]], atol=1e-4) and scale[1] == 1


def test_a_table_that_a_crash_emptied_is_made_anew(tmp_path):
    places = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, place in enumerate(places):
        save_file({"pooled": torch.full((1, 1, 4), float(i))}, place)
    features = FeatureSet([Source(files=(place,)) for place in places], places, [0, 1, 2], [])
    whole = table_of(features, tmp_path, 0).clone()
    (table,) = (tmp_path / "tables").iterdir()
    table.write_bytes(b"")
    assert torch.equal(table_of(features, tmp_path, 0), whole) and whole[:, 0].tolist() == [0, 1, 2]


def test_features_that_are_not_finite_are_like_nothing(clouds):
    (table, labels), (queries, truth) = clouds
    spoilt = table.clone()
    spoilt[0] = torch.inf
    clean, other = (neighbor_scores(rows, labels, queries, truth, 4, [20])[20].ranks for rows in (table, spoilt))
    assert ((clean == 0).float().mean() - (other == 0).float().mean()).abs() < 0.1
    lost = neighbor_scores(torch.full_like(table, torch.nan), labels, queries, truth, 4, [20])[20]
    assert (lost.ranks == 0).float().mean() <= 0.5
