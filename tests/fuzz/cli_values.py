"""Command lines with values at the edge of every option of every command, and what is known to be invalid of them.

Options come from the commands' own signatures, so that a new one is tried without being listed here.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
import types
from math import inf, nan
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest import mock

import numpy as np
import tyro

from tubelet import cli
from tubelet.config import TrainConfig, from_dict, to_dict
from tubelet.errors import TubeletError
from tubelet.value_checks import Bounds, type_hints

# What no number of any command may be, whatever its range.
NO_NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", str(2**70), "", "x", "0x10", "1,5")
NUMBERS = ("0", "1", "2", "-0.0", "1e-320", "1e308", "2147483648", str(2**63 - 1), "1000000000", "0.5", "16", "64", "7")
# What no name or path may be.
NO_NAMES = ("", "a" * 300, "x/" * 3000, "~nobody-here/x")
NAMES = (
    ".",
    "..",
    "/dev/null",
    "s3://",
    "://",
    "-",
    "a\nb",
    "\x1b[31mx",
    "\u202ex",
    "vit-pico",
    "random",
    "*",
    "[",
    "no",
)
# Without these a command ends before it looks at anything else. SEEDS is the folder of healthy inputs.
BASES = {
    "train": ["SEEDS/image", "--out", "run", "--model", "vit-pico"],
    "cooldown": ["SEEDS/image", "--out", "run", "--init-from", "SEEDS/checkpoint/a.safetensors"],
    "high-resolution": ["SEEDS/image", "--out", "run", "--init-from", "SEEDS/checkpoint/a.safetensors"],
    "distill": ["SEEDS/image", "--out", "run", "--model", "vit-pico", "--teacher", "SEEDS/checkpoint/a.safetensors"],
    "sample-data": ["set"],
    "shard": ["SEEDS/image", "--out", "shards"],
    "stats": ["SEEDS/image", "--out", "stats.json"],
    "evaluate": ["SEEDS/checkpoint/a.safetensors", "--data", "SEEDS/image"],
    "embed": ["SEEDS/image", "--model", "SEEDS/checkpoint/a.safetensors", "--out", "table"],
    "predict": ["head.safetensors", "SEEDS/image", "--out", "answers"],
    "search": ["SEEDS/table", "SEEDS/image/still.png"],
    "explain": ["SEEDS/image/still.png", "--model", "vit-pico"],
    "report": ["SEEDS"],
    "convert": ["SEEDS/checkpoint/a.safetensors", "out.safetensors"],
}
# Where a command leaves its options behind and begins to work.
WORK = (
    "tubelet.train.trainer.train",
    "tubelet.planner.run_plan.plan_run",
    "tubelet.sample_data.write_sample_data",
    "tubelet.data.shards.writer.write_shards",
    "tubelet.data.pixel_statistics.measure_collection",
    "tubelet.tasks.common.task.run_task",
    "tubelet.embed.collection.embed_collection",
    "tubelet.view.explain.explain",
    "tubelet.view.report.write_report",
    "tubelet.pretrained.encoder_export.export_encoder",
)


class _ReachedError(Exception):
    """All options were accepted."""


def options(command: str) -> dict[str, Any]:
    """Every option of a command, as it is typed, with its annotation."""
    found: dict[str, Any] = {}
    for name, kind in type_hints(cli.COMMANDS[command]).items():
        found |= _options(name, kind)
    return found


def _options(name: str, kind: Any) -> dict[str, Any]:
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    bare = get_args(kind)[0] if notes else kind
    if any(note is tyro.conf.Positional or note in get_args(tyro.conf.Suppress[int])[1:] for note in notes):
        return {}
    if dataclasses.is_dataclass(bare):
        return {
            option: own for field, inner in type_hints(bare).items() for option, own in _options(field, inner).items()
        }
    return {f"--{name.replace('_', '-')}": kind}


def command_line(rng: np.random.Generator) -> tuple[list[str], bool]:
    """Words of a command line, and whether they are known to be invalid."""
    command = str(rng.choice(list(BASES)))
    words, invalid = [command, *BASES[command]], False
    known = options(command)
    # The parser takes the last of an option that is repeated, so each is drawn once.
    for option in map(str, rng.choice(list(known), min(len(known), int(rng.integers(1, 3))), replace=False)):
        values, wrong = _value(known[option], rng)
        words += [option, *values] if rng.random() < 0.8 or not values else [f"{option}={values[0]}", *values[1:]]
        invalid |= wrong
    if rng.random() < 0.1:
        place = int(rng.integers(1, len(words)))
        words[place] = str(rng.choice([*NO_NAMES, *NAMES]))
        invalid = words[place] == ""
    return words, invalid


def _value(kind: Any, rng: np.random.Generator) -> tuple[list[str], bool]:
    """Values of an option, and whether they are known to be invalid."""
    base, bounds, count = _plain(kind)
    if base is bool:
        return [[], ["True"], ["maybe"]][int(rng.integers(3))], False
    if base not in (int, float):
        wrong = bool(rng.random() < 0.5)
        names = NO_NAMES if wrong else NAMES
        text = names[int(rng.integers(len(names)))]
        return [text], wrong if base in (str, Path) else text == ""
    texts = [
        str(rng.choice(NO_NUMBERS if rng.random() < 0.5 else NUMBERS)) for _ in range(count or int(rng.integers(1, 3)))
    ]
    return texts, any(text in NO_NUMBERS or not _allowed(text, base, bounds) for text in texts)


def _allowed(text: str, base: type, bounds: Bounds | None) -> bool:
    try:
        value = base(text)
    except ValueError:
        return False
    return value not in (inf, -inf, nan) and (bounds is None or value in bounds)


def _plain(kind: Any) -> tuple[Any, Bounds | None, int]:
    """The type of one value of an option, its range, and how many there are; 0 for any number."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, bounds, count = _plain(parts[0])
        return base, next((note for note in parts[1:] if isinstance(note, Bounds)), bounds), count
    if origin in (Union, types.UnionType):
        return next(found for found in map(_plain, parts) if found[0] is not types.NoneType)
    if origin is tuple:
        base, bounds, _ = _plain(parts[0])
        return base, bounds, 0 if parts[-1] is Ellipsis else len(parts)
    return (Literal if origin is Literal else kind), None, 1


