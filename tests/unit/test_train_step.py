"""The gradient norm of a step and what clipping by it does."""

import copy
import dataclasses
import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tubelet.config import ModelConfig, OptimConfig, PredictorConfig, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.masks import sample_mask
from tubelet.grid import Modality
from tubelet.model.optimizers import AdamW
from tubelet.train import optim
from tubelet.train.determinism import deterministic_algorithms
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

SIZES = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CONFIG = TrainConfig(model=SIZES, precision="fp32", compile=False, optim=OptimConfig(lr=1e-3))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, 4, 32, 32), dtype=np.uint8))
    masks = [sample_mask(spec, SIZES.grid(4, 32, 32), 2, rng) for spec in CONFIG.masks.video]
    return StepData([Batch(Modality.VIDEO, pixels, masks, 1.0)], [])


@pytest.fixture
def step(batch):
    """Takes a step with a config from the same weights each time; returns metrics, gradients, and model."""

    def take(config, context=nullcontext()):  # noqa: B008 - without state
        torch.manual_seed(0)
        model = VJEPA(SIZES)
        optimizer, gradients = build_optimizer(model, config.optim), []
        optimizer.register_step_pre_hook(
            lambda *_: gradients.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        )
        with context:
            metrics = train_step(model, optimizer, batch, config, 200_000, DistContext(torch.device("cpu")))
        return SimpleNamespace(metrics=metrics, gradients=gradients, model=model)

    return take


def test_the_gradient_norm_is_that_of_all_parameters_together(step):
    taken = step(CONFIG)
    expected = torch.nn.utils.get_total_norm(taken.gradients)
    torch.testing.assert_close(taken.metrics["grad_norm"], expected)


def test_clipping_scales_the_gradient_as_pytorch_does_and_reports_the_norm_before(step):
    free = step(CONFIG)
    norm = free.metrics["grad_norm"].item()
    clipped = step(dataclasses.replace(CONFIG, optim=OptimConfig(lr=1e-3, max_grad_norm=norm / 3)))
    assert clipped.metrics["grad_norm"].item() == norm
    parameters = [torch.nn.Parameter(gradient) for gradient in free.gradients]
    for parameter, gradient in zip(parameters, copy.deepcopy(free.gradients), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, norm / 3)
    torch.testing.assert_close(clipped.gradients, [parameter.grad for parameter in parameters])


def test_a_gradient_below_the_maximum_is_left_to_the_last_digit(step):
    free, loose = step(CONFIG), step(dataclasses.replace(CONFIG, optim=OptimConfig(lr=1e-3, max_grad_norm=1e9)))
    for ours, theirs in zip(loose.model.parameters(), free.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_that_is_not_finite_is_skipped_with_clipping_too(step, monkeypatch):
    monkeypatch.setattr(
        "tubelet.train.step.schedule_values", lambda *_: {"lr": 1e-3, "ema": 0.9, "context_weight": float("nan")}
    )
    torch.manual_seed(0)
    before = VJEPA(SIZES)
    taken = step(dataclasses.replace(CONFIG, optim=OptimConfig(lr=1e-3, max_grad_norm=1.0)))
    assert taken.metrics["skipped"] == 1
    for ours, theirs in zip(taken.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_is_skipped_by_the_host_where_the_optimizer_ignores_the_flag(step, monkeypatch):
    monkeypatch.setattr(
        "tubelet.train.step.schedule_values", lambda *_: {"lr": 1e-3, "ema": 0.9, "context_weight": float("nan")}
    )
    real = AdamW.step

    def ignore_the_flag(optimizer, closure=None):
        del optimizer.found_inf
        return real(optimizer, closure)

    monkeypatch.setattr(AdamW, "step", ignore_the_flag)
    torch.manual_seed(0)
    before = VJEPA(SIZES)
    changed = step(CONFIG).model
    assert not all(map(torch.equal, changed.student.parameters(), before.student.parameters()))
    monkeypatch.setattr(optim, "IGNORES_FOUND_INF", ("cpu",))
    taken = step(CONFIG)
    assert taken.metrics["skipped"] == 1 and not taken.gradients
    assert all(map(torch.equal, taken.model.parameters(), before.parameters()))


def test_a_step_with_clipping_never_waits_for_the_device(step, monkeypatch):
    def wait(*_):
        raise AssertionError("the host reads a number of the device")

    @contextmanager
    def without_reading():
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                patch.setattr(torch.Tensor, name, wait)
            yield

    step(dataclasses.replace(CONFIG, optim=OptimConfig(lr=1e-3, max_grad_norm=1.0)), without_reading())


def determinism():
    return (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_algorithms_are_set_for_a_block_and_restored_after_an_error(monkeypatch, workspace):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = determinism()
    with deterministic_algorithms(False):
        assert determinism() == before
    with pytest.raises(KeyError), deterministic_algorithms(True):
        assert determinism() == (2, False, workspace or ":4096:8")
        raise KeyError
    assert determinism() == before


def test_on_a_cpu_all_operators_of_a_step_are_deterministic(batch):
    losses = []
    for deterministic in (False, True):
        torch.manual_seed(0)
        model = VJEPA(SIZES)
        optimizer = build_optimizer(model, CONFIG.optim)
        with deterministic_algorithms(deterministic):
            metrics = [
                train_step(model, optimizer, batch, CONFIG, step, DistContext(torch.device("cpu"))) for step in range(2)
            ]
        losses.append([float(row["loss"]) for row in metrics])
    assert losses[0] == losses[1]
