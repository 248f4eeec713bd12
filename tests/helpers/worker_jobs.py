"""Jobs for worker processes, in a module that imports little."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tubelet.data.process_map import process_map, track_file
from tubelet.errors import TubeletError


def length(name: str) -> int:
    """The length of a name; names that begin with some words end otherwise."""
    with track_file(name):
        if name.startswith("fatal"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("abort"):
            print("the stack was smashed", file=sys.stderr, flush=True)
            os.abort()
        if name.startswith("bad"):
            raise TubeletError("bad.mp4: a sentence")
        if name.startswith("unknown"):
            raise KeyError(name)
        return len(name)


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def make_unreadable(name: str) -> Unreadable:
    """A result that the parent cannot read."""
    return Unreadable()


@dataclass
class WithoutTorch:
    """Work that fails where it imports torch, which takes seconds of each process and 150 MB."""

    work: Callable[[Any], Any]

    def __call__(self, job: Any) -> Any:
        result = self.work(job)
        assert "torch" not in sys.modules, f"{self.work} imports torch"
        return result


def map_without_torch(work: Callable[[Any], Any], *arguments: Any, **options: Any) -> None:
    """`process_map` for work that must not import torch."""
    process_map(WithoutTorch(work), *arguments, **options | {"isolated": True})
