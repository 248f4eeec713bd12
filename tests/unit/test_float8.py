import dataclasses
import sys

import numpy as np
import pytest
import torch

from tubelet.config import TrainConfig, vit_pico
from tubelet.data.batch import Batch, StepData
from tubelet.data.masks import sample_mask
from tubelet.errors import TubeletError
from tubelet.grid import Modality
from tubelet.train import float8
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

CPU = torch.device("cpu")


def losses(model, config, steps=3):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 3, 4, 48, 48), dtype=np.uint8))
    grid = config.model.grid(4, 48, 48)
    masks = [sample_mask(spec, grid, 3, rng) for spec in config.masks.video]
    data = StepData([Batch(Modality.VIDEO, pixels, masks, 1.0)], [])
    optimizer = build_optimizer(model, config.optim)
    return [train_step(model, optimizer, data, config, step, DistContext(CPU))["loss"].item() for step in range(steps)]


def test_a_device_without_float8_units_is_refused():
    config = TrainConfig(model=vit_pico(), precision="fp8")
    with pytest.raises(
        TubeletError, match=r"precision is fp8, which needs a CUDA device .* this run is on cpu: use bf16"
    ):
        prepare_model(VJEPA(config.model), config, CPU, compiled=False)


def test_without_torchao_it_is_reported_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(TubeletError, match="pip install torchao"):
        float8.convert(VJEPA(vit_pico()))


@pytest.mark.slow
def test_rounding_as_float8_trains_nearly_as_bf16_does():
    sizes = dataclasses.replace(vit_pico(), depth=2, levels=(0, 1))
    config = TrainConfig(model=sizes, precision="bf16", steps=100)
    torch.manual_seed(0)
    model = VJEPA(config.model)
    rounded = VJEPA(config.model)
    rounded.load_state_dict(model.state_dict())
    parameters = dict(rounded.named_parameters())
    float8.convert(rounded, emulate=True)
    assert dict(rounded.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[name] for name, parameter in rounded.named_parameters())
    expected, found = losses(model, config), losses(rounded, config)
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected
