"""The benchmarks' rulers: nothing waits for the device inside of what is timed, and bounds come from large products."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, train_step
from tests.numerics import reference
from tubelet.config import DataConfig, TrainConfig, vit_pico
from tubelet.grid import Modality

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOTH = {Modality.VIDEO: 1, Modality.IMAGE: 1}


@pytest.fixture
def config():
    return TrainConfig(
        model=vit_pico(), data=DataConfig(image_size=64, frames=4), batch_size=2, precision="fp32", compile=False
    )


@pytest.fixture
def fake_cuda(monkeypatch):
    """Events that take the host's time, on a device that computes at once; what was called, in order."""
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("record")
            self.time = time.perf_counter()

        def synchronize(self):
            calls.append("wait for the event")

        def elapsed_time(self, end):
            return 1e3 * (end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait for the device"))
    return calls


def test_calls_on_cuda_are_queued_without_waiting_between_two_events(fake_cuda):
    seconds = measure.seconds_per_call(lambda: fake_cuda.append("call"), CUDA, calls=3)
    assert fake_cuda == ["wait for the device", "record", "call", "call", "call", "record", "wait for the event"]
    assert 0 < seconds < 1


def test_a_split_on_cuda_records_an_event_a_part_and_waits_once_at_the_end(config, fake_cuda):
    step, watch = train_step.build_package_step(config, BOTH, CPU)
    step(train_step.random_step(config, 0, BOTH))
    assert not fake_cuda
    watch.device = CUDA
    began = time.perf_counter()
    watch.start()
    step(train_step.random_step(config, 1, BOTH))
    split = watch.stop("optimizer")
    assert fake_cuda.index("wait for the event") == len(fake_cuda) - 1
    assert "wait for the device" not in fake_cuda
    assert sorted(split) == sorted(train_step.PARTS)
    assert all(seconds > 0 for seconds in split.values())
    assert sum(split.values()) <= time.perf_counter() - began


def test_a_device_is_rated_by_a_product_that_takes_longer_than_its_launch():
    rows, inner, columns = measure.product_shape(CUDA, 384)
    assert 2 * rows * inner * columns / 1e15 > 100 * 10e-6  # at 1,000 TFLOP/s, against a launch of 10 us
    assert measure.product_shape(CPU, 384) == (2048, 384, 1536)


def test_a_rate_is_operations_over_the_seconds_of_the_fastest_round(monkeypatch):
    seconds = itertools.chain([2.0, 0.5], itertools.repeat(1.0))
    monkeypatch.setattr(measure, "seconds_per_call", lambda work, device, calls: next(seconds))
    assert measure.matrix_rate(CPU, torch.float32, 8) == 2 * 2048 * 8 * 32 / 0.5


def test_timed_steps_repeat_masks_of_the_warm_up_and_later_ones_do_not():
    case = SimpleNamespace(warmup=2, rounds=3)
    seeds = [train_step.round_seeds(case, number, 2) for number in range(7)]
    assert seeds == [[0], [1], [0, 0], [1, 1], [0, 0], [10, 11], [12, 13]]


def test_a_step_has_the_same_pixels_and_masks_for_the_same_seed(config):
    one, other, third = (train_step.random_step(config, seed, BOTH) for seed in (0, 0, 1))
    assert [batch.weight for batch in one.batches] == [0.5, 0.5]
    for ours, theirs, else_ in zip(one.batches, other.batches, third.batches, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert not torch.equal(ours.pixels, else_.pixels)
        assert torch.equal(ours.masks[0].target, theirs.masks[0].target)


def test_operations_are_those_that_pytorch_counts_for_the_masks_of_the_steps(config):
    steps = [train_step.random_step(config, seed, BOTH) for seed in range(3)]
    counted = [train_step.step_flops(config, [data]) for data in steps]
    assert train_step.step_flops(config, steps) == pytest.approx(sum(counted) / 3)
    nowhere = torch.device("meta")
    with nowhere:
        model = reference.System(config.model)
    with FlopCounterMode(display=False) as counter:
        for batch in steps[0].batches:
            batch = batch.to(nowhere)
            model(batch.pixels.float(), batch.masks, 0.5)[0].backward()
    assert counter.get_total_flops() == pytest.approx(counted[0], rel=0.05)


def test_on_cuda_an_implementation_ends_before_the_next_starts(monkeypatch):
    groups = []
    monkeypatch.setattr(measure, "_time_group", lambda build, config, names, *_: groups.append(list(names)))
    for device in (CPU, CUDA):
        monkeypatch.setattr(measure, "pick_device", lambda device=device: device)
        measure.run_in_turn(lambda *_: None, None, ["a", "b"], 1, 1)
    assert groups == [["a", "b"], ["a"], ["b"]]
