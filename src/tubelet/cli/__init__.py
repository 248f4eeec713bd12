"""V-JEPA 2.1: pre-train it on videos and images, and use its dense features."""

import os
import shutil
import sys
from textwrap import fill

# Data workers share the cores with the training process. OpenMP's threads spin while they wait for each other, which
# on busy cores delays the very thread they wait for: steps took up to ten times as long. Not spinning at all costs a
# third on idle cores; a short spin is close to the better of the two on both. Must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Masks have other lengths in every step, so that the CUDA allocator's blocks of fixed sizes would fragment. PyTorch
# reads the older name only where the newer is not set: a user's choice by either of them stays.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import tubelet

# Commands import what they run when they run: `tubelet --help` does not load torch.
from tubelet.cli.command import Command, parse, require_inputs
from tubelet.cli.convert import Convert
from tubelet.cli.cooldown import Cooldown, HighResolution
from tubelet.cli.distill import Distill
from tubelet.cli.embed import Embed
from tubelet.cli.evaluate import Evaluate
from tubelet.cli.explain import Explain
from tubelet.cli.fit import Fit
from tubelet.cli.info import Info
from tubelet.cli.interrupts import interrupts_after_imports
from tubelet.cli.map import Map
from tubelet.cli.predict import Predict
from tubelet.cli.report import Report
from tubelet.cli.sample_data import SampleData
from tubelet.cli.search import Search
from tubelet.cli.shard import Shard
from tubelet.cli.stats import Stats
from tubelet.cli.train import Train
from tubelet.cli.view import View
from tubelet.config.fields import nearest
from tubelet.console import (
    OUTPUT_LOST,
    PIPE_CLOSED,
    ConsoleHandler,
    log_to,
    open_console,
    print_wrapped,
    set_terminal_size,
    standard_streams,
)
from tubelet.errors import TubeletError
from tubelet.io.files import set_compile_cache
from tubelet.launch import is_local_rank0

COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "cooldown": Cooldown,
    "high-resolution": HighResolution,
    "distill": Distill,
    "sample-data": SampleData,
    "shard": Shard,
    "stats": Stats,
    "fit": Fit,
    "predict": Predict,
    "evaluate": Evaluate,
    "embed": Embed,
    "search": Search,
    "view": View,
    "map": Map,
    "explain": Explain,
    "report": Report,
    "convert": Convert,
    "info": Info,
}


def main() -> None:
    """Run a command; an error that the user can fix ends in one line and a non-zero exit code.

    A command continues where its output cannot be printed. If it then succeeds, but its last line was lost, the exit
    code is 141 for a closed pipe, and 74 for anything else, such as a full disk or a standard output that is closed.
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


def _run(argv: list[str]) -> str | int | None:
    """The exit code; None for a command that succeeded."""
    if argv == ["--version"]:
        print("tubelet", tubelet.__version__)
        return None
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        print(_help_text(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if name not in COMMANDS:
        error = f"error: {name}: unknown command{nearest(name, COMMANDS)}; see tubelet --help"
        print_wrapped(open_console(stderr=True), error)
        return 2
    try:
        command = parse(COMMANDS[name], name, argv[1:])
        to_stderr = getattr(command, "json", False)
        handler = ConsoleHandler(command.log_level, dated=command.DISTRIBUTED, stderr=to_stderr)
        with log_to(handler), interrupts_after_imports():
            require_inputs(command.inputs())
            command.run()
    except TubeletError as error:
        # What fails before the processes of a run have met fails in all of them: one on each machine reports it.
        if not error.reported and (is_local_rank0() or not COMMANDS[name].DISTRIBUTED):
            for line in f"{error.prefix}{error}".split("\n"):  # a list of faults has several
                print_wrapped(open_console(stderr=True), line)
        return getattr(error, "exit_code", 1)
    except PermissionError as error:  # of a look at a path, at any place
        if error.filename is None:  # not about a path
            raise
        reason = f"{error.filename}: {error.strerror or error}; change its permissions"
        print_wrapped(open_console(stderr=True), f"error: {reason}")
        return 1
    except SystemExit as ended:  # help, or a command line that cannot be parsed
        return ended.code
    except KeyboardInterrupt:
        remedy = "; run the same command again to continue" if COMMANDS[name].CONTINUES else ""
        print(f"interrupted{remedy}", file=sys.stderr)
        return 130
    return None


def _help_text() -> str:
    width, indent = min(shutil.get_terminal_size().columns, 100), 18
    lines = [f"usage: tubelet COMMAND [OPTIONS]\n\n{__doc__}\n\ncommands:"]
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n\n")[0]
        lines.append(fill(f"  {name:<{indent - 2}}{summary}", width, subsequent_indent=" " * indent))
    return "\n".join(
        [*lines, "\ntubelet COMMAND --help lists the options of a command; tubelet --version prints the version."]
    )
