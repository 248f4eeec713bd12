"""Heads fitted to labels: measured on files that they did not see, in one file, applied to the encoder they know."""

import csv
import json

import numpy as np
import pytest
import torch

import tubelet
from tests.helpers.commands import run_tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.video_files import encode
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.heads.head_file import get_network, load_head, network_names
from tubelet.heads.networks.temporal import average_cells
from tubelet.heads.training_files import file_id
from tubelet.labels.records import LabelError
from tubelet.pretrained.backbone import Backbone

SIZES = ModelConfig(
    width=48, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
CLIP = {"image_size": 16, "frames": 4, "fps": 8.0, "workers": 0}
QUICK = {**CLIP, "networks": ("linear",), "epochs": 40}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone(SIZES).eval().requires_grad_(False)


def write_colors(path, spans, rng, fps=8):
    """A video of noisy colors, each a (name or red-green-blue, seconds)."""
    cards = []
    for color, seconds in spans:
        base = np.array(COLORS.get(color, color))
        cards += [
            np.clip(base + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8) for _ in range(round(seconds * fps))
        ]
    return encode(path, cards=cards, fps=fps, bframes=0)


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def clips(tmp_path):
    """Eighteen videos of one color each, and a table of their colors."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(18):
        color = list(COLORS)[i % 3]
        write_colors(tmp_path / f"{i}.mp4", [(color, 1)], rng)
        rows.append({"path": f"{i}.mp4", "label": color, "split": "val" if i >= 12 else "train"})
    return write_table(tmp_path / "colors.csv", rows)


def scores(head, model="this head"):
    (own,) = (score for score in head.spec.scores if score.model == model)
    return {metric.name: metric for metric in own.metrics}


def test_a_head_of_classes_beats_its_baselines_and_survives_its_file(clips, model, tmp_path):
    out = tmp_path / "head.safetensors"
    head = tubelet.fit(clips, model, out=out, cache=tmp_path / "cache", **QUICK)
    assert head.spec.task == "classification" and head.spec.classes == ("blue", "green", "red")
    assert [score.model for score in head.spec.scores] == [
        "this head", "majority class", "k-NN on pixels", "motion energy", "random weights",
    ]  # fmt: skip
    top1 = scores(head)["top-1"]
    assert top1.value == 100 and top1.low < 100, "six files cannot show that every file is right"
    assert scores(head, "majority class")["top-1"].value < 50
    again = load_head(out)
    assert again.spec == head.spec
    assert file_id(tmp_path / "0.mp4") in again.training_files == head.training_files
    features = model.encode(tmp_path / "0.mp4", resize=16, frames=4, fps=8.0)
    assert torch.equal(again(features), head(features)) and again(features).shape == (1, 3)
    assert again.spec.classes[int(again(features).argmax())] == "red"


def check_evaluation(head, table, model, tmp_path, constant="majority class"):
    """On the table of a fit with a split, the files that are left are the held-out ones: all numbers are the same."""
    found = tubelet.evaluate_head(head, table, model=model, cache=tmp_path / "cache", workers=0)
    assert found.scores[0] == head.spec.scores[0]
    assert [each.model for each in found.scores] == ["this head", constant]
    assert found.counts["files"] == found.scores[0].metrics[0].files
    assert len(found.left_out) == found.counts["training files left out"] == len(head.training_files)


def test_a_head_is_measured_on_other_labels_and_not_on_its_training_files(clips, model, tmp_path):
    head = tubelet.fit(clips, model, cache=tmp_path / "cache", **QUICK)
    check_evaluation(head, clips, model, tmp_path)
    head.save(tmp_path / "head.safetensors")
    model.save_pretrained(tmp_path / "encoder")
    held_out = [{"path": f"{i}.mp4", "label": "red", "split": "val"} for i in (12, 13)]
    new = write_table(tmp_path / "new.csv", [*held_out, {"path": "0.mp4", "label": "red", "split": "val"}])

    def evaluate(*options, labels=new):
        common = ("--out", tmp_path / "result", "--cache", tmp_path / "cache", "--workers", 0)
        words = (tmp_path / "head.safetensors", "--labels", labels, "--encoder", tmp_path / "encoder", *common)
        return run_tubelet("evaluate", *words, *options)

    done = evaluate()
    assert done.returncode == 0, done.stderr
    assert "majority class" in done.stdout and "this head, in the fit" in done.stdout
    assert "rows: 2, files: 2, training files left out: 1" in done.stdout
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert result["metrics"]["top-1"] == 50 and result["details"]["left_out"] == [str(tmp_path / "0.mp4")]
    assert result["intervals"]["this model"]["top-1"] == [0, 100]
    assert "files: 3, training files among them: 1" in evaluate("--include-training-files").stdout
    for labels, options, message in (
        ([{"path": "12.mp4", "label": "rde"}], (), "has the class 'rde', which the head does not know"),
        ([{"path": "0.mp4", "label": "red"}], (), "the head was trained on all of its files"),
        ([{"path": "12.mp4", "speed": 1.0}], (), "label"),
        ([{"path": "12.mp4", "label": "red"}], ("--epochs", 2), "epochs is 2, but is not supported by --labels"),
        ([{"path": "12.mp4", "label": "red"}], ("--data", tmp_path), "next to --labels"),
    ):
        failed = evaluate(*options, labels=write_table(tmp_path / "other.csv", labels))
        assert failed.returncode and message in failed.stderr.replace("\n", " "), failed.stderr
    assert "found vit; pass a head" in run_tubelet("evaluate", "vit", "--labels", new).stderr
    with pytest.raises(ConfigError, match="is for depth; heads for classification, multilabel, regression, timeline"):
        tubelet.evaluate_head(tiny_head(tiny_encoder(), "depth", ("depth",), "depth_bins", {"bins": [1.0]}), new)


@pytest.mark.slow
def test_the_same_fit_gives_the_same_weights(clips, model, tmp_path):
    first, second = (tubelet.fit(clips, model, cache=tmp_path / f"cache{i}", **QUICK) for i in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert first.spec == second.spec


@pytest.mark.slow
def test_every_network_can_be_asked_for(clips, model, tmp_path):
    for network in ("linear", "mlp", "attentive", "knn"):
        head = tubelet.fit(clips, model, networks=(network,), cache=tmp_path / "cache", epochs=10, **CLIP)
        assert head.spec.network == network
        head.save(tmp_path / f"{network}.safetensors")
        again = load_head(tmp_path / f"{network}.safetensors")
        tokens = torch.randn(2, 2, 4, 48)
        assert torch.equal(again(tokens), head(tokens))
    with pytest.raises(ConfigError, match=r"network is 'linar', expected one of .*nearest: 'linear'"):
        tubelet.fit(clips, model, networks=("linar",), cache=tmp_path / "cache", **CLIP)
    with pytest.raises(
        ConfigError, match=r"temporal, which is for timeline, not for classification; .* attentive, knn, linear, mlp$"
    ):
        tubelet.fit(clips, tmp_path / "no model", networks=("temporal",), **CLIP)
    shown = run_tubelet("fit", "--help").stdout
    assert all(name in shown for name in network_names() if get_network(name).tasks[0] not in ("segmentation", "depth"))


def test_a_head_refuses_another_encoder_and_names_both(clips, model, tmp_path):
    head = tubelet.fit(clips, model, cache=tmp_path / "cache", **QUICK)
    torch.manual_seed(1)
    other = Backbone(SIZES).eval()
    with pytest.raises(ConfigError) as caught:
        head.check_encoder(other)
    assert model.model_id in str(caught.value) and other.model_id in str(caught.value)
    head.check_encoder(model)


def test_a_file_that_is_not_a_head_is_named(tmp_path, model):
    model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=r"model.safetensors: its format is .*, expected 'tubelet-head-1'"):
        load_head(tmp_path / "encoder" / "model.safetensors")


def test_values_are_learned_in_their_own_unit(tmp_path, model):
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        gray = 30 + 8 * i
        write_colors(tmp_path / f"{i}.mp4", [((gray, gray, gray), 1)], rng)
        rows.append(
            {"path": f"{i}.mp4", "lux": 1000 + 50 * gray, "ratio": gray / 255, "split": "val" if i % 3 else "train"}
        )
    head = tubelet.fit(write_table(tmp_path / "values.csv", rows), model, cache=tmp_path / "cache", **QUICK)
    assert head.spec.task == "regression" and head.spec.classes == ("lux", "ratio")
    assert next(iter(scores(head).values())).value > 0.8
    check_evaluation(head, tmp_path / "values.csv", model, tmp_path, "mean value")
    answer = head(model.encode(tmp_path / "4.mp4", resize=16, frames=4, fps=8.0))[0]
    assert abs(float(answer[0]) - (1000 + 50 * 62)) < 1500 and abs(float(answer[1]) - 62 / 255) < 0.15


def test_several_classes_at_once(tmp_path, model):
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        red, green = i % 2, i // 2 % 2
        write_colors(tmp_path / f"{i}.mp4", [((60 + 140 * red, 60 + 140 * green, 60), 1)], rng)
        label = "|".join(name for name, there in (("red", red), ("green", green)) if there)
        rows.append({"path": f"{i}.mp4", "label": label, "split": "val" if i >= 16 else "train"})
    head = tubelet.fit(write_table(tmp_path / "several.csv", rows), model, cache=tmp_path / "cache", **QUICK)
    assert head.spec.task == "multilabel" and len(head.spec.thresholds) == 2
    assert next(iter(scores(head).values())).value > 90
    check_evaluation(head, tmp_path / "several.csv", model, tmp_path)
    for i, message in ((3, "no label is left after 1 files"), (16, "column label: is empty in all rows")):
        unlabeled = [{"path": "16.mp4", "label": ""}, {"path": f"{i}.mp4", "label": "red" if i == 3 else ""}]
        with pytest.raises(DataError) as caught:
            tubelet.evaluate_head(head, write_table(tmp_path / "empty.csv", unlabeled), model=model, workers=0)
        assert message in str(caught.value)
    both = head(model.encode(tmp_path / "3.mp4", resize=16, frames=4, fps=8.0))[0]
    assert bool((both > torch.tensor(head.spec.thresholds)).all())


def timeline_table(tmp_path, videos=9, gap=False):
    rng, rows = np.random.default_rng(0), []
    names = list(COLORS)
    for i in range(videos):
        spans, at = [], 0.0
        for _ in range(6):
            color, seconds = names[int(rng.integers(3))], float(rng.integers(8, 24)) / 8
            spans.append((color, seconds))
            if not (gap and color == "blue"):
                rows.append(
                    {
                        "path": f"{i}.mp4",
                        "start_s": at,
                        "end_s": at + seconds,
                        "label": color,
                        "split": "val" if i >= 6 else "train",
                    }
                )
            at += seconds
        write_colors(tmp_path / f"{i}.mp4", spans, rng)
    return write_table(tmp_path / "timeline.csv", rows)


@pytest.mark.parametrize(("gap", "causal"), [(False, False), (True, True)], ids=["dense", "with gaps, causal"])
@pytest.mark.slow
def test_a_timeline_finds_spans_and_their_edges(tmp_path, model, gap, causal):
    head = tubelet.fit(
        timeline_table(tmp_path, gap=gap),
        model,
        task="timeline",
        learning_rates=(1e-2,),
        epochs=15,
        cache=tmp_path / "cache",
        causal=causal,
        **CLIP,
    )
    own, pixels = scores(head), scores(head, "majority class")
    name = next(name for name in own if "50" in name)
    assert own[name].value > 90 > pixels[name].value
    edge = next(metric for metric in own.values() if metric.unit == "s")
    assert edge.value <= 0.125, "half a time step of 0.25 s"
    check_evaluation(head, tmp_path / "timeline.csv", model, tmp_path)
    assert head.spec.input.causal == head.spec.options.get("causal", False) == causal
    if causal:
        assert tubelet.predict(head, tmp_path / "7.mp4", model=model, causal=True, workers=0).records
    assert len(head.spec.novelty_quantiles) == 101 and head.novelty is not None
    assert ("no label" in head.spec.classes) == gap and len(head.spec.spans) == len(head.spec.classes)


def test_a_setting_that_a_task_does_not_use_and_a_table_with_faults_are_refused(clips, model, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'learning_rate'.*nearest: 'learning_rates'"):
        tubelet.fit(clips, model, learning_rate=1e-3)
    wrong = write_table(tmp_path / "wrong.csv", [{"path": "gone.mp4", "label": "a"}, {"path": "0.mp4", "label": "b"}])
    with pytest.raises(LabelError, match=r"gone.mp4") as caught:
        tubelet.fit(wrong, model, cache=tmp_path / "none")
    assert caught.value.exit_code == 2 and len(caught.value.faults) >= 2 and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_few_files_are_held_out_in_turn(clips, model, tmp_path):
    text = clips.read_text().replace("train", "").replace("val", "").replace(",\r\n", "\r\n").replace(",split", "")
    clips.write_text(text)
    head = tubelet.fit(clips, model, cache=tmp_path / "cache", **QUICK)
    assert scores(head)["top-1"].value == 100 and scores(head)["top-1"].files == 18


def test_features_that_do_not_fit_in_memory_are_refused_before_they_are_read(clips, model, tmp_path, monkeypatch):
    monkeypatch.setattr("tubelet.fitting.features.MEMORY_FRACTION", 1e-9)
    with pytest.raises(DataError, match=r"features of 18 clips take 0.0 GB, above the .* GB that are free for them"):
        tubelet.fit(clips, model, cache=tmp_path / "cache", **QUICK)


def test_finer_cells_are_averaged():
    tokens = torch.arange(64.0).reshape(1, 1, 64, 1)
    averaged = average_cells(tokens, 4)
    assert averaged.shape == (1, 1, 16, 1)
    assert averaged[0, 0, 0, 0] == (0 + 1 + 8 + 9) / 4 and averaged[0, 0, 15, 0] == (54 + 55 + 62 + 63) / 4
    assert torch.equal(average_cells(tokens[:, :, :9], 4), tokens[:, :, :9])
