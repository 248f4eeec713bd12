"""What options that are left out come to, where a run on the command line tells."""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tubelet.config import EmbedConfig

Command = Callable[..., None]


def with_the_runs(commands: dict[str, Command], words: Sequence[str]) -> dict[str, Command]:
    """The commands, with a run's own settings for defaults: all of them to resume it, its clips' to embed with it.

    Args:
        commands: by name.
        words: the command line.

    Raises:
        TubeletError: if the run's settings cannot be read.
    """
    name, *options = words or [""]
    given = dict(pairwise(options)) | dict(word.split("=", 1) for word in options if "=" in word)
    run = Path(given.get("--out" if "--resume" in options else "--model", ""))
    if not (run / "config.json").is_file() or not ("--resume" in options or name == "embed"):
        return commands
    if name == "embed" and not (run / "checkpoints").is_dir():  # a folder for the Hub
        return commands
    from tubelet.train.run_directory import read_config

    config = read_config(run)
    if name != "embed":
        return {**commands, name: _with_default(commands[name], config)}
    data = config.data
    clips = EmbedConfig(image_size=data.image_size, frames=data.frames, fps=data.fps)
    return {**commands, name: _with_default(commands[name], clips)}


def _with_default(command: Command, config: object) -> Command:
    """A command whose first parameter but for sources, its config, has another default."""

    def same(*arguments: Any, **options: Any) -> None:
        command(*arguments, **options)

    signature = inspect.signature(command)
    functools.update_wrapper(same, command)
    parameters = [p.replace(default=config) if p.name == "config" else p for p in signature.parameters.values()]
    same.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return same
