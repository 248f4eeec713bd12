import pytest
import torch
from torch import nn

from tubelet.config import OptimConfig, TrainConfig, vit_ti
from tubelet.train.monitor import CollapseWatch, channel_std, effective_rank
from tubelet.train.optim import build_optimizer
from tubelet.train.step import default_momentum, scheduled
from tubelet.vjepa import VJEPA


def test_effective_rank_counts_directions():
    orthogonal = torch.linalg.qr(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))).Q
    directions = orthogonal @ torch.eye(8, 20)
    assert effective_rank(directions) == pytest.approx(8, rel=0.02)
    assert effective_rank(torch.ones(100, 5)) == pytest.approx(1, abs=1e-3)


def test_channels_that_do_not_differ_between_tokens_have_no_spread():
    assert channel_std(torch.ones(10, 4)) == 0


def test_a_collapse_is_named_once_for_each_halving():
    watch = CollapseWatch()
    said = [watch.observe({"effective_rank": value}) for value in (10, 60, 40, 29, 28, 13)]
    assert [len(warnings) for warnings in said] == [0, 0, 0, 1, 0, 1]
    assert "effective rank" in said[3][0]
    assert "60 to 29" in said[3][0]
    assert "learning rate" in said[3][0]


def test_biases_and_one_dimensional_parameters_are_not_decayed():
    model = VJEPA(vit_ti())
    decayed, kept = build_optimizer(model, OptimConfig()).param_groups
    assert {p.dim() for p in kept["params"]} == {1}
    assert kept["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.04
    trained = sum(1 for p in model.parameters() if p.requires_grad)
    assert len(decayed["params"]) + len(kept["params"]) == trained
    linear_biases = {m.bias for m in model.modules() if isinstance(m, nn.Linear)}
    assert not linear_biases & set(decayed["params"])


def test_published_schedule_at_the_published_length():
    config = TrainConfig()
    assert scheduled(config, 0)["context_weight"] == 0
    assert scheduled(config, 15_000)["context_weight"] == 0
    assert scheduled(config, 22_500)["context_weight"] == pytest.approx(0.25)
    assert scheduled(config, 30_000)["context_weight"] == 0.5
    assert scheduled(config, 5_999)["lr"] == pytest.approx(3.5e-4)
    assert scheduled(config, 200_000)["lr"] == pytest.approx(6e-4)
    assert scheduled(config, 200_000)["ema"] == 0.99925


@pytest.mark.parametrize(("steps", "momentum"), [(800, 0.99), (300_000, 0.99925)])
def test_the_teachers_memory_fits_the_run(steps, momentum):
    assert default_momentum(steps) == pytest.approx(momentum)
