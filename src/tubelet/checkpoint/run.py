"""Checkpoints of a run: one safetensors file each, written atomically, with the config in its header.

Checkpoints of a sharded run are directories of such files, see `sharded`; every function here accepts both. A file
contains `student.*`, `predictor.*`, `teacher.*` and the moments of AdamW as `optimizer.*`. Exact resume needs nothing
else: schedules, data order, crops and masks are functions of the seed and the step.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

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
from tubelet.errors import CheckpointError, MissingFileError, TubeletError
from tubelet.io.arrays import open_safetensors
from tubelet.io.files import atomic_write, file_errors
from tubelet.io.text import parse_json, read_json
from tubelet.model.lora import merge_adapters
from tubelet.vjepa import VJEPA

FORMAT = "tubelet-checkpoint-1"
BEST = "best.json"
_NAME = re.compile(r"step-(\d{9})(\.safetensors)?$")
_OPTIMIZER = "optimizer."
KEEPS_OLDER = "older checkpoints are untouched"
FIRST_CHECKPOINT_S = 300.0
"""Seconds of training after which a run writes its first checkpoint, if `checkpoint_every` steps take longer."""

C = TypeVar("C", bound=Settings)


class BestRow(TypedDict):
    """The content of best.json: the best checkpoint according to the evaluations during training.

    Attributes:
        step: Optimizer steps done.
        metric: Name of the metric in the rows of metrics.
        value: The metric's value.
        checkpoint: Name of the file or directory in `checkpoints/`.
    """

    step: int
    metric: str
    value: float
    checkpoint: NotRequired[str]


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    paths = (path for path in (run / "checkpoints").glob("step-*") if _NAME.match(path.name))
    return sorted(paths, key=lambda path: (step_from_name(path), path.name))


def step_from_name(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written, from its name.

    Raises:
        CheckpointError: if it is not the name of a checkpoint.
    """
    name = _NAME.match(checkpoint.name)
    if name is None:
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint name; expected step-000000000.safetensors or a directory step-000000000"
        )
    return int(name[1])


def save_checkpoint(run: Path, step: int, state: Mapping[str, Tensor], config: TrainConfig, keep: int) -> Path:
    """Write the state after `step` optimizer steps, then remove older checkpoints, see `prune_checkpoints`.

    The file gets its name only when all of it is on the disk: whenever the process dies, every visible checkpoint can
    be read.

    Args:
        run: the run directory.
        step: optimizer steps done.
        state: contiguous tensors by name, see `training_state`; must not change meanwhile.
        config: config of the run.
        keep: number of checkpoints to keep, including the new one.

    Raises:
        FileError: if it cannot be written, for example because the disk is full; older checkpoints are untouched.
    """
    path = run / "checkpoints" / f"step-{step:09d}.safetensors"
    prepare_directory(run)
    with atomic_write(path, durable=True, remedy=KEEPS_OLDER, also=(SafetensorError,)) as partial:
        save_file(dict(state), partial, metadata=make_header(step, config))
    prune_checkpoints(run, keep, config.keep_every)
    return path


def make_header(step: int, config: TrainConfig) -> dict[str, str]:
    """The metadata in a checkpoint's header."""
    return {"format": FORMAT, "step": str(step), "config": json.dumps(to_dict(config))}


def prepare_directory(run: Path) -> None:
    """Create the checkpoint directory of a run, and remove unfinished files of processes that died."""
    folder = run / "checkpoints"
    with file_errors(folder, KEEPS_OLDER):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob("*.partial"), *folder.glob(".tmp*")]:  # temporary files of safetensors
        _try_to_remove(leftover)


