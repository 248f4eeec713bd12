"""Files of graphs for other runtimes, by torch.export or as ONNX, compared with eager mode."""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError, FileError, MissingPackageError
from tubelet.io.files import file_errors
from tubelet.io.overwrite_checks import PRODUCER, check_output, mark_archive
from tubelet.model.encoder import Encoder

MAX_DIFFERENCE = 1e-4  # absolute, fp32
MIN_COSINE = 0.99  # of outputs with 8-bit weights and activations
_OPSET = 20
_ONE_FILE_BYTES = 4 * 1.9e9  # of fp32 weights: a protobuf file ends at 2 GB, and int8 weights take a fourth
_ROUNDS = 5
_AXES = {"B": "batch", "T": "frames", "H": "height", "W": "width", "N": "tokens"}
_METADATA_FILE = "metadata.json"  # among the extra files of a .pt2


class LevelOutputs(nn.Module):
    """The exported module: normalized pixels (B, C, T, H, W) to output levels (B, N, D), shallow to deep."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        if getattr(model, "int8", False):
            raise ConfigError("8-bit weights cannot be exported; load the model without int8, and export that")
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """All output levels, also if the model is configured to return only its last."""
        outputs = self.model.get_intermediate_layers(pixels, self.model.config.levels)
        return tuple(norm(x) for norm, x in zip(self.model.norms, outputs, strict=True))


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A module to write as a graph, and how to check it.

    Attributes:
        graph: the module on the CPU in eval mode, with one input and a tuple of outputs.
        examples: inputs of several shapes; the first is traced, the last timed.
        dynamic: dimensions of the input that may differ, as `torch.export` takes them.
        input_name: name of the input.
        input_axes: a letter for each of its axes, see `tubelet.pretrained.encoder_export.graph_metadata`.
        output_names: names of the outputs.
        output_axes: letters for the axes of each.
        metadata: texts to store in the file, see `tubelet.pretrained.encoder_export.graph_metadata`.
        max_difference: largest absolute difference from eager.
        int8: whether matrix products with weights are in 8 bits, in ONNX.
    """

    graph: nn.Module
    examples: Sequence[Tensor]
    dynamic: dict[int, Any]
    input_name: str
    input_axes: str
    output_names: Sequence[str]
    output_axes: Sequence[str]
    metadata: Mapping[str, str]
    max_difference: float = MAX_DIFFERENCE
    int8: bool = False


class GraphCheck(NamedTuple):
    """A written graph compared with eager.

    Attributes:
        difference: largest absolute difference of an output, before quantization.
        cosine: cosine of an output in int8 and the same in eager, the lowest over outputs and examples.
        eager_s: median seconds of eager for the last example.
        graph_s: those of the file.
    """

    difference: float
    cosine: float
    eager_s: float
    graph_s: float


def difference_text(check: GraphCheck, int8: bool) -> str:
    """How far a file is from eager, for a message."""
    differs = f"differs from eager by at most {check.difference:.1e} in fp32"
    return f"{differs}, cosine in int8 {check.cosine:.5f}" if int8 else differs


def write_graph(plan: ExportPlan, out: Path) -> GraphCheck:
    """Write a graph as .pt2 or .onnx, by the suffix, unless it differs from eager.

    Args:
        plan: the graph.
        out: the file.

    Raises:
        CheckpointError: if the file computes something else; a previous file is then untouched.
        MissingPackageError: if the packages for ONNX are not installed.
        FileError: if the file cannot be written.
    """
    with _staging_directory(out) as partial, torch.no_grad():
        run = (_to_onnx if out.suffix == ".onnx" else _to_pt2)(plan, partial)
        worst = float(np.max([_difference(plan.graph, run, example) for example in plan.examples]))
        if not worst <= plan.max_difference:
            raise CheckpointError(
                f"{out}: differs from eager by {worst:.1e}, expected at most {plan.max_difference:.0e}; not written"
            )
        if plan.int8:
            quantize_onnx(partial)
            run = onnx_session(partial, plan.input_name)
        cosine = min(_cosine(plan.graph, run, example) for example in plan.examples)
        if not cosine >= MIN_COSINE:
            raise CheckpointError(
                f"{out}: cosine to eager is {cosine:.4f}, expected at least {MIN_COSINE}; not written"
            )
        return GraphCheck(worst, cosine, *_time_in_turn([plan.graph, run], plan.examples[-1]))


