"""Time and memory of encoding whole clips, compared with the executable specification or another package's encoder.

    python -m benchmarks.encode --model vit-b --image-size 224 --frames 16 --batch-size 1
    python -m benchmarks.encode --baseline transformers --image-size 224 384 --precision fp32 bf16

The package's side is `model.encode`, which is what its users call, from normalized pixels to all tapped levels.
`transformers` has V-JEPA 2.0 only, whose encoder is the same network but for the image tokenizer and the tapped
levels: the same sizes, random weights, loaded in the same dtype, its own choice of attention (sdpa). The specification
runs under autocast. The sides run in turn, each in a process of its own.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from json import dumps
from typing import Any, Literal, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import matrix_rate, run_in_turn, seconds_per_call
from tubelet.config import ModelConfig, Precision, model_preset
from tubelet.device import pick_device, pick_dtype
from tubelet.model.encoder import Encoder
from tubelet.pretrained.backbone import Backbone

Peer = Literal["reference", "transformers"]


class Sizes(NamedTuple):
    """What is encoded by what."""

    model: ModelConfig
    image_size: int
    frames: int
    batch_size: int
    precision: Precision
    compile: bool


def build(side: str, sizes: Sizes) -> Callable[[int], tuple[float, float]]:
    """A side's process: a function that returns the seconds of encoding a batch, and those of its processors."""
    torch.manual_seed(0)
    device = pick_device()
    encoders = {"tubelet": package_encoder, "reference": reference_encoder, "transformers": transformers_encoder}
    dtype = pick_dtype(sizes.precision, device)
    encode = encoders[side](sizes, device, dtype)
    shape = (sizes.batch_size, 3, sizes.frames, sizes.image_size, sizes.image_size)
    calls = 10 if device.type == "cuda" else 1  # in a row, as a collection is encoded

    def timed(number: int) -> tuple[float, float]:
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(device)
        worked = time.process_time()
        with torch.inference_mode():
            seconds = seconds_per_call(lambda: encode(pixels), device, calls)
        return seconds, (time.process_time() - worked) / calls

    return timed


def package_encoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """The package's encoder, as `tubelet.load` gives it."""
    with device:
        model = Backbone(sizes.model).requires_grad_(False).eval().to(dtype)
    if sizes.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    return partial(model.encode, normalized=True)


def reference_encoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """The specification's encoder."""
    from tests.numerics import reference

    with device:
        encoder = reference.Encoder(sizes.model).eval()
    return torch.autocast(device.type, torch.bfloat16, dtype == torch.bfloat16)(encoder)


def transformers_encoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """The encoder of `transformers`, of the same sizes."""
    from transformers import VJEPA2Config, VJEPA2Model

    model = sizes.model
    config = VJEPA2Config(
        patch_size=model.patch_size,
        crop_size=sizes.image_size,
        frames_per_clip=sizes.frames,
        tubelet_size=model.tubelet_size,
        hidden_size=model.width,
        num_attention_heads=model.heads,
        num_hidden_layers=model.depth,
        mlp_ratio=model.mlp_ratio,
        pred_num_hidden_layers=1,
    )
    with device:
        network = VJEPA2Model(config).to(dtype).eval()
    # It takes (B, T, C, H, W).
    return lambda pixels: network(pixels.transpose(1, 2).to(dtype), skip_predictor=True)


def timm_encoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """A vision transformer of `timm` of the same sizes, for images; its positions are learned, not rotated."""
    from timm.models.vision_transformer import VisionTransformer

    model = sizes.model
    with device:
        network = VisionTransformer(
            img_size=sizes.image_size,
            patch_size=model.patch_size,
            num_classes=0,
            embed_dim=model.width,
            depth=model.depth,
            num_heads=model.heads,
            mlp_ratio=model.mlp_ratio,
            class_token=False,
            global_pool="",
        )
    network = network.to(dtype).eval()
    return lambda pixels: network(pixels[:, :, 0].to(dtype))