def prune_checkpoints(run: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints, the best one, and those of every `keep_every` steps (0: none).

    Failures are retried after the next checkpoint.
    """
    best = read_best(run)
    for old in list_checkpoints(run)[:-keep]:
        step = step_from_name(old)
        if (best is None or step != best["step"]) and not (keep_every and step % keep_every == 0):
            _try_to_remove(old)


def read_best(run: Path) -> BestRow | None:
    """The best checkpoint of a run that was evaluated while it trained; None if there is none.

    Raises:
        TubeletError: best.json is damaged.
    """
    path = run / BEST
    if not path.exists():
        return None
    best: BestRow = read_json(path, BestRow, "delete it")
    return best


def resolve_best(path: Path) -> Path:
    """Resolve the path RUN/best to the checkpoint that best.json of the run names; other paths are returned unchanged.

    Raises:
        TubeletError: best.json is damaged.
    """
    if path.name != Path(BEST).stem or path.exists() or (best := read_best(path.parent)) is None:
        return path
    candidates = (other for other in list_checkpoints(path.parent) if step_from_name(other) == best["step"])
    return next(candidates, path)


def _try_to_remove(path: Path) -> None:
    """Remove a path unless the system refuses, as network file systems do while another machine reads it."""
    with suppress(OSError):
        remove_checkpoint(path)


def training_state(model: VJEPA, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a checkpoint: those of the model, and the optimizer's moments by kind and parameter."""
    return {**model.state_dict(), **_optimizer_tensors(model, optimizer)}


def copy_to_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A contiguous copy of tensors in host memory, page-locked where they are on a CUDA device.

    Copies from a CUDA device are queued on the current stream: wait for it before reading them or changing the tensors.

    Raises:
        MemoryError: if host memory does not suffice.
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
    """Load model and optimizer from a checkpoint, and return the optimizer steps done.

    Raises:
        CheckpointError: if the file cannot be read or does not match the model.
    """
    if hasattr(next(model.parameters()), "placements"):  # a DTensor; its module is slow to import
        return _load_into_shards(path, model, optimizer)
    tensors, header = read_checkpoint(path)
    moments = {
        name.removeprefix(_OPTIMIZER): tensors.pop(name) for name in list(tensors) if name.startswith(_OPTIMIZER)
    }
    load_strict(model, tensors, str(path))
    _load_optimizer_tensors(model, optimizer, moments, path)
    return step_from_header(header, path)


def load_optimizer_moments(path: Path, model: VJEPA, optimizer: Optimizer, modules: Collection[str]) -> set[str]:
    """Load the optimizer moments of some modules from a checkpoint; all others are reset.

    Args:
        path: the checkpoint.
        model: the model whose weights came from it.
        optimizer: the optimizer of that model.
        modules: names of modules, "student" or "predictor".

    Returns:
        names of the modules with moments in the checkpoint. A run with adapters has none for the encoder's weights.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
    """
    trained = (item for item in model.named_parameters() if item[1].requires_grad)
    parameters = {name: value for name, value in trained if name.partition(".")[0] in modules}

    def select(name: str) -> bool:
        return name.startswith(_OPTIMIZER) and name.removeprefix(_OPTIMIZER).partition(".")[2] in parameters

    if hasattr(next(model.parameters()), "placements"):
        from tubelet.checkpoint.dcp import load_into, read_metadata

        names = [name.removeprefix(_OPTIMIZER) for name in read_metadata(path) if select(name)]
        moments = {name: _empty_moment(name, parameters, path) for name in names}
        load_into(path, {_OPTIMIZER + name: value for name, value in moments.items()})
    else:
        tensors = read_checkpoint(path, select)[0]
        moments = {name.removeprefix(_OPTIMIZER): value for name, value in tensors.items()}
    _load_optimizer_tensors(model, optimizer, moments, path)
    return {name.split(".")[1] for name in moments}


def _load_into_shards(path: Path, model: VJEPA, optimizer: Optimizer) -> int:
    """`load_training_state` for a sharded model: each rank reads only its own shards."""
    from tubelet.checkpoint.dcp import load_into, read_metadata

    header = read_header(path)
    _check_format(path, header)
    stored = read_metadata(path)
    state = model.state_dict()
    moments = {name.removeprefix(_OPTIMIZER): value for name, value in stored.items() if name.startswith(_OPTIMIZER)}
    if mismatches := state_dict_mismatches({k: v for k, v in stored.items() if not k.startswith(_OPTIMIZER)}, state):
        raise CheckpointError(f"{path} does not match the model: {'; '.join(mismatches)}")
    parameters = dict(model.named_parameters())
    empty = {name: _empty_moment(name, parameters, path) for name in moments}
    load_into(path, {**state, **{_OPTIMIZER + name: value for name, value in empty.items()}})
    require_finite(state, str(path))
    _load_optimizer_tensors(model, optimizer, empty, path)
    return step_from_header(header, path)


def _empty_moment(moment: str, parameters: dict[str, nn.Parameter], path: Path) -> Tensor:
    """An empty tensor for an optimizer moment, sharded like its parameter."""
    key, _, name = moment.partition(".")
    if name not in parameters:
        raise CheckpointError(f"{path}: contains an optimizer moment of {name}, which the model does not have")
    return torch.zeros(()) if key == "step" else torch.zeros_like(parameters[name], requires_grad=False)


def is_model_tensor(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to the model rather than to the optimizer."""
    return not name.startswith(_OPTIMIZER)


def read_checkpoint(
    path: Path, select: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint and its header.

    Args:
        path: the checkpoint.
        select: whether to read the tensor of a name; by default all are read.

    Raises:
        CheckpointError: if the file is damaged or not a checkpoint of this package.
        MissingFileError: if it does not exist.
    """
    if path.is_dir():
        from tubelet.checkpoint.dcp import load_full

        header = read_header(path)
        _check_format(path, header)
        return load_full(path, select), header
    with open_safetensors(path, "copy it again, or remove it to continue from an older checkpoint") as file:
        tensors = {name: file.tensor(name) for name in file.names if select(name)}
    _check_format(path, file.header)
    return tensors, file.header


def _check_format(path: Path, header: dict[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT!r}, found {header.get('format')!r}")


def config_from_header(header: Mapping[str, str], kind: type[C], where: str) -> C:
    """The config in a file's header.

    Raises:
        CheckpointError: if there is none, or it is not valid.
    """
    if "config" not in header:
        raise CheckpointError(f"{where}: no config in its header; copy the file again or recreate it")
    config: C = from_dict(kind, parse_json(header["config"], f"{where}: the config in its header"), f"{where}: config")
    return config


def step_from_header(header: Mapping[str, str], path: Path) -> int:
    """Optimizer steps done, from the header of a checkpoint.

    Raises:
        CheckpointError: if the header has no valid step.
    """
    step = str(header.get("step", ""))
    if not (step.isascii() and step.isdigit() and len(step) < 19):
        raise CheckpointError(f"{path}: step in its header is {step[:40]!r}, expected a number")
    return int(step)


def no_checkpoint(folder: Path, expected: str) -> MissingFileError:
    """The error for a directory without a checkpoint; for that of a run it says when its first one comes."""
    every = None
    with suppress(TubeletError, OSError, AttributeError):
        every = read_json(folder / "config.json").get("checkpoint_every")
    minutes = f"{FIRST_CHECKPOINT_S / 60:.0f} min of training"
    first = (
        f"; this run writes its first one after {minutes}, or step {every} if that is earlier"
        if isinstance(every, int)
        else ""
    )
    return MissingFileError(f"{folder}: no checkpoint in this directory (expected {expected}){first}")


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The newest checkpoint of a run directory, the best one for RUN/best; the path of a checkpoint itself is returned.

    Raises:
        MissingFileError: if there is none.
    """
    path = resolve_best(Path(name_or_path))
    if path.is_dir() and not is_sharded(path):
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise no_checkpoint(path, "checkpoints/step-*.safetensors")
        path = checkpoints[-1]
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; expected a run directory, a checkpoint, or a released .pt file")
    return path


def untrained_image_tokenizer(state: Mapping[str, Tensor], prefix: str, config: TrainConfig) -> dict[str, Tensor]:
    """Weights that replace an image tokenizer that a run did not train; empty if the run trained it.

    With these weights, the tokens of an image are those of the video tokenizer for the image repeated to a clip.

    Args:
        state: a state dictionary with that of an encoder.
        prefix: start of the names of the encoder.
        config: the run.
    """
    if config.data.image_frames == 1:
        return {}
    names = f"{prefix}tokenizer."
    kernel = state[f"{names}video.weight"].unflatten(1, (config.model.channels, config.model.tubelet_size, -1))
    return {
        f"{names}image.weight": kernel.sum(2).flatten(1),
        f"{names}image.bias": state[f"{names}video.bias"].clone(),
        f"{names}image_embedding": state[f"{names}video_embedding"].clone(),
    }


def load_vjepa(name_or_path: str | Path) -> tuple[VJEPA, TrainConfig | None]:
    """Load student, predictor and teacher from a run directory, a checkpoint, or a released .pt file.

    Returns:
        the model in eval mode on the CPU, and the run's config (None for a released file).

    Raises:
        CheckpointError: if the file is damaged or does not match the model.
        MissingFileError: if it does not exist.
    """
    path = find_checkpoint(name_or_path)
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
    with torch.device("meta"):  # compare shapes before allocating memory
        expected = VJEPA(config.model).state_dict()
    if mismatches := state_dict_mismatches(state, expected):
        raise CheckpointError(f"{path} does not match the model: {'; '.join(mismatches)}")
    model = VJEPA(config.model)
    model.distance_weighting = config.optim.distance_weighting
    for encoder in ("student.", "teacher."):
        state |= untrained_image_tokenizer(state, encoder, config)
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
            raise CheckpointError(
                f"{path}: contains an optimizer moment of {parameter_name}, which the model does not have"
            )
        parameter = parameters[parameter_name]
        state.setdefault(parameter, {})[key] = value.to(parameter.device)
    require_finite({_OPTIMIZER + name: value for name, value in moments.items()}, str(path))
    optimizer.state.clear()
    optimizer.state.update(state)
