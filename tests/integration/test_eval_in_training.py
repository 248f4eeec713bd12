"""Evaluation of the teacher during training: its metrics, the best checkpoint, and that training takes no notice."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.helpers.training import NARROW_PICO, rows, tiny_config, train_quietly
from tubelet import cli, load
from tubelet.checkpoint import run as checkpoint
from tubelet.checkpoint.run import find_checkpoint, list_checkpoints, read_best, read_checkpoint, step_from_name
from tubelet.config.model import MODELS
from tubelet.errors import ConfigError, TubeletError
from tubelet.train.trainer import train


class evaluator:  # noqa: N801
    """Returns one value after the other."""

    def __init__(self, values, higher_is_better=True, seen=None):
        self.values, self.seen = iter(values), seen
        self.metrics = {"eval_segmentation": higher_is_better, "eval_depth": False}

    def __call__(self, encoder):
        if self.seen is not None:
            self.seen.append({name: value.clone() for name, value in encoder.state_dict().items()})
        torch.rand(3)  # a generator that others use too
        return {"eval_segmentation": next(self.values), "eval_depth": 0.25}


@pytest.fixture(scope="module")
def config(media):
    return tiny_config(media, steps=8, checkpoint_every=100, keep_checkpoints=1, eval_every=2, eval_data=str(media))


@pytest.fixture(scope="module")
def plain(media, tmp_path_factory):
    """The same run without evaluation."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    train_quietly(tiny_config(media, steps=8, checkpoint_every=100), run)
    return run


def test_metrics_are_logged_and_the_losses_are_those_without_evaluation(config, plain, tmp_path):
    train(config, tmp_path / "run", evaluate=evaluator([0.1, 0.4, 0.2, 0.3]))
    found = rows(tmp_path / "run")
    assert [row.get("eval_segmentation") for row in found] == [None, 0.1, None, 0.4, None, 0.2, None, 0.3]
    assert found[1]["eval_depth"] == 0.25
    assert [row["loss"] for row in found] == [row["loss"] for row in rows(plain)]
    ours, theirs = (read_checkpoint(list_checkpoints(run)[-1])[0] for run in (tmp_path / "run", plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_checkpoint_is_kept_beside_the_newest(config, tmp_path):
    run, seen = tmp_path / "run", []
    train(config, run, evaluate=evaluator([0.1, 0.4, 0.2, 0.3], seen=seen))
    assert read_best(run) == {
        "step": 4,
        "metric": "eval_segmentation",
        "value": 0.4,
        "checkpoint": "step-000000004.safetensors",
    }
    assert [step_from_name(path) for path in list_checkpoints(run)] == [4, 8]
    best = read_checkpoint(list_checkpoints(run)[0])[0]
    assert all(torch.equal(value, best[f"teacher.{name}"]) for name, value in seen[1].items())
    model = load(run / "best", device="cpu", dtype=torch.float32)
    assert model.name == "step-000000004"
    assert all(torch.equal(value, best[f"teacher.{name}"]) for name, value in model.state_dict().items())
    assert find_checkpoint(run / "best") == list_checkpoints(run)[0]
    (run / "best.json").unlink()
    with pytest.raises(TubeletError, match="best: no such file"):
        load(run / "best")


@pytest.mark.parametrize("values, best", [([0.3, 0.1, 0.2, 0.4], 4), ([float("nan")] * 4, None)])
def test_a_metric_that_is_better_when_lower_and_one_that_is_no_number(values, best, config, tmp_path):
    train(config, tmp_path / "run", evaluate=evaluator(values, higher_is_better=False))
    found = read_best(tmp_path / "run")
    assert (found and found["step"]) == best


def test_a_best_checkpoint_that_could_not_be_written_is_not_named(config, tmp_path, monkeypatch):
    run, real = tmp_path / "run", checkpoint.save_file

    def without_room_for_step_4(tensors, path, metadata):
        if "000000004" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", without_room_for_step_4)
    train(config, run, evaluate=evaluator([0.1, 0.4, 0.2, 0.3]))
    assert (read_best(run)["step"], read_best(run)["checkpoint"]) == (8, "step-000000008.safetensors")


def test_a_resumed_run_knows_the_best_of_before_and_forgets_one_of_later_steps(config, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config, whole, evaluate=evaluator([0.1, 0.4, 0.2, 0.3]))
    shutil.copytree(whole, run)
    list_checkpoints(run)[-1].unlink()  # of step 8; that of step 4 is the best
    train(config, run, resume=True, evaluate=evaluator([0.2, 0.3]))
    assert read_best(run) == read_best(whole)
    (run / "best.json").write_text(json.dumps({"step": 9, "metric": "eval_segmentation", "value": 2.0}))
    list_checkpoints(run)[-1].unlink()
    train(config, run, resume=True, evaluate=evaluator([0.2, 0.3]))
    assert read_best(run)["step"] == 8


def test_what_is_missing_is_named_before_the_first_step(config, media, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="there is nothing to evaluate with"):
        train(config, tmp_path / "run")
    with pytest.raises(TubeletError, match="requires eval_data"):
        tiny_config(media, eval_every=2)
    monkeypatch.setattr(
        "sys.argv",
        [
            "tubelet",
            "train",
            str(media),
            "--out",
            str(tmp_path / "cli"),
            "--eval-every",
            "2",
            "--eval-data",
            str(media),
        ],
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert "no sample set here" in capsys.readouterr().err


def test_a_metric_that_the_evaluation_does_not_have_is_an_error_before_the_first_step(config, tmp_path):
    config = replace(config, best_metric="eval_accuracy")
    with pytest.raises(ConfigError, match="best_metric is 'eval_accuracy', expected one of"):
        train(config, tmp_path / "run", evaluate=evaluator([]))
    assert not rows(tmp_path / "run")


def test_metrics_of_other_names_choose_the_best_checkpoint_too(config, tmp_path):
    evaluate = evaluator([0.1, 0.4, 0.2, 0.3])
    evaluate.metrics = {"eval_segmentation": True, "eval_depth": False}
    train(replace(config, best_metric="eval_depth"), tmp_path / "run", evaluate=evaluate)
    assert read_best(tmp_path / "run")["metric"] == "eval_depth" and read_best(tmp_path / "run")["step"] == 2


@pytest.mark.slow
def test_the_suite_evaluates_the_teacher_of_a_run(sample_set, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "vit-pico", lambda: NARROW_PICO)
    out = tmp_path / "run"
    words = f"train {sample_set} --out {out} --model vit-pico --image-size 64 --frames 4 --steps 4 --batch-size 4"
    monkeypatch.setattr("sys.argv", ["tubelet", *words.split(), "--eval-every", "4", "--eval-data", str(sample_set)])
    cli.main()
    assert {"eval_segmentation", "eval_depth", "eval_camera_motion", "eval_tracking"} <= set(rows(out)[-1])
    during = rows(out)[-1]["eval_depth"]
    words = f"evaluate {out} --task suite --data {sample_set} --out {tmp_path / 'result'}"
    monkeypatch.setattr("sys.argv", ["tubelet", *words.split()])
    cli.main()
    metrics = json.loads((tmp_path / "result" / "result.json").read_text())["metrics"]
    (depth,) = (value for name, value in metrics.items() if name.startswith("depth"))
    assert depth == pytest.approx(during, rel=1e-6)
