"""V-JEPA 2.1: pre-train it on videos and images, and use its dense features.

tubelet COMMAND --help lists the options of a command. All commands take --log-level {debug,info,warning,error}.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

# Data workers share the cores with the training process. OpenMP's threads spin while they wait for each other, which
# on busy cores holds up the very thread they wait for: steps were seen to take ten times as long. Not spinning at all
# costs a third on quiet cores; a short spin is close to the better of the two on both. To be said before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import tyro

import tubelet
from tubelet.cli.data import sample_data, shard

# Commands import what they run when they run: `tubelet --help` answers without loading torch's training code.
from tubelet.cli.defaults import with_the_runs
from tubelet.cli.features import convert, embed, search
from tubelet.cli.look import evaluate, explain, report
from tubelet.cli.options import options_named
from tubelet.cli.runs import cooldown, distill, high_resolution, train
from tubelet.console import (
    OUTPUT_LOST,
    PIPE_CLOSED,
    log_to_console,
    open_console,
    print_wrapped,
    set_terminal_size,
    standard_streams,
)
from tubelet.errors import TubeletError
from tubelet.io.files import set_compile_cache
from tubelet.launch import is_local_rank0

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "cooldown": cooldown,
    "high-resolution": high_resolution,
    "distill": distill,
    "sample-data": sample_data,
    "shard": shard,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
    "explain": explain,
    "report": report,
    "convert": convert,
}
LOG_LEVELS = ("debug", "info", "warning", "error")
TRAINING = ("train", "cooldown", "high-resolution", "distill")  # these run over several processes


def main() -> None:
    """Run a command; what a person can mend ends in one sentence and a non-zero exit code.

    A command goes on where its output cannot be printed. If it then ends well, but its last line was lost, the exit
    code is 141 for a pipe that was closed, and 74 for anything else, such as a full disk.
    """
    set_terminal_size()
    set_compile_cache()
    with standard_streams() as output:
        code = _run(sys.argv[1:])
        output.flush()
        if code in (0, None) and output.last_error is not None:
            code = PIPE_CLOSED if isinstance(output.last_error, BrokenPipeError) else OUTPUT_LOST
    if code is not None:
        sys.exit(code)


def _run(words: list[str]) -> Any:
    """The exit code; None for a command that came to its end."""
    if words == ["--version"]:
        print("tubelet", tubelet.__version__)
        return None
    try:
        words, level = _split_log_level(words)
        # Help shows `FLOAT` rather than `{None}|FLOAT`: what is None is so by leaving the option out.
        with log_to_console(level), options_named(words):
            tyro.extras.subcommand_cli_from_dict(
                with_the_runs(COMMANDS, words), prog="tubelet", description=__doc__, config=(tyro.conf.DisallowNone,)
            )
    except TubeletError as error:
        # What is wrong before the processes of a run have met is wrong for all of them: one on each machine says it.
        if not error.reported and (words[:1] not in ([name] for name in TRAINING) or is_local_rank0()):
            print_wrapped(open_console(stderr=True), f"error: {error}")
        return getattr(error, "exit_code", 1)
    except SystemExit as ended:  # help, or a command line that cannot be understood
        return ended.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return None


def _split_log_level(words: list[str]) -> tuple[list[str], str]:
    """Take --log-level, which every command has, out of a command line; returns the other words and the level."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--log-level", default="info")
    options, others = parser.parse_known_args(words)
    if options.log_level not in LOG_LEVELS:
        raise TubeletError(f"--log-level is {options.log_level!r}, expected one of {', '.join(LOG_LEVELS)}")
    return others, options.log_level
