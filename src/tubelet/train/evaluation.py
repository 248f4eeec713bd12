"""Periodic evaluation of the teacher during training, and the best checkpoint according to it."""

import json
import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tubelet.checkpoint.run import BEST, BestRow, prune_checkpoints, read_best
from tubelet.config import TrainConfig
from tubelet.errors import ConfigError, FileError
from tubelet.model.encoder import Encoder
from tubelet.model.lora import merge_adapters
from tubelet.train.distributed import DistContext
from tubelet.train.run_directory import RunDirectory, write_atomically
from tubelet.vjepa import VJEPA

logger = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Computes metrics of an encoder in fp32 on the run's device."""

    @property
    def metrics(self) -> Mapping[str, bool]:
        """Name of each metric -> whether higher is better."""

    def __call__(self, encoder: Encoder) -> Mapping[str, float]:
        """The value of each metric by its name; NaN where it cannot be computed."""


class PeriodicEvaluation:
    """Evaluates the teacher on rank 0 while the others wait, and records the best checkpoint in best.json.

    A copy is evaluated: training does not depend on whether, or how often, a run is evaluated.
    """

    def __init__(
        self, config: TrainConfig, run: RunDirectory, model: VJEPA, ctx: DistContext, evaluate: Evaluator | None
    ) -> None:
        """Check the evaluator.

        Args:
            config: The run.
            run: The run directory.
            model: Student, predictor and teacher, whole or in shards.
            ctx: The processes of the run.
            evaluate: Computes the metrics.

        Raises:
            ConfigError: `eval_every` is set, and there is no evaluator or it does not compute `best_metric`.
        """
        if config.eval_every:
            if evaluate is None:
                raise ConfigError("eval_every is set, but there is nothing to evaluate with: name --eval-data")
            if config.best_metric not in evaluate.metrics:
                names = ", ".join(evaluate.metrics) or "no metric"
                raise ConfigError(f"best_metric is {config.best_metric!r}, expected one of the evaluation's: {names}")
        self.config, self.run, self.model, self.ctx, self.evaluate = config, run, model, ctx, evaluate
        self.best: BestRow | None = None
        self.candidate: BestRow | None = None  # the last evaluation, if it is better than the best

    def is_due(self, step: int) -> bool:
        """Whether the teacher is evaluated after `step` steps; a checkpoint of that step is saved too."""
        return self.config.eval_every > 0 and step % self.config.eval_every == 0

    def restore(self, step: int) -> None:
        """Forget a best checkpoint after `step`, whose steps are recomputed."""

        def read() -> BestRow | None:
            best = read_best(self.run.path)
            if best is None or best["step"] <= step:
                return best
            (self.run.path / BEST).unlink()
            return None

        self.best, self.candidate = self.ctx.run_on_rank0(read), None

    def compute(self, step: int) -> dict[str, float]:
        """Evaluate the teacher; all processes call it together.

        Args:
            step: Steps done.

        Returns:
            The metrics by their names in the rows of metrics.

        Raises:
            TubeletError: the evaluation failed.
        """
        assert self.evaluate is not None
        state = gather_state(self.model.teacher.state_dict(), keep=self.ctx.is_rank0)
        metrics = self.ctx.run_on_rank0(lambda: self._compute(state))
        name, self.candidate = self.config.best_metric, None
        value, sign = metrics[name], 1 if self.evaluate.metrics[name] else -1
        best = self.best["value"] if self.best is not None and self.best["metric"] == name else -sign * float("inf")
        if not isfinite(value):
            logger.warning("%s is %s after step %d: this checkpoint cannot be the best one", name, value, step)
        elif sign * value > sign * best:
            self.candidate = {"step": step, "metric": name, "value": value}
        return metrics

    def _compute(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        assert self.evaluate is not None
        encoder = Encoder(self.config.model)
        encoder.load_state_dict(merge_adapters(state))
        return dict(self.evaluate(encoder.to(self.ctx.device).eval().requires_grad_(False)))

    def keep_candidate(self, checkpoint: Path) -> str | None:
        """Record the checkpoint of the last evaluation as the best one, which is never pruned.

        All processes call it together.

        Returns:
            Why best.json could not be written, on all processes; the best checkpoint is then unchanged.
        """
        if (candidate := self.candidate) is None:
            return None

        def write() -> str | None:
            try:
                write_atomically(self.run.path / BEST, json.dumps(candidate | {"checkpoint": checkpoint.name}) + "\n")
            except FileError as error:
                return str(error)
            prune_checkpoints(self.run.path, self.config.keep_checkpoints, self.config.keep_every)
            return None

        if problem := self.ctx.run_on_rank0(write):
            return problem
        self.best, self.candidate = candidate, None
        logger.info("best so far: %s %.4g after step %d", self.best["metric"], self.best["value"], self.best["step"])
        return None


def gather_state(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather a state dictionary whose tensors may be sharded, on the CPU; all processes call it together.

    Args:
        state: A state dictionary.
        keep: Whether to return the tensors on this process; otherwise the result is empty.
    """
    whole = {}
    for name, tensor in state.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if keep:
            whole[name] = full.detach().to("cpu", copy=True)
    return whole