def output_kind(out: Path) -> str:
    """Which of `tubelet.io.overwrite_checks.KINDS` an exported file is."""
    return "onnx" if out.suffix == ".onnx" else "graph"


@contextmanager
def _staging_directory(out: Path) -> Iterator[Path]:
    """A path in a temporary directory next to `out`, whose files are moved next to `out` if the block succeeds."""
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


def _program(plan: ExportPlan) -> torch.export.ExportedProgram:
    return torch.export.export(plan.graph, (plan.examples[0],), dynamic_shapes=(plan.dynamic,))


def _to_pt2(plan: ExportPlan, out: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    torch.export.save(_program(plan), out, extra_files={_METADATA_FILE: json.dumps(dict(plan.metadata))})
    mark_archive(out)
    return torch.export.load(out).module()


def _to_onnx(plan: ExportPlan, out: Path) -> Callable[[Tensor], Sequence[Tensor]]:
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
            _program(plan),
            dynamo=True,
            input_names=[plan.input_name],
            output_names=list(plan.output_names),
            opset_version=_OPSET,
            verbose=False,
        )
    assert written is not None
    _name_dimensions(written.model.graph, [plan.input_axes, *plan.output_axes])
    written.model.producer_name = PRODUCER
    written.model.metadata_props.update(plan.metadata)
    written.save(out)
    return onnx_session(out, plan.input_name)


def _name_dimensions(graph: Any, axes: Sequence[str]) -> None:
    """Name the dynamic dimensions of a graph by the axes of its inputs and outputs, instead of s81 or 8*s30."""
    ends = [*graph.inputs, *graph.outputs]
    names: dict[str, str] = {}
    for value, letters in zip(ends, axes, strict=True):
        for dim, axis in zip(value.shape, letters, strict=True):
            if not isinstance(dim, int):
                names.setdefault(str(dim), _AXES[axis])
    for value in [*ends, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = type(value.shape)([names.get(str(dim), dim) for dim in value.shape])


def onnx_session(path: Path, input_name: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """A function that runs an ONNX file on this CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow down eager
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: [torch.from_numpy(y) for y in session.run(None, {input_name: inputs.numpy()})]


def quantize_onnx(path: Path) -> None:
    """Quantize matrix products with weights to 8 bits, in place, by onnxruntime's dynamic quantization.

    Weights have one scale for each output channel. The scales of activations are computed at run time, one for each
    product, so that no calibration data are needed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as folder:
        written = [file for file in path.parent.iterdir() if file.is_file()]  # of a large model two
        moved = [file.replace(Path(folder) / file.name) for file in written]
        large = sum(file.stat().st_size for file in moved) > _ONE_FILE_BYTES
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.WARNING))  # it recommends preparations that change nothing here
        try:
            quantize_dynamic(
                Path(folder) / path.name,
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
            )
        finally:
            logging.disable(disabled)
    model = onnx.load(path, load_external_data=False)
    model.producer_name = PRODUCER
    onnx.save_model(model, path)


def _difference(graph: nn.Module, run: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor) -> float:
    differences = [(a - b).abs().max() for a, b in zip(graph(inputs), run(inputs), strict=True)]
    return torch.stack(differences).max().item()  # unlike Python's max, this one propagates NaN


def _cosine(graph: nn.Module, run: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor) -> float:
    pairs = zip(graph(inputs), run(inputs), strict=True)
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
    return torch.stack(cosines).min().item()


def _time_in_turn(functions: Sequence[Callable[[Tensor], Any]], pixels: Tensor) -> list[float]:
    """Median seconds of each function, called in turn so that other load on the machine affects all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(_ROUNDS):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(pixels)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
