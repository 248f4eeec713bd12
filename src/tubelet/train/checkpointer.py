"""Checkpoints of a run, written in the background from a copy of the state, while training goes on.

Rank 0 writes the checkpoints of a replicated model; of a sharded model, each rank writes its shards.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from tubelet.checkpoint.adapters import save_adapters
from tubelet.checkpoint.run import (
    FIRST_CHECKPOINT_S,
    KEEPS_OLDER,
    copy_to_host,
    make_header,
    prepare_directory,
    prune_checkpoints,
    save_checkpoint,
    training_state,
)
from tubelet.config import TrainConfig
from tubelet.errors import FileError, TrainingError, TubeletError, first_line
from tubelet.io.files import file_errors
from tubelet.model.lora import get_adapters
from tubelet.train.distributed import DistContext
from tubelet.train.run_directory import RunDirectory
from tubelet.train.sharding import all_finite
from tubelet.vjepa import VJEPA


class PendingCheckpoint(NamedTuple):
    """A checkpoint that is being written.

    Attributes:
        path: path of the checkpoint.
        future: future that is done when the checkpoint is complete; None on a rank that does not write.
    """

    path: Path
    future: Future[Any] | None

    def error(self) -> TubeletError | None:
        """Wait for the write to end; returns its error, or None if it succeeded.

        A `FileError`, such as that of a full disk, may be temporary: the next checkpoint is another attempt. Any other
        error would recur.
        """
        if self.future is None or (error := self.future.exception()) is None:
            return None
        if not isinstance(error, TubeletError):
            from tubelet.checkpoint.dcp import root_cause

            error = root_cause(error)
        try:
            with file_errors(self.path, KEEPS_OLDER, also=(SafetensorError, MemoryError)):
                raise error if isinstance(error, Exception) else RuntimeError(str(error))
        except TubeletError as failure:
            return failure
        except Exception as unknown:
            reason = f"{type(unknown).__name__}: {first_line(unknown)}"
            return TrainingError(f"{self.path}: cannot be written ({reason}); the run stops, {KEEPS_OLDER}")


class Checkpointer:
    """Writes the checkpoints of a run, one at a time.

    All methods except `poll`, `fatal_error` and `close` are collective: every rank must call them.

    Attributes:
        newest: newest checkpoint on the disk, or None.
        saved: optimizer steps of the newest checkpoint that is on the disk or being written.
    """

    def __init__(
        self, run: RunDirectory, start: int, config: TrainConfig, model: VJEPA, optimizer: Optimizer, ctx: DistContext
    ) -> None:
        """Start without a pending checkpoint.

        Args:
            run: the run directory.
            start: number of steps done before.
            config: settings of the run.
            model: model to save.
            optimizer: optimizer whose moments are saved.
            ctx: the processes of the run.
        """
        self.run, self.config, self.model, self.optimizer, self.ctx = run.path, config, model, optimizer, ctx
        self.group = dist.new_group(backend="gloo") if ctx.sharded else None
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.copy_event: torch.cuda.Event | None = (
            None  # after the copy of the state, until the next update waits for it
        )
        self.copy_stream = torch.cuda.Stream() if ctx.device.type == "cuda" and not ctx.sharded else None
        self.update_hook = optimizer.register_step_pre_hook(self._before_update) if self.copy_stream else None
        self.pending: PendingCheckpoint | None = None
        self.reported = False  # whether `poll` has reported the failure of the pending checkpoint
        self.newest = run.checkpoint
        self.saved = start
        self.previously_saved = start  # `saved` before the pending checkpoint
        self.start_time = time.monotonic()

    def is_overdue(self) -> bool:
        """Whether the run has trained for `FIRST_CHECKPOINT_S` without a checkpoint, by the clock of this process."""
        return self.newest is None and time.monotonic() - self.start_time > FIRST_CHECKPOINT_S

    def is_due(self, step: int) -> bool:
        """Whether the config schedules a checkpoint after `step` steps."""
        every = filter(None, (self.config.checkpoint_every, self.config.keep_every))
        return step == self.config.steps or any(step % n == 0 for n in every)

    def save(self, step: int, required: bool = False) -> str | None:
        """Copy the state after `step` steps and write the copy in the background.

        The first checkpoint of a run is written before this returns, so that a run that cannot save ends at once. A
        previous checkpoint that is still being written is awaited: there is never more than one copy.

        Args:
            step: optimizer steps done.
            required: whether the run cannot continue without it; if so, this returns when it is on the disk.

        Returns:
            why the previous checkpoint could not be written (a full disk, for instance), unless `poll` has reported
            it; None if it was written. Older checkpoints are untouched.

        Raises:
            TubeletError: if the checkpoint cannot be written and is required, or there is no older one; or if the
                state is not finite.
        """
        self._require_finite(step)
        problem = self.wait()
        self.previously_saved, self.saved = self.saved, step
        try:
            self._start(step)
        except TubeletError as error:
            self.saved = self.previously_saved
            if required or self.newest is None:
                raise
            return "; ".join(filter(None, (problem, str(error))))
        if required or self.newest is None:
            self.wait(required=True)
        return problem

    def poll(self) -> str | None:
        """Why the pending checkpoint could not be written, without waiting; reported once.

        Other ranks may not know yet, so only log messages of rank 0 may depend on it. Errors that end the run are left
        to `fatal_error`.
        """
        error = None if self.reported else self._error_so_far()
        if not isinstance(error, FileError):
            return None
        self.reported = True
        return str(error)

    def fatal_error(self) -> str | None:
        """Why the run cannot continue: the pending checkpoint failed, and the next one would too; without waiting.

        Other ranks may not know yet. Once `sync_step_status` has shared it, `wait` raises the error on all of them.
        """
        error = self._error_so_far()
        return None if error is None or isinstance(error, FileError) else str(error)

    def _error_so_far(self) -> TubeletError | None:
        if self.pending is None or self.pending.future is None or not self.pending.future.done():
            return None
        return self.pending.error()

    def wait(self, required: bool = False) -> str | None:
        """Wait until the pending checkpoint, if there is one, is on the disk.

        Args:
            required: whether the run cannot continue without it.

        Returns:
            why it could not be written, unless `poll` has reported that; older checkpoints are untouched.

        Raises:
            TubeletError: if it could not be written and is required, there is no older one, or the next one would fail
                too.
        """
        if self.pending is None:
            return None
        path, reported = self.pending.path, self.reported
        try:
            if self.group is None:
                self.ctx.run_on_rank0(self._require_written)
            else:
                self._require_written()
        except TubeletError as error:
            self.saved = self.previously_saved
            if required or self.newest is None or not isinstance(error, FileError):
                raise
            return None if reported else str(error)
        finally:
            self.pending, self.reported = None, False
        self.newest = path
        return None

    def close(self) -> None:
        """Wait for the writer thread without raising its errors, so that a failed run leaves no partial checkpoint."""
        self.writer.shutdown(wait=True)
        if self.update_hook is not None:
            self.update_hook.remove()

    def _require_written(self) -> None:
        if self.pending and (error := self.pending.error()):
            raise error

    def _start(self, step: int) -> None:
        if self.group is None:
            path = self.run / "checkpoints" / f"step-{step:09d}.safetensors"
            self.pending = PendingCheckpoint(path, self._start_full(step) if self.ctx.is_rank0 else None)
            return
        from tubelet.checkpoint.dcp import async_save

        path = self.run / "checkpoints" / f"step-{step:09d}"
        self.ctx.run_on_rank0(partial(prepare_directory, self.run))
        state = training_state(self.model, self.optimizer)
        finished = partial(prune_checkpoints, self.run, self.config.keep_checkpoints, self.config.keep_every)
        written = async_save(state, path, make_header(step, self.config), self.group, finished)
        self.pending = PendingCheckpoint(path, written)

    def _require_finite(self, step: int) -> None:
        non_finite = (~all_finite(list(training_state(self.model, self.optimizer).values()))).float()
        self.ctx.all_reduce(non_finite)
        if non_finite.item():
            raise TrainingError(
                f"weights or moments are not finite after step {step}, so that no checkpoint is written and the run "
                "stops: lower the learning rate (--lr) and continue from the checkpoint before with --resume"
            )

    def _start_full(self, step: int) -> Future[Any]:
        """Copy the state and write the copy in the background; errors of both are in the future."""
        try:
            with self._copying():
                state = copy_to_host(training_state(self.model, self.optimizer))
                adapters = copy_to_host(get_adapters(self.model.teacher)) if self.config.lora_rank else {}
        except MemoryError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        return self.writer.submit(self._write_full, step, state, adapters, self.copy_event)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        """On CUDA, copies queued in this context overlap with the next step, up to its optimizer step."""
        if self.copy_stream is None:
            yield
            return
        self.copy_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.copy_stream):
            yield
            self.copy_event = torch.cuda.Event()
            self.copy_event.record()

    def _before_update(self, *_: Any) -> None:
        """Wait for the copy of the state before the optimizer changes it."""
        if self.copy_event is not None:
            torch.cuda.current_stream().wait_event(self.copy_event)
            self.copy_event = None

    def _write_full(
        self, step: int, state: Mapping[str, Tensor], adapters: Mapping[str, Tensor], copied: torch.cuda.Event | None
    ) -> None:
        if copied is not None:
            copied.synchronize()
        # Adapters first: when the checkpoint is complete, older ones are removed.
        if adapters:
            save_adapters(adapters, self.model.teacher, self.run / "adapter")
        save_checkpoint(self.run, step, state, self.config, self.config.keep_checkpoints)
