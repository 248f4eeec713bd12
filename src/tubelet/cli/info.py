"""`tubelet info`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.cli.command import Command
from tubelet.console import open_console, print_wrapped

# Packages whose versions explain most reports: those that compute, decode, load and store.
PACKAGES = (
    *("tubelet", "torch", "numpy", "av", "pillow", "safetensors", "pyarrow", "huggingface_hub"),
    *("transformers", "timm", "peft", "torchao", "onnxruntime", "vizdoom"),
)


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Print versions, devices, caches and released models on this machine; to be pasted into a bug report."""

    json: bool = False
    """Print them as JSON."""

    def run(self) -> None:
        """Print them."""
        facts = describe_machine()
        if self.json:
            print(json.dumps(facts, indent=1))
            return
        console = open_console()
        for title, rows in facts.items():
            print_wrapped(console, title, "bold")
            for name, value in rows.items():
                print_wrapped(console, f"  {name}: {value}")


def describe_machine() -> dict[str, dict[str, str]]:
    """Versions, devices, caches and models of this machine: section -> name -> value."""
    import os
    import platform

    import psutil
    import torch

    from tubelet.checkpoint.registry import RELEASED, search_directories
    from tubelet.device import has_bf16_units, pick_device, pick_dtype
    from tubelet.io.files import cache_dir

    device = pick_device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = {str(device): _device_name(device)}
    devices |= {f"cuda:{i}": _device_name(torch.device("cuda", i)) for i in range(1, torch.cuda.device_count())}
    folders = search_directories()
    models = {name: folder / file for name, file in RELEASED.items() for folder in folders if (folder / file).is_file()}
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "machine": {
            "system": platform.platform(),
            "cores for this process": str(cores),
            "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        },
        "device": devices
        | {
            "precision of features": f"{_dtype_name(pick_dtype('auto', device))} by default"
            f"{'' if has_bf16_units(device) else ' (no bf16 units)'}",
            "precision of training": _training_precision(device),
            "cuda of the torch build": str(torch.version.cuda or "none"),
        },
        "cache": {
            str(folder): _size(folder)
            for folder in (cache_dir() / part for part in ("released", "features", "compiled"))
        },
        "released models": {name: str(path) for name, path in models.items()} or {"none": "see tubelet.load"},
    }


def _training_precision(device: Any) -> str:
    """The default data type of the matrix products in training, which on a CPU depends on the width of the model."""
    from tubelet.config import MODELS
    from tubelet.device import fast_training_dtype

    models: dict[str, list[str]] = {}
    for name, preset in MODELS.items():
        models.setdefault(_dtype_name(fast_training_dtype(preset().width, device)), []).append(name)
    if len(models) == 1:
        return f"{next(iter(models))} by default"
    return "by default " + ", ".join(f"{dtype} for {' '.join(names)}" for dtype, names in models.items())


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _device_name(device: Any) -> str:
    import torch

    if device.type != "cuda":
        return "no accelerator" if device.type == "cpu" else "Apple GPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "empty"
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.1f} MB"
