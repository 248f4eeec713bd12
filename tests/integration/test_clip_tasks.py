"""Classification, neighbors, linear heads and anticipation from the command line, on the sample set in each layout."""

import json
import shutil
import sys

import pytest

from tests.helpers.training import tiny_config, train_quietly
from tubelet.cli import main
from tubelet.sample_data.layouts import write_layout

LAYOUTS = ("ssv2", "kinetics", "diving48", "imagenet", "epic")


@pytest.fixture(scope="module")
def layouts(sample_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("clips") / "set"
    shutil.copytree(sample_set, root)
    for name in LAYOUTS:
        write_layout(root, name)
    return root / "layouts"


@pytest.fixture(scope="module")
def run(sample_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train_quietly(tiny_config(sample_set / "train", steps=1), folder)
    return folder


@pytest.fixture
def evaluate(run, tmp_path, monkeypatch):
    def call(task, data, *options, out="out"):
        arguments = ["evaluate", run, "--task", task, "--data", data, "--image-size", 32, "--cache", tmp_path / "cache"]
        arguments += ["--out", tmp_path / out, "--workers", 0, *options]
        monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, arguments)])
        main()
        page = (tmp_path / out / "page.html").read_text()
        assert "<h1>" in page
        return json.loads((tmp_path / out / "result.json").read_text())

    return call


QUICK = ("--epochs", 1, "--learning-rates", "1e-3", "1e-2", "--weight-decays", "0.1")


@pytest.mark.parametrize("layout", ["ssv2", "kinetics", "diving48", "imagenet"])
def test_attentive_probes_on_every_layout(layouts, evaluate, layout):
    frames = () if layout == "imagenet" else ("--frames", 4)
    result = evaluate("classification", layouts / layout, *QUICK, *frames)
    assert 0 <= result["metrics"]["top-1"] <= 100 and result["units"]["top-1"] == "%"
    assert [row["learning rate"] for row in result["details"]["sweep"]] == [1e-3, 1e-2]
    assert result["details"]["best"] in result["details"]["sweep"]
    classes = result["details"]["confusion, truth by prediction"]
    assert sum(map(sum, classes["files"])) == result["counts"]["test files"] > 0
    assert result["examples"] and result["skipped"] == []


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_quick_looks_on_clips_and_images(layouts, evaluate, task):
    for layout in ("kinetics", "imagenet"):
        options = () if layout == "imagenet" else ("--frames", 4)
        result = evaluate(task, layouts / layout, *options, *(QUICK if task == "linear" else ()), out=layout)
        assert 0 <= result["metrics"]["mean per class"] <= 100
        assert result["counts"]["channels"] == 24
        for model, metrics in (("this model", result["metrics"]), *result["baselines"].items()):
            ends = result["intervals"][model]
            assert ends.keys() == metrics.keys()
            assert all(0 <= low <= metrics[name] <= high <= 100 for name, (low, high) in ends.items())
        assert list(result["baselines"]) == ["majority class"]
        present = len(result["details"]["accuracy by class"])
        assert result["baselines"]["majority class"]["mean per class"] in (0, pytest.approx(100 / present))


def test_anticipation(layouts, evaluate):
    result = evaluate("anticipation", layouts / "epic", *QUICK, "--frames", 4)
    assert list(result["metrics"])[:3] == ["action recall@5", "verb recall@5", "noun recall@5"]
    assert result["counts"]["verbs"] == 7 and result["counts"]["validation actions"] > 0


def test_a_second_evaluation_takes_features_and_heads_from_the_disk_and_has_the_same_results(
    layouts, evaluate, tmp_path
):
    first = evaluate("classification", layouts / "kinetics", *QUICK, "--frames", 4)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*t*") if path.suffix != ".sqlite"}
    again = evaluate("classification", layouts / "kinetics", *QUICK, "--frames", 4)
    assert again == first and times
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_frames_are_refused_where_there_are_images(layouts, evaluate, capsys):
    with pytest.raises(SystemExit):
        evaluate("classification", layouts / "imagenet", *QUICK, "--frames", 4)
    assert "frames is 4, but is not supported by ImageNet" in capsys.readouterr().err


def test_a_folder_in_no_layout_is_an_error_with_the_expected_layouts_and_the_contents(evaluate, tmp_path, capsys):
    (tmp_path / "data" / "clips").mkdir(parents=True)
    for task, expected in (("classification", "Diving-48"), ("knn", "Kinetics"), ("anticipation", "EPIC-KITCHENS-100")):
        with pytest.raises(SystemExit):
            evaluate(task, tmp_path / "data")
        error = capsys.readouterr().err
        assert expected in error and "the directory holds clips/" in error and error.count("\n") == 1


def test_missing_and_damaged_videos_are_left_out_and_listed_where_that_is_allowed(layouts, evaluate, tmp_path, capsys):
    import shutil

    data = tmp_path / "damaged"
    shutil.copytree(layouts / "kinetics", data)
    videos = sorted((data / "train").rglob("*.mp4"))
    videos[0].unlink()
    videos[1].write_bytes(b"nothing")
    with pytest.raises(SystemExit):
        evaluate("knn", data, "--frames", 4)
    assert videos[0].name in capsys.readouterr().err
    result = evaluate("knn", data, "--frames", 4, "--max-failed-fraction", 0.2)
    assert sorted(entry["path"] for entry in result["skipped"]) == sorted(map(str, videos[:2]))
    assert result["counts"]["training files"] == len(videos) - 2
