import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from tubelet.checkpoint.run import save_checkpoint
from tubelet.config import EvaluateConfig, ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.clips import normalize, resize_center_crop
from tubelet.errors import TubeletError
from tubelet.grid import Grid
from tubelet.heads.regression import (
    L2_GRID,
    fit_ridge,
    fit_scaling,
    fit_softmax,
    second_moments,
    select_ridge,
    select_softmax,
)
from tubelet.model.encoder import random_encoder
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load
from tubelet.sample_data.truth import VOID
from tubelet.tasks.common.result import Metric, Result, print_result, read_result, read_suite_v1, write_result
from tubelet.tasks.common.sample_clips import RAW, count_classes, crop_nearest, frozen_features, mean_log_depth
from tubelet.tasks.common.task import run_task
from tubelet.tasks.metrics.dense import accuracy, confusion, explained_variance, iou_by_class, mean_iou, rmse
from tubelet.tasks.suite import evaluate_encoder
from tubelet.vjepa import VJEPA

TINY = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=16, depth=1, heads=2)
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def every_fifth(n: int) -> Tensor:
    return torch.arange(n) % 5 == 0


# Metrics


def test_iou_equals_values_worked_by_hand() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    counts = confusion(predicted, truth, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert iou_by_class(counts) == pytest.approx({0: 2 / 4, 1: 2 / 3, 2: 0.0})
    assert mean_iou(counts) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    assert accuracy(counts) == pytest.approx(4 / 6)


def test_a_class_that_never_occurs_counts_only_through_those_it_is_taken_for() -> None:
    counts = confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert iou_by_class(counts) == {0: 0.5}


def test_perfect_predictions_score_one() -> None:
    truth = torch.tensor([0, 2, 2, 1])
    counts = confusion(truth, truth, 5)
    assert (mean_iou(counts), accuracy(counts)) == (1.0, 1.0)
    depth = gaussian(9)
    assert (rmse(depth, depth), explained_variance(depth, depth)) == (0.0, 1.0)


def test_predicting_the_mean_explains_nothing_and_errs_by_the_spread() -> None:
    depth = gaussian(50)
    guess = depth.mean().expand(50)
    assert explained_variance(guess, depth) == pytest.approx(0, abs=1e-6)
    assert rmse(guess, depth) == pytest.approx(float(depth.std(correction=0)), rel=1e-5)


# Probes


def test_ridge_recovers_a_linear_map() -> None:
    x, weight = gaussian(400, 6), gaussian(6, seed=1)
    y = x @ weight + 2.5
    probe = select_ridge(x, y, every_fifth(400))
    assert probe.l2 == min(L2_GRID)
    torch.testing.assert_close(probe(x)[:, 0], y, atol=2e-3, rtol=0)


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_ridge_is_where_the_gradient_of_its_loss_vanishes(l2: float) -> None:
    x, y = gaussian(300, 8) + 0.3, gaussian(300, seed=1)
    probe = fit_ridge(second_moments(x, y), l2)
    residual = (probe(x)[:, 0] - y).double()
    gradient = x.double().T @ residual / 300 + l2 * probe.weight[:, 0].double()
    assert gradient.abs().max() < 1e-6
    assert abs(float(residual.mean())) < 1e-6


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    x, y = gaussian(100, 5), gaussian(100, seed=1)
    whole, parts = second_moments(x, y), second_moments(x[:30], y[:30]) + second_moments(x[30:], y[30:])
    torch.testing.assert_close(parts.xx, whole.xx, atol=1e-4, rtol=0)
    torch.testing.assert_close(fit_ridge(parts, 0.1).weight, fit_ridge(whole, 0.1).weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_softmax_regression_is_where_the_gradient_of_its_loss_vanishes(l2: float) -> None:
    # Channels from strongly to hardly varying and mixed: what plain L-BFGS would crawl through.
    x = gaussian(500, 12) @ (gaussian(12, 12, seed=1) * torch.logspace(0, -2, 12).unsqueeze(1))
    fit_scaling(x).apply_(x)
    y = (x[:, :3] + gaussian(500, 3, seed=2)).argmax(1)
    probe = fit_softmax(x, y, 3, l2)
    error = (probe(x).softmax(1) - F.one_hot(y, 3)) / 500
    assert (x.T @ error + l2 * probe.weight).abs().max() < 1e-4
    assert error.sum(0).abs().max() < 1e-4


def test_without_information_softmax_regression_gives_the_class_shares() -> None:
    y = torch.tensor([0] * 6 + [2] * 3 + [3])
    probe = fit_softmax(torch.zeros(10, 2), y, 4, 0.1)
    expected = torch.tensor([[0.6, 0.0, 0.3, 0.1]])
    torch.testing.assert_close(probe(torch.zeros(1, 2)).softmax(1), expected, atol=1e-4, rtol=0)


def test_softmax_probe_reads_classes_that_are_linear_in_the_features() -> None:
    x = gaussian(1000, 6)
    y = (x @ gaussian(6, 4, seed=1)).argmax(1)
    probe = select_softmax(x[:700], y[:700], 4, every_fifth(700))
    assert (probe(x[700:]).argmax(1) == y[700:]).float().mean() > 0.93


def test_permuted_labels_give_chance() -> None:
    x = gaussian(1500, 6)
    y = (x @ gaussian(6, 4, seed=1)).argmax(1)
    y = y[torch.randperm(1500, generator=torch.Generator().manual_seed(2))]
    probe = select_softmax(x[:1000], y[:1000], 4, every_fifth(1000))
    chance = float(torch.bincount(y[1000:]).max()) / 500
    assert float((probe(x[1000:]).argmax(1) == y[1000:]).float().mean()) < chance + 0.05
    ridge = select_ridge(x[:1000], y[:1000].float(), every_fifth(1000))
    assert abs(explained_variance(ridge(x[1000:])[:, 0], y[1000:])) < 0.05


def test_a_class_without_training_rows_is_never_predicted() -> None:
    x = gaussian(60, 3)
    probe = fit_softmax(x, (x[:, 0] > 0).long() * 2, 3, 0.01)
    assert 1 not in probe(gaussian(200, 3, seed=1)).argmax(1)


def test_scaling_leaves_mean_zero_and_deviation_one_and_constant_channels_zero() -> None:
    x = gaussian(200, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 1000.0, 7.0])
    scaled = fit_scaling(x).apply_(x.clone())
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)


