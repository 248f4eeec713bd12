"""Time and memory of one training step, by part, compared with the executable specification.

    python -m benchmarks.train_step --model vit-s --image-size 128 --frames 16 --videos 8

The package's step is that of `tubelet train`. The baseline is `tests/numerics/reference.py`, with the same pixels,
masks and precision. Each implementation runs in its own process, which reports its peak memory. On a CPU they
alternate, so that other work on the machine affects both; on CUDA they run one after the other, with the device to
themselves. Timed steps repeat mask lengths of the warm-up: PyTorch's attention and a CPU's bf16 kernels can prepare
something for each new length, which is a separate column. Hooks on the real modules measure the time of each part.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from json import dumps
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Round, Timed, matrix_rate, run_in_turn, seconds_per_call
from tubelet.config import DataConfig, Precision, TrainConfig, model_preset
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import normalize
from tubelet.data.masks import sample_mask
from tubelet.device import pick_device, training_dtype
from tubelet.grid import Modality
from tubelet.train.compilation import disable_cudnn_attention, prepare_model, should_compile
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.packing import device_memory, should_pack
from tubelet.train.sharding import training_bytes
from tubelet.train.step import autocast, train_step
from tubelet.train.step_cost import encoder_flops, predictor_flops, step_cost
from tubelet.vjepa import VJEPA

PARTS = ("teacher", "student", "predictor", "loss", "backward", "optimizer")
IMPLEMENTATIONS = ("tubelet", "reference")
LATE_STEP = 200_000  # λ is at its full value, so the context loss is included in the time
CUDA_CALLS = 5  # consecutive steps of a round on CUDA, where the host prepares a step while the device runs the last

Step = Callable[[StepData], object]


class StepCase(NamedTuple):
    """Configuration of a measurement.

    Attributes:
        config: the run.
        counts: samples of each modality in a step.
        warmup: first rounds, each with different masks, which the timed rounds repeat.
        rounds: timed rounds; later rounds have new masks.
    """

    config: TrainConfig
    counts: dict[Modality, int]
    warmup: int
    rounds: int


class Stopwatch:
    """Seconds spent in each part of a step, by hooks on the real modules and optimizer.

    On CUDA a hook records an event and waits for nothing. Hooks do nothing between `stop` and `start`.
    """

    def __init__(self, model: VJEPA, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] | None = None
        for name in ("teacher", "student", "predictor"):
            part = getattr(model, name)
            part.register_forward_pre_hook(
                lambda *_, name=name: self.lap("loss" if name == "predictor" else "backward")
            )
            part.register_forward_hook(lambda *_, name=name: self.lap(name))
        model.register_forward_pre_hook(lambda *_: self.lap("backward"))
        model.register_forward_hook(lambda *_: self.lap("loss"))
        optimizer.register_step_pre_hook(lambda *_: self.lap("backward"))

    def start(self) -> None:
        """Begin a step."""
        self.marks = []
        self.lap("")

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        if self.marks is None:
            return
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def stop(self, name: str) -> dict[str, float]:
        """Book the rest of the step under `name`; returns the seconds of each part."""
        self.lap(name)
        marks, self.marks = self.marks or [], None
        seconds: dict[str, float] = defaultdict(float)
        if self.device.type == "cuda":
            marks[-1][1].synchronize()
        for (_, before), (part, after) in itertools.pairwise(marks):
            seconds[part] += before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
        return dict(seconds)


def random_step(config: TrainConfig, seed: int, counts: dict[Modality, int]) -> StepData:
    """Random pixels and real masks of a step, the same for the same seed; in pinned memory where there is CUDA."""
    rng, size = np.random.default_rng(seed), config.data.image_size
    batches = []
    for modality, count in counts.items():
        frames = 1 if modality is Modality.IMAGE else config.data.frames
        pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, frames, size, size), dtype=np.uint8))
        grid = config.model.grid(frames, size, size)
        masks = [sample_mask(spec, grid, count, rng) for spec in config.masks.specs_for(modality)]
        batches.append(Batch(modality, pixels, masks, count / sum(counts.values())))
    data = StepData(batches, [])
    return data.pin_memory() if torch.cuda.is_available() else data


def build_package_step(
    config: TrainConfig, counts: dict[Modality, int], device: torch.device
) -> tuple[Step, Stopwatch]:
    """The package's training step, and the watch that splits it."""
    with torch.device(device):  # on a CPU the random weights of a billion parameters take a minute
        model = VJEPA(config.model)
    model.pack_masks = should_pack(config, model, counts, device_memory(device), 1, training_bytes(model))
    prepare_model(model, config, device, should_compile(config, step_cost(model, config, counts), device))
    optimizer = build_optimizer(model, config.optim)
    ctx = DistContext(device)
    return lambda data: train_step(model, optimizer, data, config, LATE_STEP, ctx), Stopwatch(model, optimizer, device)


