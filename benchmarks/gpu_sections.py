"""Sections of `benchmarks/gpu_check.py`: each fills a JSON-compatible dictionary within its time limit.

Modules are imported where they are used: a section whose packages are missing is skipped, and the others run.
"""

import dataclasses
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

Measurements = dict[str, Any]
PACKAGES = ("numpy", "av", "tyro", "safetensors", "pyarrow", "torchcodec", "torchao", "transformers", "timm", "triton")
LATE_STEP = 200_000  # λ is at its full value


@dataclasses.dataclass
class Check:
    """Settings and earlier results for a section.

    Attributes:
        device: a CUDA device, or the CPU.
        smoke: whether to use tiny sizes, to test the script itself.
        results: results of earlier sections, by section.
        deadline: time of the monotonic clock at which the section must end.
    """

    device: torch.device
    smoke: bool
    results: dict[str, Measurements]
    deadline: float = math.inf

    @property
    def on_cuda(self) -> bool:
        """Whether there is a CUDA device."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left to the section."""
        return self.deadline - time.monotonic()


def release_memory() -> None:
    """Free the device memory of models that are out of scope, and reset the peak memory statistics."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def environment(check: Check, found: Measurements) -> None:
    """Versions, the device, and the attention kernels that PyTorch selects."""
    found |= {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version()}
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["packages"], found["missing_packages"] = {}, []
    for name in PACKAGES:
        try:
            found["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["missing_packages"].append(name)
    if not check.on_cuda:
        found["device"] = f"{torch.get_num_threads()} CPU threads"
        return
    properties = torch.cuda.get_device_properties(check.device)
    found |= {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }
    q = torch.randn(2, 4, 77, 64, device=check.device, dtype=torch.bfloat16, requires_grad=True)
    found["attention_by_default"] = str(F.scaled_dot_product_attention(q, q, q).grad_fn).split()[0].lstrip("<")
    with suppress(AttributeError):  # private to PyTorch
        found["attention_order"] = list(torch._C._get_sdp_priority_order())


def ceilings(check: Check, found: Measurements) -> None:
    """Limits of the device: rates of matrix products and copies, and the time of a kernel launch."""
    from benchmarks.measure import matrix_rate, seconds_per_call, synchronize

    device = check.device
    found["bf16_tflop_per_s"] = matrix_rate(device, torch.bfloat16, 384) / 1e12
    source = torch.empty(2**20 if check.smoke else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(seconds_per_call(lambda: target.copy_(source), device, 5) for _ in range(3))
    found["copy_tb_per_s"] = 2 * source.numel() / seconds / 1e12  # read and written
    if check.on_cuda:
        pinned = torch.empty(2**28, dtype=torch.uint8).pin_memory()
        seconds = min(
            seconds_per_call(lambda: source[: 2**28].copy_(pinned, non_blocking=True), device, 3) for _ in "123"
        )
        found["host_to_device_gb_per_s"] = 2**28 / seconds / 1e9
    small = torch.zeros(8, device=device)
    synchronize(device)
    start_s = time.perf_counter()
    for _ in range(1000):
        small.add_(1.0)
    synchronize(device)
    found["us_per_small_kernel"] = 1e3 * (time.perf_counter() - start_s)


def tiny_config(precision: str) -> Any:
    """The config of a run whose steps take milliseconds."""
    from tubelet.config import DataConfig, TrainConfig, model_preset

    data = DataConfig(image_size=64, frames=4, image_fraction=0.5)
    return TrainConfig(model=model_preset("vit-pico"), data=data, batch_size=8, precision=precision, compile=False)


class TinyRun:
    """A model, its optimizer and steps of random data on a device.

    Attributes:
        model: student, predictor and teacher, the same on every device.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        from benchmarks.train_step import random_step
        from tubelet.grid import Modality
        from tubelet.train.compilation import prepare_model
        from tubelet.train.distributed import DistContext
        from tubelet.train.optim import build_optimizer
        from tubelet.vjepa import VJEPA

        self.config = tiny_config(precision)
        torch.manual_seed(0)
        self.model = VJEPA(self.config.model).to(device)
        prepare_model(self.model, self.config, device, compiled=False)
        self.model.pack_masks = device.type == "cuda"  # as in a run with enough memory
        self.optimizer = build_optimizer(self.model, self.config.optim)
        self.ctx = DistContext(device)
        self.data = [random_step(self.config, i, {Modality.VIDEO: 4, Modality.IMAGE: 4}) for i in range(4)]

    def step(self, number: int) -> dict[str, Any]:
        """Run a step."""
        from tubelet.train.step import train_step

        return train_step(self.model, self.optimizer, self.data[number], self.config, LATE_STEP + number, self.ctx)

    def losses(self) -> list[float]:
        """Run all steps and return their losses."""
        return [float(self.step(i)["loss"]) for i in range(len(self.data))]


