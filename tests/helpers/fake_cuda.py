"""CUDA tensors on machines without CUDA: sizes, dtypes and devices, but no contents.

`FakeTensorMode` creates CUDA tensors without a GPU, but autograd in a CPU wheel of PyTorch aborts on them. `install`
lifts that in this process, until it ends: use a process of its own, as `tests/helpers/fake_cuda_process.py` does.
Then `fake_cuda()` is a context in which the package runs as it would on a GPU, and an `OperatorLog` inside of it sees
every operator, those of the backward pass included.

What this cannot see: results, timing, the allocator, NCCL, the order of streams, and choices that PyTorch makes by the
properties of a device.
"""

import ctypes
import math
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_ACCELERATOR = ("_ZN2at11accelerator13isAcceleratorEN3c1010DeviceTypeE", "_ZN2at11accelerator14getAcceleratorEb")
_RETURN_ZERO = {"x86_64": b"\x31\xc0\xc3", "aarch64": b"\x00\x00\x80\x52\xc0\x03\x5f\xd6"}
_DEVICE_TYPES, _CPU, _CUDA = 20, 0, 1  # c10::DeviceType
_VIRTUAL_FUNCTIONS = 64  # more than the interface of guards has
_kept: list[Any] = []  # memory that C++ points into


class FakeCudaError(Exception):
    """Fake CUDA tensors are not possible here; the message says why."""


def install() -> None:
    """Make autograd accept CUDA tensors in this process; cannot be undone.

    Autograd asks the guard of a tensor's device type for streams. A CPU wheel has none for CUDA, so CUDA's entry is set
    to the guard of CPUs, whose streams do nothing, except that it reports CUDA as its type. Autograd also asks
    `at::accelerator` for the current accelerator, and then the driver for its streams: there is none any more.

    Must be called before the first backward pass of the process, which starts one thread for each device.

    Raises:
        FakeCudaError: if there is a real device, or this PyTorch or platform is built differently.
    """
    if _kept:
        return
    if torch.cuda.is_available():
        raise FakeCudaError("this process can use a real CUDA device: set CUDA_VISIBLE_DEVICES to nothing")
    if sys.platform != "linux" or platform.machine() not in _RETURN_ZERO:
        raise FakeCudaError(f"only for Linux on {' and '.join(_RETURN_ZERO)}, not {sys.platform}/{platform.machine()}")
    libraries = Path(torch.__file__).parent / "lib"
    core, cpu = (ctypes.CDLL(str(libraries / name)) for name in ("libc10.so", "libtorch_cpu.so"))
    for library, symbol in ((core, _REGISTRY), *((cpu, name) for name in _ACCELERATOR)):
        if not hasattr(library, symbol):
            raise FakeCudaError(f"PyTorch {torch.__version__} has no symbol {symbol}")
    for symbol in _ACCELERATOR:
        _return_zero(ctypes.cast(getattr(cpu, symbol), ctypes.c_void_p).value or 0)
    _register_guard((ctypes.c_void_p * _DEVICE_TYPES).in_dll(core, _REGISTRY))


def _return_zero(address: int) -> None:
    """Overwrite the beginning of a function: it returns 0, false or nullopt."""
    libc, code = ctypes.CDLL(None), _RETURN_ZERO[platform.machine()]
    page = ctypes.c_void_p(address & ~4095)
    if libc.mprotect(page, ctypes.c_size_t(8192), 7):
        raise FakeCudaError("this system does not allow a program to change its own code")
    ctypes.memmove(address, code, len(code))
    libc.mprotect(page, ctypes.c_size_t(8192), 5)


def _register_guard(registry: Any) -> None:
    """Give CUDA a copy of the CPU's guard whose `type()` returns CUDA."""
    table = ctypes.c_void_p.from_address(registry[_CPU] or 0).value or 0
    header = 2  # words in front of the first virtual function: offset to top, type information
    size = header + _VIRTUAL_FUNCTIONS
    copied = (ctypes.c_void_p * size).from_buffer_copy(ctypes.string_at(table - 8 * header, 8 * size))
    type_of = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda _: _CUDA)
    copied[header] = ctypes.cast(type_of, ctypes.c_void_p).value
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(copied) + 8 * header)
    _kept.extend((type_of, copied, guard))
    registry[_CUDA] = ctypes.addressof(guard)


