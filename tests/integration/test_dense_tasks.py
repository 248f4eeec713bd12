"""Segmentation and depth from one command, on the sample set in every layout."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet import cli
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.errors import TubeletError
from tubelet.io.hidden_files import without_hidden
from tubelet.pretrained.backbone import Backbone
from tubelet.sample_data.layouts import LAYOUTS, check_layouts, write_layout

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CASES = [
    ("segmentation", "ade20k", 150),
    ("segmentation", "voc2012", 21),
    ("segmentation", "cityscapes", 19),
    ("segmentation", None, 13),
    ("depth", "nyuv2", 0),
    ("depth", "kitti", 0),
    ("depth", None, 0),
]


@pytest.fixture(scope="module")
def layouts(sample_set, tmp_path_factory):
    """The sample set with its images in the layouts of dense benchmarks."""
    root = tmp_path_factory.mktemp("layouts") / "set"
    shutil.copytree(sample_set, root)
    for name in sorted({name for _, name, _ in CASES if name}):
        assert write_layout(root, name)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    Backbone(SIZES).save_pretrained(folder)
    return folder


def evaluate(monkeypatch, model, data, task, out, *more):
    words = ["tubelet", "evaluate", str(model), "--data", str(data), "--task", task, "--out", str(out)]
    fixed = ["--cache", str(model.parent / "cache"), "--image-size", "32", "--epochs", "2", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [*words, *fixed, *more])
    cli.main()
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize(("task", "layout", "classes"), CASES)
def test_a_task_runs_on_a_layout_and_shows_its_worst_images(
    task, layout, classes, layouts, model, tmp_path, monkeypatch
):
    data = layouts / "layouts" / layout if layout else layouts
    result = evaluate(monkeypatch, model, data, task, tmp_path)
    assert result["task"] == task and result["counts"]["test images"] >= 5
    assert result["counts"]["training images"] + result["counts"]["held-out images"] == 24
    scores = [example["score"] for example in result["examples"]]
    assert scores == sorted(scores, reverse=task == "depth") and scores
    if task == "segmentation":
        assert 0 <= result["metrics"]["mIoU"] <= 100 and len(result["details"]["IoU by class"]) <= classes
        shares = result["details"]["share of the test split's pixels"]
        assert sum(shares.values()) == pytest.approx(1)
    else:
        assert 0 < result["metrics"]["RMSE"] < 60 and 0 <= result["metrics"]["δ1"] <= 1
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="example"') == len(scores) and "DINOv3" in page


def test_the_requested_learning_rates_are_trained(layouts, model, tmp_path, monkeypatch):
    asked = ["--learning-rates", "0.5", "0.02", "--weight-decays", "0.1"]
    result = evaluate(monkeypatch, model, layouts, "segmentation", tmp_path, *asked)
    assert set(result["details"]["learning rates"]["cross-entropy on held-out images"]) == {"0.5", "0.02"}


@pytest.mark.slow
def test_a_baseline_has_its_own_column_and_the_same_model_has_the_same_metrics(
    layouts, model, tmp_path, monkeypatch, capsys
):
    alone = evaluate(monkeypatch, model, layouts, "segmentation", tmp_path / "alone")
    same = evaluate(monkeypatch, model, layouts, "segmentation", tmp_path / "same", "--baseline", str(model))
    assert alone["baselines"] == {}
    assert same["baselines"] == {same["model_id"]: alone["metrics"]} and same["metrics"] == alone["metrics"]
    capsys.readouterr()
    # The fixture's own weights are those that seed 0 gives.
    chance = evaluate(
        monkeypatch, model, layouts, "segmentation", tmp_path / "c", "--baseline", "random", "--seed", "1"
    )
    (other,) = chance["baselines"].values()
    assert other.keys() == chance["metrics"].keys() and other != chance["metrics"]
    shown = f"{other['mIoU']:.1f} %"
    page = (tmp_path / "c" / "page.html").read_text()
    assert "random weights" in page and f"<td>{shown}</td>" in page
    assert {"this model", "random weights", shown} <= {
        cell.strip() for cell in re.split("[│┃\n]", capsys.readouterr().out)
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["--baseline", "no/such/model"], "no/such/model"),
        (["--weight-decays", "0.1", "0.2"], "linear heads on dense features share one weight decay"),
        (["--frames", "4"], "frames is 4, but is not supported by depth; remove it"),
    ],
)
def test_settings_that_a_task_has_no_use_for_are_refused(
    settings, reason, layouts, model, tmp_path, monkeypatch, capsys
):
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, model, layouts, "depth", tmp_path, *settings)
    assert reason in capsys.readouterr().err


def test_where_results_cannot_be_put_is_reported_before_anything_is_done(layouts, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, model.parent / "no model", layouts, "depth", tmp_path / "file" / "out")
    assert "cannot write results to " in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_evaluation_computes_no_features_and_comes_to_the_same(layouts, model, tmp_path, monkeypatch):
    data = layouts / "layouts" / "voc2012"
    first = evaluate(monkeypatch, model, data, "segmentation", tmp_path / "a")

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(Backbone, "forward_features", never)
    assert evaluate(monkeypatch, model, data, "segmentation", tmp_path / "b") == first


def test_a_quick_look_takes_as_many_of_each_split(layouts, model, tmp_path, monkeypatch):
    result = evaluate(monkeypatch, model, layouts, "depth", tmp_path, "--max-samples", "4")
    assert result["counts"] == {"training images": 3, "held-out images": 1, "test images": 4}


@pytest.mark.slow
def test_a_damaged_image_ends_it_or_is_left_out_and_counted(layouts, model, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    shutil.copytree(layouts / "layouts" / "ade20k", data)
    bad = sorted((data / "ADEChallengeData2016/images/validation").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, model, data, "segmentation", tmp_path / "out")
    assert f"error: {bad}: corrupt or truncated" in capsys.readouterr().err
    result = evaluate(monkeypatch, model, data, "segmentation", tmp_path / "out", "--max-failed-fraction", "0.5")
    assert [file["path"] for file in result["skipped"]] == [str(bad)]


def test_the_first_image_of_the_test_split_may_be_the_damaged_one(layouts, model, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(layouts / "layouts" / "nyuv2", data)
    bad = sorted((data / "nyu_depth_v2/official_splits/test").glob("*/*.jpg"))[0]
    bad.write_bytes(b"nothing")
    result = evaluate(monkeypatch, model, data, "depth", tmp_path / "out", "--max-failed-fraction", "0.5")
    assert [file["path"] for file in result["skipped"]] == [str(bad)]


def test_an_annotation_of_the_test_split_that_is_wrong_is_named(layouts, model, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    shutil.copytree(layouts / "layouts" / "cityscapes", data)
    bad = sorted((data / "gtFine/val").glob("*/*.png"))[0]
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(bad)
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, model, data, "segmentation", tmp_path / "out")
    assert f"{bad}: label 77, expected labels 0-33, 255" in capsys.readouterr().err


def test_layouts_are_deterministic_written_once_and_known_by_name(layouts, sample_set, tmp_path):
    again = tmp_path / "set"
    shutil.copytree(sample_set, again, ignore=shutil.ignore_patterns("layouts"))
    write_layout(again, "nyuv2")
    files = [path for path in without_hidden((again / "layouts").rglob("*")) if path.is_file()]
    assert len(files) == 2 * 30 + 2
    for path in files:
        assert path.read_bytes() == (layouts / path.relative_to(again)).read_bytes()
    assert write_layout(again, "nyuv2") == {}
    assert check_layouts(("all",)) == sorted(LAYOUTS) and check_layouts(("kitti", "kitti")) == ["kitti"]
    with pytest.raises(TubeletError, match=r"unknown layout 'nyu'; expected all or one of .*nyuv2"):
        check_layouts(("nyu",))


def test_a_test_split_of_one_class_is_no_test(layouts, model, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    shutil.copytree(layouts / "layouts" / "ade20k", data)
    for path in data.rglob("annotations/validation/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 3).astype(np.uint8)).save(path)
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, model, data, "segmentation", tmp_path / "out")
    assert "are of one class, which makes every metric meaningless" in capsys.readouterr().err