def correctness(check: Check, found: Measurements) -> None:
    """Losses on the CPU and on the device, steps that must be skipped, and whether runs repeat exactly."""
    cpu = torch.device("cpu")
    cases = (("cpu_fp32", cpu, "fp32"), ("device_fp32", check.device, "fp32"), ("device_bf16", check.device, "bf16"))
    losses = found["losses"] = {}
    for name, device, precision in cases:
        run = TinyRun(device, precision)
        losses[name] = run.losses()
    found["fp32_difference"] = relative_difference(losses["device_fp32"], losses["cpu_fp32"])
    found["bf16_difference"] = relative_difference(losses["device_bf16"], losses["cpu_fp32"])
    checks = found["checks"] = {
        "fp32 losses are those of a CPU to 2e-4": found["fp32_difference"] < 2e-4,
        "bf16 losses are those of a CPU to 3e-2": found["bf16_difference"] < 3e-2,
    }
    for value in (math.nan, math.inf):
        checks[f"a gradient of {value} changes nothing"] = skips_gradient(run, value)
    checks["the next step counts"] = not float(run.step(0)["skipped"])
    found["losses_repeat_exactly"] = TinyRun(check.device, "bf16").losses() == losses["device_bf16"]


def relative_difference(values: list[float], expected: list[float]) -> float:
    """The largest relative difference of two lists; infinite where a value is not finite."""
    differences = [abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True)]
    return max(differences) if all(map(math.isfinite, values)) else math.inf


def skips_gradient(run: TinyRun, factor: float) -> bool:
    """Whether a step with a finite loss, whose gradient is multiplied by `factor`, is skipped and changes nothing."""
    loss = run.model.loss

    def poisoned(*values: Any, **options: Any) -> Any:
        losses = loss(*values, **options)
        losses.total.register_hook(lambda gradient: gradient * factor)
        return losses

    before = [tensor.detach().clone() for tensor in run_state(run)]
    run.model.loss = poisoned
    try:
        metrics = run.step(0)
    finally:
        run.model.loss = loss
    same = all(torch.equal(old, new) for old, new in zip(before, run_state(run), strict=True))
    return same and math.isfinite(float(metrics["loss"])) and float(metrics["skipped"]) == 1


def run_state(run: TinyRun) -> Iterator[torch.Tensor]:
    """Weights and the optimizer's moments."""
    yield from run.model.parameters()
    for state in run.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def sync(check: Check, found: Measurements) -> None:
    """Whether a step synchronizes with the host, by CUDA's synchronization debug mode, which raises an error if so."""
    run = TinyRun(check.device, "bf16")
    run.step(0)
    if not check.on_cuda:
        run.step(1)
        found["skipped"] = "there is no CUDA device"
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(1)
        run.step(2)
        found["checks"] = {"two steps do not wait for the device": True}
    except RuntimeError:
        found["checks"] = {"two steps do not wait for the device": False}
        found["where"] = traceback.format_exc()[-2000:]
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Network, heads, channels per head, and sequence lengths at 16 frames and 256 px, for a ViT-L and its predictor.
ATTENTION = (
    ("student", 16, 64, (464, 472, 480, 488)),
    ("predictor", 12, 32, (1376, 1384, 1392, 1400)),
    ("teacher", 16, 64, (2048,)),
)


