"""What a process makes of its share of a step, and how much of it is made ahead."""

import multiprocessing
import re
import time

import pytest
import torch

from benchmarks import masks
from tubelet.config import DataConfig, EmbedConfig, EvaluateConfig, MaskConfig, TrainConfig, vit_pico
from tubelet.data import loader
from tubelet.data.batch import Batch, StepData
from tubelet.data.batch_partition import micro_batches, rank_samples
from tubelet.data.loader import StepDataset
from tubelet.data.prefetch import prefetch_within
from tubelet.data.sources import MediaList
from tubelet.errors import TubeletError
from tubelet.grid import Modality

MEDIA = MediaList(["a.mp4", "b.mp4"], [])


def config(batch: int = 96, group: int = 12, grad_accum_steps: int = 1, **data: object) -> TrainConfig:
    return TrainConfig(
        model=vit_pico(),
        data=DataConfig(image_size=64, frames=4, **data),
        masks=MaskConfig(truncation_group_size=group),
        batch_size=batch,
        grad_accum_steps=grad_accum_steps,
    )


def batches(config: TrainConfig, rank: int, processes: int, step: int = 3) -> list[Batch]:
    """The batches of a step, of pixels that hold the number of their sample."""
    dataset = StepDataset(config, MEDIA, rank, processes)
    own = rank_samples(dataset.partition[Modality.VIDEO])
    pixels = torch.tensor(own, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 3, 4, 64, 64)
    return list(dataset._micro_batches(Modality.VIDEO, own, pixels, step))


def by_sample(given: list[Batch]) -> dict[int, list[tuple[list[int], list[int]]]]:
    """Sample -> context and target under each mask."""
    return {
        int(pixels[0, 0, 0, 0]): [(mask.context[i].tolist(), mask.target[i].tolist()) for mask in batch.masks]
        for batch in given
        for i, pixels in enumerate(batch.pixels)
    }


@pytest.mark.parametrize(("processes", "grad_accum_steps"), [(8, 1), (16, 1), (3, 2), (1, 4), (7, 1)])
def test_a_sample_has_the_same_masks_on_any_number_of_processes_and_in_any_micro_batches(processes, grad_accum_steps):
    whole = by_sample(batches(config(), 0, 1))
    assert sorted(whole) == list(range(96))
    parts = [
        by_sample(batches(config(grad_accum_steps=grad_accum_steps), rank, processes)) for rank in range(processes)
    ]
    assert {sample: masks for part in parts for sample, masks in part.items()} == whole


def test_a_process_draws_the_masks_of_its_own_groups_only(monkeypatch):
    drawn: list[int] = []

    def counted(spec, grid, batch, rng):
        drawn.append(batch)
        return sample_mask(spec, grid, batch, rng)

    sample_mask = loader.sample_mask
    monkeypatch.setattr(loader, "sample_mask", counted)
    kinds = len(MaskConfig().video)
    for rank, groups in ((0, 1), (3, 1), (7, 1)):
        drawn.clear()
        batches(config(), rank, 8)
        assert drawn == [12] * groups * kinds
    drawn.clear()
    batches(config(), 1, 3)  # samples 32 to 63: of groups 2 to 5
    assert drawn == [12] * 4 * kinds
    drawn.clear()
    batches(config(grad_accum_steps=4), 0, 1)  # two groups in each part, and each is drawn once
    assert drawn == [12] * 8 * kinds


def test_groups_steps_modalities_and_seeds_have_masks_of_their_own():
    given = config()
    grid = given.model.grid(4, 64, 64)

    def first(seed: int = 0, modality: Modality = Modality.VIDEO, step: int = 0, group: int = 0) -> list[list[int]]:
        masks = loader.group_masks(
            TrainConfig(masks=given.masks, seed=seed, batch_size=96), modality, grid, 96, step, group
        )
        return masks[0].context.tolist()

    others = [first(), first(seed=1), first(modality=Modality.IMAGE), first(step=1), first(group=1)]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])
    assert first() == others[0]


