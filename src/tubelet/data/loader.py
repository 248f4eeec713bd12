"""A mix of videos and images -> the data of every training step.

Step k's data are a pure function of (sources, config, k): the order of files, the moments and crops and the masks all
come from generators seeded by the seed and their own position. Any process can make any step, and a resumed run needs
to know nothing but where it stopped.

Both modalities are in every step, each with its share of the samples, and their gradients are accumulated before the
optimiser moves. The published recipe has the same mixture - half of the ranks take images, half videos, and gradients
are averaged over ranks - where alternating modalities from step to step would let AdamW's moments and the teacher swing
between the two.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from tubelet.config import TrainConfig
from tubelet.data.bad_files import check_bad_share
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import augment, clip_times
from tubelet.data.decode import VideoInfo, read_clips
from tubelet.data.division import Piece, mask_groups, micro_batches, own_samples, samples_per_step, step_parts
from tubelet.data.images import read_image
from tubelet.data.masks import sample_mask
from tubelet.data.mix import Mix
from tubelet.data.pool import Pool
from tubelet.data.prefetch import MB, Prefetch, prefetch_within
from tubelet.data.sources import MediaList
from tubelet.data.workers import Readings, WorkerLoader
from tubelet.errors import BadFile, DecodeError, TubeletError, one_line
from tubelet.grid import Grid, Mask, Modality

# One number for every use of randomness, so that no two share a stream.
_VIDEO_ORDER, _IMAGE_ORDER, _VIDEO_SAMPLE, _IMAGE_SAMPLE, _REPLACEMENT, _MASKS, _VIDEO_MIX, _IMAGE_MIX = range(8)
_ORDER = {Modality.VIDEO: _VIDEO_ORDER, Modality.IMAGE: _IMAGE_ORDER}
_MIX = {Modality.VIDEO: _VIDEO_MIX, Modality.IMAGE: _IMAGE_MIX}
_SAMPLE = {Modality.VIDEO: _VIDEO_SAMPLE, Modality.IMAGE: _IMAGE_SAMPLE}


def mixes(config: TrainConfig, media: MediaList) -> dict[Modality, Mix]:
    """The endless stream of each modality's files.

    Raises:
        TubeletError: if a source has a weight and nothing that it could count for.
    """
    for number in range(len(config.data.source_weights)):
        own = media.of_source(number)
        if not any(own.count(modality) for modality in Modality):
            raise TubeletError(
                f"{config.data.sources[number]}: the sources before it name all of its files, so that its weight would "
                "count for nothing: name it before them, or leave it out"
            )
    keys = {modality: (config.seed, _ORDER[modality], _MIX[modality]) for modality in Modality}
    return {modality: Mix(media, modality, config.data.source_weights, keys[modality]) for modality in Modality}


def check_steps(config: TrainConfig, media: MediaList, processes: int) -> None:
    """Refuse what no step could be made of, before anything is written.

    Raises:
        TubeletError: see `samples_per_step`, `step_parts`, `mixes` and `ModelConfig.grid`.
    """
    for frames in (config.data.frames, config.data.image_frames):
        config.model.grid(frames, config.data.image_size, config.data.image_size)
    step_parts(config, samples_per_step(config, media), processes)
    mixes(config, media)


def group_masks(config: TrainConfig, modality: Modality, grid: Grid, count: int, step: int, number: int) -> list[Mask]:
    """The masks of one group of a step's samples: a function of the arguments alone.

    Args:
        config: the run.
        modality: of the samples.
        grid: their token grid.
        count: samples of the modality in the step.
        step: the step's number, from 0.
        number: the group's number in the step, see `mask_groups`.

    Returns:
        a mask of context (B, Kc) and target (B, Kt) for each of the modality's kinds of masks.
    """
    group = mask_groups(config, count)[number]
    rng = np.random.default_rng([config.seed, _MASKS, _ORDER[modality], step, number])
    return [sample_mask(spec, grid, len(group), rng) for spec in config.masks.specs_for(modality)]


class StepDataset(Dataset[StepData]):
    """Item k is the data of step k, or one process's share of it.

    The samples of a step, their masks and the lengths that these are cut to do not depend on how many processes share
    it: each draws the masks of the groups that its samples are in (`group_masks`).
    """

    def __init__(self, config: TrainConfig, media: MediaList, rank: int = 0, processes: int = 1) -> None:
        """Args:
        config: the run.
        media: its files.
        rank: whose share.
        processes: how many share a step.

        Raises:
            TubeletError: if the batch is too small to give every process a sample of each modality.
        """
        self.config = config
        self.mixes = mixes(config, media)
        self.counts = samples_per_step(config, media)
        step_parts(config, self.counts, processes)  # refuses what is too small
        self.own = {m: micro_batches(config, n, rank, processes) for m, n in self.counts.items()}
        self.known_bad: dict[str, BadFile] = {}
        self.readings = Readings(config.data.workers)

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> StepData:
        """The micro-batches of one step, and the files that had to be replaced to make them."""
        bad: dict[str, BadFile] = {}
        batches: list[Batch] = []
        short = 0
        try:
            for modality, count in self.counts.items():
                own = own_samples(self.own[modality])
                pixels = self._room(modality, len(own))
                short += self._fill(pixels, modality, [step * count + i for i in own], bad)
                batches += self._micro_batches(modality, own, pixels, step)
        except TubeletError as error:  # raised in a worker, its traceback would be in its sentence
            return StepData([], list(bad.values()), failure=str(error))
        return StepData(batches, list(bad.values()), short)

    def _room(self, modality: Modality, count: int) -> Tensor:
        """(B, 3, T, S, S) uint8 for this process's samples; of a worker, where its parent reads them without a copy."""
        data = self.config.data
        room = torch.empty(count, 3, data.frames_of(modality), data.image_size, data.image_size, dtype=torch.uint8)
        if get_worker_info() is None:
            return room
        try:
            return room.share_memory_()
        except RuntimeError as error:
            raise TubeletError(
                f"/dev/shm has no room for {room.nbytes / MB:,.1f} MB of samples ({one_line(error)}): lower "
                "--prefetch-mb or --workers, or make it larger (docker run --shm-size)"
            ) from error

    def _micro_batches(self, modality: Modality, own: list[int], pixels: Tensor, step: int) -> Iterator[Batch]:
        """This process's samples (B, 3, T, S, S) uint8, whose numbers in the step are `own`, with their masks."""
        shape = pixels.shape[2:]
        grid = self.config.model.grid(*shape)
        tokenizer = Modality.IMAGE if shape[0] == 1 else Modality.VIDEO  # an image may be repeated as a clip
        drawn: dict[int, list[Mask]] = {}
        for samples, weight in self.own[modality]:
            number, in_group = divmod(samples.start, self.config.masks.truncation_group_size)
            if number not in drawn:
                drawn[number] = group_masks(self.config, modality, grid, self.counts[modality], step, number)
            rows = slice(in_group, in_group + len(samples))
            masks = [Mask(mask.context[rows], mask.target[rows]) for mask in drawn[number]]
            first = own.index(samples.start)
            yield Batch(tokenizer, pixels[first : first + len(samples)], masks, weight=weight / self.config.batch_size)

    def _fill(self, pixels: Tensor, modality: Modality, positions: list[int], bad: dict[str, BadFile]) -> int:
        """Read the samples at some positions of a modality's endless stream; returns how many clips were short."""
        per_file = self.config.data.clips_per_video if modality is Modality.VIDEO else 1
        row = short = 0
        for visit, together in groupby(positions, key=lambda position: position // per_file):
            read, shortened = self._visit(modality, visit, list(together), bad)
            for sample in read:
                pixels[row] = sample
                row += 1
            short += shortened
        return short

    def _visit(
        self, modality: Modality, visit: int, positions: list[int], bad: dict[str, BadFile]
    ) -> tuple[list[Tensor], int]:
        """Read one file's samples; where it cannot be read, another's that chance picks."""
        worker = get_worker_info()
        for pool, sample in self.mixes[modality].candidates(visit, _REPLACEMENT):
            path = pool.name(sample)
            if path not in self.known_bad:
                rngs = [np.random.default_rng([self.config.seed, _SAMPLE[modality], p]) for p in positions]
                try:
                    with self.readings.of(worker.id if worker else None, path):
                        return self._read(modality, pool, sample, rngs)
                except DecodeError as error:
                    self.known_bad[path] = BadFile(path, error.reason)
            bad[path] = self.known_bad[path]
            total = sum(map(len, self.mixes.values()))
            check_bad_share(bad.values(), total, self.config.data.max_failed_fraction)
        raise TubeletError(f"all {len(pool)} {modality} files cannot be read; one is {bad[path]}")

    def _read(
        self, modality: Modality, pool: Pool, sample: int, rngs: list[np.random.Generator]
    ) -> tuple[list[Tensor], int]:
        """One augmented sample (3, T, S, S) uint8 for each generator, and how many are of a video too short."""
        data = self.config.data
        media, shown_s = pool.read(sample)
        if modality is Modality.IMAGE:
            frames = [read_image(media).unsqueeze(0)]
            short = [False]
        else:
            short = []

            def choose(info: VideoInfo) -> list[np.ndarray]:
                info = replace(info, duration_s=shown_s or info.duration_s)  # a segment's last frame may stand long
                drawn = [clip_times(info, data.frames, data.fps, rng) for rng in rngs]
                short.extend(is_short for _, is_short in drawn)
                return [times for times, _ in drawn]

            frames = [clip.pixels for clip in read_clips(media, choose)[1]]
        cut = [
            augment(pixels, data.image_size, rng, scale=data.crop_scale, aspect=data.crop_aspect, flip=data.flip)
            for pixels, rng in zip(frames, rngs, strict=True)
        ]
        return cut, sum(short)  # an image that is repeated as a clip is so where it is stacked


def step_bytes(config: TrainConfig, own: dict[Modality, list[Piece]]) -> int:
    """Bytes of one process's samples of a step and of their masks, which are at most as long as there are tokens."""
    total = 0
    for modality, pieces in own.items():
        frames, size = config.data.frames_of(modality), config.data.image_size
        pixels = 3 * frames * size**2
        indices = config.model.grid(frames, size, size).tokens * 8 * len(config.masks.specs_for(modality))
        total += len(own_samples(pieces)) * pixels + sum(len(piece.samples) for piece in pieces) * indices
    return total


def step_prefetch(config: TrainConfig, media: MediaList, rank: int, processes: int) -> Prefetch:
    """How many steps a process makes ahead, see `DataConfig.prefetch_mb`.

    Raises:
        TubeletError: if the batch is too small to give every process a sample of each modality.
    """
    counts = samples_per_step(config, media)
    own = {modality: micro_batches(config, count, rank, processes) for modality, count in counts.items()}
    item = "a step's samples" if processes == 1 else "this process's samples of a step"
    return prefetch_within(config.data.prefetch_mb, item, step_bytes(config, own), config.data.workers)


def step_loader(
    config: TrainConfig,
    media: MediaList,
    start: int,
    pin_memory: bool,
    rank: int = 0,
    processes: int = 1,
    left_out: int = 0,
) -> WorkerLoader[StepData]:
    """The data of steps start, start + 1, ..., in order, made ahead of need by worker processes.

    With `left_out` these are the data that would otherwise have been those of so many steps later.

    Raises:
        TubeletError: if the batch is too small to mix both modalities, on every one of the processes, or there is no
            room for what the workers hand over.
    """
    dataset = StepDataset(config, media, rank, processes)
    ahead = step_prefetch(config, media, rank, processes)
    return WorkerLoader(
        dataset,
        ahead.workers,
        readings=dataset.readings,
        timeout_s=config.guards.data_timeout_s,
        item_bytes=step_bytes(config, dataset.own),
        prefetch=ahead.factor,
        batch_size=None,
        sampler=range(start + left_out, config.steps + left_out),
        pin_memory=pin_memory,
    )
