"""Fits of segmentation and depth from label tables."""

import numpy as np
import pytest
import torch

from tests.helpers.pixel_labels import CLASSES, segmentation_image, write_pixel_labels
from tubelet.config import FitConfig, ModelConfig, PredictorConfig
from tubelet.errors import TubeletError
from tubelet.fitting.label_task import FitContext, get_label_task
from tubelet.fitting.pixel_fit import row_samples
from tubelet.heads.head_file import HeadInput, load_head
from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    return Backbone(SIZES).requires_grad_(False).eval()


def fit(model, table, task, cache, *, levels=(-1,), splits=None, **settings):
    if splits is None:
        train = [i for i, row in enumerate(table.rows) if row.split == "train"]
        splits = [(train, [i for i in range(len(table.rows)) if i not in train])]
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


def first_metrics(result):
    return {scores.model: scores.metrics[0].value for scores in result.spec.scores}


def test_a_segmentation_of_colors_is_learned_and_measured_next_to_baselines(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "mask", 24)
    head, result = fit(model, table, "segmentation", tmp_path / "cache", levels=(0, -1))
    values = first_metrics(result)
    print(result.spec.scores, result.protocol, result.counts, result.curve)
    assert values["this head"] > 80 and values["majority class by position"] < 50
    assert set(values) == {"this head", "majority class by position", "linear head on pixels", "random weights"}
    assert [metric.name for metric in result.spec.scores[0].metrics] == ["mIoU", "pixel accuracy"]
    assert head.spec.classes == CLASSES and head.spec.width == 64 and head.spec.input.levels == (0, -1)
    assert head(torch.zeros(1, 2, 9, 64)).shape == (1, 2, 9, 3)
    assert all(set(images) == {"image", "truth", "answer", "wrong in red"} for images in result.figures.values())
    assert len(result.figures) == 6
    labels = [point.labels for point in result.curve]
    assert labels == sorted(labels) and labels[-1] == 18


def test_depth_of_a_slope_is_learned_in_the_unit_of_the_table(model, tmp_path):
    table = write_pixel_labels(tmp_path / "data", "depth", 24)
    head, result = fit(model, table, "depth", tmp_path / "cache")
    values = first_metrics(result)
    print(result.spec.scores, result.curve)
    assert values["this head"] < 0.5 * values["mean depth by position"]
    assert [metric.name for metric in result.spec.scores[0].metrics] == ["RMSE", "AbsRel", "δ1"]
    depth = head(torch.zeros(1, 1, 4, 32))
    assert depth.shape == (1, 1, 4, 1) and 500 < float(depth.mean()) < 5000
    head.save(tmp_path / "depth.safetensors")
    assert torch.equal(
        load_head(tmp_path / "depth.safetensors")(torch.ones(1, 1, 4, 32)), head(torch.ones(1, 1, 4, 32))
    )
