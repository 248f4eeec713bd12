"""What a setting may be: whatever is accepted survives its file, and what cannot be meant is refused by name."""

import dataclasses
import json
import os
import pickle
import tempfile
from math import inf, nan
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import numpy as np
import pytest

from tubelet import cli, config
from tubelet.config import DataConfig, EvaluateConfig, GuardConfig, OptimConfig, TrainConfig, from_dict, to_dict
from tubelet.config.fields import SettingError, Settings
from tubelet.errors import TubeletError
from tubelet.io.files import cache_dir, set_compile_cache
from tubelet.value_checks import Bounds, type_hints

CONFIGS = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Settings)]
EDGES = (
    0, 1, -1, 2, 0.5, 1.5, 8, 2**31, 2**63 - 1, 2**63, 2**70, 10**400, 1e308, 5e-324, inf, -inf, nan, True, None, "",
    "a", "\0", "\udcff", "\ud800", "a" * 300, "x/" * 3000, "~nobody-here/x", "é\n", Path("b"), (), (1, 2), [0.5, 0.75],
    (nan, 1), ("a", "b"), (0.1,), np.float32(0.3), np.int64(4), np.float64(nan), b"x", {}, object(), "auto", "linear",
)  # fmt: skip


def healthy(kind):
    required = {"width": 48, "depth": 4, "heads": 2, "levels": (0, 3), "blocks": 2, "area": 0.5}
    required |= {"window": (0, 255), "mean": (0.5,), "std": (0.25,)}
    names = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**{name: required[name] for name in names})


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_whatever_a_config_accepts_survives_its_file_and_what_is_not_finite_is_refused(kind):
    rng = np.random.default_rng(0)
    base, fields = healthy(kind), dataclasses.fields(kind)
    changes = [{field.name: value} for field in fields for value in EDGES]
    for _ in range(200):
        chosen = rng.choice(len(fields), min(2, len(fields)), replace=False)
        changes.append({fields[i].name: EDGES[int(rng.integers(len(EDGES)))] for i in chosen})
    accepted = 0
    for change in changes:
        try:
            made = dataclasses.replace(base, **change)
        except SettingError as error:
            assert error.name.partition("[")[0] in {field.name for field in fields} and "\n" not in str(error)
            assert pickle.loads(pickle.dumps(error)).problem == error.problem
            continue
        accepted += 1
        assert not any((type(v) is not str and v in (inf, -inf)) or v != v for v in change.values()), change
        text = json.dumps(to_dict(made), allow_nan=False)
        assert from_dict(kind, json.loads(text)) == made
    assert accepted >= len(fields)


def test_every_number_of_every_config_and_command_has_a_range():
    def bare(kind):
        if get_origin(kind) is Annotated:
            return [] if any(isinstance(note, Bounds) for note in get_args(kind)[1:]) else bare(get_args(kind)[0])
        if get_origin(kind) is Literal:
            return []
        return [kind] if kind in (int, float) else [one for part in get_args(kind) for one in bare(part)]

    ranges_of_pairs = {"aspect", "crop_scale", "crop_aspect"}  # checked together
    for kind in (*CONFIGS, *cli.COMMANDS.values()):
        for name, annotation in type_hints(kind).items():
            assert name in ranges_of_pairs or not bare(annotation), f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GuardConfig(spike_factor=inf), "spike_factor is inf, expected a finite number"),
        (lambda: GuardConfig(spike_factor=0.5), "spike_factor is 0.5, expected above 1 and at most .*, or 0"),
        (lambda: GuardConfig(process_timeout_s=inf), "process_timeout_s is inf"),
        (lambda: GuardConfig(data_timeout_s=1e7), "data_timeout_s is 10000000.0"),  # more than poll() can wait for
        (lambda: OptimConfig(context_weight=nan), "context_weight is nan, expected a finite number"),
        (lambda: OptimConfig(betas=(0.9, 1)), "betas are .*, expected two rates"),
        (lambda: TrainConfig(steps=10**9), "steps is 1000000000, expected 1 to 999999999"),
        (lambda: TrainConfig(seed=-1), "seed is -1, expected 0 to 9223372036854775807"),
        (lambda: TrainConfig(seed=2**70), "seed is 1180591620717411303424, expected a whole number of at most 63 bits"),
        (lambda: DataConfig(sources=("a", "")), r"sources\[1\] is empty"),
        (lambda: DataConfig(image_size=10**9), "image_size is 1000000000, expected 1 to 8192 pixels"),
        (lambda: DataConfig(image_size=8192, frames=64), "image_size is 8192 and frames is 64"),
        (lambda: DataConfig(workers=10**6), "workers is 1000000, expected 0 to 1024 processes"),
        (lambda: EvaluateConfig(learning_rates=(1e-3, inf)), r"learning_rates\[1\] is inf"),
    ],
)
def test_what_trained_to_the_end_and_could_not_be_read_is_refused_when_it_is_made(make, words):
    with pytest.raises(TubeletError, match=words):
        make()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("search a b --top 0", "--top is 0, expected 1 to"),
        ("explain a --seed -1", "--seed is -1, expected 0 to"),
        ("sample-data a --frames 1", "--frames is 1, expected 2 to"),
        ("sample-data a --workers 0", "--workers is 0, expected 1 to"),
        ("shard a --out b --shard-mb inf", "--shard-mb is inf, expected a finite number"),
        ("shard a --out b --max-failed-fraction nan", "--max-failed-fraction is nan"),
        ("embed a --model m --out b --stride-s -1", "--stride-s is -1.0, expected above 0"),
        ("train a --out b --spike-factor inf", "--spike-factor is inf"),
        ("train a --out b --crop-scale 1 0.5", "--crop-scale is (1.0, 0.5)"),
        ("evaluate m --data d --learning-rates nan", "--learning-rates[0] is nan"),
        ("convert m o.pt --heads 0", "--heads is 0, expected 1 to"),
        ("train a --out=", "--out is empty"),
        ("train a --out EMPTY", "--out is empty"),
        ("train EMPTY --out b", "an argument is empty"),
        ("report LONG", "is 'aaaaa"),
        ("explain ~nobody-here/a", "the home directory of '~nobody-here' is unknown"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named_as_it_is_typed(words, message, monkeypatch, capsys, tmp_path):
    words = [{"EMPTY": "", "LONG": "a" * 300}.get(word, word) for word in words.split()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tubelet", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    stderr = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 1 and stderr.startswith("error: ") and message in stderr
    assert not list(tmp_path.iterdir())


def test_without_a_home_paths_below_it_are_refused_and_the_cache_is_named(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    with pytest.raises(SettingError, match="the home directory of '~' is unknown; pass the absolute path"):
        DataConfig(sources=("~/videos",))
    with pytest.raises(TubeletError, match="no home directory is known; set HOME or TUBELET_CACHE"):
        cache_dir()


def test_compiled_graphs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    def chosen(cache, before):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if before:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        set_compile_cache()
        return os.environ.get("TORCHINDUCTOR_CACHE_DIR")

    kept, temporary = str(tmp_path / "tubelet" / "compiled"), f"{tempfile.gettempdir()}/torchinductor_me"
    assert chosen(tmp_path, None) == kept
    assert chosen(tmp_path, temporary) == kept  # as PyTorch sets it when the compiler is imported
    assert chosen(tmp_path, "/somewhere/else") == "/somewhere/else"
    assert chosen("/dev/null/x", None) is None
    assert chosen("/dev/null/x", temporary) == temporary
    assert not any(tmp_path.iterdir())
