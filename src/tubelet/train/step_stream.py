"""The data of the steps of a run, in order and from any step on, without skipped batches."""

import time
from collections.abc import Iterator
from types import TracebackType

from tubelet.config import TrainConfig
from tubelet.data.batch import StepData
from tubelet.data.loader import step_loader, step_prefetch
from tubelet.data.sources import MediaList
from tubelet.errors import TrainingError
from tubelet.train.distributed import DistContext


class StepStream:
    """Iterates over (step, data of the step); `seek` may be called at any time.

    As a context manager it explains the failure of a worker that hangs or dies, which PyTorch may raise at any moment.
    """

    def __init__(self, config: TrainConfig, media: MediaList, ctx: DistContext) -> None:
        """Store the source of the data; `seek` starts the workers.

        Args:
            config: settings of the run.
            media: files of the sources.
            ctx: the processes of the run.

        Raises:
            TubeletError: see `step_loader`.
        """
        self.config, self.media, self.ctx = config, media, ctx
        self.step = 0
        self.workers = step_prefetch(config, media, ctx.rank, ctx.world_size).workers
        self.requested_at = 0.0  # when the data of the last step were requested, by time.perf_counter

    def seek(self, step: int, skipped_batches: int) -> None:
        """Continue with the step after `step` steps.

        Args:
            step: number of steps done.
            skipped_batches: total number of batches that rewinds have skipped so far.
        """
        ctx = self.ctx
        self.step = step
        self.loader = step_loader(
            self.config, self.media, step, ctx.device.type == "cuda", ctx.rank, ctx.world_size, skipped_batches
        )
        self.batches = iter(self.loader)

    def __enter__(self) -> "StepStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error of a worker's own says "Caught ... in DataLoader worker".
        message = None
        reports = ("DataLoader timed out", "DataLoader worker")
        of_loader = isinstance(error, RuntimeError) and str(error).startswith(reports)
        if of_loader or isinstance(error, (ConnectionError, EOFError)):  # a worker that dies while it passes tensors
            message = self._explain(str(error))
        del self.batches, self.loader  # ends the workers
        if message:
            raise TrainingError(message) from error

    def __iter__(self) -> Iterator[tuple[int, StepData]]:
        return self

    def __next__(self) -> tuple[int, StepData]:
        self.requested_at = time.perf_counter()
        data = next(self.batches)
        self.step += 1
        return self.step - 1, data

    def _explain(self, error: str) -> str:
        """A message about the failed worker, with the file that it was reading."""
        status = self.loader.status
        if "timed out" in error:
            where = "".join(
                f": worker {r.worker} has been reading {r.file} for {r.seconds:.0f} s" for r in status.active()[:1]
            )
            return (
                f"the data of step {self.step + 1} did not come within {self.config.guards.data_timeout_s:g} s "
                f"(--data-timeout-s){where}; see whether that file and its disk can be read, and continue with --resume"
            )
        why = status.explain(error)
        return f"a data worker ended unexpectedly before step {self.step + 1}{why}; continue with --resume"