def encode_flops(sizes: Sizes) -> float:
    """Floating-point operations of the matrix products of one batch, attention's included; nothing is computed."""
    nowhere = torch.device("meta")
    shape = (sizes.batch_size, 3, sizes.frames, sizes.image_size, sizes.image_size)
    encoder = Encoder(sizes.model).to(nowhere)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(shape, device=nowhere))
    return float(counter.get_total_flops())


def main(
    model: str = "vit-b",
    image_size: tuple[int, ...] = (224,),
    frames: int = 16,
    batch_size: int = 1,
    precision: tuple[Precision, ...] = ("auto",),
    rounds: int = 5,
    warmup: int = 1,
    compile: bool = False,
    baseline: Peer = "reference",
    json: bool = False,
) -> None:
    """Print the table: each image size in each precision, both sides of a case in turn.

    Args:
        model: Preset.
        image_size: Sides of the clips in pixels.
        frames: Frames of a clip.
        batch_size: Clips of a batch.
        precision: bf16, fp32, or what the device is fast at.
        rounds: Batches that are timed on each side; the table holds their medians.
        warmup: Batches before them.
        compile: Compile the blocks of the package's encoder.
        baseline: The other side; transformers must be installed.
        json: Print one JSON object a case as the last lines.
    """
    if baseline == "transformers":
        try:
            import transformers  # noqa: F401
        except ImportError:
            sys.exit("transformers is not installed: pip install transformers")
    device = pick_device()
    console, table, results = Console(), Table(), []
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(f"{model}, {frames} frames, batch {batch_size} on {name}")
    for column in ("px", "precision", "side", "s/batch", "clips/s", "CPU s", "peak GB", "share of bound"):
        table.add_column(column, justify="left" if column in ("precision", "side") else "right")
    for size, asked in product(image_size, precision):
        sizes = Sizes(model_preset(model), size, frames, batch_size, asked, compile)
        result = measure(sizes, baseline, warmup, rounds, device)
        results.append({"image_size": size, "precision": asked, "baseline": baseline} | result)
        for side in ("tubelet", baseline):
            found = [result[key][side] for key in ("seconds", "cpu_seconds", "peak_gb", "bound_share")]
            seconds, worked, peak, bound = found
            rates = f"{seconds:.3f}", f"{batch_size / seconds:.3f}", f"{worked:.3f}"
            table.add_row(str(size), asked, side, *rates, f"{peak:.2f}", f"{bound:.2f}")
        ratios = (result["time_ratio"], 1 / result["time_ratio"], result["cpu_ratio"], result["memory_ratio"])
        table.add_row("", "", "ratio", *(f"{ratio:.2f}" for ratio in ratios), "", end_section=True)
    console.print(table)
    console.print("CPU s: of all cores together, which tells more than a clock where others use them too")
    console.print("bound: the matrix products of a batch, attention's included, at their measured rate")
    if json:
        for result in results:
            print(dumps(result))


def measure(sizes: Sizes, baseline: Peer, warmup: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Medians, peak memory and share of the bound of both sides of one case, and the ratios of the two."""
    dtype = pick_dtype(sizes.precision, device)
    flops, rate = encode_flops(sizes), matrix_rate(device, dtype, sizes.model.width)
    sides = ("tubelet", baseline)
    timed, peak = run_in_turn(build, sizes, sides, warmup, rounds)
    seconds, worked = (
        {side: statistics.median(times[kind] for times in timed[side]) for side in sides} for kind in (0, 1)
    )
    return {
        "seconds": seconds,
        "cpu_seconds": worked,
        "peak_gb": peak,
        "bound_share": {side: flops / rate / seconds[side] for side in sides},
        "time_ratio": seconds["tubelet"] / seconds[baseline],
        "cpu_ratio": worked["tubelet"] / worked[baseline],
        "memory_ratio": peak["tubelet"] / peak[baseline],
    }


if __name__ == "__main__":
    tyro.cli(main)
