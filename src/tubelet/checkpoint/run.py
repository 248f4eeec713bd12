"""A run's checkpoints: one safetensors file each, written beside and renamed, with the config in its header.

Those of a sharded run are folders of such files, see `sharded`; everything here reads both.

A file holds `student.*`, `predictor.*`, `teacher.*` and AdamW's moments as `optimizer.*`. Nothing else is needed to
continue exactly: schedules, data order, crops and masks are functions of the seed and the step.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tubelet.checkpoint.sharded import is_sharded, read_header, remove_checkpoint
from tubelet.checkpoint.state_dict import load_strict, require_finite, state_dict_mismatches
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.config import TrainConfig, from_dict, to_dict
from tubelet.config.fields import Settings
from tubelet.errors import TubeletError
from tubelet.io.arrays import open_safetensors
from tubelet.io.files import atomic_write, file_errors
from tubelet.io.text import parse_json
from tubelet.model.lora import merge_adapters
from tubelet.vjepa import VJEPA

FORMAT = "tubelet-checkpoint-1"
_NAME = re.compile(r"step-(\d{9})(\.safetensors)?$")
_OPTIMIZER = "optimizer."
KEEPS_OLDER = "older checkpoints are untouched"

C = TypeVar("C", bound=Settings)


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = (path for path in (run / "checkpoints").glob("step-*") if _NAME.match(path.name))
    return sorted(found, key=lambda path: (step_from_name(path), path.name))


def step_from_name(checkpoint: Path) -> int:
    """The optimiser steps after which a checkpoint was written, by its name.

    Raises:
        TubeletError: if it is no checkpoint's name.
    """
    name = _NAME.match(checkpoint.name)
    if name is None:
        raise TubeletError(f"{checkpoint}: expected step-000000000.safetensors, or such a folder")
    return int(name[1])


def save_checkpoint(run: Path, step: int, state: Mapping[str, Tensor], config: TrainConfig, keep: int) -> Path:
    """Write the state after `step` optimizer steps, then remove all but the newest `keep` checkpoints.

    The file appears under its name only when all of it is on the disk: whatever moment the process dies at, every
    checkpoint that can be seen can be read.

    Args:
        run: the run directory.
        step: optimizer steps done.
        state: contiguous tensors by name, see `training_state`; nothing may change them meanwhile.
        config: the run.
        keep: how many checkpoints are kept, the new one included.

    Raises:
        TubeletError: if it cannot be written, a full disk included; older checkpoints are untouched.
    """
    path = run / "checkpoints" / f"step-{step:09d}.safetensors"
    prepare_directory(run)
    with atomic_write(path, durable=True, remedy=KEEPS_OLDER, also=(SafetensorError,)) as partial:
        save_file(dict(state), partial, metadata=make_header(step, config))
    prune_checkpoints(run, keep)
    return path


def make_header(step: int, config: TrainConfig) -> dict[str, str]:
    """What a checkpoint says of itself."""
    return {"format": FORMAT, "step": str(step), "config": json.dumps(to_dict(config))}


def prepare_directory(run: Path) -> None:
    """Make the folder of a run's checkpoints, and remove from it what a process left that died while it wrote."""
    folder = run / "checkpoints"
    with file_errors(folder, KEEPS_OLDER):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob("*.partial"), *folder.glob(".tmp*")]:  # safetensors' own are called so
        _try_to_remove(leftover)


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; what cannot be removed now is tried again after the next."""
    for old in list_checkpoints(run)[:-keep]:
        _try_to_remove(old)


def _try_to_remove(path: Path) -> None:
    """Remove something, unless the system refuses, as a network's does while another machine reads it."""
    with suppress(OSError):
        remove_checkpoint(path)


def training_state(model: VJEPA, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint holds: the model's tensors, and the optimiser's by kind and parameter."""
    return {**model.state_dict(), **_optimizer_tensors(model, optimizer)}


def copy_to_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A contiguous copy of tensors in host memory, page-locked where they are on a CUDA device.

    Copies from a CUDA device are queued on its current stream, before all work that is queued later; wait for the
    stream before they are read.

    Raises:
        MemoryError: if there is no room for the copy.
    """
    copies = {}
    try:
        for name, value in state.items():
            source = value.detach()
            copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=source.is_cuda)
            copies[name].copy_(source, non_blocking=source.is_cuda)
    except RuntimeError as error:  # PyTorch's allocators raise no MemoryError
        size = sum(value.nbytes for value in state.values())
        raise MemoryError(f"no room for a copy of the state ({size / 1e9:.1f} GB) in host memory: {error}") from error
    return copies


