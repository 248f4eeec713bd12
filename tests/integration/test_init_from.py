"""Pre-training that starts from trained weights, whole or by adapters."""

import dataclasses
import errno
import html
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run_tubelet
from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.checkpoint.adapters import apply_adapters
from tubelet.checkpoint.registry import RELEASED
from tubelet.checkpoint.run import list_checkpoints, load_vjepa, read_checkpoint, step_from_name
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.errors import TubeletError
from tubelet.pretrained.load import load
from tubelet.train import checkpointer as saving
from tubelet.train.initialization import config_from_checkpoint, init_model, init_moments, load_initial_teacher
from tubelet.train.optim import build_optimizer
from tubelet.train.run_directory import read_config
from tubelet.view.report import write_report


@pytest.fixture(scope="module")
def first_run(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    train_quietly(tiny_config(media), run)
    return run


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_begins_with_the_weights_that_it_is_given(media, first_run, tmp_path):
    model, origin = init_model(tiny_config(media, init_from=str(first_run)), resumed=False)
    assert same(model, load_vjepa(first_run)[0])
    assert origin[:2] == (list_checkpoints(first_run)[-1], ("student", "predictor"))
    train_quietly(tiny_config(media, steps=1, init_from=str(first_run)), tmp_path / "run")
    assert rows(tmp_path / "run")[0]["loss"] != rows(first_run)[0]["loss"]


def test_a_report_compares_with_the_weights_that_a_run_began_with(media, first_run, tmp_path, monkeypatch):
    shutil.copytree(first_run, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    train_quietly(tiny_config(media, steps=1, init_from="first"), tmp_path / "run")
    config = read_config(tmp_path / "run")
    assert same(load_initial_teacher(config, math.inf), load_vjepa(first_run)[0].teacher)
    monkeypatch.chdir("/")
    page = report(tmp_path / "run", tmp_path / "page.html")
    assert page.count('"label">initial weights<') == page.count('"label">trained teacher<') > 0
    train_quietly(tiny_config(media, steps=21), tmp_path / "first", resume=True)
    page = report(tmp_path / "run", tmp_path / "page.html")
    assert '"label">initial weights<' not in page
    assert "step-000000021.safetensors: was written after the run's first step, so that it may have other" in page
    shutil.rmtree(tmp_path / "first")
    page = report(tmp_path / "run", tmp_path / "page.html")
    assert f"The weights that the run started from are not shown: {tmp_path / 'first'}: no such file" in page


def report(run, page):
    write_report(run, None, page)
    return html.unescape(page.read_text())


def test_a_run_begins_with_the_moments_of_what_it_takes_over(media, first_run):
    config = tiny_config(media, init_from=str(first_run))
    stored = read_checkpoint(list_checkpoints(first_run)[-1])[0]
    for parts in (("student", "predictor"), ("student",)):
        model, origin = init_model(config, resumed=False)
        optimizer = build_optimizer(model, config.optim)
        assert init_moments(origin._replace(parts=parts), model, optimizer).count("including AdamW's moments") == 1
        taken = {name: optimizer.state[value] for name, value in model.named_parameters() if value in optimizer.state}
        assert {name.partition(".")[0] for name in taken} == set(parts)
        for name, state in taken.items():
            assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
            for key, value in state.items():
                assert torch.equal(value, stored[f"optimizer.{key}.{name}"])


def test_weights_and_moments_are_of_one_checkpoint_though_the_run_that_they_are_of_continues(
    media, first_run, tmp_path
):
    shutil.copytree(first_run, tmp_path / "first")
    config = tiny_config(media, init_from=str(tmp_path / "first"))
    model, origin = init_model(config, resumed=False)
    train_quietly(tiny_config(media, steps=25), tmp_path / "first", resume=True)
    optimizer = build_optimizer(model, config.optim)
    init_moments(origin, model, optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {20}


def test_a_run_that_begins_with_adapters_has_moments_of_its_own(media, first_run, tmp_path):
    adapted = tmp_path / "adapted"
    train_quietly(tiny_config(media, init_from=str(first_run), lora_rank=2, steps=5), adapted)
    config = tiny_config(media, init_from=str(adapted))
    model, origin = init_model(config, resumed=False)
    optimizer = build_optimizer(model, config.optim)
    assert init_moments(origin, model, optimizer).endswith(", including AdamW's moments of the predictor")
    names = {name.partition(".")[0] for name, value in model.named_parameters() if value in optimizer.state}
    assert names == {"predictor"}


def test_weights_of_another_size_are_refused_and_nothing_is_written(media, first_run, tmp_path):
    config = tiny_config(media, init_from=str(first_run))
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=48))
    with pytest.raises(TubeletError, match="its encoder has width 24, the run asks for 48"):
        train_quietly(wider, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "anew"), [("teacher_vit", False), ("distilled_vit", True)])
