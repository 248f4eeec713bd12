"""Partition of a step's batch between modalities, over ranks, and into micro-batches.

Samples can only be stacked if their masks have one length, so masks are truncated to the shortest of a group. The
larger the group, the fewer tokens remain: under the mask of small blocks at 256 px, a quarter of the tokens are visible
in groups of 24 videos, and a sixth in groups of 1,536. The result must not depend on the number of devices or their
memory. So masks are truncated in groups of a fixed size, the released recipe's batch size per device, whichever ranks
process the samples.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from tubelet.config import TrainConfig
from tubelet.data.sources import MediaList
from tubelet.errors import ConfigError
from tubelet.grid import Modality


class MicroBatch(NamedTuple):
    """Samples that one rank stacks.

    Attributes:
        samples: numbers among the step's samples of a modality.
        weight: number of samples that it counts for: all of them, or 0 for padding.
    """

    samples: range
    weight: int


def samples_per_step(config: TrainConfig, media: MediaList) -> dict[Modality, int]:
    """The number of samples of each modality in a step.

    Raises:
        ConfigError: the batch is too small for both modalities, or a step of one frame has no images.
    """
    batch, fraction = config.batch_size, config.data.image_fraction
    if config.data.frames == 1 and not media.count(Modality.IMAGE):
        raise ConfigError("frames is 1, which trains on images only, but the sources have no images; use --frames 2")
    if config.data.frames == 1 or not media.count(Modality.VIDEO):
        fraction = 1.0
    elif not media.count(Modality.IMAGE):
        fraction = 0.0
    images = round(batch * fraction)
    if 0 < fraction < 1:
        if batch < 2:
            raise ConfigError(
                f"batch_size is {batch}, too small for a step to mix videos and images: use at least 2, "
                "or an image_fraction of 0 or 1"
            )
        images = min(max(images, 1), batch - 1)
    counts = {Modality.VIDEO: batch - images, Modality.IMAGE: images}
    return {modality: count for modality, count in counts.items() if count}


def accumulation_slices(
    config: TrainConfig, counts: dict[Modality, int], processes: int
) -> dict[Modality, list[range]]:
    """The slices of a step's samples of each modality whose gradients are accumulated one after the other.

    Raises:
        ConfigError: a slice has fewer samples than there are processes.
    """
    slices = {}
    for modality, count in counts.items():
        size = -(-count // config.grad_accum_steps)
        slices[modality] = [range(start, min(start + size, count)) for start in range(0, count, size)]
        if min(map(len, slices[modality])) < processes:
            raise ConfigError(
                f"a step has {count} {modality}s in {config.grad_accum_steps} micro-batches, too few for {processes} "
                "processes; raise --batch-size or lower --grad-accum-steps"
            )
    return slices


def rank_slice(samples: range, rank: int, processes: int) -> range:
    """The part of a slice that one rank processes; the last rank's part is never smaller than another's."""
    first, last = (samples.start + len(samples) * number // processes for number in (rank, rank + 1))
    return range(first, last)


def mask_groups(config: TrainConfig, count: int) -> list[range]:
    """The groups of `masks.truncation_group_size` samples whose masks are truncated to one length."""
    size = config.masks.truncation_group_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def micro_batches(config: TrainConfig, count: int, rank: int, processes: int) -> list[MicroBatch]:
    """One rank's samples of one modality, in the micro-batches that go through the model one after the other.

    All ranks have equally many, since the ranks of a sharded model wait for each other in each: where the boundaries
    of groups leave a rank with fewer, it repeats its last sample with weight 0. A rank whose part divides a group, or
    consists of whole ones, has no such boundary.
    """
    slices = accumulation_slices(config, {Modality.VIDEO: count}, processes)[Modality.VIDEO]
    boundaries = [group.start for group in mask_groups(config, count)]
    num_batches = max(len(_split(slices, boundaries, other, processes)) for other in range(processes))
    batches = [MicroBatch(samples, len(samples)) for samples in _split(slices, boundaries, rank, processes)]
    padding = MicroBatch(batches[-1].samples[-1:], 0)
    return batches + [padding] * (num_batches - len(batches))


def rank_samples(batches: Iterable[MicroBatch]) -> list[int]:
    """The indices, among the samples of a step, of a rank's samples; distinct and ascending."""
    return sorted({number for batch in batches for number in batch.samples})


def _split(slices: list[range], boundaries: list[int], rank: int, processes: int) -> list[range]:
    """A rank's part of each slice, split at the boundaries of groups."""
    parts = []
    for samples in slices:
        part = rank_slice(samples, rank, processes)
        ends = [
            part.start,
            *(boundary for boundary in boundaries if part.start < boundary < part.stop),
            part.stop,
        ]
        parts += [range(start, stop) for start, stop in pairwise(ends)]
    return parts