def attention(check: Check, found: Measurements) -> None:
    """Milliseconds of attention, forward and backward, for a new and for a repeated sequence length."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from benchmarks.measure import seconds_per_call

    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if not check.on_cuda:
        kernels = {"math": SDPBackend.MATH}
    batch = 1 if check.smoke else 12
    for name, kernel in kernels.items():
        for who, heads, channels, lengths in ATTENTION[: 1 if check.smoke else 3]:
            new, known = [], []
            for length in lengths[: 1 if check.smoke else 4]:
                shape = (batch, heads, length, channels)
                q, k, v = (
                    torch.randn(shape, device=check.device, dtype=torch.bfloat16).requires_grad_() for _ in "qkv"
                )

                def both(q: Any = q, k: Any = k, v: Any = v, kernel: Any = kernel) -> None:
                    with sdpa_kernel(kernel):
                        F.scaled_dot_product_attention(q, k, v).backward(v)

                new.append(1e3 * seconds_per_call(both, check.device))
                known.append(min(seconds_per_call(both, check.device, 2 if check.smoke else 10) for _ in range(3)))
            # Two products forward, five backward, which recomputes the scores.
            operations = 14 * batch * heads * lengths[0] ** 2 * channels
            found[f"{who} {name}"] = {
                "length": lengths[0],
                "new_length_ms": [round(each, 2) for each in new],
                "known_length_ms": round(1e3 * known[0], 3),
                "tflop_per_s": round(operations / known[0] / 1e12, 1),
            }


def loop(check: Check, found: Measurements) -> None:
    """`train`: workers, pinned memory, delayed metrics, collapse checks, checkpoints, and resuming."""
    import numpy as np

    from tests.helpers.media import write_image, write_video
    from tubelet.train.trainer import train

    with tempfile.TemporaryDirectory() as folder:
        media, run = Path(folder, "media"), Path(folder, "run")
        media.mkdir()
        for i in range(8):
            write_video(media / f"{i}.mp4", frames=24)
            write_image(media / f"{i}.png")
        tiny = tiny_config("auto")
        data = dataclasses.replace(tiny.data, sources=(str(media),), fps=7.0, workers=2)
        config = dataclasses.replace(tiny, data=data, steps=12, checkpoint_every=6, monitor_every=4, sinks=())
        train(config, run)
        train(dataclasses.replace(config, steps=16), run, resume=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    found["losses"], found["effective_rank"] = losses, rows[0].get("effective_rank")
    found["checks"] = {
        "a run of 12 steps that is resumed to 16 has 16 rows": [row["step"] for row in rows] == list(range(1, 17)),
        "all losses are finite": None not in losses and bool(np.isfinite(losses).all()),
        "no step was skipped": rows[-1]["skipped_steps"] == 0,
    }


# Preset, videos and images per step; the first case is the most important.
STEP_CASES = (("vit-l", 12, 12), ("vit-s", 12, 12), ("vit-g", 12, 12), ("vit-l", 24, 0))
STEP_IMPLEMENTATIONS = ("compiled", "eager", "reference")


def steps(check: Check, found: Measurements) -> None:
    """Seconds, samples per second, MFU, memory and kernels of whole steps: compiled, eager, and the specification's."""
    cases = (("vit-pico", 1, 1),) if check.smoke else STEP_CASES
    for model, videos, images in cases:
        for implementation in STEP_IMPLEMENTATIONS[check.smoke :]:
            name = f"{model} {videos}+{images} {implementation}"
            if check.left() < 45:
                found[name] = {"skipped": "no time left for it"}
                continue
            release_memory()
            row = found[name] = {}
            try:
                measure_step(check, model, videos, images, implementation, row)
            except (RuntimeError, ValueError) as error:  # out of memory, a compiler's failure: the others still count
                row["error"] = f"{type(error).__name__}: {str(error)[:400]}"
            print(f"   {name}: {json.dumps({k: v for k, v in row.items() if k != 'costliest_ms'})}", flush=True)
    release_memory()


def measure_step(check: Check, model: str, videos: int, images: int, implementation: str, row: Measurements) -> None:
    """Measure one implementation of one case, from its first step on."""
    from benchmarks.measure import seconds_per_call, synchronize
    from benchmarks.train_step import build_package_step, build_reference_step, random_step, step_flops
    from tubelet.config import DataConfig, TrainConfig, model_preset
    from tubelet.device import peak_flops
    from tubelet.grid import Modality
    from tubelet.train.compilation import disable_cudnn_attention

    size = {"image_size": 64, "frames": 4} if check.smoke else {}
    data = DataConfig(**size, image_fraction=images / (videos + images))
    config = TrainConfig(
        model=model_preset(model),
        data=data,
        batch_size=videos + images,
        precision="bf16",
        compile=implementation == "compiled",
    )
    counts = {Modality.VIDEO: videos} | ({Modality.IMAGE: images} if images else {})
    device, known = check.device, [random_step(config, seed, counts) for seed in range(1 if check.smoke else 3)]
    row["tflop"] = step_flops(config, known) / 1e12
    torch.manual_seed(0)
    start_s = time.perf_counter()
    if implementation == "reference":
        disable_cudnn_attention(device)  # as the package does
        step = build_reference_step(config, device)
    else:
        step, _ = build_package_step(config, counts, device)
    for batch in known * 2:  # the second time at full speed: plans, graphs and the allocator's blocks are there
        step(batch)
    synchronize(device)
    row["setup_s"] = time.perf_counter() - start_s

    def every(batches: list[Any]) -> Callable[[], object]:
        batch_iterator = iter(batches)
        return lambda: step(next(batch_iterator))

    rounds = [seconds_per_call(every(known * 2), device, len(known) * 2) for _ in range(1 if check.smoke else 2)]
    row["s_per_step"] = statistics.median(rounds)
    row["samples_per_s"] = (videos + images) / row["s_per_step"]
    if peak := peak_flops(device):
        row["mfu"] = row["tflop"] * 1e12 / row["s_per_step"] / peak
    new = [random_step(config, 100 + seed, counts) for seed in range(1 if check.smoke else 4)]
    row["s_per_step_new_masks"] = seconds_per_call(every(new), device, len(new))
    if check.on_cuda:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        row |= profile_kernels(every(known), len(known))