# Features and targets


def test_raw_patch_features_are_the_normalized_pixels_of_their_tubelet() -> None:
    pixels = torch.arange(2 * 3 * 4 * 32 * 48).remainder(251).to(torch.uint8).view(2, 3, 4, 32, 48)
    clips = normalize(pixels)
    raw = frozen_features({}, clips, Grid(2, 2, 3))[RAW]
    assert raw.shape == (2, 12, 3 * 2 * 16 * 16)
    # Token 11 is the last in time, row and column.
    assert torch.equal(raw[1, 11], clips[1, :, 2:4, 16:32, 32:48].flatten())


def test_the_random_encoder_depends_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    first = random_encoder(TINY, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = random_encoder(TINY, 3).state_dict(), random_encoder(TINY, 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def test_class_counts_leave_out_void() -> None:
    labels = torch.full((1, 2, 4, 4), VOID, dtype=torch.uint8)
    labels[0, :, :2, :2] = 3
    labels[0, 1, 0, 0] = 2
    counts = count_classes(labels, Grid(1, 2, 2), 5)
    assert counts[0].tolist() == [[0, 0, 1, 7, 0]] + [[0] * 5] * 3


def test_log_depth_is_the_mean_over_known_pixels_and_nan_without_any() -> None:
    depth = torch.tensor([[1.0, math.nan, math.inf, math.nan], [math.e**2, 0.0, math.nan, math.inf]]).view(1, 1, 2, 4)
    target = mean_log_depth(depth, Grid(1, 1, 2))
    assert target[0, 0] == pytest.approx(1.0)
    assert target[0, 1].isnan()


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 8), (8, 16, 8), (12, 8, 4), (5, 7, 10)])
def test_truth_is_cut_as_the_frames_are(height: int, width: int, size: int) -> None:
    # Smooth ramps survive bilinear resizing: each cropped pixel tells where it came from.
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = np.stack([10 * y, 10 * x, 0 * x], -1)[None].astype(np.uint8)
    cropped = resize_center_crop(torch.from_numpy(frames), size)[:2, 0].float() / 10
    nearest = torch.stack([crop_nearest(axis[None], size)[0] for axis in (y, x)])
    assert nearest.shape == (2, size, size)
    assert (nearest - cropped).abs().max() <= max(1.0, min(height, width) / size / 2 + 0.5)


# The suite


NAMES = [
    "segmentation, mIoU",
    "depth, RMSE of log depth",
    "camera motion, accuracy",
    "tracking, share found within a patch, of points that moved more",
]
FORMAT_1 = Path(__file__).parents[1] / "data" / "format-1" / "evaluation"