def test_a_released_checkpoint_is_continued(name, anew, media, monkeypatch):
    # These are narrower than any member of the family, whose widths tell how many heads they have.
    monkeypatch.setattr("tubelet.checkpoint.run.read_released", partial(read_released, heads=2, predictor_heads=2))
    file = next((Path(__file__).parents[1] / "numerics" / name).glob("*.pt"))
    config = dataclasses.replace(tiny_config(media, init_from=str(file)), model=config_from_checkpoint(str(file)))
    model, origin = init_model(config, resumed=False)
    source = load_vjepa(file)[0]
    assert same(model.student, source.student)
    assert same(model.teacher, source.teacher)
    message = init_moments(origin, model, build_optimizer(model, config.optim))
    assert "with new AdamW moments" in message
    assert ("the predictor has random weights" in message) is anew
    assert model.config.prediction_width == model.config.num_output_levels * model.config.width


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder"])
def test_a_single_encoder_is_continued_with_a_new_predictor(name, media, first_run, tmp_path):
    encoder = load(first_run, device="cpu", dtype=torch.float32)
    encoder.save_pretrained(tmp_path / "encoder")
    file = tmp_path / "encoder" if name == "encoder" else next((tmp_path / "encoder").glob("*.safetensors"))
    config = dataclasses.replace(tiny_config(media, init_from=str(file)), model=config_from_checkpoint(str(file)))
    model, origin = init_model(config, resumed=False)
    assert same(model.student, encoder) and same(model.teacher, encoder)
    message = init_moments(origin, model, build_optimizer(model, config.optim))
    assert message.endswith("with new AdamW moments; the predictor has random weights, since the file has none")
    assert list_checkpoints(train_quietly(dataclasses.replace(config, steps=1), tmp_path / "run").parents[1])


def test_a_released_name_is_continued_from_its_file(media, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tubelet.checkpoint.run.read_released", partial(read_released, heads=2, predictor_heads=2))
    name, here = "vjepa2.1-vitg16-384", tmp_path / "tubelet" / "released"
    here.mkdir(parents=True)
    shutil.copy(next((Path(__file__).parents[1] / "numerics" / "teacher_vit").glob("*.pt")), here / RELEASED[name])
    config = dataclasses.replace(tiny_config(media, init_from=name), model=config_from_checkpoint(name))
    model, origin = init_model(config, resumed=False)
    assert same(model.teacher, load_vjepa(here / RELEASED[name])[0].teacher)
    assert origin.path == here / RELEASED[name]


def test_adapters_train_separately_resume_and_load_back(media, first_run, tmp_path):
    run = tmp_path / "run"
    config = tiny_config(media, init_from=str(first_run), lora_rank=2, steps=10)
    train_quietly(dataclasses.replace(config, steps=5), run)
    train_quietly(config, run, resume=True)
    base, adapted = load_vjepa(first_run)[0], load_vjepa(run)[0]
    changed = {
        name
        for (name, a), b in zip(base.teacher.state_dict().items(), adapted.teacher.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    expected = {
        f"blocks.{i}.{layer}.weight"
        for i in range(2)
        for layer in ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    }
    assert changed == expected
    again = load(first_run, adapter=run / "adapter", device="cpu", dtype=torch.float32)
    for a, b in zip(again.parameters(), adapted.teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    loaded = load(run, device="cpu", dtype=torch.float32)
    for a, b in zip(loaded.parameters(), adapted.teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    small = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert small["r"] == 2


def test_adapters_of_another_encoder_are_refused(media, first_run, tmp_path):
    with pytest.raises(TubeletError, match="no such file; expected the adapter directory"):
        apply_adapters(load_vjepa(first_run)[0].teacher, tmp_path)


def test_the_command_takes_the_sizes_from_the_checkpoint(media, first_run, tmp_path):
    command = f"train {media} --out {tmp_path / 'run'} --init-from {first_run} --steps 1 --batch-size 2 --image-size 32"
    done = run_tubelet(*command.split(), "--frames", "4")
    assert done.returncode == 0, done.stderr
    assert load_vjepa(tmp_path / "run")[0].config == load_vjepa(first_run)[0].config
    again = [
        *command.replace(str(first_run), "gone").replace("--steps 1", "--steps 2").split(),
        "--frames",
        "4",
        "--resume",
    ]
    done = run_tubelet(*again)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 2


def test_single_frames_need_images(media, tmp_path):
    config = tiny_config(media / "0.mp4", data={"frames": 1})
    with pytest.raises(TubeletError, match="frames is 1, which trains on images only, but the sources have no images"):
        train_quietly(config, tmp_path / "run")


def test_adapters_that_cannot_be_written_cost_the_run_no_checkpoint(media, first_run, tmp_path, monkeypatch):
    real, seen, run = saving.save_adapters, [], tmp_path / "run"

    def failing(adapters, encoder, folder):
        seen.append([step_from_name(path) for path in list_checkpoints(run)])
        if len(seen) in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(adapters, encoder, folder)

    monkeypatch.setattr(saving, "save_adapters", failing)
    train_quietly(tiny_config(media, init_from=str(first_run), lora_rank=2, keep_checkpoints=1), run)
    messages = [json.loads(line)["message"].split("/")[-1] for line in (run / "alerts.jsonl").open()]
    assert messages == ["step-000000005.safetensors is the last checkpoint"] * 2
    assert seen == [[], [5], [5], [5]]  # the one that is called the last is there
