"""An encoder as one graph that other runtimes execute: torch.export and ONNX, checked against eager and timed."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.errors import CheckpointError, FileError, MissingPackageError
from tubelet.io.files import file_errors
from tubelet.io.overwrite_checks import PRODUCER, check_output, mark_archive
from tubelet.model.encoder import Encoder

MAX_DIFFERENCE = 1e-4  # absolute, fp32
_OPSET = 20
_ROUNDS = 5


class LevelOutputs(nn.Module):
    """The exported module: normalized pixels (B, C, T, H, W) to output levels (B, N, D), shallow to deep."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """All output levels, also if the model is configured to return only its last."""
        outputs = self.model.get_intermediate_layers(pixels, self.model.config.levels)
        return tuple(norm(x) for norm, x in zip(self.model.norms, outputs, strict=True))


def export(model: Encoder, out: Path, images: bool = False) -> str:
    """Write an encoder, in fp32, as .pt2 (torch.export) or .onnx, and compare the file with eager at other shapes.

    Args:
        model: the encoder on the CPU; it is cast to fp32 in place.
        out: the file.
        images: export the image tokenizer's graph, for inputs with T = 1, instead of the video tokenizer's.

    Returns:
        a message with the largest difference and the speed relative to eager.

    Raises:
        CheckpointError: if the file computes something else; a previous file is then untouched.
        MissingPackageError: if the packages for ONNX are not installed.
        FileError: if the file cannot be written.
    """
    graph = LevelOutputs(model.float()).eval()
    shapes = example_shapes(model.config, images)
    with _staging_directory(out) as partial, torch.no_grad():
        run = (_to_onnx if out.suffix == ".onnx" else _to_pt2)(graph, shapes[0], partial, images)
        worst = float(np.max([_difference(graph, run, shape) for shape in shapes]))
        if not worst <= MAX_DIFFERENCE:
            raise CheckpointError(
                f"{out}: differs from eager by {worst:.1e}, expected at most {MAX_DIFFERENCE:.0e}; not written"
            )
        eager_s, exported_s = _time_in_turn([graph, run], torch.randn(shapes[-1]))
    tokens, size = model.config.grid(*shapes[-1][2:]).tokens * shapes[-1][0], "x".join(map(str, shapes[-1]))
    return (
        f"{out}: differs from eager by at most {worst:.1e} over {len(shapes)} shapes; "
        f"{tokens / exported_s:,.0f} tokens/s, eager {tokens / eager_s:,.0f} "
        f"(ratio {eager_s / exported_s:.2f}) at {size} on this CPU"
    )


def output_kind(out: Path) -> str:
    """Which of `tubelet.io.overwrite_checks.KINDS` an exported file is."""
    return "onnx" if out.suffix == ".onnx" else "graph"


@contextmanager
def _staging_directory(out: Path) -> Iterator[Path]:
    """A path in a temporary directory beside `out`, whose files are moved next to `out` if the block succeeds."""
    with file_errors(out, "choose another file"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder) / out.name
            # Large ONNX models have their weights in a second file, which must exist before the first does.
            check_output(out, output_kind(out))
            for written in sorted(Path(folder).iterdir(), key=lambda path: path.name == out.name):
                target = out.parent / written.name
                if written.name != out.name and target.exists() and not out.exists():
                    raise FileError(f"{target}: exists, but the weights of {out.name} need this name; choose another")
                written.replace(target)


def example_shapes(config: ModelConfig, images: bool) -> list[tuple[int, ...]]:
    """Input shapes of several batch sizes, lengths and sizes, some not square; the first is traced."""
    C, t, p = config.channels, config.tubelet_size, config.patch_size
    steps = [1, 1, 1] if images else [2 * t, 3 * t, 4 * t]
    return [(2, C, steps[0], 4 * p, 3 * p), (1, C, steps[1], 2 * p, 5 * p), (3, C, steps[2], 8 * p, 8 * p)]


def _dynamic(config: ModelConfig, images: bool) -> dict[int, Any]:
    """Dynamic batch, frames and size; only inputs of a single row or column of patches are excluded."""
    dims: dict[int, Any] = {
        0: torch.export.Dim("batch"),
        3: config.patch_size * torch.export.Dim("rows", min=2),
        4: config.patch_size * torch.export.Dim("columns", min=2),
    }
    return dims if images else dims | {2: config.tubelet_size * torch.export.Dim("steps")}


def _program(graph: LevelOutputs, shape: tuple[int, ...], images: bool) -> torch.export.ExportedProgram:
    dims = _dynamic(graph.model.config, images)
    return torch.export.export(graph, (torch.randn(shape),), dynamic_shapes=(dims,))


def _to_pt2(
    graph: LevelOutputs, shape: tuple[int, ...], out: Path, images: bool
) -> Callable[[Tensor], Sequence[Tensor]]:
    torch.export.save(_program(graph, shape, images), out)
    mark_archive(out)
    return torch.export.load(out).module()


def _to_onnx(
    graph: LevelOutputs, shape: tuple[int, ...], out: Path, images: bool
) -> Callable[[Tensor], Sequence[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx writes with
    except ImportError as error:
        raise MissingPackageError(
            f"{out}: writing ONNX needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error
    onnxruntime.disable_telemetry_events()  # no usage data about exported models
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # otherwise it lists optional packages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch about its own code
        written = torch.onnx.export(
            _program(graph, shape, images),
            dynamo=True,
            input_names=["pixels"],
            output_names=[f"level{i}" for i in range(len(graph.model.config.levels))],
            opset_version=_OPSET,
            verbose=False,
        )
    assert written is not None
    written.model.producer_name = PRODUCER
    written.save(out)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow down eager
    session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(y) for y in session.run(None, {"pixels": pixels.numpy()})]


def _difference(graph: nn.Module, run: Callable[[Tensor], Sequence[Tensor]], shape: tuple[int, ...]) -> float:
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    differences = [(a - b).abs().max() for a, b in zip(graph(pixels), run(pixels), strict=True)]
    return torch.stack(differences).max().item()  # unlike Python's max, this one propagates NaN


def _time_in_turn(functions: Sequence[Callable[[Tensor], Any]], pixels: Tensor) -> list[float]:
    """Median seconds of each function; they run in turn so that other load on the machine affects all."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(_ROUNDS):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(pixels)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
