"""Fits of segmentation and depth from label tables."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers.media import read_index, write_video
from tests.helpers.pixel_labels import CLASSES, write_pixel_labels
from tubelet.config import FitConfig, ModelConfig, PredictorConfig
from tubelet.datasets.annotations import IGNORED
from tubelet.errors import TubeletError
from tubelet.fitting.label_task import ROUNDS, FitContext, get_label_task
from tubelet.fitting.pixel_inputs import row_samples
from tubelet.fitting.tasks.segmentation import labeled_masks, measure, statistics
from tubelet.heads.head_file import HeadInput, load_head
from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common import pixel_features
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.dense_heads import _hold_out
from tubelet.tasks.metrics.dense import accuracy, mean_iou
from tubelet.tasks.segmentation import image_confusion

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    return Backbone(SIZES).requires_grad_(False).eval()


def fit(model, table, task, cache, *, levels=(-1,), splits=None, **settings):
    if splits is None:
        trained = np.array([row.split == "train" for row in table.rows])
        splits = [(np.flatnonzero(trained), np.flatnonzero(~trained))]
    context = FitContext(
        task=task,
        table=table,
        splits=splits,
        model=model,
        source="tiny",
        head_input=HeadInput(image_size=48, frames=1, fps=4, stride_s=0.5, levels=levels),
        config=FitConfig(workers=0, **({"epochs": 60} | settings)),
        cache=FeatureCache(cache, model),
        progress=lambda stage, done, total: None,
    )
    return get_label_task(task).fit(context)


def test_the_progress_names_the_round_and_the_fold():
    calls = []
    fields = dict.fromkeys(field.name for field in dataclasses.fields(FitContext))
    context = FitContext(**fields | {"splits": [0] * 5, "progress": lambda *call: calls.append(call)})
    context.in_round(ROUNDS[2] + " motion energy").in_fold(1).progress("training", 3, 150)
    dataclasses.replace(context, splits=[0]).in_fold(0).progress("training", 3, 150)
    assert calls == [
        ("training: part 3 of 4, baseline motion energy, fold 2 of 5", 3, 150),
        ("training", 3, 150),
    ]


def first_metrics(result):
    return {scores.model: scores.metrics[0].value for scores in result.spec.scores}


@pytest.mark.slow
def test_a_segmentation_of_colors_is_learned_and_measured_next_to_baselines(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "mask", 12)
    head, result = fit(model, table, "segmentation", tmp_path / "cache", levels=(0, -1))
    values = first_metrics(result)
    assert values["this head"] > 80 and values["majority class by position"] < 50
    assert set(values) == {"this head", "majority class by position", "linear head on pixels", "random weights"}
    assert [metric.name for metric in result.spec.scores[0].metrics] == ["mIoU", "pixel accuracy"]
    assert head.spec.classes == CLASSES and head.spec.width == 64 and head.spec.input.levels == (0, -1)
    assert head(torch.zeros(1, 2, 9, 64)).shape == (1, 2, 9, 3)
    assert all(set(images) == {"image", "truth", "answer", "wrong in red"} for images in result.figures.values())
    assert len(result.figures) == 3
    labels = [point.labels for point in result.curve]
    assert labels == sorted(labels) and labels[-1] == 9 and len(labels) > 1


@pytest.mark.slow
def test_depth_of_a_slope_is_learned_in_the_unit_of_the_table(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "depth", 12)
    head, result = fit(model, table, "depth", tmp_path / "cache", learning_rates=(1e-1,))
    values = first_metrics(result)
    assert values["this head"] < 0.5 * values["mean depth by position"]
    assert [metric.name for metric in result.spec.scores[0].metrics] == ["RMSE", "AbsRel", "δ1"]
    depth = head(torch.zeros(1, 1, 4, 32))
    assert depth.shape == (1, 1, 4, 1) and 500 < float(depth.mean()) < 5000
    head.save(tmp_path / "depth.safetensors")
    tokens = torch.ones(1, 1, 4, 32)
    assert torch.equal(load_head(tmp_path / "depth.safetensors")(tokens), head(tokens))


@pytest.mark.slow
def test_folds_measure_every_image_and_the_head_learns_from_all(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "mask", 6)
    rows = np.arange(6)
    splits = [(rows[rows % 2 != fold], rows[rows % 2 == fold]) for fold in (0, 1)]
    _, result = fit(model, table, "segmentation", tmp_path / "cache", splits=splits, epochs=2)
    assert result.counts["held-out images"] == 6 and result.counts["folds"] == 2
    assert "points of 5 images" in result.protocol and "cross-validation in 2 folds" in result.protocol
    assert result.spec.scores[0].metrics[0].files == 6


def test_the_metrics_are_those_of_evaluations(tmp_path):
    generator = np.random.default_rng(0)
    table = write_pixel_labels(tmp_path, "mask", 4)
    masks = labeled_masks(table, row_samples(table), [0])
    truth, predicted = generator.integers(0, 3, (2, 5, 8, 9)).astype(np.uint8)
    truth[0, :2] = IGNORED
    values = torch.stack([statistics(p, t, masks) for p, t in zip(predicted, truth, strict=True)])
    counts = sum(image_confusion(p, t, 3) for p, t in zip(predicted, truth, strict=True))
    found = measure(values, np.arange(5))
    assert [metric.value for metric in found] == pytest.approx([100 * mean_iou(counts), 100 * accuracy(counts)])
    assert statistics(predicted[0], np.full((8, 9), IGNORED, np.uint8), masks) is None


def test_a_frame_of_a_video_is_the_one_at_its_time(tmp_path):
    write_video(tmp_path / "a.mp4", frames=20, fps=10)
    row = LabelRow(line=2, path=tmp_path / "a.mp4", start_s=1.2, mask=tmp_path / "a.png")
    table = LabelTable(
        path=tmp_path / "labels.csv",
        format="CSV",
        digest="0",
        columns=("path", "start_s", "mask"),
        rows=[row],
        durations_s={row.path: 2.0},
    )
    (sample,) = row_samples(table)
    assert sample.name == "a.mp4 at 1.2 s" and read_index(sample.load_image()) == 12
    assert sample.image_shape() == sample.load_image().shape[:2]
    assert read_index(pixel_features.source_image(pixel_features.test_source(sample))) == 12
    with pytest.raises(LabelError, match=r"line 2: a.mp4 is a video, but the row has no start_s"):
        row_samples(dataclasses.replace(table, rows=[dataclasses.replace(row, start_s=None)]))


def test_whole_units_are_held_out_to_choose_by():
    units = [0] * 30 + [1] * 3 + [2] * 4 + [3] * 3
    for seed in range(5):
        fitted, choosing = _hold_out(40, seed, units)
        assert sorted(fitted + choosing) == list(range(40))
        assert not {units[image] for image in fitted} & {units[image] for image in choosing}
        assert 3 <= len(choosing) <= 8
    assert _hold_out(40, 0, [5] * 40) == _hold_out(40, 0)


def test_settings_without_a_meaning_are_refused(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "mask", 4)
    with pytest.raises(TubeletError, match="finetune is 'lora', but is not supported by segmentation"):
        fit(model, table, "segmentation", tmp_path / "cache", finetune="lora")
