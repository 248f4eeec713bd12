"""Blocks and the loss lower to Triton, and compile to machine code of an H100, on machines without a GPU.

Skipped unless Triton is installed, which comes with PyTorch's CUDA wheel. What this cannot see: launches, results,
times and the choice between configurations.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.helpers.fake_cuda import CUDA, to_fake_cuda
from tests.helpers.fake_cuda_process import in_fake_cuda
from tubelet.grid import Grid, Mask
from tubelet.model.layers import Block
from tubelet.model.rope import RotaryTable
from tubelet.objective import dense_predictive_loss

triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch's CUDA wheel")
pytestmark = pytest.mark.slow

# What Inductor asks of a device, as an H100 answers.
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    gcnArchName="",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
)


class H100Driver:
    """Triton's driver of a device that is not there: it answers what compilation asks, and launches nothing."""

    utils = SimpleNamespace(
        get_device_properties=lambda _: {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32}
    )

    def get_current_target(self) -> Any:
        """Compute capability 9.0, 32 threads a warp."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0


@contextmanager
def h100() -> Iterator[None]:
    """A context in which Inductor and Triton find an H100."""
    import torch._inductor.scheduler
    from torch._inductor.runtime import triton_helpers

    replaced = (
        (torch.cuda, "_get_device_properties", lambda _=None: H100),
        (torch.cuda, "get_device_properties", lambda _=None: H100),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch._inductor.scheduler, "has_triton", lambda *_: True),
        (triton_helpers, "set_driver_to_gpu", lambda: None),
    )
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        triton.runtime.driver.set_active(H100Driver())  # until the child ends: without a GPU there is no other
        yield


def lowered(function: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, str]:
    """The code that Inductor writes for a function's forward and backward pass."""
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import _recursive_post_grad_passes, view_to_reshape
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    code: dict[str, str] = {}

    def compiler(direction: str) -> Callable[..., Any]:
        def lower(module: Any, examples: list[Any]) -> Any:
            view_to_reshape(module)
            with V.set_fake_mode(detect_fake_mode(examples)), V.set_debug_handler(DebugContext()):
                _recursive_post_grad_passes(module, is_inference=False)
                graph = GraphLowering(module, example_inputs=examples, is_backward=direction == "backward")
                with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]):
                    graph.run(*examples)
                    written = graph.codegen()[0]
            code[direction] = getattr(written, "value", written)
            return make_boxed_func(module.forward)

        return lower

    compiled = aot_function(function, compiler("forward"), compiler("backward"), decompositions=select_decomp_table())
    compiled(*inputs).sum().backward()
    return code


def machine_code(code: str, folder: Path) -> dict[str, bytes]:
    """The machine code of each kernel in Inductor's code, by name, in its first configuration."""
    compiled: list[Any] = []
    compile_kernel = triton.compile

    def recorded(*values: Any, **options: Any) -> Any:
        compiled.append(compile_kernel(*values, **options))
        return compiled[-1]

    found = {}
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''\n(.*?)''', device_str", code, flags=re.S):
        path = folder / f"{name}.py"
        path.write_text(source)  # Triton reads the source of the function
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kernel = getattr(module, name)
        with mock.patch.object(triton, "compile", recorded):
            kernel._precompile_config(kernel.configs[0])
        found[name] = compiled[-1].asm["cubin"]
    return found


def assert_compiles(function: Callable[..., Tensor], inputs: list[Tensor], folder: Path) -> dict[str, str]:
    """Both passes lower, and all their kernels compile; returns the code."""
    with h100():
        code = lowered(function, inputs)
        for direction in ("forward", "backward"):
            (folder / direction).mkdir()
            kernels = machine_code(code[direction], folder / direction)
            assert kernels, f"the {direction} pass has no kernel"
            assert all(binary.startswith(b"\x7fELF") for binary in kernels.values())
    return code


@in_fake_cuda
def test_a_block_compiles_to_machine_code_of_an_h100_and_calls_flash_attention(tmp_path):
    width, heads, segments = 384, 6, ((2, 480), (2, 96))
    block = to_fake_cuda(Block(width, heads, 4.0))
    names, parameters = zip(*block.named_parameters(), strict=True)
    tokens = sum(B * K for B, K in segments)
    x = torch.empty(1, tokens, width, device=CUDA, requires_grad=True)
    cos, sin = (torch.empty(1, tokens, 1, width // heads, device=CUDA) for _ in range(2))

    def run(x, cos, sin, *parameters):
        with torch.autocast("cuda", torch.bfloat16):
            table = RotaryTable(cos, sin, segments)
            return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x, table))

    code = assert_compiles(run, [x, cos, sin, *parameters], tmp_path)
    flash = "aten._scaled_dot_product_flash_attention"
    assert code["forward"].count(f" = torch.ops.{flash}.default(") == len(segments)
    assert code["backward"].count(f" = torch.ops.{flash}_backward.default(") == len(segments)


@in_fake_cuda
def test_the_loss_compiles_to_machine_code_of_an_h100(tmp_path):
    grid, channels, B, context = Grid(8, 16, 16), 4 * 384, 2, 480
    ids = torch.arange(grid.tokens, device=CUDA).expand(B, -1)
    mask = Mask(ids[:, :context], ids[:, context:])
    predicted = [torch.empty(B, K, channels, device=CUDA, requires_grad=True) for K in (grid.tokens - context, context)]
    targets, weight = torch.empty(B, grid.tokens, channels, device=CUDA), torch.empty((), device=CUDA)

    def run(target, context, targets, weight, *ids):
        with torch.autocast("cuda", torch.bfloat16):
            return dense_predictive_loss(target, context, targets, Mask(*ids), grid, weight).total

    assert_compiles(run, [*predicted, targets, weight, mask.context, mask.target], tmp_path)
