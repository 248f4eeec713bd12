"""Training of an encoder together with the network of a head.

Clips are decoded and randomly cropped in every epoch, as in pre-training. The network is initialized with the one that
was trained on features of the frozen encoder: gradients through a random network would first damage the features (Kumar
et al., arXiv 2202.10054). Learning rates decrease from the output toward the input by a constant ratio per layer, with
the layer numbering of BEiT (Bao et al., arXiv 2106.08254, appendix on fine-tuning).

B clips, T frames or time steps, S cells, D channels, K classes or targets.
"""

import copy
import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from tubelet.config import FitConfig, PixelStatistics
from tubelet.data.clips import augment, normalize
from tubelet.data.model_frames import open_frames, read_still
from tubelet.data.prefetch import prefetch_within
from tubelet.data.worker_loader import WorkerLoader, translate_worker_crash
from tubelet.data.worker_status import WorkerStatus
from tubelet.device import fast_training_dtype, seed_generators
from tubelet.errors import TrainingError
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.training import Loss, tensor_digest
from tubelet.heads.adaptation import Finetuned
from tubelet.heads.head_file import HeadInput, reduce_tokens
from tubelet.heads.training import SAVE_SECONDS, EpochBatches, HeadSchedule
from tubelet.heads.training_state import StateDicts, load_state, state_path, write_state
from tubelet.heads.window_grid import row_windows
from tubelet.model.lora import add_adapters, get_adapters
from tubelet.model.optimizers import AdamW
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.extract import RESUME_HINT
from tubelet.train.optim import is_decayed
from tubelet.train.signals import InterruptedRunError, StopSignals
from tubelet.user_warnings import warn_user

WEIGHT_DECAY = 0.05
MAX_GRAD_NORM = 1.0
_WARMUP_FRACTION = 0.1
_CROP_ASPECT = (0.75, 1.35)  # as in pre-training
_SAVED_PER_TOKEN = 20  # activations of a block that its backward pass needs, in multiples of D
_SAVING_SHARE = 10  # times as long as the last save took, at least, until the next one
_CROPS = 20  # keeps the random numbers of crops apart from others of the same seed


@dataclass(frozen=True, kw_only=True)
class TrainingClip:
    """A clip of a labeled span.

    Attributes:
        path: the media file.
        start_s: start of the span in seconds.
        end_s: end of the span in seconds.
        number: number of the clip among those of the span, see `row_windows`.
        target: (K,) what the network learns.
        weight: weight of the clip in the loss.
    """

    path: Path
    start_s: float
    end_s: float
    number: int
    target: Tensor
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """How an encoder is trained together with a network.

    Attributes:
        finetuned: which weights of the encoder are trained.
        lr: peak learning rate of the network and of what is trained next to it.
        layer_decay: ratio of the learning rate of a layer to that of the layer after it.
        lora_rank: rank of adapters.
        epochs: passes over the clips.
        batch_size: clips of a step.
        crop_scale: range of the area of random crops, as a fraction of the frame.
        flip: whether clips are flipped horizontally with probability 0.5.
    """

    finetuned: Finetuned
    lr: float
    layer_decay: float
    lora_rank: int
    epochs: int
    batch_size: int
    crop_scale: tuple[float, float]
    flip: bool

    def describe(self) -> str:
        """A sentence for the protocol of a result."""
        trained_weights = f"adapters of rank {self.lora_rank}" if self.finetuned == "lora" else "all weights"
        decay = f", learning rates times {self.layer_decay:g} from layer to layer" if self.layer_decay != 1 else ""
        return (
            f"The encoder was trained too ({trained_weights}): {self.epochs} epochs of the training clips at random "
            f"crops of {self.crop_scale[0]:g} to {self.crop_scale[1]:g} of the "
            f"frame{' and flips' if self.flip else ''}, {self.batch_size} clips a step, AdamW with a peak learning "
            f"rate of {self.lr:g}{decay}, weight decay {WEIGHT_DECAY:g}, from the network of the frozen encoder on. "
            "The weights are those of the last step: nothing was chosen by held-out rows."
        )


