"""How a step's samples are divided."""

import dataclasses

import pytest

from tubelet.config import MaskConfig, TrainConfig
from tubelet.data.batch_partition import mask_groups, micro_batches

CASES = [(1, 1, 1), (24, 4, 1), (25, 1, 1), (50, 32, 1), (96, 4, 2), (100, 7, 3), (1536, 48, 1), (31, 31, 1)]


def config(group: int = 24, grad_accum_steps: int = 1) -> TrainConfig:
    return TrainConfig(masks=MaskConfig(truncation_group_size=group), grad_accum_steps=grad_accum_steps)


@pytest.mark.parametrize(("count", "processes", "grad_accum_steps"), CASES)
def test_every_sample_counts_once_and_no_batch_is_of_two_groups(count, processes, grad_accum_steps):
    given = config(grad_accum_steps=grad_accum_steps)
    groups = mask_groups(given, count)
    assert [i for group in groups for i in group] == list(range(count))
    assert max(map(len, groups)) <= 24
    own = [micro_batches(given, count, rank, processes) for rank in range(processes)]
    assert sorted(
        i for batches in own for micro_batch in batches for i in micro_batch.samples if micro_batch.weight
    ) == list(range(count))
    assert len({len(batches) for batches in own}) == 1
    for samples, weight in (micro_batch for batches in own for micro_batch in batches):
        assert weight in (0, len(samples)) and len(samples) >= 1
        assert any(samples.start in group and samples[-1] in group for group in groups)


def test_a_process_whose_share_ends_with_a_group_repeats_a_sample_that_counts_for_nothing():
    first, second = (micro_batches(config(group=3), 6, rank, 2) for rank in range(2))
    assert first == [(range(3), 3)] and second == [(range(3, 6), 3)]
    first, second, third = (micro_batches(config(group=5), 10, rank, 3) for rank in range(3))
    assert [list(micro_batch.samples) for micro_batch in second] == [[3, 4], [5]]
    assert [(list(micro_batch.samples), micro_batch.weight) for micro_batch in first] == [([0, 1, 2], 3), ([2], 0)]
    assert [(list(micro_batch.samples), micro_batch.weight) for micro_batch in third] == [([6, 7, 8, 9], 4), ([9], 0)]


def test_parts_change_nothing_about_the_groups():
    assert mask_groups(config(grad_accum_steps=8), 96) == mask_groups(config(), 96)
    batches = micro_batches(dataclasses.replace(config(grad_accum_steps=8)), 96, 0, 1)
    assert [len(micro_batch.samples) for micro_batch in batches] == [12] * 8
