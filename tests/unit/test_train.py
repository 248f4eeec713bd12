import dataclasses
import math

import pytest
import torch
from torch import nn

from tubelet.config import OptimConfig, TrainConfig, model_preset, vit_ti
from tubelet.device import accumulation_dtype, seed_generators, training_dtype
from tubelet.train.collapse import CollapseDetector, channel_std, effective_rank
from tubelet.train.optim import build_optimizer
from tubelet.train.step import default_ema_momentum, schedule_values
from tubelet.vjepa import VJEPA


def test_seeded_generators_draw_what_pytorch_seeds_them_to_draw():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.rand(5)
        seed_generators(7, torch.device("cpu"))
        assert torch.equal(torch.rand(5), expected)


def products(tokens):
    centered = tokens - tokens.mean(0)
    return centered.T @ centered


def test_effective_rank_counts_directions():
    orthogonal = torch.linalg.qr(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))).Q
    directions = orthogonal @ torch.eye(8, 20)
    assert effective_rank(products(directions)) == pytest.approx(8, rel=0.02)
    assert effective_rank(products(torch.ones(100, 5))) == pytest.approx(1, abs=1e-3)


def test_the_spread_of_channels_is_their_standard_deviation():
    tokens = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(6)
    assert channel_std(products(tokens), 50) == pytest.approx(tokens.std(0).mean().item())
    assert channel_std(products(torch.ones(10, 4)), 10) == 0


def test_eigenvalues_that_do_not_converge_are_nan_with_a_warning(monkeypatch, caplog):
    def fail(*_):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    assert math.isnan(effective_rank(torch.eye(4)))
    assert "effective rank of features is nan in the metrics: linalg.eigh: The algorithm failed" in caplog.text


def test_features_that_are_not_finite_have_no_effective_rank(caplog):
    assert math.isnan(effective_rank(torch.full((4, 4), torch.inf)))
    assert not caplog.text


def alerts(name, values, width=128, predicted_width=None):
    watch = CollapseDetector(width, predicted_width)
    return [watch.observe({name: value}) for value in values]


def test_a_sudden_fall_is_named_once_for_each_halving():
    observed = alerts("effective_rank", (60, 58, 61, 60, 60, 19, 18, 9))
    assert [len(warnings) for warnings in observed] == [0, 0, 0, 0, 0, 1, 0, 1]
    assert "effective rank" in observed[5][0]
    assert "is 19, recently it was 60" in observed[5][0]
    assert "learning rate" in observed[5][0]


def test_levels_that_fall_at_one_check_are_each_named_and_what_helps_is_reported_once():
    watch, names = (
        CollapseDetector(128),
        ("channel_std", "teacher_level_1_effective_rank", "teacher_level_1_channel_std"),
    )
    for _ in range(5):
        assert watch.observe(dict.fromkeys(names, 60)) == []
    observed = watch.observe(dict.fromkeys(names, 0.01))
    assert [sentence.count("is 0.01, recently it was 60") for sentence in observed] == [1, 1, 1]
    assert [sentence.count("--lr") for sentence in observed] == [0, 0, 1]


def test_a_fall_within_the_first_looks_is_no_alert():
    assert not any(alerts("effective_rank", [23.6, 7.78, 7.5, 7.6, 7.7]))


def test_a_figure_that_recovered_and_falls_again_is_named_again():
    observed = alerts("effective_rank", [*[60] * 10, 19, 18, *[60] * 10, 15])
    assert [k for k, warnings in enumerate(observed) if warnings] == [10, 22]


def test_a_slow_fall_is_named_when_hardly_anything_is_left():
    observed = alerts("channel_std", [0.5 * 0.9**k for k in range(40)])
    first = next(k for k, warnings in enumerate(observed) if warnings)
    assert 0.5 * 0.9**first < 0.05 <= 0.5 * 0.9 ** (first - 1)


def test_what_healthy_runs_do_first_is_no_alert():
    """The ranks of a run whose features ended 1.6 times as good as random ones."""
    measured = (59.6, 59.8, 58.6, 42.8, 32.8, 32.0, 32.8, 22.9, 22.8, 25.6, 19.6, 26.3, 25.2, 24.5, 30.5, 26.4, 25.5)
    assert not any(alerts("effective_rank", measured))


