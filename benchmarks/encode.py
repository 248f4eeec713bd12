"""Time and memory of encoding whole clips, compared with the executable specification or another package's encoder.

    python -m benchmarks.encode --model vit-b --image-size 224 --frames 16 --batch-size 1
    python -m benchmarks.encode --baseline transformers --image-size 224 384 --precision fp32 bf16
    python -m benchmarks.encode --baseline transformers --precision fp32 --variants tubelet compile int8 onnx onnx-int8

The package's implementation is `model.encode`, from normalized pixels to all output levels. Its variants have the same
weights: compiled blocks, 8-bit weights, both, and files for onnxruntime, which compute in fp32 for any precision. The
cosine compares the deepest features with those in fp32, uncompiled. `transformers` has V-JEPA 2.0 only, whose encoder
is the same network except for the image tokenizer and the output levels: it has the same sizes, random weights, the
same dtype and its default attention (sdpa). The specification runs under autocast. The implementations alternate, each
in its own process.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import matrix_rate, run_in_turn, seconds_per_call
from tubelet.checkpoint.export import onnx_session
from tubelet.config import ModelConfig, Precision, model_preset
from tubelet.device import pick_device, pick_dtype
from tubelet.model.encoder import Encoder
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.compilation import compile_encoder
from tubelet.pretrained.encoder_export import export_encoder
from tubelet.pretrained.quantization import quantize_linear_layers

Baseline = Literal["reference", "transformers"]
Variant = Literal["tubelet", "compile", "int8", "int8-compile", "onnx", "onnx-int8"]


class Sizes(NamedTuple):
    """Model, clips and precision of a measurement."""

    model: ModelConfig
    image_size: int
    frames: int
    batch_size: int
    precision: Precision


def build(implementation: str, sizes: Sizes) -> Callable[[int], tuple[float, float, float]]:
    """Return a function that encodes a batch with an implementation: wall-clock seconds, processor seconds, cosine.

    The cosine to features in fp32 is measured once, before the first round; it is NaN for different weights.
    """
    device = pick_device()
    dtype = pick_dtype(sizes.precision, device)
    if implementation in get_args(Variant):
        encode: Callable[[Tensor], Any] = package_encoder(sizes, device, dtype, implementation)
    else:
        torch.manual_seed(0)
        encoders = {"reference": reference_encoder, "transformers": transformers_encoder}
        encode = encoders[implementation](sizes, device, dtype)
    calls = 10 if device.type == "cuda" else 1  # consecutive, as in `tubelet embed`

    def timed(number: int) -> tuple[float, float, float]:
        pixels = torch.randn(shape_of(sizes), generator=torch.Generator().manual_seed(number)).to(device)
        cpu_seconds = time.process_time()
        with torch.inference_mode():
            seconds = seconds_per_call(lambda: encode(pixels), device, calls)
        return seconds, (time.process_time() - cpu_seconds) / calls, cosine

    cosine = float("nan")
    if implementation in get_args(Variant):
        few = sizes._replace(frames=2 * sizes.model.tubelet_size, batch_size=1)
        pixels = torch.randn(shape_of(few), generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode():
            expected = package_encoder(few, device, torch.float32)(pixels)[-1]
            cosine = F.cosine_similarity(encode(pixels)[-1].float(), expected, dim=-1).mean().item()
    return timed


def shape_of(sizes: Sizes) -> tuple[int, ...]:
    """(B, C, T, H, W) of a batch."""
    return sizes.batch_size, sizes.model.channels, sizes.frames, sizes.image_size, sizes.image_size


def package_encoder(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, variant: str = "tubelet"
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The encoder that `tubelet.load` returns, with random weights of a fixed seed: pixels to output levels."""
    torch.manual_seed(0)
    model = Backbone(sizes.model).requires_grad_(False).eval()
    if variant.startswith("onnx"):
        with TemporaryDirectory() as folder:
            export_encoder(model, Path(folder) / "model.onnx", int8=variant == "onnx-int8")
            return onnx_session(Path(folder) / "model.onnx", "pixels")
    model = model.to(device, dtype)
    if "int8" in variant:
        quantize_linear_layers(model)
    if "compile" in variant:
        compile_encoder(model)
    return lambda pixels: model.encode(pixels, resize=None, normalized=True).levels


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
    shape = shape_of(sizes)
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
    variants: tuple[Variant, ...] = ("tubelet",),
    baseline: Baseline = "reference",
    json: bool = False,
) -> None:
    """Print a table of each image size in each precision.

    Args:
        model: Preset.
        image_size: Height and width of the clips in pixels.
        frames: Frames of a clip.
        batch_size: Clips of a batch.
        precision: bf16, fp32, or what the device is fast at.
        rounds: Number of timed batches of each implementation; the table has their medians.
        warmup: Number of batches before them.
        variants: Variants of the package: tubelet is the plain model, onnx and onnx-int8 are fp32 and 8-bit files.
        baseline: Implementation to compare with; transformers must be installed.
        json: Print one JSON object per case as the last lines.
    """
    if baseline == "transformers":
        try:
            import transformers  # noqa: F401
        except ImportError:
            sys.exit("transformers is not installed: pip install transformers")
    device = pick_device()
    console, table, results = Console(width=None if sys.stdout.isatty() else 110), Table(), []
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(f"{model}, {frames} frames, batch {batch_size} on {name}")
    for column in (
        "px",
        "precision",
        "encoder",
        "s/batch",
        "CPU s",
        "speed",
        "by CPU s",
        "cosine",
        "peak GB",
        "bound",
    ):
        table.add_column(column, justify="left" if column in ("precision", "encoder") else "right")
    for size, requested_precision in product(image_size, precision):
        sizes = Sizes(model_preset(model), size, frames, batch_size, requested_precision)
        result = measure(sizes, (*variants, baseline), warmup, rounds, device)
        results.append({"image_size": size, "precision": requested_precision, "baseline": baseline} | result)
        for implementation in (*variants, baseline):
            seconds, cpu_seconds, cosine, peak, bound = (
                result[key][implementation] for key in ("seconds", "cpu_seconds", "cosine", "peak_gb", "bound_fraction")
            )
            ratios = result["seconds"][baseline] / seconds, result["cpu_seconds"][baseline] / cpu_seconds
            times = f"{seconds:.3f}", f"{cpu_seconds:.3f}", *(f"{ratio:.2f}" for ratio in ratios)
            close = "" if math.isnan(cosine) else f"{cosine:.5f}"
            table.add_row(str(size), requested_precision, implementation, *times, close, f"{peak:.2f}", f"{bound:.2f}")
        table.add_section()
    console.print(table)
    console.print(f"speed: clips per second, relative to {baseline}")
    console.print(
        "CPU s: processor seconds, summed over all cores; more reliable than wall-clock time on a shared machine"
    )
    console.print("bound: the matrix products of a batch, attention's included, at their measured rate")
    if json:
        for result in results:
            print(dumps(result))


def measure(
    sizes: Sizes, implementations: Sequence[str], warmup: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Medians, cosine, peak memory and fraction of the bound of each implementation, and ratios of first to last."""
    dtype = pick_dtype(sizes.precision, device)
    flops, rate = encode_flops(sizes), matrix_rate(device, dtype, sizes.model.width)
    timed, peak = run_in_turn(build, sizes, implementations, warmup, rounds)
    seconds, cpu_seconds, cosine = (
        {
            implementation: statistics.median(times[kind] for times in timed[implementation])
            for implementation in implementations
        }
        for kind in range(3)
    )
    first, last = implementations[0], implementations[-1]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cosine": cosine,
        "peak_gb": peak,
        "bound_fraction": {
            implementation: flops / rate / seconds[implementation] for implementation in implementations
        },
        "time_ratio": seconds[first] / seconds[last],
        "cpu_ratio": cpu_seconds[first] / cpu_seconds[last],
        "memory_ratio": peak[first] / peak[last],
    }


if __name__ == "__main__":
    tyro.cli(main)
