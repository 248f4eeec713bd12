"""Processor time of causal features, `model.stream(causal=True)`, compared with bidirectional features.

python -m benchmarks.causal --seconds 30
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.videos import make_videos
from tubelet.config import model_preset
from tubelet.pretrained.backbone import Backbone


@dataclass(frozen=True)
class Options:
    """Sizes."""

    model: str = "vit-ti"
    """Name of the model, with random weights."""
    seconds: float = 30.0
    """Length of the video."""
    image_size: int = 112
    """Side in pixels."""
    frames: int = 16
    """Frames of a window, at 4 per second."""
    rounds: int = 3
    """Number of measurements of both, in turn."""


def main(options: Options) -> None:
    """Stream a video in both modes in turn and print the windows and the median processor seconds."""
    torch.manual_seed(0)
    model = Backbone(model_preset(options.model)).eval().requires_grad_(False)
    cpu_seconds: dict[bool, list[float]] = {False: [], True: []}
    windows = {}
    with tempfile.TemporaryDirectory() as folder:
        (path,) = make_videos(Path(folder), 120, 1, options.seconds)
        for _ in range(options.rounds):
            for causal, seconds in cpu_seconds.items():
                begin = time.process_time()
                stream = model.stream(path, frames=options.frames, fps=4, resize=options.image_size, causal=causal)
                windows[causal] = sum(1 for _ in stream)
                seconds.append(time.process_time() - begin)
    for causal, seconds in cpu_seconds.items():
        name = "causal" if causal else "bidirectional"
        print(f"{name}: {windows[causal]} windows, {statistics.median(seconds):.2f} processor seconds")
    print(f"ratio: {statistics.median(cpu_seconds[True]) / statistics.median(cpu_seconds[False]):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
