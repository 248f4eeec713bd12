"""What a step costs, and the decisions that hang on it."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tubelet.config import DataConfig, TrainConfig, model_preset, vit_pico
from tubelet.data.batch import Batch
from tubelet.data.batch_partition import samples_per_step
from tubelet.data.masks import mean_mask_lengths
from tubelet.data.sources import MediaList
from tubelet.device import peak_flops
from tubelet.errors import ConfigError
from tubelet.grid import Mask, Modality
from tubelet.model.encoder import Encoder
from tubelet.model.lora import add_adapters
from tubelet.train.compilation import should_compile
from tubelet.train.initialization import distillation_config
from tubelet.train.step import backpropagate
from tubelet.train.step_cost import StepCost, step_cost
from tubelet.vjepa import VJEPA

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
TWO_BLOCKS = dataclasses.replace(
    vit_pico(), depth=2, levels=(0, 1), predictor=dataclasses.replace(vit_pico().predictor, depth=2)
)


def counts_of(config):
    return samples_per_step(config, MediaList(["video"], ["image"]))


def counted_flops(model, config):
    """Operations that PyTorch counts in a step whose masks have their mean lengths."""
    counts = counts_of(config)
    with FlopCounterMode(display=False) as counter, META:
        for modality, lengths in mean_mask_lengths(config, counts).items():
            frames, size, count = config.data.frames_for(modality), config.data.image_size, counts[modality]
            masks = [Mask(*(torch.zeros(count, length, dtype=torch.int64) for length in pair)) for pair in lengths]
            batch = Batch(modality, torch.zeros(count, 3, frames, size, size), masks, count / config.batch_size)
            backpropagate(model, [batch], 0.5, torch.autocast("cpu", enabled=False))
    return counter.get_total_flops()


@pytest.mark.parametrize("image_fraction", [0.0, 0.5, 1.0])
def test_operations_are_those_that_pytorch_counts_for_every_mixture(image_fraction):
    data = DataConfig(image_size=128, frames=8, image_fraction=image_fraction)
    config = TrainConfig(model=TWO_BLOCKS, data=data, batch_size=8)
    with META:
        model = VJEPA(config.model)
    assert step_cost(model, config, counts_of(config)).flops == pytest.approx(counted_flops(model, config), rel=0.03)


def test_operations_of_a_distillation_are_those_of_the_frozen_teacher():
    teacher = dataclasses.replace(vit_pico(), width=256, depth=3, levels=(1, 2), heads=4)
    config = TrainConfig(
        model=distillation_config(TWO_BLOCKS, teacher), data=DataConfig(image_size=128, frames=4), batch_size=4
    )
    with META:
        model = VJEPA(config.model)
        model.frozen_teacher = (Encoder(teacher).requires_grad_(False),)
    assert step_cost(model, config, counts_of(config)).flops == pytest.approx(counted_flops(model, config), rel=0.03)


def test_operations_of_adapters_leave_out_the_gradients_of_frozen_weights():
    pytest.importorskip("peft")
    config = TrainConfig(model=TWO_BLOCKS, data=DataConfig(image_size=128, frames=4), batch_size=4)
    with META:
        model = VJEPA(TWO_BLOCKS)
        for part in (model.student, model.teacher):
            add_adapters(part, 4)
    model.teacher.requires_grad_(False)
    model.to(META)
    assert step_cost(model, config, counts_of(config)).flops == pytest.approx(counted_flops(model, config), rel=0.03)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA L40", None),
    ],
)
def test_boards_of_one_chip_have_peaks_of_their_own(monkeypatch, name, teraflops):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert peak_flops(CUDA) == (teraflops and teraflops * 1e12)
    assert peak_flops(CPU) is None


def published(name, **changes):
    """A run of a preset with the published data, and what its step costs."""
    config = TrainConfig(model=model_preset(name), **changes)
    with META:
        model = VJEPA(config.model)
    return config, step_cost(model, config, counts_of(config))


def test_on_a_cpu_only_runs_of_many_operations_compile_by_default(monkeypatch):
    monkeypatch.setattr("tubelet.train.compilation.has_bf16_units", lambda device: False)
    demo, cost = published("vit-pico", data=DataConfig(image_size=64, frames=4), steps=1100, batch_size=16)
    assert not should_compile(demo, cost, CPU)
    assert should_compile(dataclasses.replace(demo, compile=True), cost, CPU)
    assert should_compile(*published("vit-pico"), CPU)
    assert not should_compile(*published("vit-pico"), torch.device("mps"))


def test_on_cuda_small_networks_compile_as_soon_as_large_ones_since_their_kernels_are_as_many():
    config = TrainConfig(steps=4000)
    few_flops, few_kernels = StepCost(1e12, 8000), StepCost(1e13, 100)
    assert should_compile(config, few_flops, CUDA) and should_compile(config, few_kernels, CUDA)
    short = dataclasses.replace(config, steps=1000)
    assert not should_compile(short, few_flops, CUDA) and not should_compile(short, few_kernels, CUDA)
    assert not should_compile(dataclasses.replace(config, compile=False), few_flops, CUDA)


def test_kernels_follow_depth_and_passes_and_not_width():
    (_, ti), (_, s), (_, large) = (published(name) for name in ("vit-ti", "vit-s", "vit-l"))
    assert ti.kernels == s.kernels < large.kernels
    config, cost = published("vit-s")
    with META:
        packed = VJEPA(config.model)
    packed.pack_masks = True
    assert step_cost(packed, config, counts_of(config)).kernels < 0.6 * cost.kernels
    recomputed = published("vit-s", activation_checkpointing=True)[1]
    assert recomputed.kernels > s.kernels and recomputed.flops == s.flops
    assert published("vit-s", grad_accum_steps=2)[1].kernels > 1.8 * s.kernels


def test_fp8_is_always_compiled_and_refuses_not_to_be():
    cost, config = StepCost(1.0, 1), TrainConfig(precision="fp8", steps=1)
    assert should_compile(config, cost, CUDA)
    with pytest.raises(ConfigError, match=r"^precision is fp8 and compile is off: .*leave --no-compile out"):
        should_compile(dataclasses.replace(config, compile=False), cost, CUDA)


def test_lengths_of_masks_fit_the_grid():
    config = TrainConfig()
    lengths = mean_mask_lengths(config, counts_of(config))
    tokens = {Modality.VIDEO: 2048, Modality.IMAGE: 256}
    assert {modality: len(pairs) for modality, pairs in lengths.items()} == {Modality.VIDEO: 2, Modality.IMAGE: 1}
    assert all(0 < sum(pair) <= tokens[modality] for modality, pairs in lengths.items() for pair in pairs)