def load_training_state(path: Path, model: VJEPA, optimizer: Optimizer) -> int:
    """Bring model and optimiser to the state that a checkpoint holds, and return the optimiser steps done.

    Raises:
        TubeletError: if the file cannot be read or does not fit the model.
    """
    if hasattr(next(model.parameters()), "placements"):  # a DTensor, whose module takes long to import
        return _load_into_shards(path, model, optimizer)
    tensors, header = read_checkpoint(path)
    moments = {
        name.removeprefix(_OPTIMIZER): tensors.pop(name) for name in list(tensors) if name.startswith(_OPTIMIZER)
    }
    load_strict(model, tensors, str(path))
    _load_optimizer_tensors(model, optimizer, moments, path)
    return step_from_header(header, path)


def load_optimizer_moments(path: Path, model: VJEPA, optimizer: Optimizer, parts: Collection[str]) -> set[str]:
    """Bring the optimiser's moments of some parts of a model to those that a checkpoint holds; all others begin anew.

    Args:
        path: the checkpoint.
        model: the model whose weights came from it.
        optimizer: the optimiser of that model.
        parts: "student", "predictor".

    Returns:
        of which parts it holds any; that of a run with adapters has none of the encoder's own weights.

    Raises:
        TubeletError: if the checkpoint cannot be read.
    """
    trained = (item for item in model.named_parameters() if item[1].requires_grad)
    parameters = {name: value for name, value in trained if name.partition(".")[0] in parts}

    def wanted(name: str) -> bool:
        return name.startswith(_OPTIMIZER) and name.removeprefix(_OPTIMIZER).partition(".")[2] in parameters

    if hasattr(next(model.parameters()), "placements"):
        from tubelet.checkpoint.dcp import load_into, read_metadata

        names = [name.removeprefix(_OPTIMIZER) for name in read_metadata(path) if wanted(name)]
        moments = {name: _empty_moment(name, parameters, path) for name in names}
        load_into(path, {_OPTIMIZER + name: value for name, value in moments.items()})
    else:
        tensors = read_checkpoint(path, wanted)[0]
        moments = {name.removeprefix(_OPTIMIZER): value for name, value in tensors.items()}
    _load_optimizer_tensors(model, optimizer, moments, path)
    return {name.split(".")[1] for name in moments}


def _load_into_shards(path: Path, model: VJEPA, optimizer: Optimizer) -> int:
    """As `load_training_state`, each process reading the parts that it holds alone."""
    from tubelet.checkpoint.dcp import load_into, read_metadata

    header = read_header(path)
    _check_format(path, header)
    there = read_metadata(path)
    state = model.state_dict()
    moments = {name.removeprefix(_OPTIMIZER): value for name, value in there.items() if name.startswith(_OPTIMIZER)}
    if wrong := state_dict_mismatches({k: v for k, v in there.items() if not k.startswith(_OPTIMIZER)}, state):
        raise TubeletError(f"{path} does not fit the model: {'; '.join(wrong)}")
    parameters = dict(model.named_parameters())
    empty = {name: _empty_moment(name, parameters, path) for name in moments}
    load_into(path, {**state, **{_OPTIMIZER + name: value for name, value in empty.items()}})
    require_finite(state, str(path))
    _load_optimizer_tensors(model, optimizer, empty, path)
    return step_from_header(header, path)


def _empty_moment(moment: str, parameters: dict[str, nn.Parameter], path: Path) -> Tensor:
    """An empty tensor for an optimiser's moment, cut as its parameter is."""
    key, _, name = moment.partition(".")
    if name not in parameters:
        raise TubeletError(f"{path}: it holds an optimiser moment of {name}, which the model does not have")
    return torch.zeros(()) if key == "step" else torch.zeros_like(parameters[name], requires_grad=False)


def is_model_tensor(name: str) -> bool:
    """Whether a checkpoint's tensor is one of the model's, not one of the optimiser's."""
    return not name.startswith(_OPTIMIZER)


