"""A collection as a map: positions of clips in two dimensions, clusters, and outlier scores."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.embed.clip_vectors import nearest_clips
from tubelet.errors import DataError, MissingPackageError

MIN_CLIPS = 5
"""Clips that a map needs."""
_PERPLEXITY, _NEIGHBORS_EACH = 30, 3  # t-SNE's customary number of neighbors; neighbors for each unit of perplexity
_PARALLEL_CLIPS = 5000
_OUTLIER_NEIGHBORS = 8
_ITERATIONS, _STARTS = 50, 4  # of k-means, at most


@dataclass(frozen=True)
class ClipLayout:
    """Where clips are on a map. n clips.

    Attributes:
        positions: (n, 2) float32.
        neighbors: (n, k) indices of the nearest clips in feature space, the nearest first.
        similarities: (n, k) their cosines.
        outlier_scores: (n,) 1 minus the mean cosine with the nearest 8 clips; the higher, the more unusual.
    """

    positions: NDArray[np.float32]
    neighbors: NDArray[np.int64]
    similarities: NDArray[np.float32]
    outlier_scores: NDArray[np.float32]


def compute_layout(vectors: NDArray[np.float32], seed: int) -> ClipLayout:
    """Lay clips out by t-SNE (van der Maaten and Hinton 2008) of their exact nearest neighbors.

    The start is the first two principal components (Kobak and Berens 2019), so that far apart means different, too. The
    same vectors and seed give the same map.

    Args:
        vectors: (n, d) of length 1.
        seed: seed of t-SNE.

    Raises:
        DataError: if there are too few clips.
        MissingPackageError: if openTSNE is not installed.
    """
    n = len(vectors)
    if n < MIN_CLIPS:
        raise DataError(f"a map needs at least {MIN_CLIPS} clips, the table has {n}; embed more files")
    try:
        import openTSNE
        import openTSNE.affinity
        import openTSNE.initialization
        import openTSNE.nearest_neighbors
    except ImportError as error:
        raise MissingPackageError(
            "tubelet map needs the package openTSNE, which is not installed; run pip install 'tubelet[map]'"
        ) from error
    perplexity = min(_PERPLEXITY, (n - 1) / _NEIGHBORS_EACH)
    neighbors, similarities = nearest_clips(vectors, min(n - 1, int(perplexity * _NEIGHBORS_EACH)))
    distances = np.sqrt(np.maximum(2 - 2 * similarities.astype(np.float64), 1e-12))
    index = openTSNE.nearest_neighbors.PrecomputedNeighbors(neighbors, distances)
    jobs = (
        1 if n < _PARALLEL_CLIPS else os.cpu_count() or 1
    )  # threads that wait for each other cost more than they save
    affinities = openTSNE.affinity.PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=jobs)
    start = openTSNE.initialization.pca(vectors, random_state=seed)
    positions = openTSNE.TSNE(perplexity=perplexity, n_jobs=jobs, random_state=seed).fit(
        affinities=affinities, initialization=start
    )
    return ClipLayout(
        np.asarray(positions, np.float32), neighbors, similarities, 1 - similarities[:, :_OUTLIER_NEIGHBORS].mean(1)
    )


def cluster_clips(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """Clusters by k-means with k-means++ (Arthur and Vassilvitskii 2007), the best of a few starts.

    Args:
        vectors: (n, d).
        count: number of clusters, at most n.
        seed: seed of the first centers.

    Returns:
        (n,) number of the cluster of each clip, by descending size.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(vectors)
    labels = min((_k_means(x, min(count, len(x)), rng) for _ in range(_STARTS)), key=lambda result: result[1])[0]
    sizes = np.bincount(labels, minlength=min(count, len(x)))
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]


def _k_means(x: Tensor, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], float]:
    """Cluster of each row, and the sum of squared distances from the centers."""
    centers = x[int(rng.integers(len(x)))][None]
    nearest = (x - centers).square().sum(1)
    while len(centers) < count:
        weights = nearest.numpy().astype(np.float64)
        total = weights.sum()
        chosen = int(rng.choice(len(x), p=weights / total if total > 0 else None))
        centers = torch.cat([centers, x[chosen][None]])
        nearest = torch.minimum(nearest, (x - x[chosen]).square().sum(1))
    labels = torch.cdist(x, centers).argmin(1)
    for _ in range(_ITERATIONS):
        counts = torch.bincount(labels, minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, labels, x)
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
        moved = torch.cdist(x, centers).argmin(1)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels.numpy(), float((x - centers[labels]).square().sum())
