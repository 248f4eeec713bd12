"""How a step's samples are divided: between modalities, over processes, and into batches that fit into memory.

Masks of samples that are stacked must have one length, so they are cut to the shortest, and the more are cut together,
the fewer tokens are left: of 24 videos at 256 px a quarter is seen under the mask of small blocks, of 1,536 a sixth.
That must not hang on how many devices there are, nor on what fits into one. So a step's samples are cut in groups of
the batch that the release gives one device, whoever has them.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from tubelet.config import TrainConfig
from tubelet.data.sources import MediaList
from tubelet.errors import TubeletError
from tubelet.grid import Modality


class Piece(NamedTuple):
    """What one process stacks.

    Attributes:
        samples: their numbers among the step's of a modality.
        weight: for how many samples it counts: for all of them, or for none.
    """

    samples: range
    weight: int


def samples_per_step(config: TrainConfig, media: MediaList) -> dict[Modality, int]:
    """How many samples of each modality a step has.

    Raises:
        TubeletError: if the batch is too small to hold both.
    """
    batch, share = config.batch_size, config.data.image_fraction
    if config.data.frames == 1 and not media.count(Modality.IMAGE):
        raise TubeletError("frames is 1, which trains on images alone, and the sources hold none: use 2 frames or more")
    if config.data.frames == 1 or not media.count(Modality.VIDEO):
        share = 1.0
    elif not media.count(Modality.IMAGE):
        share = 0.0
    images = round(batch * share)
    if 0 < share < 1:
        if batch < 2:
            raise TubeletError(
                f"batch_size is {batch}, too small for a step to mix videos and images: use at least 2, "
                "or an image_fraction of 0 or 1"
            )
        images = min(max(images, 1), batch - 1)
    counts = {Modality.VIDEO: batch - images, Modality.IMAGE: images}
    return {modality: count for modality, count in counts.items() if count}


def step_parts(config: TrainConfig, counts: dict[Modality, int], processes: int) -> dict[Modality, list[range]]:
    """The parts that a step's samples of each modality are processed in.

    Raises:
        TubeletError: if the batch is too small to give every process a sample of each modality in each.
    """
    parts = {}
    for modality, count in counts.items():
        size = -(-count // config.grad_accum_steps)
        parts[modality] = [range(start, min(start + size, count)) for start in range(0, count, size)]
        if min(map(len, parts[modality])) < processes:
            raise TubeletError(
                f"a step has {count} {modality}s in {config.grad_accum_steps} parts, too few to give each of "
                f"{processes} processes one in every part: raise --batch-size, or lower --grad-accum-steps"
            )
    return parts


def own_share(part: range, rank: int, processes: int) -> range:
    """One process's samples of a part; the last one's share is never smaller than another's."""
    first, last = (part.start + len(part) * number // processes for number in (rank, rank + 1))
    return range(first, last)


def mask_groups(config: TrainConfig, count: int) -> list[range]:
    """The samples of a step whose masks are cut to one length, `masks.truncation_group_size` at a time."""
    size = config.masks.truncation_group_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def micro_batches(config: TrainConfig, count: int, rank: int, processes: int) -> list[Piece]:
    """One process's samples of one modality, in the batches that go through the model one after the other.

    All processes have as many, since those of a model in shards wait for each other in each: where the borders of
    groups and shares leave one with fewer, it repeats its last sample, which then counts for nothing. A share that
    divides a group, or is made of whole ones, has no such borders in it.
    """
    parts = step_parts(config, {Modality.VIDEO: count}, processes)[Modality.VIDEO]
    borders = [group.start for group in mask_groups(config, count)]
    most = max(len(_pieces(parts, borders, other, processes)) for other in range(processes))
    own = [Piece(piece, len(piece)) for piece in _pieces(parts, borders, rank, processes)]
    last = own[-1].samples[-1:]
    return own + [Piece(last, 0)] * (most - len(own))


def own_samples(pieces: Iterable[Piece]) -> list[int]:
    """The numbers of a process's samples among the step's, each once, ascending."""
    return sorted({number for piece in pieces for number in piece.samples})


def _pieces(parts: list[range], borders: list[int], rank: int, processes: int) -> list[range]:
    """A process's share of each part, cut at the borders that lie in it."""
    pieces = []
    for part in parts:
        share = own_share(part, rank, processes)
        cuts = [share.start, *(border for border in borders if share.start < border < share.stop), share.stop]
        pieces += [range(start, stop) for start, stop in pairwise(cuts)]
    return pieces