def profile_kernels(step: Callable[[], object], steps: int) -> Measurements:
    """Kernels of a step, the fraction of its time without a kernel, and the most expensive kernels."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watch:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in watch.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return kernel_summary([(e.name, e.time_range.start, e.time_range.end) for e in kernels], steps)


def kernel_summary(kernels: list[tuple[str, float, float]], steps: int) -> Measurements:
    """Statistics of kernels, each a name and the microseconds at which it begins and ends."""
    if not kernels:
        return {}
    busy, reached, by_name = 0.0, -math.inf, dict[str, float]()
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        busy += max(0.0, end - max(start, reached))  # kernels of several streams overlap
        reached = max(reached, end)
        by_name[name[:80]] = by_name.get(name[:80], 0.0) + (end - start) / 1e3 / steps
    span = reached - min(start for _, start, _ in kernels)
    costliest = sorted(by_name.items(), key=lambda item: -item[1])[:10]
    return {
        "kernels": round(len(kernels) / steps),
        "idle_fraction": 1 - busy / span if span else 0.0,
        "costliest_ms": {name: round(ms, 2) for name, ms in costliest},
    }


def encode(check: Check, found: Measurements) -> None:
    """Clips per second of the package, compiled or not, and of `transformers`; images per second, also of `timm`."""
    from benchmarks.encode import Sizes, package_encoder, timm_encoder, transformers_encoder
    from benchmarks.measure import seconds_per_call
    from tubelet.config import model_preset

    name, size, frames = ("vit-pico", 64, 4) if check.smoke else ("vit-l", 256, 16)
    clips, images, calls = (1, 1, 1) if check.smoke else (8, 128, 5)
    video = Sizes(model_preset(name), size, frames, clips, "bf16")
    image = video._replace(frames=1, batch_size=images)
    implementations = [
        ("clips", "tubelet", video, package_encoder),
        ("clips", "tubelet compiled", video, partial(package_encoder, variant="compile")),
        ("clips", "transformers", video, transformers_encoder),
        ("images", "tubelet", image, package_encoder),
        ("images", "timm", image, timm_encoder),
    ]
    for what, implementation, sizes, encoder in implementations:
        if check.smoke and implementation == "tubelet compiled":
            continue
        row = found[f"{what} {implementation}"] = {}
        release_memory()
        try:
            run = encoder(sizes, check.device, torch.bfloat16)
        except ModuleNotFoundError as error:
            row["skipped"] = f"{error.name} is not installed"
            continue
        shape = (sizes.batch_size, 3, sizes.frames, size, size)
        pixels = torch.randn(shape, device=check.device)
        with torch.inference_mode():
            for _ in range(1 if check.smoke else 3):
                run(pixels)
            seconds = min(seconds_per_call(lambda: run(pixels), check.device, calls) for _ in range(3))  # noqa: B023
        row |= {"batch": sizes.batch_size, "per_s": sizes.batch_size / seconds}
        if check.on_cuda:
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30


def data(check: Check, found: Measurements) -> None:
    """Clips per second of the data workers, from shards and from source files, compared with the measured steps."""
    from benchmarks.data_path import reading
    from benchmarks.videos import make_videos
    from tubelet.config import DataConfig, ShardConfig, TrainConfig, model_preset
    from tubelet.data.shards.writer import write_shards
    from tubelet.data.worker_count import resolve_workers

    heights, seconds = ((96,), 4.0) if check.smoke else ((240, 720), 20.0)
    workers = 1 if check.smoke else resolve_workers("auto")
    size = {"image_size": 64, "frames": 4} if check.smoke else {}
    found["workers"], found["clips_per_s"] = workers, {}
    with tempfile.TemporaryDirectory() as folder:
        for height in heights:
            videos = make_videos(Path(folder, f"{height}p"), height, 2, seconds)
            shards = Path(folder, f"shards-{height}p")
            write_shards([str(path) for path in videos], shards, ShardConfig(), workers=min(2, workers))
            for kind, source in (("source files", videos[0].parent), ("shards", shards)):
                options = DataConfig(**size, workers=workers, sources=(str(source),))
                config = TrainConfig(model=model_preset("vit-l"), data=options, batch_size=2 if check.smoke else 8)
                found["clips_per_s"][f"{kind}, {height} lines"] = reading(source, config, workers)
    rows = [(name, row) for name, row in check.results.get("steps", {}).items() if isinstance(row, dict)]
    found["steps_take_per_s"] = {name: row["samples_per_s"] for name, row in rows if "samples_per_s" in row}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in code that takes longer, on systems with an alarm signal."""
    import signal

    def stop(*_: Any) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class OutOfTime(BaseException):
    """A section exceeded its time limit. Not an `Exception`, which libraries would handle as their own failure."""
