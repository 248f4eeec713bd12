"""Checkpoints of a run: by the first process at once, or, where the model is sharded, by all in the background."""

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch.optim import Optimizer

from tubelet.checkpoint import header_of, keep_newest, make_room, save_checkpoint, state_tensors
from tubelet.config import TrainConfig
from tubelet.files import describe_os_error
from tubelet.model.lora import save_adapters
from tubelet.train.parallel import World
from tubelet.train.sharding import all_finite
from tubelet.train.state import RunFolder
from tubelet.types import TubeletError
from tubelet.vjepa import VJEPA


class Saver:
    """Writes a run's checkpoints; all processes call it together."""

    def __init__(
        self, run: RunFolder, start: int, config: TrainConfig, model: VJEPA, optimizer: Optimizer, world: World
    ) -> None:
        """Args:
        run: the run's folder.
        start: steps done before.
        config: the run.
        model: what is saved.
        optimizer: with its moments.
        world: the run's processes.
        """
        self.run, self.config, self.model, self.optimizer, self.world = run.path, config, model, optimizer, world
        self.group = dist.new_group(backend="gloo") if world.sharded else None
        self.pending: tuple[Path, Future[Any]] | None = None
        self.newest = run.checkpoint  # that is on the disk
        self.saved = start  # steps done when the last was begun

    def save(self, step: int, must: bool = False) -> str | None:
        """Write the state after `step` steps; of a sharded run, only a copy of it is made before this returns.

        Args:
            step: optimiser steps done.
            must: whether a run cannot go on without it.

        Returns:
            why this checkpoint, or in a sharded run the one before it, could not be written, if so: the disk is full,
            for instance. Older ones are untouched, and there is one.

        Raises:
            TubeletError: if it cannot be written and must be, or there is no older one; or if it must not be written,
                since what it would hold is not finite.
        """
        self._require_finite(step)
        said = self.settle()
        try:
            self._begin(step)
        except TubeletError as error:
            if must or self.newest is None:
                raise
            return str(error)
        self.saved = step
        if must:
            self.finish()
        return said

    def settle(self) -> str | None:
        """Wait until what is being written is there; returns why not, where an older checkpoint is.

        Raises:
            TubeletError: why not, where none is.
        """
        try:
            self.finish()
        except TubeletError as error:
            if self.newest is None:
                raise
            return str(error)
        return None

    def finish(self) -> None:
        """Wait until what is being written is there.

        Raises:
            TubeletError: if it cannot be written; older checkpoints are untouched.
        """
        if self.pending is None:
            return
        from tubelet.resharding import what_failed

        path, written = self.pending
        self.pending = None
        if error := written.exception():
            cause = what_failed(error)
            reason = describe_os_error(cause if isinstance(cause, Exception) else error)  # type: ignore[arg-type]
            raise TubeletError(f"{path}: the checkpoint could not be written: {reason}") from error
        self.newest = path

    def _begin(self, step: int) -> None:
        if self.group is None:
            self.newest = self.world.on_first(partial(self._save_whole, step))
            return
        from tubelet.resharding import begin_writing

        path = self.run / "checkpoints" / f"step-{step:09d}"
        self.world.on_first(partial(self._make_room, path))
        state = state_tensors(self.model, self.optimizer)
        finished = partial(keep_newest, self.run, self.config.keep_checkpoints)
        self.pending = path, begin_writing(state, path, header_of(step, self.config), self.group, finished)

    def _make_room(self, path: Path) -> None:
        try:
            make_room(self.run)
        except OSError as error:
            raise TubeletError(f"{path}: the checkpoint could not be written: {describe_os_error(error)}") from error

    def _require_finite(self, step: int) -> None:
        wrong = (~all_finite(list(state_tensors(self.model, self.optimizer).values()))).float()
        self.world.sum(wrong)
        if wrong.item():
            raise TubeletError(
                f"weights or moments are not finite after step {step}, so that no checkpoint is written and the run "
                "stops: lower the learning rate (--lr) and continue from the checkpoint before with --resume"
            )

    def _save_whole(self, step: int) -> Path:
        # Adapters first: a checkpoint that was written counts as such, and older ones go when it is there.
        if self.config.lora_rank:
            try:
                save_adapters(self.model.teacher, self.run / "adapter")
            except (OSError, SafetensorError) as error:
                raise TubeletError(f"{self.run / 'adapter'}: cannot be written: {describe_os_error(error)}") from error
        return save_checkpoint(self.run, step, self.model, self.optimizer, self.config, self.config.keep_checkpoints)
