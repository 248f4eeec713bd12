"""`--config FILE`: options from YAML and JSON, checked as strictly as flags, which win over them."""

import dataclasses
import json
from pathlib import Path

import pytest

from tubelet.cli import COMMANDS
from tubelet.cli.command import parse
from tubelet.config import DataConfig, OptimConfig, TrainConfig, from_dict, to_dict, vit_pico
from tubelet.errors import TubeletError

RUN = TrainConfig(
    model=vit_pico(),
    data=DataConfig(sources=("videos", "images"), source_weights=(0.25, 0.75), image_size=64),
    optim=OptimConfig(lr=1e-3),
    steps=7,
)


def command(name, *words):
    return parse(COMMANDS[name], name, list(map(str, words)))


def write(folder, text, name="run.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_the_config_of_a_run_gives_the_same_run(tmp_path):
    path = write(tmp_path, json.dumps(to_dict(RUN)), "config.json")
    again = command("train", "--config", path, "--out", "again")
    assert again.settings == RUN and again.out == Path("again") and again._model() == vit_pico()


def test_a_config_of_version_1_gives_the_same_run():
    path = Path(__file__).parents[1] / "data" / "format-1" / "config.json"
    assert command("train", "--config", path).settings == from_dict(TrainConfig, json.loads(path.read_text()))


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(
        tmp_path,
        "model: vit-pico\nout: here\nsteps: 9\ndata:\n  image_size: 64\n  frames: 8\noptim: {lr: 1e-4}\n",
    )
    made = command("train", "videos", "--config", path, "--steps", "5", "--frames", "4")
    assert (made.settings.steps, made.settings.data.frames, made.settings.data.image_size) == (5, 4, 64)
    assert (made.settings.optim.lr, made.settings.data.sources) == (1e-4, ("videos",))
    assert (made.out, made.model, made.settings.batch_size) == (Path("here"), "vit-pico", TrainConfig().batch_size)


def test_a_file_may_name_the_run_that_is_resumed_and_change_its_settings(tmp_path):
    write(tmp_path, json.dumps(to_dict(RUN)), "config.json")
    path = write(tmp_path, f"out: {tmp_path}\nresume: true\nsteps: 12\n")
    made = command("train", "--config", path)
    assert made.resume and made.settings == dataclasses.replace(RUN, steps=12) and made._model() == vit_pico()


def test_home_directories_are_written_out_in_files_and_in_options(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, json.dumps(to_dict(RUN)), "config.json")
    path = write(tmp_path, "out: ~/\nresume: true\n")
    assert command("train", "--config", path).settings == RUN  # read from the run in the home directory
    text = "data: {sources: [~/a, s3://b/~]}\nout: ~/run\ninit_from: ~/old\neval_data: ~/set\n"
    words = ["~/a", "s3://b/~", "--out=~/run", "--init-from=~/old", "--eval-data=~/set", "--model=vit-pico"]
    for made in (command("train", "--config", write(tmp_path, text)), command("train", *words)):
        assert (made.settings.init_from, made.settings.eval_data) == (f"{tmp_path}/old", f"{tmp_path}/set")
        assert (made.settings.data.sources, made.out) == ((f"{tmp_path}/a", "s3://b/~"), tmp_path / "run")
    made = command("embed", "--config", write(tmp_path, "sources: [~/a]\nout: ~/t\nmodel: ~/run\nallow_path: [~/b]"))
    assert (made.sources, made.out, made.model) == ((f"{tmp_path}/a",), tmp_path / "t", f"{tmp_path}/run")
    assert made.settings.allow_path == (f"{tmp_path}/b",)
    made = command("evaluate", "--config", write(tmp_path, "model: ~/run\ndata: ~/set\nbaseline: ~/b\ncache: ~/c\n"))
    assert (made.model, made.baseline) == (f"{tmp_path}/run", f"{tmp_path}/b")
    assert (made.data, made.cache) == (tmp_path / "set", tmp_path / "c")


def test_flags_complete_what_the_file_only_could_not_mean(tmp_path):
    path = write(tmp_path, "data:\n  source_weights: [0.25, 0.75]\n")
    assert command("train", "a", "b", "--config", path).settings.data.source_weights == (0.25, 0.75)
    with pytest.raises(TubeletError, match=rf"--source-weights has 2 numbers for 1 sources.*and {path}"):
        command("train", "a", "--config", path)


def test_commands_that_train_or_evaluate_take_options_from_a_file(tmp_path):
    path = write(tmp_path, "model: run\ndata: set\ntask: knn\nmax_samples: 3\nlearning_rates: [1e-3, 0.01]\n")
    made = command("evaluate", "--config", path)
    assert (made.model, made.data, made.task, made.settings.max_samples) == ("run", Path("set"), "knn", 3)
    assert made.settings.learning_rates == (1e-3, 0.01)
    path = write(tmp_path, "sources: [a]\nout: table\nmodel: run\nstride_s: 2\n")
    assert command("embed", "--config", path).settings.stride_s == 2.0
    path = write(tmp_path, "sources: [a]\nout: shards\ngop: 4\nshard_mb: 7\n")
    made = command("shard", "--config", path)
    assert (made.settings.gop, made.shard_mb, made.sources) == (4, 7.0, ("a",))
    path = write(tmp_path, "init_from: run\nout: cooled\n")
    assert command("cooldown", "--config", path).settings.data.frames == 64
    path = write(tmp_path, "teacher: run\nout: small\ndevices: 3\n")
    with pytest.raises(TubeletError, match=r"unknown key 'devices'"):
        command("distill", "--config", path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train", "stepz: 3", r"unknown key 'stepz' \(nearest: 'steps'\)"),
        ("train", "data: {imagesize: 3}", r"unknown key 'data.imagesize' \(nearest: 'data.image_size'\)"),
        ("train", "masks: {video: [{block: 3}]}", r"unknown key 'masks.video\[0\].block' \(nearest: .*blocks'\)"),
        ("train", "masks: {video: [{blocks: 3}]}", r"masks.video\[0\].area is missing, expected a number"),
        ("train", "steps: 0", "steps is 0, expected 1 to 999999999"),
        ("train", "steps: yes", "steps is True, expected a whole number"),
        ("train", "steps: 1.5", "steps is 1.5, expected a whole number"),
        ("train", "data: {fps: .inf}", "data.fps is inf, expected a finite number"),
        ("train", "data: 3", "data is 3, expected a mapping of names to values"),
        ("train", "out: 3", "out is 3, expected a path or null"),
        ("train", f"resume: true\nout: {'a' * 300}", "out is 'a.* expected a path"),
        ("train", "config: other.yaml", "unknown key 'config'"),
        ("evaluate", "tsk: knn", r"unknown key 'tsk' \(nearest: 'task'\)"),
        ("train", "version: 9", "version is 9, expected 1 to 2; upgrade tubelet to read it"),
        ("train", "steps: 1\nsteps: 2", "key 'steps' occurs twice"),
        ("train", "data: &a {fps: 1}\noptim: *a", "aliases are not supported"),
        ("train", "steps: !!python/object/apply:os.getcwd []", "tags are not supported"),
        ("train", "steps: !!str 5", "tags are not supported"),
        ("train", "compile: !!bool maybe", "tags are not supported"),
        ("train", "data: !!map {}", "tags are not supported"),
        ("train", "steps: [", "is not YAML .* at line 1, column"),
        ("train", "[" * 5000, "is nested too deeply"),
        ("train", "- steps", "holds list, expected a mapping of names to values"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(name, text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(TubeletError, match=rf"^{path}: .*{message}"):
        command(name, "--config", path)


def test_other_formats_and_missing_files_are_refused(tmp_path):
    with pytest.raises(TubeletError, match=r"run\.toml: unknown format '.toml', expected .json, .yaml or .yml"):
        command("train", "--config", write(tmp_path, "", "run.toml"))
    with pytest.raises(TubeletError, match=r"none\.yaml: does not exist"):
        command("train", "--config", tmp_path / "none.yaml")
    with pytest.raises(TubeletError, match=r"run\.json: is not JSON"):
        command("train", "--config", write(tmp_path, "steps: 3", "run.json"))


def test_a_command_line_that_cannot_be_parsed_repeats_no_control_characters(capsys):
    with pytest.raises(SystemExit) as ended:
        command("search", "a", "b", "--top", "\x1b]0;title\x07")
    message = capsys.readouterr().err
    assert ended.value.code == 2 and "\\x1b" in message and "\x1b" not in message and "\x07" not in message
