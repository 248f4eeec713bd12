"""The experiment of benchmarks/recipe.py at its toy size."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks import recipe
from benchmarks.measure import log_to_file
from benchmarks.recipe import SIZES, VARIANTS, Run, main, trained_teacher
from benchmarks.recipe_table import Row, verdicts
from benchmarks.recipe_tasks import MEASURES
from tests.helpers.training import NARROW_PICO, processes, rows
from tubelet.checkpoint.run import load_vjepa
from tubelet.errors import TubeletError
from tubelet.model.encoder import random_encoder
from tubelet.train.initialization import init_model

TRAINED_VARIANTS = [name for name, variant in VARIANTS.items() if variant.trained]


@pytest.mark.slow
def test_two_variants_end_to_end_then_nothing_is_done_twice_and_other_settings_are_refused(
    sample_set, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(recipe, "get_context", lambda method: processes)  # forks what has imported PyTorch
    monkeypatch.setitem(SIZES, "toy", replace(SIZES["toy"], model=NARROW_PICO))
    arguments = {"out": tmp_path, "data": sample_set, "size": "toy", "variants": ("a", "e"), "seeds": (0,), "jobs": 2}
    main(**arguments)
    table = capsys.readouterr().out
    assert "(a) random weights" in table
    assert "(e) d + images, image tokenizer = 2.1" in table
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["variants"]] == ["a", "e"]
    for row in results["variants"]:
        assert set(row["mean"]) == set(MEASURES)
        assert set(row["spread"].values()) == {None}  # of one seed there is none
    assert results["variants"][1]["training"]["GFLOP/step"][0] > 0
    assert [row["step"] for row in rows(tmp_path / "e-seed-0")] == [1, 2]
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="chart"') == 4
    assert page.count('class="seed"') == 2 * len(MEASURES)

    monkeypatch.setattr(recipe, "run_variant", None)  # nothing may be started again
    main(**arguments)
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    with pytest.raises(TubeletError, match=r"started with other settings .*steps: 2 -> 3"):
        main(**arguments, steps=3)


@pytest.mark.parametrize("name", TRAINED_VARIANTS)
def test_a_variant_trains_and_differs_from_the_whole_recipe_as_described(name, sample_set, tmp_path):
    run = Run(name, 0, 2, SIZES["toy"], sample_set, tmp_path)
    with log_to_file(tmp_path / "log.txt"):
        trained_teacher(run, False, Console(quiet=True))
    log = (tmp_path / "log.txt").read_text()
    first, last = rows(tmp_path)
    assert ("2 videos\n" in log) == (name in "bcd")
    assert ("1 videos and 1 images" in log) == (name in "efg")
    model = load_vjepa(tmp_path)[0]
    assert model.config.num_output_levels == (1 if name in "bc" else 4)
    assert model.distance_weighting == (name != "f")
    assert first["context_weight"] == (0.5 if name == "g" else 0)
    assert last["context_weight"] == (0 if name == "b" else 0.5)
    assert (last["loss"] == last["prediction_loss"]) == (name == "b")


def test_the_random_variant_is_what_the_student_starts_from(sample_set, tmp_path):
    for name in TRAINED_VARIANTS:
        config = Run(name, 3, 2, SIZES["toy"], sample_set, tmp_path).config()
        torch.manual_seed(config.seed)
        student = init_model(config, resumed=False)[0].student.state_dict()
        for key, weight in random_encoder(config.model, 3).state_dict().items():
            assert torch.equal(weight, student[key]), (name, key)


def test_only_trained_runs_can_be_evaluated_again(sample_set, tmp_path):
    run = Run("e", 0, 2, SIZES["toy"], sample_set, tmp_path)
    with pytest.raises(TubeletError, match="not trained to step 2; leave --evaluate-only out"):
        trained_teacher(run, True, Console())


def test_a_gain_counts_when_it_is_larger_than_the_larger_spread():
    def row(name, segmentation, rmse):
        scores = {label: [0.0, 0.0] for label in MEASURES}
        scores |= {"segmentation mIoU": segmentation, "depth RMSE (log)": rmse}
        return Row(name, "", [0, 1], scores, {})

    by_measure = {
        v["measure"]: v for v in verdicts([row("b", [1.0, 1.0], [0.5, 0.7]), row("e", [1.5, 2.5], [0.6, 0.5])])
    }
    assert by_measure["segmentation mIoU"]["gain"] == 1.0
    assert by_measure["segmentation mIoU"]["spread"] == pytest.approx(0.5**0.5)
    assert by_measure["segmentation mIoU"]["verdict"] == "better"
    assert by_measure["depth RMSE (log)"]["gain"] == pytest.approx(0.05)  # lower is better
    assert by_measure["depth RMSE (log)"]["verdict"] == "within the spread"
    assert verdicts([row("b", [1.0, 1.0], [1.0, 1.0])]) == []
