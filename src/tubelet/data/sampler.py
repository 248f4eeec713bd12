"""Sampling order: which sample each draw of a modality takes, uniformly or with weights of sources and rows.

If rows have weights, an epoch still has as many draws as there are samples, and each sample gets its weight's fraction
of them, rounded up or down at random (systematic resampling).

If sources have weights, draws are numbered in blocks. Every block has the same whole number of draws from each source,
in random order, so that the n-th draw of a source is known without replaying earlier ones: any process finds the sample
of any draw, and each source completes its own epochs without gaps, whatever the other sources are.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import MediaList
from tubelet.errors import ConfigError
from tubelet.grid import Modality

# Draws in a block: fractions are exact to a ten-thousandth.
BLOCK = 10_000
# Samples move at most so many places from where the order of the shards puts them.
WINDOW = 4096


class WeightedSourceSampler:
    """The endless sequence of draws from the samples of one modality."""

    def __init__(
        self, media: MediaList, modality: Modality, weights: Sequence[float], key: tuple[int, int, int]
    ) -> None:
        """Build the index of every source.

        Args:
            media: the files of all sources.
            modality: which samples to draw.
            weights: one for each source; empty draws every sample equally often.
            key: seeds of the sequence: the run's seed, one for the order of samples, and one for the order of sources.
        """
        self.seed, self.order_key, self.source_key = key
        parts = [media.of_source(i) for i in range(len(weights))] if weights else [media]
        indices = [(i, build_index(part, modality)) for i, part in enumerate(parts) if part.count(modality)]
        self.sources = [i for i, _ in indices]
        self.indices: list[SampleIndex] = [index for _, index in indices]
        self.weighted = bool(weights)
        self.quota = apportion([weights[i] for i in self.sources], modality) if self.weighted else None
        self.orders: dict[int, tuple[int, np.ndarray]] = {}
        self.block: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.indices))

    def fractions(self) -> dict[int, float]:
        """Each source's fraction of the draws by the source's number; empty without weights."""
        if self.quota is None:
            return {}
        return {source: draws / BLOCK for source, draws in zip(self.sources, self.quota.tolist(), strict=True)}

    def sample_at(self, draw: int) -> tuple[SampleIndex, int]:
        """The index, and the sample's number in it, of a draw."""
        which, number = self._source(draw)
        index = self.indices[which]
        epoch, position = divmod(number, len(index))
        return index, int(self._order(which, epoch)[position])

    def with_fallbacks(self, draw: int, key: int) -> Iterator[tuple[SampleIndex, int]]:
        """The sample of a draw, then all others of its source in random order.

        Args:
            draw: number of the draw.
            key: seeds the order of the others, together with the sequence's own seeds.
        """
        index, sample = self.sample_at(draw)
        yield index, sample
        for other in np.random.default_rng([self.seed, key, self.order_key, draw]).permutation(len(index)):
            if other != sample:
                yield index, int(other)

    def _source(self, draw: int) -> tuple[int, int]:
        """Which index a draw is from, and the number of the draw among those from that index."""
        if self.quota is None:
            return 0, draw
        block, position = divmod(draw, BLOCK)
        if self.block is None or self.block[0] != block:
            sources = np.repeat(np.arange(len(self.quota)), self.quota)
            self.block = block, np.random.default_rng([self.seed, self.source_key, block]).permutation(sources)
        sources = self.block[1]
        which = int(sources[position])
        return which, block * int(self.quota[which]) + int((sources[:position] == which).sum())

    def _order(self, which: int, epoch: int) -> np.ndarray:
        """The order of the samples in an index's epoch; cached until another epoch is requested."""
        cached = self.orders.get(which)
        if cached is None or cached[0] != epoch:
            source_key = (self.sources[which],) if self.weighted else ()
            seed = (self.seed, self.order_key, epoch, *source_key)
            index = self.indices[which]
            weights = index.weights()
            if weights is None:
                order = epoch_order(index.shard_ids(), seed)
            else:
                order = weighted_epoch_order(index.shard_ids(), len(index.files), weights, seed)
            kind = np.min_scalar_type(len(order))  # every worker has a copy
            cached = self.orders[which] = (epoch, order.astype(kind))
        return cached[1]


def apportion(weights: Sequence[float], modality: Modality) -> np.ndarray:
    """How many draws of a block each source gets: its weight's fraction, rounded by largest remainder.

    Raises:
        ConfigError: a weight is too small for a single draw.
    """
    exact = np.array(weights) / sum(weights) * BLOCK
    quota = np.floor(exact + 1e-9).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: BLOCK - quota.sum()]] += 1
    for weight, draws in zip(weights, quota, strict=True):
        if not draws:
            raise ConfigError(
                f"the weight {weight} is less than 1/{BLOCK} of the sum of all {modality} sources; increase it or "
                "remove the source"
            )
    return quota


def weighted_epoch_order(shard_ids: np.ndarray, files: int, weights: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """The order of one epoch of M draws in which samples occur in proportion to their weights.

    Args:
        shard_ids: see `epoch_order`.
        files: how many of the samples, the first ones, are plain files: each draw of one is a shard of its own.
        weights: (M,) above 0.
        seed: determines the draws and their order.

    Returns:
        (M,) samples, each floor(M w / sum w) times or once more.
    """
    count = len(weights)
    ends = np.cumsum(weights) / weights.sum() * count
    ends[-1] = count
    keys = np.arange(count) + np.random.default_rng((*seed, count)).random()
    drawn = np.minimum(np.searchsorted(ends, keys, side="right"), count - 1)
    shards = np.where(drawn < files, np.arange(count), count + shard_ids[drawn])
    return drawn[epoch_order(np.unique(shards, return_inverse=True)[1], seed)]


def epoch_order(shard_ids: np.ndarray, seed: tuple[int, ...], window: int = WINDOW) -> np.ndarray:
    """The order of one epoch: shards in random order, then each sample moved by a random distance.

    Samples of a shard stay near each other, and so do reads of the shard, and yet neighbors come from several shards.

    Args:
        shard_ids: (M,) the shard of each sample, 0 to G - 1; a plain file is a shard of its own.
        seed: determines the order.
        window: largest distance that a sample is moved.

    Returns:
        (M,) a permutation of the samples.
    """
    rng = np.random.default_rng(seed)
    shards = rng.permutation(int(shard_ids.max()) + 1)
    if len(shards) == len(shard_ids):  # no two samples share a shard: the order is random already
        return np.argsort(shard_ids)[shards]
    order = np.argsort(np.argsort(shards)[shard_ids], kind="stable")
    return order[np.argsort(np.arange(len(order)) + rng.uniform(0, window, len(order)), kind="stable")]