def result() -> Result:
    column = {name: {"RMSE": Metric(value=x, higher_is_better=False)} for name, x in (("own", 0.5), ("random", 0.75))}
    return Result(
        task="suite",
        benchmark="sample set",
        data="data",
        model_id="m",
        protocol="p",
        metrics=column["own"],
        baselines={"random weights": column["random"], "raw patches": {}},
        counts={"val clips": 2},
        details={"step": 7},
    )


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out" / "result.json"
    write_result(result(), path)
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    assert read_result(path) == result()
    with pytest.raises(TubeletError, match=r"result\.json"):
        write_result(result(), path / "result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 3}))
    with pytest.raises(TubeletError, match=r"version 3 of result\.json, expected at most 2; update tubelet"):
        read_result(path)


def test_results_of_version_1_are_read() -> None:
    found = read_result(FORMAT_1 / "result.json")
    written = json.loads((FORMAT_1 / "result.json").read_text())
    assert {name: metric.value for name, metric in found.metrics.items()} == written["metrics"]
    assert found.metrics["RMSE"].unit == "m" and found.baselines == {} and found.counts == written["counts"]
    suite = read_suite_v1(FORMAT_1 / "evaluation.json")
    tasks = json.loads((FORMAT_1 / "evaluation.json").read_text())["tasks"]
    assert list(suite.metrics) == NAMES and list(suite.baselines) == ["random weights", "raw patches"]
    for name, task in zip(NAMES, tasks, strict=True):
        values = [metrics[name].value for metrics in suite.columns.values()]
        assert values == list(task["values"].values())
        assert suite.best(name) == (max if task["higher_is_better"] else min)(values)


def test_the_table_shows_every_value() -> None:
    console = Console(record=True, width=100)
    print_result(result(), console)
    text = console.export_text()
    assert "0.500" in text and "0.750" in text and "–" in text
    assert "RMSE ↓" in text


def test_a_folder_without_sample_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="tubelet sample-data"):
        evaluate_encoder(random_encoder(TINY, 0), tmp_path)


def test_more_frames_than_the_clips_have_are_refused(sample_set: Path) -> None:
    with pytest.raises(TubeletError, match="frames is 64"):
        evaluate_encoder(random_encoder(TINY, 0), sample_set, frames=64)


def test_the_same_seed_gives_identical_numbers_and_an_untrained_encoder_is_no_better_than_itself(
    sample_set: Path,
) -> None:
    encoder = random_encoder(TINY, 5)
    limits = {"seed": 5, "max_train_clips": 12, "max_val_clips": 4, "image_size": 32, "frames": 2}
    stages: dict[str, tuple[int, int]] = {}
    found = evaluate_encoder(
        encoder, sample_set, **limits, progress=lambda stage, done, total: stages.update({stage: (done, total)})
    )
    assert len(stages) == 4 and all(done == total > 0 for done, total in stages.values())
    assert found == evaluate_encoder(encoder, sample_set, **limits)
    assert found.counts == {"train clips": 12, "val clips": 4}
    assert found.metrics == found.baselines["random weights"]  # they are the same encoder, on the same path


def test_a_run_is_evaluated_from_its_newest_checkpoint(
    sample_set: Path, save_run: Callable[[Path], Path], tmp_path: Path
) -> None:
    run = save_run(sample_set)
    model = load(run, dtype=torch.float32)
    found = run_task("suite", model, sample_set, EvaluateConfig(seed=1), cache=tmp_path / "cache", source=str(run))
    assert found.details["step"] == 3 and found.details["depth"]["frames"] == 8
    assert list(found.columns) == ["this model", "random weights", "raw patches"]
    for metrics in found.columns.values():
        assert list(metrics) == NAMES
        assert [metric.higher_is_better for metric in metrics.values()] == [True, False, True, True]
        assert all(math.isfinite(metric.value) for metric in metrics.values())


def test_a_model_of_no_run_is_evaluated_at_the_size_of_the_settings(sample_set: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(image_size=32, frames=4, max_samples=4)
    found = run_task("suite", Backbone(TINY).eval(), sample_set, config, cache=tmp_path / "cache", source="encoder")
    assert found.details["step"] is None and found.counts == {"train clips": 4, "val clips": 4}
    assert found.details["tracking"]["image_size"] == 32 and found.details["tracking"]["frames in a window"] == 4


@pytest.mark.slow
def test_scores_without_anything_to_measure_are_left_out_and_the_others_continue(sample_set: Path) -> None:
    # A window as long as a clip, of one tubelet: there is no later time step.
    encoder = random_encoder(dataclasses.replace(TINY, tubelet_size=8), 0)
    found = evaluate_encoder(encoder, sample_set, image_size=32, max_train_clips=4, max_val_clips=2)
    assert [list(metrics) for metrics in found.columns.values()] == [NAMES[:2]] * 3


@pytest.fixture
def save_run(tmp_path: Path) -> Callable[[Path], Path]:
    """Writes a run folder with the checkpoint of an untrained model after "3 steps"."""

    def save(data: Path) -> Path:
        config = TrainConfig(model=TINY)
        # More frames than the clips have: as many as there are must be used.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=32, frames=64))
        model = VJEPA(TINY)
        save_checkpoint(tmp_path / "run", 3, model.state_dict(), config, keep=1)
        return tmp_path / "run"

    return save