def read_checkpoint(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint and its header.

    Args:
        path: the checkpoint.
        wanted: which tensors to read, by their names; all, if not given.

    Raises:
        TubeletError: if the file is missing, damaged, or no checkpoint of this package.
    """
    if path.is_dir():
        from tubelet.checkpoint.dcp import load_full

        header = read_header(path)
        _check_format(path, header)
        return load_full(path, wanted), header
    with open_safetensors(path, "copy it again, or remove it to continue from an older checkpoint") as file:
        tensors = {name: file.tensor(name) for name in file.names if wanted(name)}
    _check_format(path, file.header)
    return tensors, file.header


def _check_format(path: Path, header: dict[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise TubeletError(f"{path}: expected a checkpoint of format {FORMAT!r}, found {header.get('format')!r}")


def config_from_header(header: Mapping[str, str], kind: type[C], where: str) -> C:
    """The config in a file's header.

    Raises:
        TubeletError: there is none, or it is no such config.
    """
    if "config" not in header:
        raise TubeletError(f"{where}: its header holds no config; copy it again, or make it anew")
    config: C = from_dict(kind, parse_json(header["config"], f"{where}: the config in its header"), f"{where}: config")
    return config


def step_from_header(header: Mapping[str, str], path: Path) -> int:
    """The optimiser steps that a checkpoint's header says were done.

    Raises:
        TubeletError: it does not say.
    """
    step = str(header.get("step", ""))
    if not (step.isascii() and step.isdigit() and len(step) < 19):
        raise TubeletError(f"{path}: its header gives {step[:40]!r} as the step, expected a number")
    return int(step)


def find_checkpoint(what: str | Path) -> Path:
    """The newest checkpoint of a run folder, or the file, or the folder of parts, that was named itself.

    Raises:
        TubeletError: if there is none.
    """
    path = Path(what)
    if path.is_dir() and not is_sharded(path):
        found = list_checkpoints(path)
        if not found:
            raise TubeletError(f"{path}: no checkpoint in this folder (expected checkpoints/step-*.safetensors)")
        path = found[-1]
    if not path.exists():
        raise TubeletError(f"{path}: no such file; expected a run folder, a checkpoint, or a released .pt file")
    return path


def load_vjepa(what: str | Path) -> tuple[VJEPA, TrainConfig | None]:
    """Student, predictor and teacher from a run folder, one of its checkpoints, or a released .pt file.

    Returns:
        the model in eval mode on the CPU, and the run's config (None for a released file).

    Raises:
        TubeletError: if there is no such thing, or it does not fit.
    """
    path = find_checkpoint(what)
    if path.suffix == ".pt":
        released = read_released(path)
        model = VJEPA(released.config)
        load_strict(model.student, released.student, f"{path}: encoder")
        load_strict(model.predictor, released.predictor, f"{path}: predictor")
        load_strict(model.teacher, released.teacher, f"{path}: teacher")
        return model.eval(), None
    tensors, header = read_checkpoint(path, is_model_tensor)
    config = config_from_header(header, TrainConfig, str(path))
    state = merge_adapters(tensors)
    with torch.device("meta"):  # what does not fit is found before it takes memory
        expected = VJEPA(config.model).state_dict()
    if wrong := state_dict_mismatches(state, expected):
        raise TubeletError(f"{path} does not fit the model: {'; '.join(wrong)}")
    model = VJEPA(config.model)
    model.distance_weighting = config.optim.distance_weighting
    load_strict(model, state, str(path))
    return model.eval(), config


def _optimizer_tensors(model: VJEPA, optimizer: Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{_OPTIMIZER}{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _load_optimizer_tensors(model: VJEPA, optimizer: Optimizer, moments: dict[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    state: dict[Tensor, dict[str, Tensor]] = {}
    for name, value in moments.items():
        key, _, parameter_name = name.partition(".")
        if parameter_name not in parameters:
            raise TubeletError(
                f"{path}: it holds an optimiser moment of {parameter_name}, which the model does not have"
            )
        parameter = parameters[parameter_name]
        state.setdefault(parameter, {})[key] = value.to(parameter.device)
    require_finite({_OPTIMIZER + name: value for name, value in moments.items()}, str(path))
    optimizer.state.clear()
    optimizer.state.update(state)
