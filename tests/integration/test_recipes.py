"""The stages of the published training: each runs its first steps at a tiny size, by the values that it publishes."""

import dataclasses
import shutil

import pytest
import torch

from tests.helpers.commands import run_tubelet
from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.checkpoint.run import load_vjepa
from tubelet.checkpoint.vjepa2_1 import read_torch_file
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import OptimConfig, recipes, vit_gigantic, vit_l
from tubelet.errors import TubeletError
from tubelet.pretrained.convert import convert
from tubelet.pretrained.load import load
from tubelet.train.initialization import config_from_checkpoint, distillation_config, load_frozen_teacher
from tubelet.train.run_directory import read_config
from tubelet.train.step import autocast, schedule_values
from tubelet.train.trainer import train

STEPS = 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pretrained(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    train_quietly(tiny(media, recipes.pretrain()), run)
    return run


def tiny(media, recipe, **changes):
    """A recipe's own optimizer and objective at a tiny size."""
    return dataclasses.replace(tiny_config(media, steps=STEPS), optim=recipe.optim, **changes)


def test_presets_carry_the_published_values():
    pre, cool = recipes.pretrain(), recipes.cooldown()
    assert (pre.steps, pre.data.frames, pre.data.image_size, pre.optim) == (300_000, 16, 256, OptimConfig())
    assert (cool.steps, cool.data.frames, cool.data.image_size) == (12_000, 64, 256)
    first, middle, last = (schedule_values(cool, step) for step in (0, 5_999, 11_999))
    assert first["lr"] == pytest.approx(6e-4, rel=1e-3)
    assert middle["lr"] == pytest.approx((6e-4 + 1e-6) / 2)
    assert last["lr"] == pytest.approx(1e-6)
    assert {first["context_weight"], last["context_weight"]} == {0.5}
    assert {first["ema"], last["ema"]} == {0.99925}
    assert not cool.optim.distance_weighting
    assert recipes.high_resolution().data.image_size == 384
    assert dataclasses.replace(recipes.high_resolution(), data=cool.data) == cool


@pytest.mark.parametrize("recipe", [recipes.cooldown, recipes.high_resolution])
def test_a_cool_down_continues_from_a_checkpoint(recipe, media, pretrained, tmp_path):
    config = tiny(media, recipe(), init_from=str(pretrained))
    train_quietly(config, tmp_path / "run")
    learned = rows(tmp_path / "run")
    assert len(learned) == STEPS
    assert learned[-1]["lr"] == pytest.approx(1e-6)
    assert learned[0]["context_weight"] == 0.5


@pytest.fixture(scope="module")
def distilled(media, pretrained, tmp_path_factory):
    """A student of half the width, distilled from `pretrained`, stopped half-way and continued."""
    run = tmp_path_factory.mktemp("runs") / "distilled"
    small = dataclasses.replace(tiny_config(media).model, width=12)
    sizes = distillation_config(small, load_vjepa(pretrained)[0].config)
    config = tiny(media, recipes.distill(), distill_from=str(pretrained), model=sizes)
    train_quietly(dataclasses.replace(config, steps=10), run)
    train_quietly(config, run, resume=True)
    return run


def test_a_run_reports_that_the_model_it_follows_has_changed(media, pretrained, tmp_path, caplog):
    teacher = tmp_path / "teacher"
    shutil.copytree(pretrained, teacher)
    sizes = distillation_config(dataclasses.replace(tiny_config(media).model, width=12), load_vjepa(teacher)[0].config)
    config = tiny(media, recipes.distill(), distill_from=str(teacher), model=sizes)
    train(dataclasses.replace(config, steps=2), tmp_path / "run")
    longer = dataclasses.replace(read_config(teacher), steps=read_config(teacher).steps + 1)
    train_quietly(longer, teacher, resume=True)
    train(dataclasses.replace(config, steps=3), tmp_path / "run", resume=True)
    assert "changed since this run began: distill_weights: teacher-" in caplog.text


def test_matrices_of_a_frozen_teacher_are_in_the_precision_of_the_run_and_give_the_same_targets(media, pretrained):
    config = tiny(media, recipes.distill(), distill_from=str(pretrained), precision="bf16")
    teacher_config = load_vjepa(pretrained)[0].config
    small = dataclasses.replace(config.model, width=12)
    config = dataclasses.replace(config, model=distillation_config(small, teacher_config))
    low, full = (load_frozen_teacher(dataclasses.replace(config, precision=p), CPU) for p in ("bf16", "fp32"))
    pixels = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad(), autocast(config, CPU):
        for ours, theirs in zip(low(pixels), full(pixels), strict=True):
            assert torch.equal(ours, theirs)
    assert low.weights_id == full.weights_id
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    assert {p.dtype for p in low.blocks.parameters() if p.dim() == 2} == {torch.bfloat16}
    assert {p.dtype for p in low.norms.parameters()} == {torch.float32}
    sizes = [sum(p.nbytes for p in teacher.parameters()) for teacher in (low, full)]
    assert sizes[0] < 0.56 * sizes[1]


def test_a_distilled_student_learns_the_frozen_models_last_level(distilled):
    learned = [row["loss"] for row in rows(distilled)]
    assert len(learned) == STEPS
    assert sum(learned[-5:]) < 0.97 * sum(learned[:5])


def test_a_distilled_run_holds_the_students_average_and_not_the_frozen_model(distilled):
    model, _ = load_vjepa(distilled)
    assert model.config.width == 12
    assert model.config.prediction_width == 24
    assert not any("frozen" in name for name in model.state_dict())
    assert not torch.equal(model.teacher.norms[-1].weight, model.student.norms[-1].weight)


def test_a_student_has_the_predictor_of_the_distilled_releases_and_its_own_again_when_it_continues_without_a_teacher(
    distilled,
):
    sizes = distillation_config(vit_l(), vit_gigantic())
    predictor = sizes.predictor
    assert (predictor.depth, predictor.output_width, predictor.rescale_rope) == (12, 1664, False)
    again = config_from_checkpoint(str(distilled))
    assert again.prediction_width == again.num_output_levels * again.width and again.predictor.rescale_rope


def test_a_distilled_run_converts_to_the_released_key(distilled, tmp_path):
    convert(str(distilled), tmp_path / "small.pt", LoadSpec("teacher", True))
    assert {"ema_encoder", "encoder", "predictor"} <= set(read_torch_file(tmp_path / "small.pt"))
    again = load(tmp_path / "small.pt", heads=2, predictor_heads=2, levels=(0, 1), device="cpu", dtype=torch.float32)
    for a, b in zip(again.parameters(), load_vjepa(distilled)[0].teacher.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_student_with_another_grid_is_refused(media, pretrained, tmp_path):
    student = dataclasses.replace(tiny_config(media).model, patch_size=16)
    sizes = distillation_config(student, load_vjepa(pretrained)[0].config)
    config = tiny(media, recipes.distill(), distill_from=str(pretrained), model=sizes)
    with pytest.raises(TubeletError, match="--patch-size 8"):
        train_quietly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_that_predicts_all_levels_is_refused(media, pretrained, tmp_path):
    with pytest.raises(TubeletError, match="predicts 2 levels"):
        train_quietly(tiny(media, recipes.distill(), distill_from=str(pretrained)), tmp_path / "run")


def test_a_cool_down_of_nothing_is_refused(media, tmp_path):
    done = run_tubelet("cooldown", media, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "--init-from is missing" in done.stderr


def test_distil_is_one_command(media, pretrained, tmp_path):
    sizes = ("--image-size", 32, "--frames", 4, "--steps", 2, "--batch-size", 2, "--patch-size", 8)
    done = run_tubelet(
        "distill", media, "--teacher", pretrained, "--out", tmp_path / "run", "--model", "vit-pico", *sizes
    )
    assert done.returncode == 0, done.stderr
    assert "predicting the last level of" in done.stdout.replace("\n", " ")
    assert load_vjepa(tmp_path / "run")[0].config.prediction_width == 24