def finetune_recipe(config: FitConfig) -> FinetuneRecipe | None:
    """The settings of training the encoder too, with defaults filled in; None for a frozen encoder."""
    if config.finetune == "none":
        return None
    lora = config.finetune == "lora"
    return FinetuneRecipe(
        finetuned=config.finetune,
        lr=config.finetune_lr or (1e-3 if lora else 3e-4),
        layer_decay=1.0 if lora else config.layer_decay or 0.75,
        lora_rank=config.lora_rank or 8,
        epochs=config.finetune_epochs or 20,
        batch_size=config.finetune_batch_size or 16,
        crop_scale=config.crop_scale or (0.5, 1.0),
        flip=config.flip,
    )


class AugmentedClips(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Clips at random crops: item (step, i) is clip i as the step sees it, a pure function of seed, step and i."""

    def __init__(
        self,
        clips: Sequence[TrainingClip],
        head_input: HeadInput,
        recipe: FinetuneRecipe,
        seed: int,
        workers: int,
        statistics: PixelStatistics | None = None,
    ) -> None:
        self.clips, self.head_input, self.recipe, self.seed = clips, head_input, recipe, seed
        self.statistics = statistics
        self.status = WorkerStatus(workers)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(C, T, S, S) pixels, (K,) target and () weight.

        Raises:
            DecodeError: the file cannot be read.
        """
        step, index = key
        clip, size, worker = self.clips[index], self.head_input.image_size, get_worker_info()
        with self.status.track(worker.id if worker else None, str(clip.path)):
            frames = self._read(clip)
        rng = np.random.default_rng([self.seed, _CROPS, step, index])
        pixels = augment(frames, size, rng, self.recipe.crop_scale, _CROP_ASPECT, self.recipe.flip)
        return pixels, clip.target, torch.tensor(clip.weight)

    def _read(self, clip: TrainingClip) -> Tensor:
        """(T, H, W, C), as the encoder takes them."""
        if self.head_input.frames == 1:
            return read_still(clip.path, self.statistics).unsqueeze(0)
        with open_frames(clip.path, self.statistics, self.head_input.fps) as video:
            windows = row_windows(clip.start_s, clip.end_s, video.info.duration_s, self.head_input)
            (frames,) = video.clips([windows[clip.number]])
        return frames.pixels


def finetune(
    context: FitContext, recipe: FinetuneRecipe, network: nn.Module, clips: Sequence[TrainingClip], loss: Loss
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train the encoder and a network on clips.

    The state is saved every minute and at a stop signal; the same call continues from there to the same weights.

    Args:
        context: the fit; its encoder is not changed.
        recipe: how they are trained.
        network: the network trained on the frozen encoder; it is not changed.
        clips: the training clips.
        loss: of logits, targets and weights.

    Returns:
        The trained network, in eval mode, and the trained weights of the encoder on the CPU, for
        `tubelet.heads.adaptation.with_encoder_weights`.

    Raises:
        TrainingError: if the loss is not finite.
        InterruptedRunError: after a stop signal.
        TubeletError: if a file cannot be read, or the state cannot be written.
    """
    device, seed = context.model.device, context.config.seed
    batch_size = min(recipe.batch_size, len(clips))
    steps = recipe.epochs * len(EpochBatches(len(clips), batch_size, seed, 1))
    encoder = trainable_copy(context.model, recipe, seed)
    trained = copy_network(network).to(device)
    weights = nn.ParameterList(p for p in encoder.parameters() if p.requires_grad)
    optimizer = AdamW(parameter_groups(encoder, trained, recipe), fused=True)
    parts: StateDicts = {"encoder": weights, "network": trained, "optimizer": optimizer}
    state = state_path(context.cache.folder / "finetuned", _identity(context, recipe, network, clips))
    start = load_state(state, parts, device)
    encoder.recompute_activations = _recompute(context, recipe, batch_size)
    order = enumerate(EpochBatches(len(clips), batch_size, seed, recipe.epochs, start), start)
    batches = [[(step, index) for index in batch] for step, batch in order] if start < steps else []
    schedule = HeadSchedule(steps=steps, warmup_steps=max(1, round(_WARMUP_FRACTION * steps)))
    saved, interval = time.monotonic(), float(SAVE_SECONDS)
    context.progress("fine-tuning", start, steps)
    with StopSignals() as signals, translate_worker_crash(RESUME_HINT):
        for step, batch in enumerate(_loader(context, recipe, clips, batches), start):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr(group["peak_lr"], step)
            _take_step(encoder, trained, optimizer, batch, context.head_input, loss, seed * 1_000_003 + step)
            context.progress("fine-tuning", step + 1, steps)
            last, start_time = step + 1 == steps, time.monotonic()
            if last or signals.received or start_time - saved > interval:
                kept = {name: part for name, part in parts.items() if name != "optimizer" or not last}
                write_state(state, kept, step + 1)
                saved = time.monotonic()
                interval = max(SAVE_SECONDS, _SAVING_SHARE * (saved - start_time))
            if signals.received:
                raise InterruptedRunError(
                    f"{signals.received.name}: stopped after step {step + 1} of {steps} of fine-tuning, which is "
                    "saved; the same command continues from there",
                    signals.received,
                )
    return trained.requires_grad_(False).eval(), encoder_weights(encoder, recipe.finetuned)


def trainable_copy(model: Backbone, recipe: FinetuneRecipe, seed: int) -> Backbone:
    """A copy of an encoder in fp32 without its predictor, of which only what the recipe trains requires a gradient."""
    with torch.device("meta"):
        encoder = Backbone(model.config)
    names = encoder.state_dict().keys()
    weights = model.state_dict()
    state = {name: weights[name].to("cpu", torch.float32, copy=True) for name in names}
    encoder.load_state_dict(state, assign=True)
    encoder.requires_grad_(True).train()
    if recipe.finetuned == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # on the CPU, where the same seed gives the same adapters on every machine
            add_adapters(encoder, recipe.lora_rank)
    return encoder.to(model.device)


def encoder_weights(encoder: Backbone, finetuned: Finetuned) -> dict[str, Tensor]:
    """The trained weights of an encoder from `trainable_copy`, on the CPU."""
    state = get_adapters(encoder) if finetuned == "lora" else encoder.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def copy_network(network: nn.Module) -> nn.Module:
    """A copy of a network in training mode, with gradients."""
    return copy.deepcopy(network).requires_grad_(True).train()


def layer_scales(encoder: nn.Module, levels: Sequence[int], depth: int, decay: float) -> dict[str, float]:
    """Learning rate of each trained parameter of an encoder, relative to that of the network.

    The network is layer depth + 1, block i is layer i + 1 and the tokenizer is layer 0; a layer has `decay` to the
    power of its distance from the network. The norm of an output level belongs to the layer after its block.

    Args:
        encoder: the encoder.
        levels: its output blocks.
        depth: its number of blocks.
        decay: ratio from layer to layer.
    """

    def layer(name: str) -> int:
        kind, _, rest = name.partition(".")
        if kind not in ("blocks", "norms"):
            return 0
        number = int(rest.partition(".")[0])
        return number + 1 if kind == "blocks" else levels[number] + 2

    return {
        name: decay ** (depth + 1 - layer(name))
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }


def parameter_groups(encoder: Backbone, network: nn.Module, recipe: FinetuneRecipe) -> list[dict[str, object]]:
    """Groups of AdamW: one for each learning rate, with weight decay and without.

    Each has its `peak_lr`; biases and weights of norms are not decayed.
    """
    scales = layer_scales(encoder, encoder.config.levels, encoder.config.depth, recipe.layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scales[name], is_decayed(name, parameter)), []).append(parameter)
    for name, parameter in network.named_parameters():
        groups.setdefault((1.0, is_decayed(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": scale * recipe.lr,
            "peak_lr": scale * recipe.lr,
            "weight_decay": WEIGHT_DECAY if decayed else 0.0,
        }
        for (scale, decayed), parameters in groups.items()
    ]


def _take_step(
    encoder: Backbone,
    network: nn.Module,
    optimizer: AdamW,
    batch: Sequence[Tensor],
    head_input: HeadInput,
    loss: Loss,
    seed: int,
) -> None:
    """One optimizer step on pixels (B, C, T, S, S), targets (B, K) and weights (B,).

    Raises:
        TrainingError: if the loss is not finite.
    """
    device = encoder.device
    pixels, targets, weights = (part.to(device, non_blocking=True) for part in batch)
    dtype = fast_training_dtype(encoder.config.width, device)
    optimizer.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_generators(seed, device)  # of dropout, also after a resume
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            tokens = reduce_tokens(encoder.dense_features(normalize(pixels, encoder.config.pixels)), head_input)
        value = loss(network(tokens.float()), targets, weights)
        if not value.isfinite():
            raise TrainingError(
                f"the loss of fine-tuning is {value.item()}, expected a finite number; lower --finetune-lr"
            )
        value.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()


def _loader(
    context: FitContext,
    recipe: FinetuneRecipe,
    clips: Sequence[TrainingClip],
    batches: Sequence[Sequence[tuple[int, int]]],
) -> Iterable[list[Tensor]]:
    """Pixels, targets and weights of each step."""
    config, head_input, sizes = context.config, context.head_input, context.model.config
    size = sizes.clip_bytes(head_input.frames, head_input.image_size) * max(map(len, batches), default=0)
    prefetch = prefetch_within(config.prefetch_mb, "the clips of a step", size, config.workers)
    if prefetch.note and batches:
        warn_user(prefetch.note)
    dataset = AugmentedClips(clips, head_input, recipe, config.seed, prefetch.workers, sizes.pixels)
    return WorkerLoader(
        dataset,
        prefetch.workers if batches else 0,
        status=dataset.status,
        item_bytes=size,
        prefetch=prefetch.factor,
        batch_sampler=batches,
        pin_memory=context.model.device.type == "cuda",
    )


def _recompute(context: FitContext, recipe: FinetuneRecipe, batch_size: int) -> bool:
    """Whether activations are recomputed: as set, or where they would take more than half of the free memory."""
    if context.config.activation_checkpointing is not None:
        return context.config.activation_checkpointing
    device = context.model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return activation_bytes(context.model, context.head_input, batch_size) > free / 2


def activation_bytes(model: Backbone, head_input: HeadInput, batch_size: int) -> int:
    """Estimated bytes of the activations that the backward pass of an encoder needs.

    Args:
        model: the encoder.
        head_input: the clips.
        batch_size: B.
    """
    config, size = model.config, head_input.image_size
    values = batch_size * config.grid(head_input.frames, size, size).tokens * config.width * config.depth
    return _SAVED_PER_TOKEN * values * fast_training_dtype(config.width, model.device).itemsize


def _identity(context: FitContext, recipe: FinetuneRecipe, network: nn.Module, clips: Sequence[TrainingClip]) -> str:
    """As JSON, everything that would change the outcome."""
    files: Mapping[Path, str] = {clip.path: _version(clip.path) for clip in clips}
    return json.dumps(
        {
            "encoder": context.model.weights_id,
            "task": context.task,
            "recipe": dataclasses.asdict(recipe),
            "input": dataclasses.asdict(context.head_input),
            "seed": context.config.seed,
            "network": tensor_digest(*network.state_dict().values()),
            "clips": [[str(c.path), files[c.path], c.start_s, c.end_s, c.number, c.weight] for c in clips],
            "targets": tensor_digest(torch.stack([clip.target for clip in clips])),
        },
        sort_keys=True,
    )


def _version(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"
