"""Count the kernels that an uncompiled training step launches on CUDA, by kind of operator. No GPU is needed.

    python -m benchmarks.kernels --models vit-s vit-l --baseline reference

The step is that of `tubelet train`, in bf16 on fake CUDA tensors; `tests/helpers/fake_cuda.py` defines the counts. The
baseline is `tests/numerics/reference.py`, with the same masks. On a busy host, each kernel launch takes 5 to 20 us.
"""

import sys
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from tests.helpers.fake_cuda import GROUPS, FakeCudaError, OperatorLog, fake_cuda, install
from tests.helpers.fake_cuda_steps import count_reference_step, count_step
from tubelet.config import DataConfig, TrainConfig, model_preset


def published_step(
    model: str, videos: int, images: int, size: int = 256, frames: int = 16, pack_masks: bool = True
) -> TrainConfig:
    """The config of a step in bf16 that is not compiled."""
    return TrainConfig(
        model=model_preset(model),
        data=DataConfig(image_size=size, frames=frames),
        batch_size=videos + images,
        precision="bf16",
        compile=False,
        pack_masks=pack_masks,
    )


def main(
    models: tuple[str, ...] = ("vit-s", "vit-l"),
    videos: int = 12,
    images: int = 12,
    image_size: int = 256,
    frames: int = 16,
    pack_masks: bool = True,
    baseline: Literal["reference"] | None = None,
    operators: int = 0,
) -> None:
    """Print the table.

    Args:
        models: Names of presets.
        videos: Number of videos per step.
        images: Number of images per step.
        image_size: Side of videos and images in pixels.
        frames: Frames of a video.
        pack_masks: Run all masks in one pass, as CUDA devices with enough memory do; otherwise one at a time.
        baseline: Also count the step of the executable specification.
        operators: Number of operators to list for each step, those with the most kernels.
    """
    try:
        install()
    except FakeCudaError as error:
        sys.exit(f"error: {error}")
    table = Table(title=f"kernels of an uncompiled step in bf16: {videos} videos and {images} images")
    for column in ("step", "all", *GROUPS):
        table.add_column(column, justify="left" if column == "step" else "right")
    logs: dict[str, OperatorLog] = {}
    for name in models:
        config = published_step(name, videos, images, image_size, frames, pack_masks)
        with fake_cuda():
            logs[name] = count_step(config, videos, images)
        if baseline is not None:
            with fake_cuda():
                logs[f"{name}, {baseline}"] = count_reference_step(config, videos, images)
    for step, log in logs.items():
        table.add_row(step, f"{log.kernels.total():,}", *(f"{n:,}" for n in log.groups().values()))
    console = Console(width=140)
    console.print(table)
    for step, log in logs.items():
        if operators:
            console.print(f"{step}:")
        for (group, operator), count in log.kernels.most_common(operators):
            console.print(f"{count:8,}  {operator} ({group})")


if __name__ == "__main__":
    tyro.cli(main)
