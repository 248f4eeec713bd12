"""Commands and scripts run in this process: an interpreter that imports everything anew costs seconds a command."""

import contextlib
import io
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tubelet.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
        returncode: the exit code.
        stdout, stderr: what this process wrote; what its children write goes where pytest's own goes.
    """

    returncode: int
    stdout: str
    stderr: str


def run_tubelet(*words: object, cwd: Path | None = None) -> Result:
    """`tubelet WORDS`, with `cwd` for its working directory. An exception that would be a traceback is raised."""
    return run_call(["tubelet", *map(str, words)], main, cwd)


def run_module(name: str, *words: object, cwd: Path | None = None) -> Result:
    """`python -m NAME WORDS`."""
    return run_call([name, *map(str, words)], lambda: runpy.run_module(name, run_name="__main__", alter_sys=True), cwd)


def run_code(code: str, cwd: Path | None = None) -> Result:
    """`python -c CODE`."""
    return run_call(["-c"], lambda: exec(compile(code, "<code>", "exec"), {"__name__": "__main__"}), cwd)


def run_call(argv: list[str], call: Callable[[], object], cwd: Path | None = None) -> Result:
    """What `call` does, as a command with the command line `argv`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with preserved_state(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = argv
        if cwd is not None:
            os.chdir(cwd)
        try:
            call()
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def preserved_state() -> Iterator[None]:
    """Put back on leaving what a command may change in its process, since commands own theirs.

    Arguments, working directory, environment, import path, signal handlers, filters of warnings, and of PyTorch the
    random state, threads, default type, deterministic algorithms and precision of products.
    """
    argv, path, folder, environment = sys.argv, list(sys.path), Path.cwd(), dict(os.environ)
    handlers: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in signal.Signals}
    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        sys.argv, sys.path[:] = argv, path
        os.chdir(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # or else it would import the compiler
            torch.use_deterministic_algorithms(deterministic)
