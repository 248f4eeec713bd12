"""Which file of a modality is visited when: all sources as one, or each with a stated share of the visits.

With weights, visits are numbered through in blocks. Every block gives each source the same whole number of visits, in
random order, so that the n-th visit of a source is known without looking at those before: any process finds any visit,
and a source's own epochs are passed through without a gap, whatever else is in the mix.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tubelet.data.pool import Pool, pool_of
from tubelet.data.shards import epoch_order
from tubelet.data.sources import MediaList
from tubelet.errors import TubeletError
from tubelet.grid import Modality

# Visits of a block: shares are exact to a ten-thousandth.
BLOCK = 10_000


class Mix:
    """The endless stream of visits to the files of one modality."""

    def __init__(
        self, media: MediaList, modality: Modality, weights: Sequence[float], key: tuple[int, int, int]
    ) -> None:
        """Args:
        media: the files of all sources.
        modality: of which this is the stream.
        weights: of each source, or none: then every file is visited equally often.
        key: numbers that seed the orders of this stream: the run's seed, and one for orders and one for mixing.
        """
        self.seed, self.order_key, self.mix_key = key
        parts = [media.of_source(i) for i in range(len(weights))] if weights else [media]
        pools = [(i, pool_of(part, modality)) for i, part in enumerate(parts) if part.count(modality)]
        self.sources = [i for i, _ in pools]
        self.pools: list[Pool] = [pool for _, pool in pools]
        self.weighted = bool(weights)
        self.quota = apportion([weights[i] for i in self.sources], modality) if self.weighted else None
        self.orders: dict[int, tuple[int, np.ndarray]] = {}
        self.block: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    def shares(self) -> dict[int, float]:
        """Each source's share of the visits, where weights were given, by its number."""
        if self.quota is None:
            return {}
        return {source: visits / BLOCK for source, visits in zip(self.sources, self.quota.tolist(), strict=True)}

    def turn(self, visit: int) -> tuple[Pool, int]:
        """The pool and the sample in it whose turn it is at a visit."""
        which, number = self._source(visit)
        pool = self.pools[which]
        epoch, index = divmod(number, len(pool))
        return pool, int(self._order(which, epoch)[index])

    def candidates(self, visit: int, key: int) -> Iterator[tuple[Pool, int]]:
        """The sample whose turn it is, then all others of its source in random order.

        Args:
            visit: number of the visit.
            key: seeds that order, with the stream's own numbers.
        """
        pool, turn = self.turn(visit)
        yield pool, turn
        for other in np.random.default_rng([self.seed, key, self.order_key, visit]).permutation(len(pool)):
            if other != turn:
                yield pool, int(other)

    def _source(self, visit: int) -> tuple[int, int]:
        """Which pool a visit goes to, and which one of that pool's visits it is."""
        if self.quota is None:
            return 0, visit
        block, place = divmod(visit, BLOCK)
        if self.block is None or self.block[0] != block:
            turns = np.repeat(np.arange(len(self.quota)), self.quota)
            self.block = block, np.random.default_rng([self.seed, self.mix_key, block]).permutation(turns)
        turns = self.block[1]
        which = int(turns[place])
        return which, block * int(self.quota[which]) + int((turns[:place] == which).sum())

    def _order(self, which: int, epoch: int) -> np.ndarray:
        """The order of a pool's epoch; kept until the next one is asked for."""
        known = self.orders.get(which)
        if known is None or known[0] != epoch:
            own = (self.sources[which],) if self.weighted else ()
            order = epoch_order(self.pools[which].group(), (self.seed, self.order_key, epoch, *own))
            kind = np.min_scalar_type(len(order))  # every worker has its own
            known = self.orders[which] = (epoch, order.astype(kind))
        return known[1]


def apportion(weights: Sequence[float], modality: Modality) -> np.ndarray:
    """How many visits of a block each source gets: what its weight asks for, the remainders to the largest ones.

    Raises:
        TubeletError: if a weight is too small to get any.
    """
    asked = np.array(weights) / sum(weights) * BLOCK
    quota = np.floor(asked + 1e-9).astype(np.int64)
    quota[np.argsort(quota - asked, kind="stable")[: BLOCK - quota.sum()]] += 1
    for weight, visits in zip(weights, quota, strict=True):
        if not visits:
            raise TubeletError(
                f"the weight {weight} is less than a {BLOCK}th of all of {modality} sources: raise it, or leave the "
                "source out"
            )
    return quota
