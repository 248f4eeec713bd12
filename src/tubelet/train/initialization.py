"""Initial weights of a run: random or from a checkpoint; LoRA adapters; the frozen teacher of a distillation."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from tubelet.checkpoint.registry import released_name, resolve_checkpoint
from tubelet.checkpoint.run import find_checkpoint, load_optimizer_moments, load_vjepa
from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.weights import LoadSpec, is_encoder_file
from tubelet.config import ModelConfig, TrainConfig
from tubelet.device import training_dtype
from tubelet.errors import CheckpointError, ConfigError
from tubelet.model.encoder import Encoder
from tubelet.model.lora import add_adapters
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load, load_unplaced
from tubelet.vjepa import VJEPA

DISTILLED_PREDICTOR_DEPTH = 12


def config_from_checkpoint(source: str) -> ModelConfig:
    """The model configuration to continue pre-training from a checkpoint.

    A distilled release predicts the last level of a larger teacher. When its training continues, it predicts all levels
    of its own EMA teacher, with a new predictor.
    """
    config = _load_source(source)[1].config
    if config.prediction_width != config.num_output_levels * config.width:
        predictor = dataclasses.replace(config.predictor, output_width=None, rescale_rope=True)
        return dataclasses.replace(config, output_levels=None, predictor=predictor)
    return config


def _load_source(source: str, **hub: Any) -> tuple[Path, VJEPA, bool]:
    """Load `init_from`: its file, the model, and whether the file has only an encoder (then the rest is random)."""
    path = resolve_checkpoint(source, **hub) if released_name(source) else Path(source)
    if not is_encoder_file(path):
        path = find_checkpoint(path)
        return path, load_vjepa(path)[0], False
    encoder = load_unplaced(path, LoadSpec())
    model = VJEPA(encoder.config)
    for part in (model.student, model.teacher):
        part.load_state_dict(encoder.state_dict())
    return path, model, True


def distillation_config(student: ModelConfig, teacher: ModelConfig) -> ModelConfig:
    """The configuration of a student that predicts the last level of a frozen teacher, as the distilled releases do.

    A distilled ViT-L has a predictor of 12 blocks where the pre-trained one has 24 (docs/system.md).
    """
    predictor = dataclasses.replace(
        student.predictor,
        depth=min(student.predictor.depth, DISTILLED_PREDICTOR_DEPTH),
        output_width=teacher.width,
        rescale_rope=False,
    )
    return dataclasses.replace(
        student, output_levels=1, predictor=predictor, channels=teacher.channels, pixels=teacher.pixels
    )


def load_frozen_teacher(config: TrainConfig, device: torch.device) -> Backbone | None:
    """The frozen teacher of a distillation, on the device; None for other runs.

    In a bf16 run its matrices are stored in bf16: autocast would round them to the same values in every pass.

    Raises:
        TubeletError: if it cannot be loaded, or its token grid, channels or width do not match the student.
    """
    if config.distill_from is None:
        return None
    teacher = load(config.distill_from, device="cpu", dtype=torch.float32)
    for module in teacher.modules():
        if isinstance(module, nn.Linear):  # norms and embeddings stay in fp32, as the residual stream does
            module.to(training_dtype(config, device))
    teacher.to(device)
    data, student, teacher_config = config.data, config.model, teacher.config
    for frames in (1, data.frames):
        student_grid, teacher_grid = (
            sizes.grid(frames, data.image_size, data.image_size) for sizes in (student, teacher_config)
        )
        if student_grid != teacher_grid:
            raise ConfigError(
                f"{config.distill_from}: it cuts {frames} frames at {data.image_size} px into {teacher_grid} tokens, "
                f"the student into {student_grid}: use --patch-size {teacher_config.patch_size} "
                f"--tubelet-size {teacher_config.tubelet_size}"
            )
    if (student.channels, student.pixels) != (teacher_config.channels, teacher_config.pixels):
        raise ConfigError(
            f"{config.distill_from}: takes {teacher_config.channels} channels with the statistics "
            f"{teacher_config.pixels}, the student {student.channels} with {student.pixels}: use those of the teacher"
        )
    if (student.num_output_levels, student.prediction_width) != (1, teacher_config.width):
        raise ConfigError(
            f"{config.distill_from}: its last level is {teacher_config.width} wide, the student predicts "
            f"{student.num_output_levels} levels, {student.prediction_width} channels in all: use `distillation_config`"
        )
    return teacher


class InitSource(NamedTuple):
    """The checkpoint that a run starts from.

    Attributes:
        path: the checkpoint file itself, since its run may write newer ones before the moments are read.
        parts: names of the modules that were loaded from it.
        adapted_from: number of input channels of the checkpoint, if its first layer was adapted to another number.
    """

    path: Path
    parts: tuple[str, ...]
    adapted_from: int | None = None


def init_model(config: TrainConfig, resumed: bool) -> tuple[VJEPA, InitSource | None]:
    """The initial model of a run, on the CPU.

    Args:
        config: the run.
        resumed: whether a checkpoint of the run itself will be loaded into the model, so that weights do not matter.

    Returns:
        the model, and the source of its weights; None if they are random.

    Raises:
        TubeletError: if the checkpoint does not fit the config's sizes.
    """
    model = VJEPA(config.model)
    model.distance_weighting = config.optim.distance_weighting
    origin = None
    if config.init_from and not resumed:
        origin = _load_init_weights(model, config.init_from)
    if config.lora_rank:
        # Adapters change one set of weights, which student and teacher must then share.
        model.student.load_state_dict(model.teacher.state_dict())
        for part in (model.student, model.teacher):
            add_adapters(part, config.lora_rank)
        model.teacher.load_state_dict(model.student.state_dict())
        model.teacher.requires_grad_(False)
    return model, origin


def init_moments(origin: InitSource, model: VJEPA, optimizer: Optimizer) -> str:
    """Load AdamW's moments for the modules that were loaded from a checkpoint, if it has them.

    Args:
        origin: source of the weights.
        model: the model, on its devices.
        optimizer: its optimizer.

    Returns:
        a log message about the initial state of the run.
    """
    weights_only = origin.path.suffix == ".pt" or is_encoder_file(origin.path)
    fitting = [part for part in origin.parts if part != "student" or origin.adapted_from is None]
    loaded = set() if weights_only else load_optimizer_moments(origin.path, model, optimizer, fitting)
    message = f"starting from {origin.path}, "
    if loaded >= set(origin.parts):
        message += "including AdamW's moments"
    else:
        message += "including AdamW's moments of the predictor" if loaded else "with new AdamW moments"
    if "predictor" not in origin.parts:
        why = (
            "the file has none"
            if is_encoder_file(origin.path)
            else "that of the file predicts another teacher's features"
        )
        message += f"; the predictor has random weights, since {why}"
    if origin.adapted_from is not None:
        message += f"; the first layer is adapted from {origin.adapted_from} channels to {model.config.channels}"
    return message


def load_initial_teacher(config: TrainConfig, started: float) -> Encoder:
    """The teacher with the weights that a run started from; nothing is downloaded.

    Args:
        config: a run with `init_from`.
        started: when its first step was done, in seconds since 1970.

    Raises:
        TubeletError: if the weights cannot be loaded any more, or are newer than the first step.
    """
    assert config.init_from is not None
    model = VJEPA(config.model)
    path = _load_init_weights(model, config.init_from, local_files_only=True).path
    weights = (
        [file for file in path.iterdir() if file.suffix in (".safetensors", ".distcp")] if path.is_dir() else [path]
    )
    # The cache may have downloaded a release again, but never another one.
    if not released_name(config.init_from) and any(file.stat().st_mtime > started for file in weights):
        raise CheckpointError(f"{path}: was written after the run's first step, so that it may have other weights")
    return model.teacher.eval()


def _load_init_weights(model: VJEPA, source_name: str, **hub: Any) -> InitSource:
    path, source, encoder_only = _load_source(source_name, **hub)
    run_config, source_config = (
        dataclasses.replace(m.config, output_levels=None, predictor=model.config.predictor) for m in (model, source)
    )
    for field in dataclasses.fields(run_config):
        if field.name in ("channels", "pixels"):  # adapted below; the statistics are those of the run's own data
            continue
        a, b = getattr(run_config, field.name), getattr(source_config, field.name)
        if a != b:
            raise ConfigError(
                f"{source_name}: its encoder has {field.name} {b}, the run asks for {a}: leave --model out"
            )
    for part, trained in ((model.student, source.student), (model.teacher, source.teacher)):
        part.load_state_dict(adapt_channels(trained.state_dict(), source_config.channels, run_config.channels))
    adapted_from = source_config.channels if source_config.channels != run_config.channels else None
    targets = [(m.config.predictor, m.config.num_output_levels) for m in (model, source)]
    if encoder_only or targets[0] != targets[1]:
        return InitSource(path, ("student",), adapted_from)
    model.predictor.load_state_dict(source.predictor.state_dict())
    return InitSource(path, ("student", "predictor"), adapted_from)


def adapt_channels(state: State, trained: int, channels: int) -> State:
    """The weights of an encoder for another number of input channels.

    Each new channel has the mean of the trained channels' weights times trained / channels, so that a value repeated in
    all channels has the same tokens before and after.

    Args:
        state: state dictionary of `Encoder`.
        trained: its number of channels.
        channels: C, the new number.
    """
    if trained == channels:
        return state
    adapted = dict(state)
    for name in ("tokenizer.video.weight", "tokenizer.image.weight"):
        mean = state[name].unflatten(1, (trained, -1)).mean(1, keepdim=True)  # patches are flattened channel by channel
        adapted[name] = (mean * (trained / channels)).expand(-1, channels, -1).flatten(1)
    return adapted
