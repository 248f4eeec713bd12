"""Segmentation and depth from label tables to files of predictions, by the commands."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.commands import run_tubelet
from tests.helpers.pixel_labels import depth_image, segmentation_image, write_pixel_labels
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.pretrained.backbone import Backbone

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    Backbone(SIZES).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_labels_of_some_images_become_files_for_others(kind, model, tmp_path):
    write_pixel_labels(tmp_path / "data", kind, 12)
    (tmp_path / "new").mkdir()
    make = segmentation_image if kind == "mask" else depth_image
    for seed in (100, 101):
        Image.fromarray(make(seed, 48, 80)[0]).save(tmp_path / "new" / f"{seed}.png")
    fixed = ["--image-size", "48", "--workers", "0", "--epochs", "60", "--learning-rates", "0.1"]
    words = ["fit", "data/labels.csv", "--model", str(model), "--out", "head.safetensors", "--cache", "cache", *fixed]
    done = run_tubelet(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert ("task: segmentation" if kind == "mask" else "task: depth") in " ".join((done.stdout + done.stderr).split())
    assert ("mIoU" in shown) if kind == "mask" else ("RMSE" in shown)
    report = (tmp_path / "head.report.html").read_text()
    assert "by position" in report and "random weights" in report and "linear head on pixels" in report
    done = run_tubelet("predict", "head.safetensors", "new", "--out", "answers", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "answers" / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row, seed in zip(rows, (100, 101), strict=True):
        found = np.asarray(Image.open(tmp_path / "answers" / row[f"{kind}_file"]))
        truth = make(seed, 48, 80)[1]
        assert found.shape == truth.shape == (48, 80)
        if kind == "mask":
            assert (found == truth).mean() > 0.9
        else:
            assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.8
    page = (tmp_path / "answers" / "page.html").read_text()
    assert rows[0]["overlay_file"].split("/")[-1] in page