def build_reference_step(config: TrainConfig, device: torch.device) -> Step:
    """The specification's training step."""
    from tests.numerics import reference

    disable_cudnn_attention(device)  # as the package does
    with torch.device(device):
        model = reference.System(config.model)
    optimizer = reference.optimizer(model, lr=config.optim.lr)

    def step(data: StepData) -> None:
        for batch in data.batches:
            batch = batch.to(device)
            with autocast(config, device):
                losses = model(normalize(batch.pixels), batch.masks, config.optim.context_weight)
            (batch.weight * losses[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.999)

    return step


def build(implementation: str, case: StepCase) -> Timed:
    """Return a function that runs and measures a round of an implementation, in the current process."""
    torch.manual_seed(0)
    device = pick_device()
    watch = None
    if implementation == "tubelet":
        step, watch = build_package_step(case.config, case.counts, device)
    else:
        step = build_reference_step(case.config, device)
    on_cuda = device.type == "cuda"

    def timed(number: int) -> Round:
        seeds = round_seeds(case, number, CUDA_CALLS if on_cuda else 1)
        turns = iter([random_step(case.config, seed, case.counts) for seed in seeds])
        if watch and not on_cuda:
            watch.start()
        cpu_seconds = time.process_time()
        seconds = seconds_per_call(lambda: step(next(turns)), device, len(seeds))
        cpu_seconds = (time.process_time() - cpu_seconds) / len(seeds)
        if watch and on_cuda:  # in a step that is not timed: the events between kernels are work of their own
            watch.start()
            step(random_step(case.config, seeds[0], case.counts))
        return Round(seconds, cpu_seconds, watch.stop("optimizer") if watch else {})

    return timed


def round_seeds(case: StepCase, number: int, calls: int) -> list[int]:
    """Seeds of the steps of a round: one in the warm-up, then `calls` that repeat one of its, then `calls` new ones."""
    if number < case.warmup:
        return [number]
    if number < case.warmup + case.rounds:
        return [number % case.warmup] * calls
    return [number * calls + call for call in range(calls)]


def step_flops(config: TrainConfig, steps: list[StepData]) -> float:
    """Floating-point operations of the matrix products of a step, attention's included, mean of some steps.

    By the lengths of their masks, which differ from draw to draw; recomputation and padding are not counted.
    """
    with torch.device("meta"):
        model = VJEPA(config.model)
    flops = 0.0
    for batch in (batch for data in steps for batch in data.batches):
        tokens = config.model.grid(*batch.pixels.shape[2:]).tokens
        one = encoder_flops(model.teacher, batch.modality, tokens)
        for mask in batch.masks:
            context, target = mask.context.shape[1], mask.target.shape[1]
            one += encoder_flops(model.student, batch.modality, context)
            one += predictor_flops(model.predictor, context, target)
        flops += len(batch.pixels) * one
    return flops / len(steps)


def main(
    model: str = "vit-s",
    image_size: int = 128,
    frames: int = 16,
    videos: int = 8,
    images: int = 0,
    precision: Precision = "auto",
    steps: int = 5,
    new_mask_steps: int = 2,
    warmup: int = 2,
    compile: bool | None = None,
    activation_checkpointing: bool = False,
    package_only: bool = False,
    json: bool = False,
) -> None:
    """Print the table.

    Args:
        model: Preset.
        image_size: Side of the clips in pixels.
        frames: Frames of a clip.
        videos: Videos of a step.
        images: Images of a step.
        precision: bf16, fp32, or what the device is fast at.
        steps: Number of timed rounds of each implementation, of one step on a CPU and five on CUDA; the table has their
            medians.
        new_mask_steps: Number of rounds after them with new masks.
        warmup: Number of steps before them, each with different masks, which the timed rounds repeat.
        compile: Compile the blocks; by default, as in a run of the published length.
        activation_checkpointing: Recompute activations in the backward pass.
        package_only: Skip the reference.
        json: Print one JSON object as the last line.
    """
    if warmup < 1 or steps < 1:
        sys.exit(f"warmup is {warmup} and steps is {steps}, expected at least 1 of each")
    device = pick_device()
    config = TrainConfig(
        model=model_preset(model),
        data=DataConfig(image_size=image_size, frames=frames, image_fraction=images / (videos + images)),
        batch_size=videos + images,
        precision=precision,
        compile=compile,
        activation_checkpointing=activation_checkpointing,
    )
    counts = {Modality.VIDEO: videos} | ({Modality.IMAGE: images} if images else {})
    dtype = training_dtype(config, device)
    flops = step_flops(config, [random_step(config, seed, counts) for seed in range(warmup)])
    rate = matrix_rate(device, dtype, config.model.width)
    implementations = IMPLEMENTATIONS[:1] if package_only else IMPLEMENTATIONS
    case = StepCase(config, counts, warmup, steps)
    timed, peak = run_in_turn(build, case, implementations, warmup, steps + new_mask_steps)
    result = {
        implementation: summarize_rounds(timed[implementation], steps, peak[implementation], flops / rate)
        for implementation in implementations
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    samples = f"{videos} videos and {images} images" if images else f"{videos} videos"
    title = f"{model}, {image_size} px, {frames} frames, {samples}, {str(dtype)[6:]} on {name}"
    show(title, result, flops, rate)
    if json:
        print(dumps({"dtype": str(dtype)[6:], "implementations": result}))


def summarize_rounds(timed: list[Round], rounds: int, peak: float, bound: float) -> dict[str, Any]:
    """Medians of the rounds of an implementation.

    Args:
        timed: Those of known masks, then those of new ones.
        rounds: Number of rounds of known masks.
        peak: Peak memory in GB.
        bound: Seconds that the matrix products of a step take at the device's rate.
    """
    known, new = timed[:rounds], timed[rounds:]
    seconds = statistics.median(each.seconds for each in known)
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(each.cpu_seconds for each in known),
        "new_mask_seconds": statistics.median(each.seconds for each in new) if new else None,
        "peak_gb": peak,
        "bound_fraction": bound / seconds,
        "split": {part: statistics.median(each.split[part] for each in known) for part in known[0].split},
    }


def show(title: str, result: dict[str, dict[str, Any]], flops: float, rate: float) -> None:
    """Print the tables."""
    console = Console()
    console.print(title)
    split = result["tubelet"]["split"]
    table = Table()
    for column in ("part", "seconds", "fraction"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in PARTS:
        seconds = split.get(part, 0.0)
        table.add_row(part, f"{seconds:.3f}", f"{100 * seconds / sum(split.values()):.0f} %")
    console.print(table)
    table = Table()
    for column in ("step", "s/step", "CPU s/step", "s/step, new masks", "peak GB", "fraction of bound"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for implementation, found in result.items():
        new = found["new_mask_seconds"]
        times = (f"{found['seconds']:.4g}", f"{found['cpu_seconds']:.4g}", "" if new is None else f"{new:.4g}")
        table.add_row(implementation, *times, f"{found['peak_gb']:.2f}", f"{found['bound_fraction']:.2f}")
    if "reference" in result:
        keys = ("seconds", "cpu_seconds", "new_mask_seconds", "peak_gb")
        pairs = [(result["tubelet"][key], result["reference"][key]) for key in keys]
        table.add_row(
            "ratio", *("" if package is None else f"{package / reference:.2f}" for package, reference in pairs), ""
        )
    console.print(table)
    console.print(
        "CPU s: processor seconds, summed over all cores; more reliable than wall-clock time on a shared machine"
    )
    console.print(f"bound: {flops / 1e12:.2f} TFLOP of matrix products at the measured {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    tyro.cli(main)
