"""What a process makes of its share of a step, and how much of it is made ahead."""

import pytest
import torch

from tubelet.config import DataConfig, MaskConfig, TrainConfig, vit_pico
from tubelet.data import loader
from tubelet.data.loader import StepDataset
from tubelet.data.sources import MediaList
from tubelet.types import Batch, Modality

MEDIA = MediaList(["a.mp4", "b.mp4"], [])


def config(batch: int = 96, group: int = 12, accumulate: int = 1, **data: object) -> TrainConfig:
    return TrainConfig(
        model=vit_pico(),
        data=DataConfig(image_size=64, frames=4, **data),
        masks=MaskConfig(group=group),
        batch_size=batch,
        accumulate=accumulate,
    )


def batches(config: TrainConfig, rank: int, processes: int, step: int = 3) -> list[Batch]:
    """The batches of a step, of pixels that hold the number of their sample."""
    dataset = StepDataset(config, MEDIA, rank, processes)
    pixels = {i: torch.full((3, 4, 64, 64), i, dtype=torch.uint8) for i in range(config.batch_size)}
    return list(dataset._micro_batches(Modality.VIDEO, pixels, step))


def by_sample(given: list[Batch]) -> dict[int, list[tuple[list[int], list[int]]]]:
    """Sample -> context and target under each mask."""
    return {
        int(pixels[0, 0, 0, 0]): [(mask.context[i].tolist(), mask.target[i].tolist()) for mask in batch.masks]
        for batch in given
        for i, pixels in enumerate(batch.pixels)
    }


@pytest.mark.parametrize(("processes", "accumulate"), [(8, 1), (16, 1), (3, 2), (1, 4), (7, 1)])
def test_a_sample_has_the_same_masks_on_any_number_of_processes_and_in_any_micro_batches(processes, accumulate):
    whole = by_sample(batches(config(), 0, 1))
    assert sorted(whole) == list(range(96))
    parts = [by_sample(batches(config(accumulate=accumulate), rank, processes)) for rank in range(processes)]
    assert {sample: masks for part in parts for sample, masks in part.items()} == whole


def test_a_process_draws_the_masks_of_its_own_groups_alone(monkeypatch):
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
    batches(config(accumulate=4), 0, 1)  # two groups in each part, and each is drawn once
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