class FakeEvent:
    """`torch.cuda.Event` without a driver."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class FakeStream:
    """`torch.cuda.Stream` without a driver."""

    device = CUDA

    def __init__(self, *_: object, **__: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def wait_event(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        _synchronize()

    def record_event(self, *_: object) -> FakeEvent:
        return FakeEvent()


def _synchronize(*_: object) -> None:
    for log in _running:
        log.report("host waits", "synchronize()")


_running: list["OperatorLog"] = []
_pinned: set[int] = set()  # storages in page-locked memory, by address; of one `fake_cuda()`
_to = nn.Module.to
_sdpa, _empty = F.scaled_dot_product_attention, torch.empty


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
    """`scaled_dot_product_attention` on the kernels that CUDA has; a CPU wheel would not choose them."""
    if q.device.type != "cuda":
        return _sdpa(q, k, v, *args, **options)
    if q.dtype in (torch.bfloat16, torch.float16) and not args:
        return aten._scaled_dot_product_flash_attention(q, k, v, **options)[0]
    mask = args[0] if args else options.pop("attn_mask", None)
    return aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, **options)[0]


def _pin(tensor: Tensor, *_: object) -> Tensor:
    _pinned.add(tensor.untyped_storage()._cdata)
    return tensor


def _empty_pinned(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
    tensor: Tensor = _empty(*args, **options)
    return _pin(tensor) if pin_memory else tensor


def _numpy(tensor: Tensor, **_: object) -> np.ndarray:
    """Zeros of the shape and dtype of a tensor on a CPU, as `numpy()` raises for one on a device."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@contextmanager
