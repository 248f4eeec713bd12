import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tubelet import cli
from tubelet.config import DataConfig, EmbedConfig, ModelConfig, TrainConfig, from_dict, model_preset, to_dict, vit_s
from tubelet.errors import TubeletError

DATA = Path(__file__).parents[1] / "data"


def test_a_config_survives_json():
    config = TrainConfig(model=vit_s(), data=DataConfig(sources=("a", "b")), steps=7)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_config_of_version_1_is_read_under_the_names_of_today():
    values = json.loads((DATA / "format-1" / "config.json").read_text())
    config = from_dict(TrainConfig, values)
    assert "version" not in values and values["accumulate"] == config.grad_accum_steps == 2
    assert (config.distill_from, config.distill_weights) == ("runs/base", "teacher-0123456789ab")
    assert (config.data.allow_path, config.data.source_weights) == (("s3://bucket",), (0.25, 0.75))
    assert (config.data.image_fraction, config.data.max_failed_fraction) == (0.25, 0.5)
    assert (config.masks.truncation_group_size, config.optim.warmup_fraction) == (12, 0.125)
    assert config.guards.rewind_skip_batches == 40
    written = json.loads(json.dumps(to_dict(config)))
    assert written["version"] == TrainConfig.FORMAT_VERSION and from_dict(TrainConfig, written) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "config: version is 3, expected 1 to 2; upgrade tubelet to read it"),
        ({"version": 2, "distil_from": "x"}, "unknown key 'distil_from' \\(nearest: 'distill_from'\\)"),
    ],
)
def test_a_later_version_and_old_names_in_a_current_file_are_refused(change, message):
    with pytest.raises(TubeletError, match=message):
        from_dict(TrainConfig, to_dict(TrainConfig()) | change)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_what_an_option_takes_and_none_only_as_its_default(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tubelet", command, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    stdout = capsys.readouterr().out
    assert "--help" in stdout and "{None" not in stdout


def test_help_does_not_import_what_is_slow_to_import():
    script = "import sys; sys.argv = ['tubelet', '--help']; from tubelet.cli import main; main()"
    slow = {"torch", "fsspec", "pyarrow"}
    script = f"import sys\ntry:\n    exec({script!r})\nfinally:\n    assert not {slow} & {{*sys.modules}}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and all(f"\n  {name} " in result.stdout for name in cli.COMMANDS), result


@pytest.mark.parametrize(
    ("words", "message"), [("trian", "trian: unknown command (nearest: 'train')"), ("\x1b[2J", "\\x1b[2J: unknown")]
)
def test_an_unknown_command_is_refused_with_the_nearest_known_one(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tubelet", words])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert message in capsys.readouterr().err


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    values = to_dict(TrainConfig())
    values["data"]["imagesize"] = 3
    with pytest.raises(TubeletError, match=r"config: unknown key 'data.imagesize' \(nearest: 'data.image_size'\)"):
        from_dict(TrainConfig, values)


def test_an_unknown_model_is_refused_with_the_nearest_known_one():
    with pytest.raises(TubeletError, match="nearest: 'vit-ti'"):
        model_preset("vit-tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 30}, "multiple of 2 x heads"),
        ({"levels": (3, 2)}, "ascending block numbers in 0..11"),
        ({"levels": (2, 12)}, "ascending block numbers in 0..11"),
        ({"output_levels": 5}, "expected 1..4"),
        ({"heads": 0}, "heads is 0, expected 1"),
        ({"patch_size": 0}, "patch_size is 0"),
    ],
)
def test_sizes_that_do_not_fit_name_what_was_expected(change, words):
    with pytest.raises(TubeletError, match=words.replace(".", r"\.")):
        dataclasses.replace(vit_s(), **change)


@pytest.mark.parametrize("kind", [DataConfig, EmbedConfig])
def test_rates_that_are_no_numbers_are_refused(kind):
    for fps in (float("inf"), float("nan"), 0, -1):
        with pytest.raises(
            TubeletError,
            match=rf"fps is {fps}.*, expected (a finite number|above 0 and at most 1000 frames per second)",
        ):
            kind(fps=fps)
    with pytest.raises(TubeletError, match="stride_s is inf"):
        EmbedConfig(stride_s=float("inf"))


@pytest.mark.parametrize(
    "change", [{"crop_scale": (1.0, 0.3)}, {"crop_scale": (0.0, 1.0)}, {"crop_aspect": (2.0, 1.0)}]
)
def test_ranges_of_the_crop_ascend(change):
    (name,) = change
    with pytest.raises(TubeletError, match=f"{name} is .*, expected two ascending"):
        DataConfig(**change)


def test_the_notes_example_has_1568_tokens():
    assert ModelConfig(width=768, depth=12, heads=12, levels=(11,)).grid(16, 224, 224).tokens == 1568


def test_sources_are_a_tuple_and_may_be_paths():
    assert DataConfig(sources=(Path("videos"), "more")).sources == ("videos", "more")
    with pytest.raises(TubeletError, match=r"sources is 'videos', expected a tuple: \('videos',\)"):
        DataConfig(sources="videos")
