"""The layout of a map: deterministic, close where features are close; clusters; diverse picks; errors."""

import sys

import numpy as np
import pytest

from tubelet.embed.clip_vectors import ClipVectors
from tubelet.embed.layout import cluster_clips, compute_layout
from tubelet.embed.pick import pick_clips, write_picks
from tubelet.errors import TubeletError
from tubelet.labels.table import read_labels


@pytest.fixture(scope="module")
def vectors():
    """Three groups of clips, and one clip apart."""
    rng = np.random.default_rng(0)
    centers = 4 * np.eye(8)[:3]
    x = np.concatenate([center + rng.normal(size=(20, 8)) * 0.3 for center in centers] + [-9 * np.eye(8)[5:6]])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
def test_a_layout_is_the_same_for_a_seed_and_keeps_groups_together(vectors):
    layout, again = (compute_layout(vectors, 0) for _ in range(2))
    np.testing.assert_array_equal(layout.positions, again.positions)
    group = np.repeat([0, 1, 2], 20)
    own = np.linalg.norm(layout.positions[:60, None] - layout.positions[None, :60], axis=2) + 1e9 * np.eye(60)
    assert (group[own.argmin(1)] == group).mean() > 0.95
    assert layout.outlier_scores.argmax() == 60


def test_clusters_are_the_groups_by_size(vectors):
    labels = cluster_clips(vectors, 4, 0)
    assert sorted(np.bincount(labels).tolist(), reverse=True) == np.bincount(labels).tolist() == [20, 20, 20, 1]
    assert all(len(set(labels[i : i + 20])) == 1 for i in (0, 20, 40))
    np.testing.assert_array_equal(labels, cluster_clips(vectors, 4, 0))


def test_picks_are_of_all_groups_and_a_label_table(vectors, tmp_path):
    names = [str(tmp_path / f"clip, {i}.mp4") for i in range(len(vectors))]
    clips = ClipVectors(names, np.arange(len(vectors)), np.zeros(len(vectors)), np.ones(len(vectors)), vectors)
    chosen = pick_clips(clips, 4)
    assert {min(i // 20, 3) for i in chosen} == {0, 1, 2, 3}
    for dialect in ("comma", "semicolon"):
        write_picks(clips, chosen, tmp_path / "picks.csv", dialect)
        table = read_labels(tmp_path / "picks.csv")
        assert table.format.startswith(f"CSV separated by {dialect}s")
        assert [(str(row.path), row.start_s, row.end_s, row.labels) for row in table.rows] == [
            (names[i], 0.0, 1.0, ()) for i in chosen
        ]


def test_a_missing_package_and_too_few_clips_are_named(vectors, monkeypatch):
    with pytest.raises(TubeletError, match="needs at least 5 clips, the table has 3"):
        compute_layout(vectors[:3], 0)
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[map\]'"):
        compute_layout(vectors, 0)