def run(words: list[str], invalid: bool, seeds: Path, folder: Path) -> None:
    """Run a command line up to where its work begins.

    Raises:
        TubeletError: the error that a user is meant to see.
        AssertionError: it was accepted though it is invalid, or refused in another way.
    """
    arguments = [word.replace("SEEDS", str(seeds), 1) if word.startswith("SEEDS") else word for word in words]
    before, here, errors = set(folder.rglob("*")), Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.ExitStack() as stack:
            for name in WORK:
                stack.enter_context(mock.patch(name, _work))
            stack.enter_context(mock.patch("tubelet.cli.require_inputs"))  # the paths are invented
            stack.enter_context(mock.patch.object(sys, "argv", ["tubelet", *arguments]))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(errors))
            try:
                cli.main()
                code = 0
            except _ReachedError:
                code = 0
            except SystemExit as error:
                code = error.code
    finally:
        os.chdir(here)
    if not code:
        assert not invalid, f"accepted: {words}"
        return
    printed = errors.getvalue()
    assert code in (1, 2) and printed.strip(), f"exit code {code} without a reason: {words}"
    assert code == 2 or (printed.startswith("error: ") and "Traceback" not in printed), printed
    assert invalid is False or set(folder.rglob("*")) == before, f"written before it was refused: {words}"
    raise TubeletError(printed.removeprefix("error: ").strip() if code == 1 else "not understood by the parser")


def _work(*arguments: Any, **options: Any) -> None:
    for value in (*arguments, *options.values()):
        if isinstance(value, TrainConfig):
            text = json.dumps(to_dict(value), allow_nan=False)
            assert from_dict(TrainConfig, json.loads(text)) == value, f"does not survive its file: {text}"
    raise _ReachedError
