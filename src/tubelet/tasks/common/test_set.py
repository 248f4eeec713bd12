"""Iteration over test images: their features and annotations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tubelet.data.worker_loader import WorkerLoader
from tubelet.datasets import DenseSample
from tubelet.tasks.common.cache import read_features
from tubelet.tasks.common.pixel_features import check_shape

ReadTruth = Callable[[DenseSample], NDArray[Any]]


def iter_test_set(
    paths: list[Path], pairs: list[DenseSample], read_truth: ReadTruth, workers: int
) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """The tokens of each image and its map (H, W) of labels or depths, read ahead by so many processes.

    Raises:
        TubeletError: if a map cannot be read, or has another size than its image.
    """
    loader: WorkerLoader[tuple[Tensor, NDArray[Any]]] = WorkerLoader(
        _Tests(paths, pairs, read_truth), min(workers, len(pairs)), batch_size=None
    )
    for tokens, truth in loader:
        yield tokens, np.asarray(truth)


@dataclass(frozen=True)
class _Tests(Dataset[tuple[Tensor, NDArray[Any]]]):
    """Tokens of an image and its map of labels or depths."""

    paths: list[Path]
    pairs: list[DenseSample]
    read_truth: ReadTruth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, NDArray[Any]]:
        truth = self.read_truth(self.pairs[index])
        check_shape(self.pairs[index], (truth.shape[0], truth.shape[1]))
        return read_features(self.paths[index])["tokens"], truth
