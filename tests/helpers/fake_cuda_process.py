"""Tests on fake CUDA tensors, in a child process: `install` of `fake_cuda.py` cannot be undone.

    @in_fake_cuda
    def test_something(): ...

One child serves all of these tests of a pytest process, one after the other; it is forked from the server of
`tests/helpers/training.py`, which has imported PyTorch and has not run a backward pass. The tests must be functions of
modules in `tests/cuda`, whose `conftest.py` ends the child, and have only parameters as arguments.
"""

import functools
import importlib
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.helpers.training import processes

TIMEOUT_S = 120.0


class FakeCudaProcess:
    """A child process, started by the first test, that runs tests on fake CUDA tensors."""

    def __init__(self) -> None:
        self.process: Any = None
        self.pipe: Any = None

    def run(self, module: str, name: str, arguments: dict[str, Any]) -> None:
        """Run a test in the child; its outcome becomes that of the calling test."""
        if self.process is None or not self.process.is_alive():
            self.pipe, theirs = processes.Pipe()
            self.process = processes.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((module, name, arguments))
        try:
            if not self.pipe.poll(TIMEOUT_S):
                self.close()
                pytest.fail(f"no end after {TIMEOUT_S:g} s", pytrace=False)
            outcome, text = self.pipe.recv()
        except EOFError:
            self.process.join()
            outcome, text = "failed", f"the process with fake CUDA tensors ended with {self.process.exitcode}"
        if outcome == "skipped":
            pytest.skip(text)
        if outcome == "failed":
            pytest.fail(text, pytrace=False)

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


_child = FakeCudaProcess()


def close() -> None:
    """End the child of this process, if there is one."""
    _child.close()


def in_fake_cuda(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in the child process, inside of `fake_cuda()`; skip it where that is not possible."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        _child.run(test.__module__, test.__name__, arguments)

    return run


def _serve(pipe: Connection) -> None:
    from tests.helpers.fake_cuda import FakeCudaError, fake_cuda, install

    while True:
        try:
            module, name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            install()
            with fake_cuda():
                getattr(importlib.import_module(module), name).__wrapped__(**arguments)
            pipe.send(("passed", ""))
        except FakeCudaError as error:
            pipe.send(("skipped", f"no fake CUDA tensors: {error}"))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
