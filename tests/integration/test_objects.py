"""Tracking and video object segmentation from the command line, on the sample set in each layout."""

import json
import shutil
import sys

import pytest
import torch

from tubelet import cli
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.pretrained.backbone import Backbone
from tubelet.sample_data.layouts import write_layout

SIZES = ModelConfig(
    width=24, depth=1, heads=2, levels=(0,), patch_size=8, predictor=PredictorConfig(width=16, depth=1, heads=2)
)


@pytest.fixture(scope="module")
def workplace(sample_set, tmp_path_factory):
    """A folder with an untrained encoder and the sample set in two layouts."""
    root = tmp_path_factory.mktemp("objects")
    torch.manual_seed(0)
    Backbone(SIZES).save_pretrained(root / "encoder")
    shutil.copytree(sample_set, root / "set")
    for name in ("davis", "youtube_vos"):
        write_layout(root / "set", name)
    return root


def tubelet(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tubelet", *map(str, words)])
    cli.main()


def evaluate(monkeypatch, root, task, data, *options):
    out = root / f"{task}-{data.name}"
    cache = root / "cache"
    words = ["evaluate", root / "encoder", "--task", task, "--data", data, "--out", out, "--cache", cache, *options]
    tubelet(monkeypatch, *words, "--workers", "0")
    return json.loads((out / "result.json").read_text()), (out / "page.html").read_text(), out


def test_points_are_tracked(monkeypatch, workplace):
    result, page, _ = evaluate(monkeypatch, workplace, "tracking", workplace / "set", "--frames", "4")
    assert result["counts"]["of them moved"] > 0
    first, chance = (result["metrics"][name] for name in ("moved points found within 1 patch", "the same by chance"))
    assert chance < first < 100
    assert result["details"]["shares"]["moved"]["no motion"]["1 patch"] == 0
    assert page.count("<figure>") >= 2 and "true (ring) and found (dot)" in page


def test_davis_is_segmented_and_another_evaluator_reads_the_masks(monkeypatch, workplace):
    from trackeval.datasets import DAVIS
    from trackeval.metrics import JAndF

    data = workplace / "set" / "layouts" / "davis"
    result, page, out = evaluate(monkeypatch, workplace, "vos", data)
    assert 0 < result["metrics"]["J&F"] < 100 and "truth, frame" in page
    # It wants folders of its own, and the frames that count alone.
    for source, target in ((data / "Annotations" / "480p", "gt"), (out / "predictions", "trackers/ours/data")):
        for sequence in source.iterdir():
            masks = sorted(sequence.iterdir())[1:-1]
            (out / target / sequence.name).mkdir(parents=True)
            for mask in masks:
                shutil.copy(mask, out / target / sequence.name)
    theirs = DAVIS({"GT_FOLDER": str(out / "gt"), "TRACKERS_FOLDER": str(out / "trackers"), "PRINT_CONFIG": False})
    for name, objects in result["details"]["sequences"].items():
        raw = theirs.get_raw_seq_data("ours", name)
        assert raw["num_timesteps"] == 6
        found = JAndF().eval_sequence(theirs.get_preprocessed_seq_data(raw, "general"))
        if len(objects) == 1 and raw["num_gt_ids"] == raw["num_tracker_ids"] == 1:
            assert found["J-Mean"] == pytest.approx(objects["1"]["J"]["mean"])
            assert found["F-Mean"] == pytest.approx(objects["1"]["F"]["mean"])


def test_youtube_vos_is_segmented_for_its_server_without_a_figure(monkeypatch, workplace):
    data = workplace / "set" / "layouts" / "youtube_vos"
    result, page, out = evaluate(monkeypatch, workplace, "vos", data, "--max-samples", "2")
    assert result["metrics"] == {} and "not public" in page and "higher is better" not in page
    meta = json.loads((data / "valid" / "meta.json").read_text())["videos"]
    names = sorted(folder.name for folder in (out / "predictions" / "Annotations").iterdir())
    assert len(names) == 2 == result["counts"]["sequences"]
    for name in names:
        expected = {frame for entry in meta[name]["objects"].values() for frame in entry["frames"]}
        assert {path.stem for path in (out / "predictions" / "Annotations" / name).iterdir()} == expected


def test_the_suite_is_the_default_task_and_takes_any_model(monkeypatch, workplace):
    out = workplace / "compared"
    words = ["evaluate", workplace / "encoder", "--data", workplace / "set", "--out", out]
    tubelet(monkeypatch, *words, "--frames", "4", "--image-size", "32", "--max-samples", "6")
    written = json.loads((out / "result.json").read_text())
    assert [name.split(",")[0] for name in written["metrics"]] == ["segmentation", "depth", "camera motion", "tracking"]
    assert list(written["baselines"]) == ["random weights", "raw patches"] and written["version"] == 2
    assert written["counts"]["train clips"] == 6
