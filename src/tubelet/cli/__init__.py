"""V-JEPA 2.1: pre-train it on videos and images, and use its dense features.

tubelet COMMAND --help says what a command takes.
"""

import os
import sys
from collections.abc import Callable

# Data workers share the cores with the training process. OpenMP's threads spin while they wait for each other, which
# on busy cores holds up the very thread they wait for: steps were seen to take ten times as long. Not spinning at all
# costs a third on quiet cores; a short spin is close to the better of the two on both. To be said before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import tyro
from rich.console import Console

import tubelet
from tubelet.cli.data import sample_data, shard

# Commands import what they run when they run: `tubelet --help` answers without loading torch's training code.
from tubelet.cli.defaults import with_the_runs
from tubelet.cli.features import convert, embed, search
from tubelet.cli.look import evaluate, explain, report
from tubelet.cli.options import options_named
from tubelet.cli.runs import cooldown, distil, high_resolution, train
from tubelet.console import say
from tubelet.types import TubeletError

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "cooldown": cooldown,
    "high-resolution": high_resolution,
    "distil": distil,
    "sample-data": sample_data,
    "shard": shard,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
    "explain": explain,
    "report": report,
    "convert": convert,
}


def main() -> None:
    """Run a command; what a person can mend ends in one sentence and a non-zero exit code."""
    if sys.argv[1:] == ["--version"]:
        print("tubelet", tubelet.__version__)
        return
    try:
        # Help shows `FLOAT` rather than `{None}|FLOAT`: what is None is so by leaving the option out.
        with options_named(sys.argv[1:]):
            tyro.extras.subcommand_cli_from_dict(
                with_the_runs(COMMANDS, sys.argv[1:]),
                prog="tubelet",
                description=__doc__,
                config=(tyro.conf.DisallowNone,),
            )
    except TubeletError as error:
        # What is wrong before the processes of a run have met is wrong for all of them: one on each machine says it.
        if not error.told and os.environ.get("LOCAL_RANK", "0") == "0":
            say(Console(stderr=True), f"error: {error}")
        sys.exit(getattr(error, "exit_code", 1))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
