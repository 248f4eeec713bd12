"""What a run does about trouble: alarms, skipped steps, hangs, a disk that is full."""

import itertools
import json
import math

import pytest
import torch
from runs import rows, tiny_config, train_quietly, train_together

from media import write_image, write_video
from tubelet.checkpoint import checkpoints, read_tensors
from tubelet.config import GuardConfig
from tubelet.train import monitor
from tubelet.train import step as step_module
from tubelet.types import TubeletError


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for i in range(3):
        write_video(folder / f"{i}.mp4", frames=24)
        write_image(folder / f"{i}.png")
    return folder


def alarms(run):
    return [json.loads(line) for line in (run / "alarms.jsonl").open()]


FIGURES = {
    f"{who}{figure}"
    for who in ("", *(f"teacher_level_{i}_" for i in (1, 2)), *(f"predictor_level_{i}_" for i in (1, 2, 3)))
    for figure in ("effective_rank", "channel_std")
}


def figures(row):
    return {name: value for name, value in row.items() if name.endswith(("effective_rank", "channel_std"))}


@pytest.fixture(scope="module")
def watched(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "watched"
    train_quietly(tiny_config(media, batch_size=8, steps=7, monitor_every=3), run)
    return run


def test_every_level_of_teacher_and_predictor_is_in_the_metrics(watched):
    looks = [figures(row) for row in rows(watched)]
    assert [bool(look) for look in looks] == [True, False, False, True, False, False, True]
    assert set(looks[0]) == FIGURES


def test_processes_look_at_the_same_features_as_one_does(media, watched, tmp_path):
    config = tiny_config(media, batch_size=8, steps=7, monitor_every=3, parallel="fsdp")
    assert train_together(2, config, tmp_path / "run") == ([0, 0], "")
    for ours, theirs in zip(rows(tmp_path / "run"), rows(watched), strict=True):
        assert figures(ours) == pytest.approx(figures(theirs), rel=1e-2)


def test_alarms_are_kept_once_over_a_resumption(media, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "LEAST_STD", 1e6)  # whatever a figure is, it is low
    config, run = tiny_config(media, steps=8, monitor_every=1, checkpoint_every=4), tmp_path / "run"
    train_quietly(config, run)
    before = alarms(run)
    assert {(alarm["step"], alarm["kind"]) for alarm in before} >= {(1, "collapse")}
    assert "the teacher's features are collapsing: the spread of channels over tokens of level 1" in before[0]["said"]
    (run / "checkpoints" / "step-000000008.safetensors").unlink()
    train_quietly(config, run, resume=True)
    assert alarms(run) == before


def poison(monkeypatch, *steps):
    """Let the loss of some steps (counted from 1) be not a number, and so its gradient."""
    real = step_module.scheduled

    def scheduled(config, step):
        values = real(config, step)
        return values | {"context_weight": math.nan} if step + 1 in steps else values

    monkeypatch.setattr(step_module, "scheduled", scheduled)


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(media, tmp_path, monkeypatch):
    poison(monkeypatch, 3, 4, 6)
    config, run = tiny_config(media, steps=8, checkpoint_every=1, keep_checkpoints=9), tmp_path / "run"
    train_quietly(config, run)
    found = rows(run)
    assert [row["skipped_steps"] for row in found] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [row["loss"] is None for row in found] == [False, False, True, True, False, True, False, False]
    states = [read_tensors(path)[0] for path in checkpoints(run)]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert same == [False, True, True, False, True, False, False]
    assert [(alarm["step"], alarm["kind"]) for alarm in alarms(run)] == [(3, "skipped"), (6, "skipped")]
    for path in checkpoints(run)[3:]:  # in the middle of a row of them
        path.unlink()
    train_quietly(config, run, resume=True)
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in found]
    assert [row["skipped_steps"] for row in rows(run)] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert len(alarms(run)) == 2


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_keep_the_last_checkpoint(media, tmp_path, monkeypatch):
    poison(monkeypatch, 4, *range(7, 21))
    config, run = tiny_config(media, guards=GuardConfig(max_skipped=3)), tmp_path / "run"
    with pytest.raises(TubeletError, match=r"not finite in 3 steps in a row, the last of them step 9, .*--max-skipped"):
        train_quietly(config, run)
    assert [path.stem for path in checkpoints(run)] == ["step-000000005"]
    read_tensors(checkpoints(run)[-1])


def test_a_gradient_alone_that_is_not_finite_skips_the_step(media, tmp_path, monkeypatch):
    real = step_module.backpropagate

    def with_a_wrong_gradient(model, *inputs):
        losses = real(model, *inputs)
        model.student.blocks[0].attention.qkv.weight.grad[0, 0] = math.inf
        return losses

    monkeypatch.setattr(step_module, "backpropagate", with_a_wrong_gradient)
    run = tmp_path / "run"
    with pytest.raises(TubeletError, match="in 10 steps in a row, the last of them step 10"):
        train_quietly(tiny_config(media), run)
    assert all(math.isfinite(row["loss"]) for row in rows(run))


def test_weights_that_are_not_finite_are_never_saved(media, tmp_path, monkeypatch):
    real = step_module.VJEPA.update_teacher

    def damaged(model, momentum, skipped):
        real(model, momentum, skipped)
        model.teacher.norms[0].bias[0] = math.nan

    monkeypatch.setattr(step_module.VJEPA, "update_teacher", torch.no_grad()(damaged))
    with pytest.raises(TubeletError, match="not finite after step 5, so that no checkpoint is written"):
        train_quietly(tiny_config(media), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []
