"""Candidates for a head: networks with hyper-parameters, trained side by side on the same clips.

M clips, K classes or targets.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.config import FitConfig
from tubelet.config.fields import require
from tubelet.device import seed_generators
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.rounds import Round, Training
from tubelet.heads.head_file import get_network, network_names
from tubelet.heads.training import EpochBatches, HeadSchedule, HParams, train_heads
from tubelet.heads.training_state import state_path

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits (B, ..., K), targets (B, ..., K) and weights (B, ...), their mean."""
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor, Tensor]]]
"""Tokens, targets and weights of each step, from a step on."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network with hyper-parameters.

    Attributes:
        network: name of the network.
        options: its keyword arguments besides width and classes.
        hparams: learning rate and weight decay; None for a network that is not trained.
        steps: number of steps.
        batch_size: clips of a step.
    """

    network: str
    options: dict[str, Any]
    hparams: HParams | None
    steps: int = 0
    batch_size: int = 1

    def describe(self) -> dict[str, Any]:
        """Its settings, for tables."""
        rates = {} if self.hparams is None else dataclasses.asdict(self.hparams)
        return {"network": self.network, **self.options, **rates}

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.describe().items())


def check_networks(task: str, networks: Sequence[str]) -> None:
    """Reject networks that a task cannot use.

    Raises:
        ConfigError: for a network that does not exist, or is for other tasks; names those of the task.
    """
    for name in networks:
        tasks = get_network(name).tasks
        usable = ", ".join(other for other in network_names() if task in get_network(other).tasks)
        problem = f"has {name}, which is for {', '.join(tasks)}, not for {task}; networks for {task}: {usable}"
        require(task in tasks, "networks", problem)


def candidates(task: str, networks: Sequence[str], config: FitConfig, samples: int) -> list[Candidate]:
    """Every network with every combination of its hyper-parameters.

    Args:
        task: name of the task.
        networks: names of networks.
        config: the user's settings, which win over the recipes.
        samples: number of training clips, or of sequences of time steps.

    Raises:
        ConfigError: for a network that does not exist, or is for other tasks.
    """
    check_networks(task, networks)
    grid = []
    for name in networks:
        recipe = get_network(name).recipe
        if recipe is None:
            if config.finetune == "none":  # an encoder is trained through a network with gradients
                grid.append(Candidate(network=name, options={}, hparams=None))
            continue
        options = recipe.options | ({"causal": True} if config.causal and task == "timeline" else {})
        batch_size = min(config.batch_size or recipe.batch_size, samples)
        per_epoch = -(-samples // batch_size)
        steps = per_epoch * config.epochs if config.epochs else max(recipe.least_steps, per_epoch * recipe.epochs)
        for rate in config.learning_rates or recipe.learning_rates:
            grid += [
                Candidate(
                    network=name,
                    options=options,
                    hparams=HParams(lr=rate, weight_decay=decay),
                    steps=steps,
                    batch_size=batch_size,
                )
                for decay in config.weight_decays or recipe.weight_decays
            ]
    require(
        bool(grid),
        "networks",
        f"is {' '.join(networks)}, not trained by gradients, which finetune {config.finetune} needs; add linear",
    )
    return grid


def _side_by_side(chosen: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that are trained together: those of one network."""
    return [list(same) for _, same in itertools.groupby(chosen, lambda each: (each.network, each.options))]


def training_of(same: Sequence[Candidate]) -> Training:
    """The training of candidates of one network, for `Rounds`."""
    return Training(same[0].network, len(same), same[0].steps)


def plan_rounds(chosen: Sequence[Candidate], either: bool = False, small: bool = False) -> list[Round]:
    """The trainings of candidates.

    Args:
        chosen: the candidates.
        either: whether only one of them will be trained.
        small: whether they are trained on other features than the head, of one channel.
    """
    trained = [same for same in _side_by_side(chosen) if same[0].hparams is not None]
    if either:
        return [tuple(training_of(same[:1]) for same in trained)] if trained else []
    trainings = [training_of(same) for same in trained]
    return [(each._replace(network="") if small else each,) for each in trainings]


def train_candidates(
    context: FitContext,
    chosen: Sequence[Candidate],
    make: Callable[[Candidate], nn.Module],
    batches: Callable[[Candidate, int], Iterator[tuple[Tensor, Tensor, Tensor]]],
    loss: Loss,
    identity: object,
) -> list[nn.Module]:
    """Train candidates; those of one network side by side on the same batches.

    Args:
        context: the fit.
        chosen: the candidates, those of one network next to each other.
        make: returns the network of a candidate with random weights, and what is not trained filled in.
        batches: tokens, targets and weights of each step of a candidate, from a step on.
        loss: of logits, targets and weights.
        identity: everything besides the candidates that would change the outcome, ready for JSON.

    Returns:
        The trained networks, in eval mode and in the order of the candidates.
    """
    trained: list[nn.Module] = []
    device = context.model.device
    for same in _side_by_side(chosen):
        one = same[0]
        if one.hparams is None:
            trained.append(make(one).to(device).requires_grad_(False).eval())
            continue

        def backward(heads: nn.ModuleList, batch: tuple[Tensor, Tensor, Tensor], step: int) -> None:
            tokens, targets, weights = (part.to(device, non_blocking=True) for part in batch)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                for head in heads:
                    seed_generators(context.config.seed * 1_000_003 + step, device)  # of dropout, also after a resume
                    loss(head(tokens.float()), targets, weights).backward()

        context.rounds.begin(training_of(same))
        settings = [dataclasses.asdict(candidate) for candidate in same]
        heads = train_heads(
            partial(make, one),
            [candidate.hparams for candidate in same if candidate.hparams is not None],
            HeadSchedule(steps=one.steps, warmup_steps=one.steps // 10),
            partial(batches, one),
            backward,
            state_path(
                context.cache.folder / "heads",
                json.dumps([context.task, settings, context.config.seed, identity], sort_keys=True),
            ),
            device,
            seed=context.config.seed,
            clip_norm=1.0,
            progress=context.in_round(f"network {one.network}").progress,
        )
        trained += list(heads)
    return trained


def clip_batches(
    tokens: Tensor, targets: Tensor, weights: Tensor, seed: int, candidate: Candidate, start: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of clips in an order that depends on the seed, from a step on.

    Args:
        tokens: (M, T, S, D).
        targets: (M, K).
        weights: (M,).
        seed: seed of the order.
        candidate: gives the number of steps and of clips of a step.
        start: the first step.
    """
    per_epoch = -(-len(tokens) // candidate.batch_size)
    order = EpochBatches(len(tokens), candidate.batch_size, seed, -(-candidate.steps // per_epoch), start)
    for _, rows in zip(range(start, candidate.steps), order, strict=False):
        yield tokens[rows], targets[rows], weights[rows]


def tensor_digest(*tensors: Tensor) -> str:
    """Thirty-two hexadecimal digits of the values of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters or buffers."""
    return next(iter(network.state_dict().values())).device