@pytest.mark.parametrize(
    ("limit_mb", "item_mb", "workers", "expected"),
    [
        (2048, 10, 8, (8, 2)),
        (100, 10, 8, (8, 1)),
        (79, 10, 8, (7, 1)),
        (100, 30, 8, (3, 1)),
        (100, 99, 1, (1, 1)),
        (100, 101, 8, (1, 1)),
        (100, 101, 1, (1, 1)),
        (1, 500, 0, (0, None)),
    ],
)
def test_what_is_made_ahead_fits_or_is_one_and_workers_that_do_not_start_are_reported(
    limit_mb, item_mb, workers, expected
):
    ahead = prefetch_within(limit_mb, "a step's samples", item_mb * 10**6, workers)
    assert (ahead.workers, ahead.factor) == expected
    assert ahead.items * item_mb <= limit_mb or ahead.items == 1
    assert (ahead.note is not None) == (ahead.workers < workers or (item_mb > limit_mb and workers > 0))
    if ahead.note and ahead.workers < workers:
        enough = int(re.search(r"--prefetch-mb (\d+) has room for all", ahead.note)[1])
        assert f"{ahead.workers} of {workers} workers start" in ahead.note
        assert prefetch_within(enough, "", item_mb * 10**6, workers).workers == workers
        assert prefetch_within(enough - 1, "", item_mb * 10**6, workers).workers < workers


@pytest.fixture
def made(monkeypatch):
    """Bytes of the tensors of all steps that were made so far, by whichever process; nothing is decoded."""
    total = multiprocessing.get_context("fork").Value("q", 0)
    real = StepDataset.__getitem__

    def counted(dataset, step):
        data = real(dataset, step)
        with total.get_lock():
            total.value += size_of(data)
        return data

    def visit(dataset, modality, number, positions, bad):
        return [torch.zeros(3, 1, 1, 1, dtype=torch.uint8)] * len(positions), 0

    monkeypatch.setattr(StepDataset, "__getitem__", counted)
    monkeypatch.setattr(StepDataset, "_read_draw", visit)
    return total


def size_of(data: StepData) -> int:
    tensors = [t for b in data.batches for t in (b.pixels, *(ids for m in b.masks for ids in (m.context, m.target)))]
    return sum(tensor.nbytes for tensor in tensors)


def settled(total) -> int:
    """Its value when it has not changed for a while."""
    before = -1
    while before != total.value:
        before = total.value
        time.sleep(0.4)
    return before


@pytest.mark.parametrize(("prefetch_mb", "workers", "ahead"), [(2, 3, 3), (1, 3, 2), (1, 1, 2)])
@pytest.mark.slow
def test_bytes_that_wait_are_within_the_limit_and_what_was_computed(made, prefetch_mb, workers, ahead):
    given = config(batch=9, workers=workers, prefetch_mb=prefetch_mb)  # 442 kB of pixels a step
    own = {Modality.VIDEO: micro_batches(given, 9, 0, 1)}
    step = loader.step_bytes(given, own)
    received, seen = 0, []
    for number, data in zip(range(2), loader.step_loader(given, MEDIA, 0, pin_memory=False), strict=False):
        received += size_of(data)
        assert 0.97 * step <= size_of(data) <= step
        seen.append(settled(made) - received)
        assert len({b.pixels.untyped_storage().data_ptr() for b in data.batches}) == 1, number
    assert max(seen) <= prefetch_mb * 10**6
    assert all((ahead - 0.5) * step < waiting <= ahead * step for waiting in seen)


def test_a_step_beyond_the_limit_is_made_by_itself(made):
    given = config(batch=24, workers=3, prefetch_mb=1)
    loaded = loader.step_loader(given, MEDIA, 0, pin_memory=False)
    first = next(iter(loaded))
    assert (loaded.loader.num_workers, loaded.loader.prefetch_factor) == (1, 1) and len(first.batches) == 2
    note = loader.step_prefetch(given, MEDIA, 0, 1).note
    assert note == (
        "a step's samples are 1.2 MB, more than --prefetch-mb 1, and one is prefetched at a time: 1 of 3 workers "
        "start; --prefetch-mb 4 has room for all"
    )


def test_shared_memory_without_room_ends_the_step_in_one_sentence(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(loader, "get_worker_info", lambda: True)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert StepDataset(config(batch=9), MEDIA)[0].failure == (
        "/dev/shm: no room for 0.4 MB of samples (unable to allocate shared memory(shm) for file </torch_1>: No "
        "space left on device (28)); start the container with more (docker run --shm-size), or lower --workers "
        "(0 needs none) or --prefetch-mb"
    )


def test_a_limit_of_no_megabyte_is_refused():
    for kind in (DataConfig, EmbedConfig, EvaluateConfig):
        with pytest.raises(TubeletError, match="prefetch_mb is 0, expected 1 to"):
            kind(prefetch_mb=0)


def test_the_benchmark_of_masks_prints_a_row_for_each_kind_of_clips(capsys):
    masks.main(videos=24, processes=4, group=6, steps=1)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[1:5]] for row in rows] == [
        ["16", "256", "2,048", "1"],
        ["64", "384", "18,432", "1"],
    ]
