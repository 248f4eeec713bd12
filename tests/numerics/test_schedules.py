import json
from pathlib import Path

import pytest

from tubelet import schedules

TABLE = json.loads((Path(__file__).parent / "schedules.json").read_text())


def values(name):
    return [(int(step), value) for step, value in TABLE[name]["values"].items()]


def horizon(name):
    return TABLE[name]["total_steps"] * TABLE[name]["stretch"]


@pytest.mark.parametrize(("step", "value"), values("lr_warmup_cosine"))
def test_learning_rate_warms_up_and_decays_as_the_reference(step, value):
    t = TABLE["lr_warmup_cosine"]
    ours = schedules.learning_rate(
        step, t["warmup_steps"], horizon("lr_warmup_cosine"), t["start"], t["peak"], t["final"]
    )
    assert ours == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("step", "value"), values("lr_linear_cooldown"))
def test_cool_down_learning_rate_is_linear_as_the_reference(step, value):
    t = TABLE["lr_linear_cooldown"]
    ours = schedules.learning_rate(step, 0, horizon("lr_linear_cooldown"), 0, t["peak"], t["final"], "linear")
    assert ours == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("step", "value"), values("weight_decay_cosine"))
def test_weight_decay_follows_a_cosine_as_the_reference(step, value):
    t = TABLE["weight_decay_cosine"]
    ours = schedules.cosine(step, horizon("weight_decay_cosine"), t["start"], t["final"])
    assert ours == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("step", "value"), values("ema_momentum_linear"))
def test_teacher_momentum_is_linear_as_the_reference(step, value):
    t = TABLE["ema_momentum_linear"]
    assert schedules.linear(step, horizon("ema_momentum_linear"), t["start"], t["final"]) == pytest.approx(
        value, rel=1e-12
    )


@pytest.mark.parametrize(("step", "value"), values("context_weight_warmup"))
def test_context_weight_warms_up_as_the_reference(step, value):
    t = TABLE["context_weight_warmup"]
    assert schedules.context_weight(step, t["start_step"], t["end_step"], t["final"]) == pytest.approx(value, rel=1e-12)