def fake_cuda(devices: int = 8) -> Iterator[None]:
    """A context in which tensors are fake, on the CPU or on CUDA, and `torch.cuda` answers as if it were there.

    Args:
        devices: number of CUDA devices, H200s.
    """
    from tubelet.data import clips

    replaced: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_name": lambda *_: "NVIDIA H200",
            "get_device_capability": lambda *_: (9, 0),
            "is_initialized": lambda: True,
            "device_count": lambda: devices,
            "current_device": lambda: 0,
            "set_device": lambda *_: None,
            "mem_get_info": lambda *_: (139 * 2**30, 139 * 2**30),
            "synchronize": _synchronize,
            "get_rng_state": lambda *_: _empty(16, dtype=torch.uint8),
            "set_rng_state": lambda *_: None,
            "manual_seed": lambda _: None,
            "manual_seed_all": lambda _: None,
            "Event": FakeEvent,
            "Stream": FakeStream,
            "stream": lambda _: nullcontext(),
            "current_stream": lambda *_: FakeStream(),
            "default_stream": lambda *_: FakeStream(),
        },
        torch.cuda.amp.common: {"amp_definitely_not_available": lambda: False},
        torch._C: {"_ensureCUDADeviceGuardSet": lambda: None},
        torch.Tensor: {"record_stream": lambda *_: None, "pin_memory": _pin},
        torch: {"empty": _empty_pinned},
        nn.Module: {"to": _module_to},
        F: {"scaled_dot_product_attention": _attention},
        FakeTensor: {"numpy": _numpy},
    }
    with torch.device("meta"):  # remembers at its first use what makes tensors, which must not be what replaces it here
        torch.empty(0)
    clips._constants.cache_clear()  # constants of a device, which must be those of this context
    with ExitStack() as stack:
        for owner, attributes in replaced.items():
            for name, value in attributes.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=owner is FakeTensor))
        stack.callback(_pinned.clear)
        stack.callback(clips._constants.cache_clear)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def to_fake_cuda(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace parameters and buffers that are elsewhere by fake ones on CUDA, in place."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            if value.device != CUDA or dtype not in (None, value.dtype):
                fake = torch.empty(value.shape, dtype=dtype or value.dtype, device=CUDA)
                setattr(part, name, nn.Parameter(fake, requires_grad=value.requires_grad))
        for name, value in list(part.named_buffers(recurse=False)):
            if value.device != CUDA:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
    return module


def _module_to(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """`nn.Module.to`, which swaps contents and so does not accept fake parameters."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **options)
    return _to(module, *args, **options) if device is None or device.type != "cuda" else to_fake_cuda(module, dtype)


# Operators that make the host wait, since it must know a value or a size that only the device knows.
_HOST_READS = {
    aten._local_scalar_dense.default: "a value is read (item, bool, float, tolist)",
    aten.is_nonzero.default: "a value is read (bool)",
    aten.equal.default: "torch.equal",
    aten.nonzero.default: "the size of nonzero() is read",
    aten.masked_select.default: "the size of masked_select() is read",
    aten._unique2.default: "the size of unique() is read",
    aten.unique_dim.default: "the size of unique() is read",
    aten.bincount.default: "the largest value is read by bincount()",
    aten.repeat_interleave.Tensor: "the size of repeat_interleave() is read",
    aten._linalg_eigh.default: "an error code is read by eigh()",
    aten._linalg_svd.default: "an error code is read by svd()",
}
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
_COPIES = (aten._to_copy.default, aten.copy_.default)
_NAMES = {
    # Besides views: they allocate, or change what is known of a tensor.
    "no kernel": """
        detach alias empty empty_like empty_strided new_empty new_empty_strided _unsafe_view lift_fresh is_same_size
        set_ resize_ sym_size sym_numel sym_stride record_stream _local_scalar_dense is_nonzero _reshape_alias
        is_pinned""",
    "matrix products": "mm addmm bmm baddbmm linear convolution convolution_backward _scaled_mm _grouped_mm",
    "reductions": """
        sum mean amin amax min max all any norm linalg_vector_norm _foreach_norm argmax argmin topk std var var_mean
        native_layer_norm native_layer_norm_backward _softmax _softmax_backward_data _log_softmax logsumexp cumsum
        nll_loss_forward""",
    "copies": """
        clone cat stack index index_select gather scatter scatter_ index_put index_put_ index_add index_add_
        index_copy_ fill_ zero_ full full_like zeros zeros_like ones ones_like new_zeros new_full new_ones
        scalar_tensor arange constant_pad_nd slice_backward select_backward slice_scatter select_scatter repeat flip
        eye roll split_with_sizes_copy""",
}
_GROUP_OF = {name: group for group, names in _NAMES.items() for name in names.split()}
GROUPS = (
    "casts",
    "matrix products",
    "attention",
    "pointwise",
    "reductions",
    "copies",
    "communication",
    "optimizer",
    "teacher",
)


class OperatorLog(TorchDispatchMode):
    """Records every operator on CUDA tensors; use it inside of `fake_cuda()`.

    A value that is read from the device is `value`, boolean indices are true everywhere.

    Attributes:
        problems: what is wrong, and where -> how often.
        kernels: (group, operator) -> number of kernels that it launches.
    """

    def __init__(self, autocast: bool = False, value: float = 1.0) -> None:
        """Start without entries.

        Args:
            autocast: whether a matrix product of fp32 matrices is a problem.
            value: what the host reads from the device.
        """
        super().__init__()
        self.autocast, self.value = autocast, value
        self.phase: str | None = None
        self.problems: Counter[str] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def in_phase(self, group: str) -> Iterator[None]:
        """Count all kernels in one group, whatever the operator."""
        before, self.phase = self.phase, group
        try:
            yield
        finally:
            self.phase = before

    def groups(self) -> dict[str, int]:
        """Number of kernels by group, in the order of `GROUPS`."""
        return {group: sum(n for (own, _), n in self.kernels.items() if own == group) for group in GROUPS}

    def unexpected(self, *expected: str) -> str:
        """The problems that contain none of some texts, a line for each."""
        found = {problem: n for problem, n in self.problems.items() if not any(text in problem for text in expected)}
        return "\n".join(f"{n} x {problem}" for problem, n in found.items())

    def report(self, problem: str, func: Any) -> None:
        """Record a problem at the current line."""
        self.problems[f"{problem}: {func} at {_location()}"] += 1

    def __enter__(self) -> "OperatorLog":
        _running.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _running.remove(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(kind is not FakeTensor for kind in types):
            return NotImplemented  # a shard, or a matrix in fp8: the operators on what it holds come here by themselves
        if func.namespace in ("prim", "profiler"):
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func._can_decompose():  # otherwise autograd has done so already
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_cuda = [x for x in inputs if x.device.type == "cuda"]
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor) and not on_cuda:
            return self._answer(func, args)
        if on_cuda:
            self._check_devices(func, inputs)
            if func in _HOST_READS:
                self.report(f"host waits, {_HOST_READS[func]}", func)
                if (answer := self._answer(func, args)) is not None:
                    return answer
            if func in _INDEXED:
                args = self._with_known_indices(func, args)
        out = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if func in _COPIES:
            self._check_copy(func, args, kwargs, out)
        if on_cuda or any(x.device.type == "cuda" for x in outputs):
            self._check_dtypes(func, on_cuda, outputs)
            self._count(func, args, inputs, outputs)
        return out

    def _check_devices(self, func: Any, inputs: list[Tensor]) -> None:
        on_cpu = any(x.device.type == "cpu" and x.dim() > 0 for x in inputs)
        if on_cpu and func not in _COPIES:
            self.report("tensors on several devices", func)

    def _answer(self, func: Any, args: Any) -> Any:
        """What the host reads, as far as fake tensors cannot tell."""
        x = args[0]
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default):
            kind = bool if x.dtype == torch.bool else float if x.dtype.is_floating_point else int
            return kind(self.value)
        if func is aten.equal.default:
            return True
        if func is aten.nonzero.default:
            return torch.empty(x.numel(), x.dim(), dtype=torch.int64, device=x.device)
        if func is aten.masked_select.default:
            return x.flatten()
        if func is aten._unique2.default:
            return x.flatten(), torch.empty_like(x, dtype=torch.int64), torch.empty_like(x.flatten(), dtype=torch.int64)
        if func is aten.bincount.default:
            return x.new_empty(args[2] if len(args) > 2 else int(self.value) + 1)
        return None

    def _with_known_indices(self, func: Any, args: Any) -> Any:
        """The arguments of an indexing operator, with a boolean index as one that takes everything."""
        indices: list[Tensor | None] = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                self.report("host waits, the size of a boolean index is read", func)
                size = math.prod(index.shape)
                indices += [torch.empty(size, dtype=torch.int64, device=index.device) for _ in index.shape]
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _check_copy(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        target, source = (args[0], args[1]) if func is aten.copy_.default else (out, args[0])
        if not isinstance(source, Tensor) or source.device.type == target.device.type:
            return
        position = 2 if func is aten.copy_.default else len(args)
        non_blocking = kwargs.get("non_blocking", args[position] if len(args) > position else False)
        host = source if source.device.type == "cpu" else target
        if target.device.type == "cuda" and not non_blocking:
            self.report("blocking copy to the device", func)
        elif target.device.type == "cpu" and not non_blocking:
            self.report("host waits, a copy to the CPU", func)
        elif host.untyped_storage()._cdata not in _pinned and not (target.device.type == "cpu" and host is out):
            # PyTorch itself pins what `to("cpu", non_blocking=True)` allocates.
            self.report("copy from or to memory that is not pinned, which blocks", func)

    def _check_dtypes(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if any(x.dtype == torch.float64 for x in (*inputs, *outputs)):
            self.report("float64 on the device", func)
        single = bool(inputs) and all(x.dtype == torch.float32 for x in inputs)
        if self.autocast and single and _GROUP_OF.get(_name(func)) == "matrix products":
            self.report("matrix product in fp32", func)

    def _count(self, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = _name(func)
        if func.is_view or _GROUP_OF.get(name) == "no kernel":
            return
        count = 1
        if name.startswith(("_foreach", "_fused")):
            count = self._count_list_operator(func, name, args)
        elif "attention_backward" in name or name == "_varlen_attn_backward":
            count = 3  # gradient · output, the pass itself, the conversion of dq
        elif name == "native_layer_norm_backward":
            count = 2  # gradients of the input, and of weight and bias
        elif name in ("cat", "stack"):
            count = -(-len(args[0]) // 128)
        self.kernels[self.phase or _group(func, name, inputs, outputs), name] += count

    def _count_list_operator(self, func: Any, name: str, args: Any) -> int:
        """Kernels of an operator on lists of tensors: a few if it takes the fast path, otherwise one a tensor.

        The conditions are those of `can_use_fast_route` in ATen/native/ForeachUtils.h, the sizes those of
        ATen/native/cuda/MultiTensorApply.cuh for CUDA 12.1 and later.
        """
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        if name.startswith("_fused_adam"):
            lists = lists[:4]  # not the list of step counters
        length = len(lists[0])
        if not _takes_fast_path(lists, same_dtype=name != "_foreach_copy_"):
            self.report(f"operator on lists off the fast path, {length} kernels instead of a few", func)
            return length
        most = {1: 770, 2: 448, 3: 336, 4: 252}.get(len(lists), 210)
        blocks = sum(-(-x.numel() // 65536) for x in lists[0])
        launches = max(-(-length // most), -(-blocks // 2240))
        return 2 * launches if name == "_foreach_norm" else launches


def _takes_fast_path(lists: list[Any], same_dtype: bool) -> bool:
    first = lists[0]
    return all(
        len(own) == len(first)
        and all(x.shape == y.shape and x.stride() == y.stride() for x, y in zip(own, first, strict=True))
        and len({x.dtype for x in own}) == 1
        and all(x.device == CUDA and _is_dense(x) for x in own)
        and (own[0].dtype == first[0].dtype or not same_dtype)
        for own in lists
    )


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of dimensions."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1 and stride != size:
            return False
        size *= length
    return True


def _name(func: Any) -> str:
    name: str = func.__name__
    return name.split(".")[0]


def _group(func: Any, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> str:
    if func.namespace in ("c10d", "_c10d_functional"):
        return "communication"
    if name in ("_to_copy", "copy_", "_foreach_copy_"):
        return "casts" if len({x.dtype for x in (*inputs, *outputs)}) > 1 else "copies"
    if "attention" in name or "_attn" in name:
        return "attention"
    return _GROUP_OF.get(name, "pointwise")


def _location() -> str:
    """The innermost line of the package that is running; "the backward pass" where none is."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/src/tubelet/" in name or "/torch/optim/" in name:
            return f"{'/'.join(Path(name).parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the backward pass"