def test_each_level_of_teacher_and_predictor_is_watched_by_the_same_rule_and_named():
    values = [*[60] * 10, 19]
    for name, who in (
        ("effective_rank", "the teacher's features are collapsing: the effective rank of the last level is 19"),
        ("teacher_level_2_effective_rank", "the teacher's features are collapsing: the effective rank of level 2 is"),
        ("predictor_level_4_effective_rank", "the predictor's features are collapsing: the effective rank of level 4"),
    ):
        observed = alerts(name, values)
        assert [len(warnings) for warnings in observed] == [0] * 10 + [1]
        assert observed[-1][0].startswith(who)


def test_a_predictor_that_has_not_learned_anything_yet_has_not_collapsed():
    """The spread of a young predictor, measured; then of one that learns, and collapses for all that."""
    young = [0.040, 0.0005, 0.0018, 0.0019, 0.0006, 0.0034, 0.0003, 0.0012, 0.0002]
    assert not any(alerts("predictor_level_1_channel_std", [*young, *[0.2] * 9, 0.01]))
    observed = alerts("predictor_level_1_channel_std", [*young, *[0.2] * 10, 0.01])
    assert [len(warnings) for warnings in observed] == [0] * 19 + [1]


def test_the_least_rank_goes_by_the_width_of_what_is_predicted():
    slow = [60 * 0.9**k for k in range(30)]
    first = [
        next(k for k, warnings in enumerate(alerts("predictor_level_1_effective_rank", slow, 128, width)) if warnings)
        for width in (128, 512)
    ]
    assert slow[first[0]] < 0.03 * 128 <= slow[first[0] - 1]
    assert slow[first[1]] < 0.03 * 512 <= slow[first[1] - 1]


@pytest.mark.parametrize("lr", [1e-5, 6e-4, 3e-3])
def test_a_run_begins_at_a_sixth_of_its_learning_rate_and_keeps_its_peak(lr):
    config = TrainConfig(model=vit_ti(), optim=OptimConfig(lr=lr), steps=100)
    rates = [schedule_values(config, step)["lr"] for step in range(100)]
    assert max(rates) == pytest.approx(lr) == pytest.approx(rates[-1])
    assert lr / 6 < rates[0] < lr / 2


def test_biases_and_norms_are_not_decayed_and_embeddings_of_modalities_are():
    model = VJEPA(vit_ti())
    decayed, kept = build_optimizer(model, OptimConfig()).param_groups
    assert kept["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.04
    names = {parameter: name for name, parameter in model.named_parameters()}
    vectors = {names[parameter] for parameter in decayed["params"] if parameter.dim() == 1}
    embeddings = ("video_embedding", "image_embedding")
    parts = ("student.tokenizer", "predictor")
    assert vectors == {f"{part}.{name}" for part in parts for name in embeddings}
    trained = sum(1 for p in model.parameters() if p.requires_grad)
    assert len(decayed["params"]) + len(kept["params"]) == trained
    linear_biases = {m.bias for m in model.modules() if isinstance(m, nn.Linear)}
    assert not linear_biases & set(decayed["params"])


def test_narrow_networks_train_in_fp32_on_a_cpu_by_default(monkeypatch):
    monkeypatch.setattr("tubelet.device.has_bf16_units", lambda device: True)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    narrow, wide = (TrainConfig(model=model_preset(name)) for name in ("vit-ti", "vit-s"))
    assert [training_dtype(c, cpu) for c in (narrow, wide)] == [torch.float32, torch.bfloat16]
    assert training_dtype(narrow, gpu) == torch.bfloat16
    assert training_dtype(dataclasses.replace(narrow, precision="bf16"), cpu) == torch.bfloat16


def test_long_sums_are_in_float64_where_the_device_has_it():
    dtypes = [accumulation_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")]
    assert dtypes == [torch.float64, torch.float64, torch.float32]


def test_published_schedule_at_the_published_length():
    config = TrainConfig()
    assert schedule_values(config, 0)["context_weight"] == 0
    assert schedule_values(config, 15_000)["context_weight"] == 0
    assert schedule_values(config, 22_500)["context_weight"] == pytest.approx(0.25)
    assert schedule_values(config, 30_000)["context_weight"] == 0.5
    assert schedule_values(config, 5_999)["lr"] == pytest.approx(3.5e-4)
    assert schedule_values(config, 200_000)["lr"] == pytest.approx(6e-4)
    assert schedule_values(config, 200_000)["ema"] == 0.99925


@pytest.mark.parametrize(("steps", "momentum"), [(800, 0.99), (300_000, 0.99925)])
def test_the_teachers_memory_fits_the_run(steps, momentum):
    assert default_ema_momentum(steps) == pytest.approx(momentum)
