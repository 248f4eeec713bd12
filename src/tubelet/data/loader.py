"""The training data of every step.

The data of step k are a pure function of (sources, config, k): the order of files, times, crops and masks come from
generators that are seeded by the run's seed and their own position. Any process can prepare any step, and a resumed run
only needs the number of its next step.

Every step has both modalities, each with its fraction of the samples, whose gradients are accumulated before the
optimizer step. The published recipe has the same mixture (half of the ranks take images, half videos, and gradients are
averaged over ranks). Alternating modalities from step to step instead would make AdamW's moments and the teacher
oscillate between the two.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from tubelet.config import TrainConfig
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.batch import Batch, StepData
from tubelet.data.batch_partition import (
    MicroBatch,
    accumulation_slices,
    mask_groups,
    micro_batches,
    rank_samples,
    samples_per_step,
)
from tubelet.data.clips import augment, clip_times
from tubelet.data.masks import sample_mask
from tubelet.data.model_frames import open_frames, read_still
from tubelet.data.prefetch import MB, Prefetch, prefetch_auto
from tubelet.data.sample_index import SampleIndex
from tubelet.data.sampler import WeightedSourceSampler
from tubelet.data.sources import MediaList
from tubelet.data.stacks.depth import require_8_bits
from tubelet.data.worker_count import resolve_workers
from tubelet.data.worker_loader import WorkerLoader
from tubelet.data.worker_status import WorkerStatus, shared_memory_full
from tubelet.errors import BadFile, ConfigError, DataError, DecodeError, FileError, TubeletError, first_line
from tubelet.grid import Grid, Mask, Modality

# A file and its span.
_SampleKey = tuple[str, tuple[float, float | None] | None]
# Files of a modality that are checked for their depth before a run begins.
_CHECKED_FILES = 16
# One number for every use of randomness, so that no two share a stream.
_VIDEO_ORDER, _IMAGE_ORDER, _VIDEO_SAMPLE, _IMAGE_SAMPLE, _FALLBACK, _MASKS, _VIDEO_SOURCE, _IMAGE_SOURCE = range(8)
_ORDER = {Modality.VIDEO: _VIDEO_ORDER, Modality.IMAGE: _IMAGE_ORDER}
_SOURCE = {Modality.VIDEO: _VIDEO_SOURCE, Modality.IMAGE: _IMAGE_SOURCE}
_SAMPLE = {Modality.VIDEO: _VIDEO_SAMPLE, Modality.IMAGE: _IMAGE_SAMPLE}


def build_samplers(config: TrainConfig, media: MediaList) -> dict[Modality, WeightedSourceSampler]:
    """The sampler of each modality.

    Raises:
        TubeletError: a source has a weight but no files of its own.
    """
    for number in range(len(config.data.source_weights)):
        files = media.of_source(number)
        if not any(files.count(modality) for modality in Modality):
            raise ConfigError(
                f"{config.data.sources[number]}: the sources before it contain all of its files, so its weight has no "
                "effect; list it before them, or remove it"
            )
    keys = {modality: (config.seed, _ORDER[modality], _SOURCE[modality]) for modality in Modality}
    return {
        modality: WeightedSourceSampler(media, modality, config.data.source_weights, keys[modality])
        for modality in Modality
    }


def check_steps(config: TrainConfig, media: MediaList, processes: int) -> None:
    """Check, before anything is written, that the sources have the samples of a step.

    Raises:
        TubeletError: see `samples_per_step`, `accumulation_slices`, `build_samplers` and `ModelConfig.grid`; or the
            model lacks the statistics that its channels, or one of some files, require.
    """
    if config.model.pixels is None:
        if config.model.channels != 3:
            raise ConfigError(
                f"the model has {config.model.channels} channel{'s' * (config.model.channels > 1)} and no statistics "
                "of pixels: measure the collection with `tubelet stats SOURCE --out stats.json`, and train with "
                "--stats stats.json"
            )
        for files in (media.videos, media.images):  # some of them here, the others when they are read
            for number in np.unique(np.linspace(0, len(files) - 1, _CHECKED_FILES, dtype=int)) if files else ():
                with suppress(DecodeError):  # counted as a bad file when it is read
                    require_8_bits(files[int(number)])
    for frames in (config.data.frames, config.data.image_frames):
        config.model.grid(frames, config.data.image_size, config.data.image_size)
    accumulation_slices(config, samples_per_step(config, media), processes)
    build_samplers(config, media)


def group_masks(config: TrainConfig, modality: Modality, grid: Grid, count: int, step: int, number: int) -> list[Mask]:
    """The masks of one group of a step's samples, a pure function of the arguments.

    Args:
        config: configuration of the run.
        modality: modality of the samples.
        grid: token grid of the samples.
        count: samples of the modality in the step.
        step: number of the step, from 0.
        number: number of the group in the step, see `mask_groups`.

    Returns:
        For each mask specification of the modality, a mask of context (B, Kc) and target (B, Kt).
    """
    group = mask_groups(config, count)[number]
    rng = np.random.default_rng([config.seed, _MASKS, _ORDER[modality], step, number])
    return [sample_mask(spec, grid, len(group), rng) for spec in config.masks.specs_for(modality)]


class StepDataset(Dataset[StepData]):
    """Item k is the data of step k, or one rank's part of it.

    The samples of a step, their masks and the lengths that these are truncated to do not depend on the number of
    processes: each draws the masks of the groups that its samples are in (`group_masks`).
    """

    def __init__(self, config: TrainConfig, media: MediaList, rank: int = 0, processes: int = 1) -> None:
        """Partition the batch.

        Args:
            config: configuration of the run.
            media: files of the run.
            rank: number of this process.
            processes: number of processes that share a step.

        Raises:
            TubeletError: the batch is too small to give every process a sample of each modality.
        """
        self.config = config
        self.samplers = build_samplers(config, media)
        self.counts = samples_per_step(config, media)
        accumulation_slices(config, self.counts, processes)  # refuses what is too small
        self.partition = {m: micro_batches(config, n, rank, processes) for m, n in self.counts.items()}
        self.known_bad: dict[_SampleKey, BadFile] = {}
        self.status = WorkerStatus(resolve_workers(config.data.workers))

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> StepData:
        """The micro-batches of one step, and the files that were replaced because they cannot be read."""
        start_time = time.perf_counter()
        bad: dict[_SampleKey, BadFile] = {}
        batches: list[Batch] = []
        short = 0
        try:
            for modality, count in self.counts.items():
                samples = rank_samples(self.partition[modality])
                pixels = self._allocate(modality, len(samples))
                short += self._fill(pixels, modality, [step * count + i for i in samples], bad)
                batches += self._micro_batches(modality, samples, pixels, step)
        except TubeletError as error:  # with the bad files that were found before it
            return StepData([], list(bad.values()), failure=str(error))
        return StepData(batches, list(bad.values()), short, seconds=time.perf_counter() - start_time)

    def _allocate(self, modality: Modality, count: int) -> Tensor:
        """(B, C, T, S, S) for this rank's samples; in a worker, in memory shared with its parent."""
        pixels = empty_clips(self.config, modality, count)
        if get_worker_info() is None:
            return pixels
        try:
            return pixels.share_memory_()
        except RuntimeError as error:
            problem = f"no room for {pixels.nbytes / MB:,.1f} MB of samples ({first_line(error)})"
            raise FileError(shared_memory_full(problem)) from error

    def _micro_batches(self, modality: Modality, indices: list[int], pixels: Tensor, step: int) -> Iterator[Batch]:
        """This rank's samples (B, C, T, S, S), with their `indices` in the step, and their masks."""
        shape = pixels.shape[2:]
        grid = self.config.model.grid(*shape)
        tokenizer = Modality.IMAGE if shape[0] == 1 else Modality.VIDEO  # an image may be repeated as a clip
        drawn: dict[int, list[Mask]] = {}
        for samples, weight in self.partition[modality]:
            number, in_group = divmod(samples.start, self.config.masks.truncation_group_size)
            if number not in drawn:
                drawn[number] = group_masks(self.config, modality, grid, self.counts[modality], step, number)
            rows = slice(in_group, in_group + len(samples))
            masks = [Mask(mask.context[rows], mask.target[rows]) for mask in drawn[number]]
            first = indices.index(samples.start)
            yield Batch(tokenizer, pixels[first : first + len(samples)], masks, weight=weight / self.config.batch_size)

    def _fill(self, pixels: Tensor, modality: Modality, positions: list[int], bad: dict[_SampleKey, BadFile]) -> int:
        """Read the samples at some positions of a modality's endless sequence; returns how many clips were short."""
        per_file = self.config.data.clips_per_video if modality is Modality.VIDEO else 1
        row = short = 0
        for draw, same_file in groupby(positions, key=lambda position: position // per_file):
            read, shortened = self._read_draw(modality, draw, list(same_file), bad)
            for sample in read:
                pixels[row] = sample
                row += 1
            short += shortened
        return short

    def _read_draw(
        self, modality: Modality, draw: int, positions: list[int], bad: dict[_SampleKey, BadFile]
    ) -> tuple[list[Tensor], int]:
        """Read the samples of one file; if it cannot be read, of a random other one."""
        worker = get_worker_info()
        for index, sample in self.samplers[modality].with_fallbacks(draw, _FALLBACK):
            path = index.name(sample)
            key = (path, index.span(sample))
            if key not in self.known_bad:
                rngs = [np.random.default_rng([self.config.seed, _SAMPLE[modality], p]) for p in positions]
                try:
                    with self.status.track(worker.id if worker else None, path):
                        return self._read(modality, index, sample, rngs)
                except DecodeError as error:
                    self.known_bad[key] = BadFile(path, error.reason)
            bad[key] = self.known_bad[key]
            total = sum(map(len, self.samplers.values()))
            check_failed_fraction(bad.values(), total, self.config.data.max_failed_fraction, finished=True)
        raise DataError(f"all {len(index)} {modality} files cannot be read; one is {bad[key]}")

    def _read(
        self, modality: Modality, index: SampleIndex, sample: int, rngs: list[np.random.Generator]
    ) -> tuple[list[Tensor], int]:
        """One augmented sample (C, T, S, S) for each generator, and how many clips exceed a too short video."""
        data, statistics = self.config.data, self.config.model.pixels
        source = index.read(sample)
        if statistics is None:
            require_8_bits(source.media)
        if modality is Modality.IMAGE:
            frames = [read_still(source.media, statistics).unsqueeze(0)]
            short = (False,)
        else:
            with open_frames(source.media, statistics, data.fps) as video:
                info = source.limit(video.info)
                times, short = zip(*(clip_times(info, data.frames, data.fps, rng) for rng in rngs), strict=True)
                frames = [clip.pixels for clip in video.clips([source.start_s + clip for clip in times])]
        samples = [
            augment(pixels, data.image_size, rng, scale=data.crop_scale, aspect=data.crop_aspect, flip=data.flip)
            for pixels, rng in zip(frames, rngs, strict=True)
        ]
        return samples, sum(short)  # an image is repeated as a clip where it is copied into the batch


def empty_clips(config: TrainConfig, modality: Modality, count: int) -> Tensor:
    """Uninitialized samples (B, C, T, S, S): uint8 colors, or float32 for a model with statistics of pixels."""
    frames, size, model = config.data.frames_for(modality), config.data.image_size, config.model
    dtype = torch.uint8 if model.pixels is None else torch.float32
    return torch.empty(count, model.channels, frames, size, size, dtype=dtype)


def step_bytes(config: TrainConfig, partition: dict[Modality, list[MicroBatch]]) -> int:
    """Bytes of one rank's samples of a step and of their masks, whose lengths are at most the number of tokens."""
    total = 0
    for modality, batches in partition.items():
        frames, size = config.data.frames_for(modality), config.data.image_size
        pixels = config.model.clip_bytes(frames, size)
        indices = config.model.grid(frames, size, size).tokens * 8 * len(config.masks.specs_for(modality))
        total += len(rank_samples(batches)) * pixels + sum(len(batch.samples) for batch in batches) * indices
    return total


def step_prefetch(config: TrainConfig, media: MediaList, rank: int, processes: int) -> Prefetch:
    """The prefetching of a process: how many steps it prepares ahead, see `DataConfig.prefetch_mb`.

    Raises:
        TubeletError: the batch is too small to give every process a sample of each modality.
    """
    counts = samples_per_step(config, media)
    partition = {modality: micro_batches(config, count, rank, processes) for modality, count in counts.items()}
    item = "a step's samples" if processes == 1 else "this process's samples of a step"
    return prefetch_auto(config.data.prefetch_mb, item, step_bytes(config, partition), config.data.workers)


def step_loader(
    config: TrainConfig,
    media: MediaList,
    start: int,
    pin_memory: bool,
    rank: int = 0,
    processes: int = 1,
    left_out: int = 0,
) -> WorkerLoader[StepData]:
    """The data of steps start, start + 1, ..., in order, prepared ahead by worker processes.

    With `left_out`, each step has the data of the step that many steps later.

    Raises:
        TubeletError: the batch is too small to mix both modalities on every process, or shared memory is too small.
    """
    dataset = StepDataset(config, media, rank, processes)
    prefetch = step_prefetch(config, media, rank, processes)
    return WorkerLoader(
        dataset,
        prefetch.workers,
        status=dataset.status,
        timeout_s=config.guards.data_timeout_s,
        item_bytes=step_bytes(config, dataset.partition),
        prefetch=prefetch.factor,
        batch_size=None,
        sampler=range(start + left_out, config.steps + left_out),
        pin_memory=pin_memory,
    )
